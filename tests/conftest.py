"""What several test files share."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

# before torch is imported, here and in what tests start: see toys.py
os.environ.setdefault("OMP_NUM_THREADS", "1")

# what a script starts in the background ignores Ctrl-C, which tests send
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config) -> None:
    """Compile what is compiled before there are workers: once, and not in the midst of a test."""
    if not hasattr(config, "workerinput"):
        from model.fast.build import attention_kernels, kernels

        kernels()
        attention_kernels()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A small text for the toy pipeline."""
    from pipelines import write_corpus

    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.txt")


@pytest.fixture(scope="session")
def finished(tmp_path_factory, corpus) -> Path:
    """The store of a finished run of the command line; tests only read it."""
    from commands import TOY, pipeline

    store = tmp_path_factory.mktemp("finished") / "store"
    told = pipeline("run", "--store", store, "--data", corpus, *TOY)
    assert told.code == 0, told.err
    return store


@pytest.fixture(scope="session")
def shakespeare() -> Path:
    """The text TinyShakespeare (1.1 MB); tests that need it are skipped where it is not at hand."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"
    path = Path(os.environ.get("IGNITE_TEST_CORPUS", beside))
    if not path.is_file():
        pytest.skip(f"no {path}; let IGNITE_TEST_CORPUS name a copy of TinyShakespeare")
    return path


@pytest.fixture
def case(tmp_path, monkeypatch):
    """Inputs for the stage ``encode``, to be cut into many shards."""
    from encoding import SIZE, Case, documents

    monkeypatch.setattr("pipeline.stages.encode.SIZE", SIZE)
    return Case(tmp_path, documents(0), documents(1)[:12])


@pytest.fixture
def encoded(monkeypatch) -> list[str]:
    """Names of the shards that this process encodes."""
    from pipeline.data.shards import Encoder

    names, really = [], Encoder.encode

    def encode(self, shard):
        names.append(shard.name)
        really(self, shard)

    monkeypatch.setattr(Encoder, "encode", encode)
    return names


@pytest.fixture(scope="module")
def endpoint():
    """The address of an S3 server of one's own, with the bucket ``runs``."""
    from servers import make_bucket, s3_server

    with s3_server() as url:
        make_bucket(url, "runs")
        yield url


@pytest.fixture
def rented(tmp_path, endpoint, corpus, monkeypatch):
    """Makes worlds of renting.py that last for the test, and lets it look into their stores."""
    from renting import World
    from servers import s3_environment

    for name, value in {**s3_environment(endpoint), "IGNITE_CACHE": str(tmp_path / "seen")}.items():
        monkeypatch.setenv(name, value)
    with contextlib.ExitStack() as stack:

        def make(name, *faults, **more):
            return stack.enter_context(World(tmp_path, endpoint, corpus, name, *faults, **more))

        yield make


@pytest.fixture
def hasty(tmp_path, endpoint, monkeypatch):
    """This side of a launch on an S3 server: a directory and a home of its own, and no patience."""
    from servers import s3_environment

    ours = {**s3_environment(endpoint), "IGNITE_CACHE": str(tmp_path / "cache")}
    for name, value in {**ours, "IGNITE_PACE": "0.02", "HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
