"""The log of a container, from an engine that breaks it off as real ones are seen to do."""

import io

import pytest
import requests

from launchers.local import attend
from launchers.local.attend import Log

pytest.importorskip("docker", reason="the Docker SDK is not installed: .[docker]")
SAID = [b"one\n", b"two\n", b"the end"]


class Engine:
    """Each answer to a request for the log is how many pieces it brings, and how it breaks off."""

    def __init__(self, *answers: int | tuple[int, Exception], runs: int) -> None:
        self.api, self.answers, self.runs = self, list(answers), runs

    def logs(self, name: str, stream: bool, follow: bool):
        assert name == "here" and stream
        answer = self.answers.pop(0)
        count, error = answer if isinstance(answer, tuple) else (answer, None)
        yield from SAID[:count]
        if error:
            raise error

    def inspect_container(self, name: str):
        self.runs -= 1
        return {"State": {"Running": self.runs >= 0}}


@pytest.mark.parametrize(
    "answers, runs",
    [
        ((2, 3), 0),  # dockerd 20.10 under load: one of fifteen whose last line has no end
        ((1, 2, 3), 1),
        (((1, requests.ConnectionError("gone")), 2, 3), 0),
        ((2, (2, requests.ConnectionError("gone")), 3, 3), 0),
    ],
    ids=["short", "restarted", "broken", "broken at the end"],
)
def test_every_byte_is_shown_once_though_the_stream_ends_before_the_log(answers, runs, monkeypatch):
    monkeypatch.setattr(attend, "_PAUSE", 0)
    engine, out = Engine(*answers, runs=runs), io.BytesIO()
    Log(engine, "here", out).follow()
    assert out.getvalue() == b"".join(SAID)
    assert engine.answers == []
