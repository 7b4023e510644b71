"""Google's program ``colab``, as google-colab-cli documents it: new, upload, exec, stop, sessions.

Its machine is the folder COLAB_ROOT, which stands for /content. Like the real one it does not tell
by its exit code how a script ended.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT, ACCOUNT = Path(os.environ["COLAB_ROOT"]), Path(os.environ["COLAB_FAKE"])
SESSIONS = ACCOUNT / "sessions"


def named(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def main(words: list[str]) -> int:
    SESSIONS.mkdir(exist_ok=True)
    with (ACCOUNT / "calls").open("a") as file:
        file.write(json.dumps([*words, sorted(os.environ)]) + "\n")
    verb = words[0]
    if verb == "sessions":
        names = sorted(each.name for each in SESSIONS.iterdir())
        print("\n".join(f"[{name}] m-s-{name} | Hardware: T4 | Variant: GPU" for name in names))
        if not names:
            print("[colab] No active sessions found on server.")
        return 0
    session = SESSIONS / named(words, "-s")
    if verb == "new":
        session.touch()
        print("[colab] Session READY.")
        return 1 if (ACCOUNT / "breaks").exists() else 0
    if verb == "stop":
        tired = ACCOUNT / "tired"  # it says that it has stopped it, and has not
        if not tired.exists():
            session.unlink(missing_ok=True)
        tired.unlink(missing_ok=True)
        return 0
    if not session.exists():
        print(f"[colab] Session '{session.name}' not found.")
        return 1
    if verb == "upload":
        if not os.path.isfile(words[3]):
            return 1
        shutil.copyfile(words[3], ROOT / words[4].removeprefix("content/"))
        return 0
    assert verb == "exec"
    script = Path(named(words, "-f")).read_text().replace("/content", str(ROOT))
    (ACCOUNT / "script.py").write_text(script)
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "COLAB_ROOT"))}
    subprocess.run([sys.executable, "-"], input=script, text=True, cwd=ROOT, env=plain)
    return 0


sys.exit(main(sys.argv[1:]))
