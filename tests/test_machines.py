"""One run on several machines, through S3: going on elsewhere, and what goes wrong on the way."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from commands import TOY, TOY_RECIPE, pipeline, start
from pipelines import digests, write_corpus
from servers import Answer, forwarded, s3_environment, web

from pipeline import recipe, ui
from pipeline.engine import beat, courier, log, work
from pipeline.engine.engine import Engine
from pipeline.store.places import open_store
from pipeline.store.storage import blob_name

STEPS = ("--set", "train.steps=400", "--set", "train.eval_every=100")
SLOW = (*TOY, *STEPS)  # long enough to be interrupted


@pytest.fixture
def s3(endpoint, monkeypatch, tmp_path):
    for name, value in s3_environment(endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))
    return f"s3://runs/{tmp_path.name}"


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The text of the slow run, and what it gives when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    text = write_corpus(folder / "text.txt", words=4000)
    told = pipeline("run", "--store", folder / "store", "--data", text, *SLOW)
    assert told.code == 0, told.err
    return text, digests(engine_on(folder / "store", text))


def engine_on(store: object, text: Path, steps: tuple[str, ...] = STEPS) -> Engine:
    words = [*TOY_RECIPE, *steps]
    chosen = recipe.load("tiny", data=str(text), settings=tuple(words[1::2]))
    return Engine(open_store(str(store)), chosen)


def until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)


def train_log(engine: Engine) -> log.State | None:
    return next(item.state for item in engine.plan() if item.stage.name == "train")


def checkpointed(engine: Engine) -> bool:
    state = train_log(engine)
    return state is not None and bool(state.checkpoints)


def cached(folder: Path) -> set[str]:
    """The blobs in the caches below a folder."""
    return {path.name for path in folder.glob("*/blob/*/*")}


def test_a_machine_with_nothing_but_the_address_goes_on(s3, expected, tmp_path, monkeypatch):
    original, wanted = expected
    text = Path(shutil.copy(original, tmp_path / "text.txt"))
    process = start("run", "--store", s3, "--data", text, *SLOW)
    until(lambda: checkpointed(engine_on(s3, text)))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert re.search(r"stopped: checkpoint written at step \d+. Go on with: pipeline run", err)
    reached = train_log(engine_on(s3, text)).checkpoints[-1].body["step"]
    assert 0 < reached < 400

    text.unlink()  # it was on the first machine only
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "elsewhere"))
    process = start("run", "--store", s3, *TOY[len(TOY_RECIPE) :], cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"train: find the weights, going on from step {reached:,}" in out
    engine = engine_on(s3, text)
    fetched = cached(tmp_path / "elsewhere")
    plan = {item.stage.name: item for item in engine.plan()}
    files = plan["prepare"].result.body["files"]
    assert files["train.text"]["digest"] not in fetched  # encoded long ago: nobody needs it
    assert plan["encode"].result.body["files"]["train.tokens"]["digest"] in fetched
    assert digests(engine) == {**wanted}
    told = pipeline("run", "--store", s3)
    assert told.code == 0 and "nothing to do" in told.out


def test_a_machine_that_dies_without_a_word_is_succeeded(s3, expected, tmp_path, monkeypatch):
    """Killed, its disk gone: another waits until the beat has stood still, and goes on."""
    text, wanted = expected
    process = start("run", "--store", s3, "--data", text, *SLOW)
    engine = engine_on(s3, text)
    until(lambda: checkpointed(engine))
    process.kill()
    process.communicate()
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(beat, "REMOTE_DEAD_AFTER", 1.0)
    monkeypatch.setattr(beat, "machine_id", lambda: "another")
    told = pipeline("run", "--store", s3, "--data", text, *SLOW)
    assert told.code == 0, told.err
    assert "works on it since" in told.out and "going on from step" in told.out
    assert digests(engine_on(s3, text)) == wanted


def refusal(code: str, message: str, status: int = 403) -> Answer:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, {"Content-Type": "application/xml"}, body.encode())


def test_credentials_that_expire_in_the_middle(s3, endpoint, expected, tmp_path, monkeypatch):
    text, wanted = expected
    expired = threading.Event()

    def answer(request):
        if expired.is_set():
            return refusal("ExpiredToken", "The provided token has expired.", 400)
        return forwarded(request, endpoint)

    with web(answer) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
        process = start("run", "--store", s3, "--data", text, *SLOW)
        direct = engine_on(s3, text)
        until(lambda: checkpointed(direct))
        sent = train_log(direct).checkpoints[-1].body["step"]
        expired.set()
        out, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "token has expired" in err and "AWS_PROFILE" in err and "same command goes on" in err
    assert "Traceback" not in err + out and "testing" not in err + out
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setattr(beat, "REMOTE_DEAD_AFTER", 1.0)
    told = pipeline("run", "--store", s3, "--data", text, *SLOW)
    assert told.code == 0, told.err
    resumed = int(re.search(r"going on from step (\d+)", told.out)[1])
    assert resumed >= sent
    assert digests(engine_on(s3, text)) == wanted


def test_a_store_that_is_away_for_a_while_costs_a_warning(s3, endpoint, expected, monkeypatch):
    text, wanted = expected
    monkeypatch.setattr(work, "_ONE_TRY", 0.3)
    monkeypatch.setattr(courier, "_RETRY", 0.2)
    away = threading.Event()

    def goes_and_comes_back() -> None:
        direct = engine_on(s3, text)
        until(lambda: checkpointed(direct))
        away.set()
        time.sleep(4)
        away.clear()

    with web(lambda request: None if away.is_set() else forwarded(request, endpoint)) as proxy:
        watcher = threading.Thread(target=goes_and_comes_back)
        watcher.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
        told = pipeline("run", "--store", s3, "--data", text, *SLOW)
        watcher.join()
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert told.code == 0, told.err
    assert len(re.findall(r"cannot be reached.*Trying again|Training goes on", told.out)) >= 1
    assert digests(engine_on(s3, text)) == wanted


@pytest.mark.parametrize("verb", ["run", "status"])
def test_a_bucket_that_is_not_there(s3, expected, verb):
    told = pipeline(verb, "--store", "s3://nobody-has-this/run", "--data", expected[0])
    assert told.code == 1
    assert "the bucket, container or repository does not exist" in told.err
    assert "create it, or mend the URL" in told.err


def test_credentials_that_are_wrong(s3, expected, monkeypatch):
    def answer(_):
        return refusal("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist")

    with web(answer) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        told = pipeline("run", "--store", s3, "--data", expected[0], *TOY)
    assert told.code == 1
    assert "Access Key Id" in told.err and "`aws configure`" in told.err


def test_a_clock_that_is_set_back_an_hour(tmp_path, expected, monkeypatch):
    """No decision rests on a wall clock: not who lives, not what is newer, not what is kept."""
    text, wanted = expected
    now = time.time
    store = tmp_path / "store"
    told = pipeline("run", "encode", "--store", store, "--data", text, *SLOW)
    assert told.code == 0, told.err
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    monkeypatch.setattr(time, "time_ns", lambda: int((now() - 3600) * 1e9))
    for path in [*store.rglob("*")]:
        os.utime(path, (now() + 3600, now() + 3600))
    told = pipeline("run", "--store", store, "--data", text, *SLOW)
    assert told.code == 0, told.err
    assert pipeline("status", "--store", store).code == 0
    assert digests(engine_on(store, text)) == wanted


@pytest.fixture
def small_cache(tmp_path):
    """A disk of 1 MiB for the cache."""
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root can mount a disk to fill")
    place = tmp_path / "cache"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if (mounted := subprocess.run(mount, capture_output=True, text=True)).returncode:
        pytest.skip(f"cannot mount a disk here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_in_front_of_the_store(s3, small_cache, expected, tmp_path, monkeypatch):
    text, _ = expected
    filler = os.open(small_cache / "full", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(filler, bytes(1 << 12))
    os.close(filler)
    told = pipeline("run", "--store", s3, "--data", text, *SLOW)
    assert told.code == 1 and "no space left" in told.err
    (small_cache / "full").unlink()
    told = pipeline("run", "encode", "--store", s3, "--data", text, *SLOW)
    assert told.code == 0, told.err


def test_whoever_follows_takes_over_before_the_first_progress(s3, expected, tmp_path, monkeypatch):
    """The owner dies with a beat that says nothing; what its successor fetches can be counted."""
    text, _ = expected
    told = pipeline("run", "encode", "--store", s3, "--data", text, *TOY)
    assert told.code == 0, told.err
    store = open_store(s3)
    plan = engine_on(s3, text, ()).plan()
    key = next(item.key for item in plan if item.stage.name == "train")
    dead = beat.Beat(store, key)
    dead._write()
    log.Claim.take(store, key, log.read(store, key), dead.owner, {})
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(beat, "REMOTE_DEAD_AFTER", 1.0)
    monkeypatch.setattr(ui, "_PLAIN_EVERY", 0.0)
    told = pipeline("run", "--store", s3, "--data", text, *TOY)
    assert told.code == 0, told.err
    assert f"train: {dead.owner} works on it since" in told.out and "doing fetching" in told.out


def lost(engine: Engine, stage: str) -> list[str]:
    """Let the store lose the files of a result; their digests."""
    result = next(item.result for item in engine.plan() if item.stage.name == stage)
    for blob in result.digests:
        engine.store.records.remove(blob_name(blob))
    return list(result.digests)


def test_what_the_store_lost_is_sent_again_from_the_cache(s3, expected, tmp_path):
    words = ("run", "--store", s3, "--data", expected[0], *TOY)
    assert pipeline(*words).code == 0
    engine = engine_on(s3, expected[0], ())
    whole, gone = digests(engine), lost(engine, "train")
    told = pipeline(*words)
    assert told.code == 0 and "nothing to do" in told.out, told.err
    count = len(gone)
    assert f"train: {count} files of its result are missing from {s3}; {count} of them" in told.out
    assert "retire" not in [entry.kind for entry in train_log(engine).entries]

    gone = lost(engine, "train")  # and a copy that is rotten does not go
    rotten = next((tmp_path / "cache").glob(f"*/{blob_name(gone[0])}"))
    rotten.chmod(0o644)
    rotten.write_bytes(b"rotten" * 100)
    told = pipeline(*words)
    assert told.code == 0 and "train: find the weights" in told.out, told.err
    assert f"; {count - 1} of them are sent again" in told.out
    assert [entry.kind for entry in train_log(engine).entries].count("retire") == 1
    assert digests(engine_on(s3, expected[0], ())) == whole
