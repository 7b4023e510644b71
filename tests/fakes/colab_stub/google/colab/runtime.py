from google.colab import asked


def unassign() -> None:
    asked("unassign")
