"""Whole runs on two processes: stopped, killed, gone on with by fewer or more."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import TOY, pipeline, start
from pipelines import MACHINE, digests, run, toy_engine
from safetensors.torch import load_file

from model.trainer import StepReport
from pipeline import recipe
from pipeline.divergence import Diverged
from pipeline.engine.stopping import Stopping
from pipeline.errors import Interrupted
from pipeline.loop import Loop
from pipeline.machine import Machine
from pipeline.team import Crew, Leader, processes, settled

ONE = replace(MACHINE, micro_batch=1, checkpoint_steps=3)
TWO = replace(ONE, processes=2)
LONG = ["--set", "train.steps=100000", "--set", "train.eval_every=100000", "--processes", "2"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def stop_at(monkeypatch):
    """What stops a run behind a step."""
    shown = Loop._show

    def stopping(step: int) -> Stopping:
        asked = Stopping(lambda: False)

        def show(loop: Loop, at: int) -> None:
            shown(loop, at)
            if at == step:
                asked.ask("for the test")

        monkeypatch.setattr(Loop, "_show", show)
        return asked

    return stopping


def result(engine) -> tuple[list[float], list[dict]]:
    """The loss of every step, and who computed which."""
    train = next(item for item in engine.plan() if item.stage.name == "train")
    history = json.loads(engine.file(train, "history.json").read_text())
    return history["losses"], json.loads(engine.file(train, "segments.json").read_text())


def means(engine) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The weights that are the result, and what the looks at them have seen."""
    train = next(item for item in engine.plan() if item.stage.name == "train")
    history = json.loads(engine.file(train, "history.json").read_text())
    weights = load_file(engine.file(train, "weights.safetensors"))
    return weights, [look["loss"] for look in history["validation"]]


@pytest.mark.parametrize("compile", ["off", "on"])
def test_the_same_two_processes_end_with_the_same_bytes(tmp_path, corpus, stop_at, compile):
    straight, stopped = (toy_engine(tmp_path / name, corpus) for name in ("one", "two"))
    machine = replace(TWO, compile=compile)
    run(straight, machine=machine)
    with pytest.raises(Interrupted):
        run(stopped, machine=machine, stopping=stop_at(5))
    run(stopped, machine=machine)
    assert digests(straight) == digests(stopped)
    _, segments = result(stopped)
    assert [(part["from"], part["to"]) for part in segments] == [(1, 5), (6, 12)]
    assert {(part["world_size"], part["compiled"]) for part in segments} == {(2, compile == "on")}


def test_one_process_two_in_parts_and_one_again(tmp_path, corpus, stop_at):
    """The numbers agree with those of one process, the mean of the weights too; keys are equal."""
    stores = (tmp_path / name for name in ("one", "two"))
    straight, changed = (toy_engine(store, corpus, "train.ema=0.9") for store in stores)
    run(straight, "train", machine=ONE)
    parts = replace(TWO, sharding="on")
    for step, machine in ((3, ONE), (7, parts)):
        with pytest.raises(Interrupted):
            run(changed, "train", machine=machine, stopping=stop_at(step))
    run(changed, "train", machine=ONE)
    (expected, _), (losses, segments) = result(straight), result(changed)
    assert losses == pytest.approx(expected, abs=1e-5)
    assert [part["world_size"] for part in segments] == [1, 2, 1]
    (expected, looks), (seen, others) = (means(engine) for engine in (straight, changed))
    assert others == pytest.approx(looks, abs=1e-5)
    assert all(torch.allclose(seen[name], value, atol=1e-4) for name, value in expected.items())
    keys = [{item.stage.name: item.key for item in each.plan()} for each in (straight, changed)]
    assert keys[0]["train"] == keys[1]["train"]


