"""The log of a container, from an engine that breaks it off as real ones are seen to do."""

import io

import pytest
import requests

from launchers.local import attend
from launchers.local.attend import Log

docker = pytest.importorskip("docker", reason="the Docker SDK is not installed: .[docker]")
SAID = [b"one\n", b"two\n", b"the end"]


class Engine:
    """Each answer to a request for the log is how many pieces it brings, and how it breaks off."""

    def __init__(self, *answers: int | tuple[int, Exception], runs: int, removed: str = "") -> None:
        self.api, self.answers, self.runs, self.removed = self, list(answers), runs, removed

    def logs(self, name: str, stream: bool, follow: bool):
        assert name == "here" and stream
        answer = self.answers.pop(0)
        count, error = answer if isinstance(answer, tuple) else (answer, None)
        yield from SAID[:count]
        if error:
            raise error

    def inspect_container(self, name: str):
        if self.removed == "before":
            raise gone(404)
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


def gone(code: int) -> docker.errors.APIError:
    response = requests.Response()
    response.status_code = code
    return docker.errors.APIError("dead or marked for removal", response)


@pytest.mark.parametrize("removed", ["before", "after"])
def test_whoever_stops_a_container_may_remove_it_with_its_log(removed):
    """What was shown until then is all there is; nothing of it is an error."""
    engine, out = Engine(3, (0, gone(409)), runs=0, removed=removed), io.BytesIO()
    Log(engine, "here", out).follow()
    assert out.getvalue() == b"".join(SAID)


def test_a_container_that_never_was_is_an_error():
    with pytest.raises(docker.errors.APIError):
        Log(Engine((0, gone(404)), runs=0), "here", io.BytesIO()).follow()
