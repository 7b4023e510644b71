"""What a person knows better than the keys: a result that is still valid, weights to go on from."""

import io
import json
import shutil
import sys

import pytest
from commands import TOY, TOY_RECIPE, pipeline
from pipelines import digests, local_store, run, toy_engine

from pipeline.engine import beat as beat_module
from pipeline.engine import code, log
from pipeline.engine.beat import Beat
from pipeline.engine.log import Claim
from pipeline.errors import Interrupted
from pipeline.store.locks import machine_id


@pytest.fixture(scope="module")
def origin(tmp_path_factory, corpus):
    """The store of a finished run, which tests copy."""
    engine = toy_engine(tmp_path_factory.mktemp("origin") / "store", corpus)
    run(engine)
    return engine


@pytest.fixture
def store(origin, tmp_path):
    """A store of one's own with a finished run; its recipe is the last run's."""
    shutil.copytree(origin.store.root, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def change_code(tmp_path, monkeypatch):
    """Changes the sources that keys are computed from: file, old text, new text."""
    root = tmp_path / "root"

    def change(file: str, old: str, new: str) -> None:
        if not root.exists():
            for package in ("model", "pipeline"):
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(code.ROOT / package, root / package, ignore=ignored)
            monkeypatch.setattr(code, "ROOT", root)
        text = (root / file).read_text(encoding="utf-8")
        assert old in text
        (root / file).write_text(text.replace(old, new), encoding="utf-8")

    return change


ATTENTION = ("model/attention.py", "past == 0 and time > 1", "time > 1 and past == 0")


def states(store, *words) -> dict[str, str]:
    told = json.loads(pipeline("status", "--store", store, "--json", *words).out)
    return {name: stage["state"] for name, stage in told["stages"].items()}


def key_of(store, stage="train", *words) -> str:
    told = json.loads(pipeline("status", "--store", store, "--json", *words).out)
    return told["stages"][stage]["key"]


# accept


def test_a_result_is_accepted_after_a_change_of_code(store, origin, change_code):
    old, before = key_of(store), digests(origin)
    change_code(*ATTENTION)
    assert states(store)["train"] == "to run"
    told = pipeline("accept", "train", "--because", "only the order of two tests", "--store", store)
    assert told.code == 0, told.err
    lines = told.out.splitlines()
    assert lines[0].startswith(f"compared with {old[:12]} (a result, ")
    assert lines[1:-1] == ["  code model/attention.py fused_attention"]
    assert lines[-1] == f"train: the result of {old[:12]} counts for {key_of(store)[:12]} now"
    entry = log.read(local_store(store), key_of(store)).result
    assert entry.kind == "same" and entry.body["as"] == old
    assert entry.body["because"] == "only the order of two tests"
    for stage in ("evaluate", "sample"):
        assert pipeline("accept", stage, "--because", "the same", "--store", store).code == 0
    assert set(states(store).values()) == {"done"}
    told = pipeline("run", "--store", store)
    assert "nothing to do" in told.out
    assert digests(toy_engine(store, origin.recipe.data.source)) == before


def test_the_story_says_why(store, change_code):
    change_code(*ATTENTION)
    assert pipeline("accept", "train", "--because", "I know", "--store", store).code == 0
    assert "I know" in pipeline("log", "train", "--store", store).out


def test_of_several_the_nearest_is_accepted_or_the_one_that_is_named(store, corpus, change_code):
    first = key_of(store)
    other = ("--set", "train.warmup=3")
    assert pipeline("run", "train", "--store", store, "--data", corpus, *TOY, *other).code == 0
    second = key_of(store)
    change_code(*ATTENTION)
    plain = ("--data", corpus, *TOY_RECIPE, "--store", store)
    accept = ("accept", "train", "--because", "why not", *plain)
    told = pipeline(*accept, *other)
    assert f"the result of {second[:12]} counts" in told.out
    told = pipeline(*accept, "--as", second[:6].upper(), "-y")
    assert told.code == 0 and f"the result of {second[:12]} counts" in told.out
    assert "  train.warmup 3 -> 2" in told.out.splitlines()
    assert first not in told.out


def test_more_than_code_is_asked_about(store, monkeypatch):
    words = ["accept", "train", "--because", "as good", "--store", store, "--set", "train.lr=1e-3"]
    for answer in ("", "\n", "n\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        told = pipeline(*words)
        assert told.code == 1 and "Aborted" in told.err
        assert "  train.lr 0.003 -> 0.001" in told.out and "Is it the same result" in told.out
        assert states(store, "--set", "train.lr=1e-3")["train"] == "to run"
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert pipeline(*words).code == 0
    assert states(store, "--set", "train.lr=1e-3")["train"] == "done"


def test_a_result_that_was_accepted_is_carried_to_another_store(store, tmp_path, change_code):
    change_code(*ATTENTION)
    assert pipeline("accept", "train", "--because", "I know", "--store", store).code == 0
    assert pipeline("push", tmp_path / "copy", "--store", store).code == 0
    assert states(tmp_path / "copy")["train"] == "done"


def test_what_cannot_be_accepted(store, tmp_path, corpus):
    def refused(*words, store=store) -> str:
        told = pipeline("accept", *words, "--because", "I know", "--store", store)
        assert told.code == 1 and told.out == "", told
        return told.err

    assert refused("train") == "error: train has its result: there is nothing to do\n"
    lr = ("--set", "train.lr=1e-3")
    assert "evaluate waits for train, encode, whose" in refused("evaluate", *lr)
    empty = tmp_path / "empty"
    assert "no earlier key has a result" in refused("prepare", "--data", corpus, store=empty)
    told = refused("train", *lr, "--as", "123456")
    key = key_of(store)
    assert f"no other keys of train begin with 123456. There is: {key[:12]} (a result" in told
    own = key_of(store, "train", *lr)
    assert f"{own} is the key that train has now" in refused("train", *lr, "--as", own)
    assert key_of(store, "prepare")[:12] not in refused("train", *lr, "--as", "654321")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["train"], "Missing option '--because'"),
        (["train", "--because", " "], "--because is empty"),
        (["train", "--because", "x", "--as", "12345"], "give at least 6 digits of a key"),
        (["train", "--because", "x", "--as", "nothex"], "give at least 6 digits of a key"),
        (["nothing", "--because", "x"], "'nothing' is not one of"),
    ],
)
def test_a_mistaken_accept_is_answered_and_changes_nothing(tmp_path, words, answer):
    told = pipeline("accept", *words, "--store", tmp_path / "store")
    assert told.code == 2 and answer in told.err
    assert not (tmp_path / "store").exists()