def test_all_go_back_with_the_leader(tmp_path, corpus, monkeypatch):
    """To the beginning and to a checkpoint, and on with a share of the rate."""
    seen = []
    for name, machine in (("one", ONE), ("two", TWO)):
        ill = [2, 8]

        def refuse(report: StepReport, vocab_size: int, ill=ill) -> None:
            if ill and report.step == ill[0]:
                raise Diverged("the loss became absurd", report.loss, ill.pop(0))

        monkeypatch.setattr("pipeline.loop.judge", refuse)
        engine = toy_engine(tmp_path / name, corpus)
        _, said = run(engine, "train", machine=machine)
        assert "step 2: back to step 0" in said and "step 8: back to step 6" in said
        seen.append(result(engine)[0])
    assert seen[1] == pytest.approx(seen[0], abs=1e-5)


# processes that end


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, within: float = 10.0) -> bool:
    until = time.monotonic() + within
    while running(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not running(pid)


class Long:
    """A run of two processes that has written a checkpoint; the next one goes on with it."""

    def __init__(self, store: Path, corpus: Path) -> None:
        self.store = store
        seen = self.checkpoints()
        self.leader = start("run", "--store", store, "--data", corpus, *TOY, *LONG)
        while self.checkpoints() == seen:
            assert self.leader.poll() is None, self.leader.communicate()
            time.sleep(0.05)
        (self.follower,) = children(self.leader.pid)

    def checkpoints(self) -> int:
        logs = self.store.glob("log/*/*")
        return sum(json.loads(path.read_bytes())["kind"] == "checkpoint" for path in logs)

    def ended(self) -> tuple[int, str]:
        _, said = self.leader.communicate(timeout=60)
        return self.leader.returncode, said


@linux
def test_whoever_ends_the_others_end_and_the_run_goes_on(tmp_path, corpus):
    store = tmp_path / "store"
    one = Long(store, corpus)
    os.kill(one.follower, signal.SIGKILL)
    code, said = one.ended()
    assert code == 1 and "Traceback" not in said
    assert "process 2 of 2 was killed by signal 9" in said
    two = Long(store, corpus)
    two.leader.kill()
    assert gone(two.follower)
    three = Long(store, corpus)
    os.kill(three.follower, signal.SIGTERM)  # not for it to decide
    three.leader.terminate()
    code, said = three.ended()
    assert code == 75 and "checkpoint written at step" in said
    assert gone(three.follower)
    told = json.loads(pipeline("status", "--json", "--store", store).out)
    assert told["stages"]["train"]["state"] == "interrupted"


@pytest.mark.slow
@linux
def test_under_torchrun(tmp_path, corpus):
    """It fails whenever a process does, so 75 becomes 1: that is torchrun's."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words += ["--nproc-per-node", "2", "-m", "pipeline", "run", "--data", str(corpus), *TOY]
    root = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = [*words, "--store", str(tmp_path / "done")]
    for expected in ("2 processes", "nothing to do"):
        told = subprocess.run(done, env=root, text=True, capture_output=True, timeout=120)
        assert told.returncode == 0, told.stderr
        story = pipeline("log", "train", "--store", tmp_path / "done").out
        assert expected in told.stdout + story
    store = tmp_path / "stopped"
    command = [*words, "--store", str(store), *LONG[:4]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=root, text=True, **pipes)
    while not list(store.glob("log/*/*3")):
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "Go on with: the same torchrun command" in said


# what is refused, and what is told of those who are gone


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--sharding", "on"], "one process has nothing to share out. Add --processes"),
        (
            ["--processes", "3", "--sharding", "on"],
            "must be a multiple of them: --processes 2, or another train.batch",
        ),
    ],
)
def test_what_does_not_go_together(tmp_path, corpus, words, answer):
    told = pipeline("run", "--store", tmp_path / "store", "--data", corpus, *TOY, *words)
    assert told.code == 1 and answer in told.err and told.err.count("\n") == 1


def test_several_machines_are_refused(monkeypatch):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    told = pipeline("run")
    assert told.code == 1 and "torchrun --standalone --nproc-per-node N" in told.err


def test_what_is_found_out_is_the_same_for_all(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 9)
    large = recipe.load("large")
    found = settled(Machine(device="cpu", processes=4), 4, large, 32_000)
    assert (found.threads, found.sharding, found.device) == (2, "off", "cpu")
    assert found.precision in ("fp32", "bf16")
    told = Machine(device="cpu", processes=4, threads=3, sharding="on", precision="fp32")
    assert settled(told, 4, large, 32_000) == told
    assert settled(Machine(device="cpu"), 1, large, 32_000) == Machine(device="cpu", sharding="off")


@pytest.mark.parametrize(("vocabulary", "sharding"), [(32_000, "off"), (64_000, "on")])
def test_what_does_not_fit_is_shared_out(monkeypatch, vocabulary, sharding):
    """On made-up devices: 16 bytes a parameter against 70 % of the smaller one's memory."""
    sizes, names = {0: 8_000_000_000, 1: 8_000_100_000}, {0: "Card", 1: "Card"}
    large = recipe.load("large")
    fits = 16 * large.model.parameters(vocabulary) < 0.7 * sizes[0]
    assert fits == (sharding == "off")
    monkeypatch.setattr("pipeline.team.resolve_device", torch.device)
    monkeypatch.setattr("pipeline.team.precision_on", lambda *_: "fp16")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(
        "torch.cuda.get_device_properties",
        lambda at: type("Properties", (), {"total_memory": sizes[at]}),
    )
    monkeypatch.setattr("torch.cuda.get_device_name", names.get)
    assert processes(Machine(device="cuda", processes=0)) == 2
    found = settled(Machine(device="cuda", processes=2), 2, large, vocabulary)
    assert (found.sharding, found.precision, found.threads) == (sharding, "fp16", 0)
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES"):
        settled(Machine(device="cuda:1", processes=2), 2, large, vocabulary)
    with pytest.raises(ValueError, match="torch sees 2 GPUs here"):
        settled(Machine(device="cuda", processes=3), 3, large, vocabulary)
    names[1] = "Another"
    with pytest.raises(ValueError, match=r"not of one model \(Another, Card\)"):
        settled(Machine(device="cuda", processes=2), 2, large, vocabulary)
    assert processes(Machine(device="cuda", processes=0)) == 1


def test_torchrun_decides_how_many_there_are(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert processes(Machine(device="cpu")) == processes(Machine(processes=0)) == 2
    with pytest.raises(ValueError, match="torchrun has started 2"):
        processes(Machine(processes=3))


@pytest.mark.slow
def test_a_sum_that_never_ends_is_ended(tmp_path):
    """As with NCCL, where a process that is gone leaves the others waiting."""
    source = """
import sys, time
from pathlib import Path
from pipeline import team
team._STUCK = 1
crew = team.Crew(Path(sys.argv[1]), 2)
crew.arrive()
crew.processes[0].kill()
with crew:
    time.sleep(60)
"""
    root = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    told = subprocess.run(
        [sys.executable, "-c", source, tmp_path], env=root, text=True, capture_output=True
    )
    assert told.returncode == 1 and "error: process 2 of 2 was killed by signal 9" in told.stderr


def test_whoever_waits_for_the_others_is_watched_and_told_who_is_gone():
    class Alone:
        """A crew of one that is gone."""

        since, gone = None, staticmethod(lambda patience: "process 2 of 2 is gone")
        __enter__, __exit__ = Crew.__enter__, Crew.__exit__

    leader = object.__new__(Leader)
    leader.crew = Alone()
    with leader.waiting():
        assert leader.crew.since is not None
    assert leader.crew.since is None
    with pytest.raises(ValueError, match="process 2 of 2 is gone"), leader.waiting():
        raise RuntimeError("Connection closed by peer")
    for short in ("CUDA out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED"):
        with pytest.raises(RuntimeError, match=short), leader.waiting():
            raise RuntimeError(short)  # the trainer knows what to do


def test_what_one_said_last_is_told(tmp_path, monkeypatch):
    crew = Crew(tmp_path, 1)
    crew.size = 2
    (tmp_path / "1.said").write_text("a warning\nerror: step 3 does not fit\n")
    for code, words in ((1, "has ended: step 3 does not fit. All is saved"), (-11, "signal 11")):
        crew.processes = [type("Gone", (), {"poll": lambda _, code=code: code})()]
        crew.processes[0].returncode = code
        assert words in crew.gone()
