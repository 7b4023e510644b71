import json

from google.colab import ACCOUNT, asked


class SecretNotFoundError(Exception):
    pass


class NotebookAccessError(Exception):
    pass


class TimeoutException(Exception):
    pass


def get(name: str) -> str:
    asked(f"secret {name}")
    file = ACCOUNT / "secrets.json"
    secrets = json.loads(file.read_text()) if file.exists() else {}
    if name not in secrets:
        raise SecretNotFoundError(name)
    if secrets[name] is None:
        raise NotebookAccessError(name)
    if secrets[name] == "slow":
        raise TimeoutException(name)
    return secrets[name]