def test_a_result_whose_bytes_are_gone_is_not_accepted(store, change_code):
    old = log.read(local_store(store), key_of(store))
    change_code(*ATTENTION)
    local_store(store).remove_blob(next(iter(old.result.digests)))
    told = pipeline("accept", "train", "--because", "I know", "--store", store)
    assert told.code == 1 and "no earlier key has a result with all its bytes" in told.err


@pytest.mark.parametrize("verb", ["accept", "adopt"])
def test_what_somebody_works_on_is_left_alone(store, verb, monkeypatch):
    monkeypatch.setattr(beat_module, "BEAT_EVERY", 0.1)
    lr = ("--set", "train.lr=1e-3")
    here, old, key = local_store(store), key_of(store), key_of(store, "train", *lr)
    words = {"accept": ["train", "--because", "I know", "-y"], "adopt": [old]}[verb]
    with Beat(here, key) as beat:
        seen = log.read(here, key)
        Claim.take(here, key, seen, beat.owner, {"machine_id": machine_id(), "record": {}})
        told = pipeline(verb, *words, "--store", store, *lr)
    assert told.code == 1
    assert f"train is being worked on by {beat.owner}: stop that first" in told.err
    assert len(log.read(here, key).entries) == 1


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        (["model.width=32"], "model.width is 16 there and 32 here: these are tensors of another"),
        (["model.context=32", "train.optimizer=adamw"], None),
    ],
)
def test_a_result_of_another_shape_is_not_accepted(store, settings, answer):
    words = [word for setting in settings for word in ("--set", setting)]
    told = pipeline("accept", "train", "-y", "--because", "as good", *words, "--store", store)
    assert told.code == (1 if answer else 0), told
    assert (answer or "") in told.err
    if answer:
        of = f"the result of {key_of(store)[:12]} is of no use here (--as names another)"
        assert of in told.err
        assert states(store, *words)["train"] == "to run"


def test_a_result_of_another_vocabulary_is_not_accepted(store):
    words = ("--set", "tokenizer.vocab_size=269", "--store", store)
    assert pipeline("run", "encode", *words, "--device", "cpu").code == 0
    told = pipeline("accept", "train", "-y", "--because", "as good", *words)
    assert told.code == 1 and "the tokenizer there is another than here" in told.err


def test_what_was_accepted_can_be_taken_back(store, origin, change_code):
    old, before = key_of(store), digests(origin)
    change_code(*ATTENTION)
    accept = ("accept", "train", "--store", store, "--because")
    assert pipeline(*accept, "I know").code == 0
    again = pipeline(*accept, "I know")
    assert again.code == 1 and "(`pipeline accept --undo` takes it back)" in again.err
    told = pipeline(*accept, "I was wrong", "--undo")
    assert told.code == 0, told.err
    assert told.out == f"train: the result of {old[:12]} does not count any more\n"
    state = log.read(local_store(store), key_of(store))
    assert state.result is None and state.owner is None and state.entries[-2].kind == "retire"
    assert states(store)["train"] == "to run"
    assert "I was wrong" in pipeline("log", "train", "--store", store).out
    told = pipeline(*accept, "I was wrong", "--undo")
    assert told.code == 1 and "train has no result that was accepted: there is" in told.err
    assert pipeline("run", "--store", store, "--device", "cpu", *TOY[-8:]).code == 0
    assert digests(toy_engine(store, origin.recipe.data.source)) == before


def test_what_was_accepted_over_a_checkpoint_is_taken_back_with_it(store, corpus, change_code):
    """Its bytes may have gone since: then nobody goes on from it."""
    change_code(*ATTENTION)
    engine = toy_engine(store, corpus)
    stop_at(engine, 4)
    kept = log.read(engine.store, key_of(store)).checkpoints
    assert pipeline("accept", "train", "--because", "x", "--store", store).code == 0
    engine.store.remove_blob(kept[-1].body["files"]["state.safetensors"]["digest"])
    undo = ("accept", "train", "--undo", "--because", "y", "--store", store)
    assert pipeline(*undo).code == 0
    assert log.read(engine.store, key_of(store)).checkpoints == kept[:-1]
    assert pipeline("verify", "--store", store).code == 0


def test_a_result_that_was_made_cannot_be_taken_back(store):
    told = pipeline("accept", "train", "--undo", "--because", "x", "--store", store)
    assert told.code == 1 and "has no result that was accepted" in told.err
    told = pipeline("accept", "train", "--undo", "--because", "x", "--as", "123456")
    assert told.code == 2 and "no --as" in told.err


# adopt

STEPS = "train.steps=40"
LR = ("--set", "train.lr=1e-3")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, corpus):
    """A run that was stopped early in its training; tests copy its store."""
    engine = toy_engine(tmp_path_factory.mktemp("interrupted") / "store", corpus, STEPS)
    stop_at(engine, 4)
    return engine


def stop_at(engine, step: int) -> None:
    def stopping() -> bool:
        train = engine.plan()[3].state
        return bool(train and train.checkpoints and train.checkpoints[-1].body["step"] >= step)

    with pytest.raises(Interrupted):
        run(engine, stopping=stopping)


@pytest.fixture
def half(interrupted, tmp_path):
    shutil.copytree(interrupted.store.root, tmp_path / "half")
    return tmp_path / "half"


def test_training_goes_on_under_another_rate(half, corpus):
    old = key_of(half)
    step = reached(half, old)
    told = pipeline("adopt", old[:8], *LR, "--store", half)
    assert told.code == 0, told.err
    lines = told.out.splitlines()
    assert lines[0].startswith(f"compared with {old[:12]} (step {step}, ")
    assert lines[1:-1] == ["  train.lr 0.003 -> 0.001"]
    assert lines[-1] == f"train: the next `pipeline run` goes on from step {step} of {old[:12]}"
    state = log.read(local_store(half), key_of(half))
    assert {entry.kind for entry in state.checkpoints} == {"adopt"} and state.owner is None
    assert all(entry.body["from"] == old for entry in state.checkpoints)
    engine = toy_engine(half, corpus, STEPS, "train.lr=1e-3")
    assert f"train: find the weights, going on from step {step}" in run(engine)[1]
    history = json.loads(engine.file(engine.plan()[3], "history.json").read_text())
    theirs = history_at(half, old)
    assert history["losses"][:step] == theirs["losses"] and len(history["losses"]) == 40
    assert pipeline("verify", "--store", half).code == 0


def reached(store, key: str) -> int:
    return log.read(local_store(store), key).checkpoints[-1].body["step"]


def history_at(store, key: str) -> dict:
    """The history in the newest checkpoint of a key."""
    files = log.read(local_store(store), key).checkpoints[-1].body["files"]
    return json.loads(local_store(store).blob(files["history.json"]["digest"]).read_text())


def test_what_was_adopted_is_the_last_run(half):
    pipeline("adopt", key_of(half), *LR, "--store", half)
    told = json.loads(pipeline("status", "--store", half, "--json").out)
    assert told["recipe"]["train"]["lr"] == 1e-3
    assert told["stages"]["train"]["state"] == "interrupted"


def test_adopting_after_a_change_of_code(half, change_code, corpus):
    old = key_of(half)
    change_code(*ATTENTION)
    told = pipeline("adopt", old, "--store", half)
    assert told.code == 0 and "  code model/attention.py fused_attention" in told.out
    assert states(half)["train"] == "interrupted"


def test_adopting_from_another_store(half, tmp_path, corpus):
    """The earlier stages are brought by the run, the checkpoints by adopt."""
    here, old = tmp_path / "here", key_of(half)
    words = ("--store", here, "--data", corpus, *TOY_RECIPE, "--set", STEPS, *LR)
    told = pipeline("adopt", old, *words)
    assert told.code == 1 and "train waits for encode" in told.err
    told = pipeline("run", "encode", "--from", half, *words, "--device", "cpu")
    assert told.code == 0
    assert "no other keys of train begin with" in pipeline("adopt", old, *words).err
    told = pipeline("adopt", old, "--from", half, *words)
    assert told.code == 0, told.err
    store = local_store(here)
    state = log.read(store, key_of(here))
    assert len(state.checkpoints) == 2
    assert all(store.blob(blob) for blob in state.needed)


def test_of_the_checkpoints_the_whole_one_is_adopted(half):
    store, old = local_store(half), key_of(half)
    first, last = log.read(store, old).checkpoints[-2:]
    store.remove_blob(last.body["files"]["state.safetensors"]["digest"])
    told = pipeline("adopt", old, *LR, "--store", half)
    assert told.code == 0 and f"goes on from step {first.body['step']} of" in told.out
    store.remove_blob(first.body["files"]["state.safetensors"]["digest"])
    told = pipeline("adopt", old, "--set", "train.lr=1e-4", "--store", half)
    assert told.code == 1 and "has no checkpoint with all its bytes in" in told.err


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        (["model.layers=2"], "model.layers is 1 there and 2 here: these are tensors of another"),
        (["model.heads=1"], "model.heads is 2 there and 1 here"),
        (["model.norm=rmsnorm"], "model.norm is layernorm there and rmsnorm here"),
        (["train.optimizer=adamw"], "train.optimizer is muon there and adamw here"),
        (["train.steps=3"], ", and the recipe ends at step 3: raise it with --set train.steps="),
        (["train.lr=1e-3", "model.dropout=0.1", "train.seed=9"], None),
    ],
)
def test_what_can_go_on_and_what_cannot(half, settings, answer):
    words = [word for setting in settings for word in ("--set", setting)]
    told = pipeline("adopt", key_of(half), *words, "--store", half)
    assert told.code == (1 if answer else 0), told
    assert (answer or "") in told.err


def test_another_vocabulary_is_refused(half, corpus):
    """Of the same size, even: only the log of the tokens' making tells."""
    words = ("--set", "tokenizer.vocab_size=269", "--store", half)
    old = key_of(half)
    told = pipeline("run", "encode", *words, "--device", "cpu")
    assert told.code == 0, told.err
    told = pipeline("adopt", old, *words)
    assert told.code == 1 and "the tokenizer there is another than here" in told.err


def test_a_finished_run_has_nothing_to_adopt(store):
    old = key_of(store)
    told = pipeline("adopt", old, *LR, "--store", store)
    assert told.code == 1 and "is finished, and its checkpoints are gone" in told.err
    assert f"`pipeline accept train --as {old[:12]}`" in told.err


def test_what_has_come_further_itself_is_left_alone(half, corpus):
    old = key_of(half)
    engine = toy_engine(half, corpus, STEPS, "train.lr=1e-3")
    stop_at(engine, reached(half, old))
    told = pipeline("adopt", old, *LR, "--store", half)
    assert told.code == 1 and "of its own, and there is step" in told.err
    run(engine)
    told = pipeline("adopt", old, *LR, "--store", half)
    assert told.code == 1 and "train has its result" in told.err


def test_adopt_mistakes(half):
    for key in ("12345", "zzzzzz"):
        told = pipeline("adopt", key, "--store", half)
        assert told.code == 2 and "give at least 6 digits of a key" in told.err
    own = key_of(half)
    told = pipeline("adopt", own[:10], "--store", half)
    assert told.code == 1 and f"{own[:10]} is the key that train has now" in told.err
    told = pipeline("adopt", "1234567", *LR, "--store", half)
    assert f"no other keys of train begin with 1234567. There is: {own[:12]} (step" in told.err
