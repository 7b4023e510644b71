"""``pipeline verify``: quiet about a whole store, precise about a damaged one."""

import os

import pytest
from commands import pipeline
from pipelines import run, toy_engine, write_corpus


@pytest.fixture
def engine(tmp_path):
    engine = toy_engine(tmp_path / "store", write_corpus(tmp_path / "text.txt"))
    run(engine, "encode")
    return engine


def blob_of(engine, stage: str, name: str):
    result = next(item.result for item in engine.plan() if item.stage.name == stage)
    return engine.store.blob_path(result.body["files"][name]["digest"])


def test_a_whole_store_verifies(engine):
    told = pipeline("verify", "--store", engine.store.root)
    assert told.code == 0 and "every blob matches" in told.out


def test_damage_and_loss_are_named_and_nothing_is_changed(engine):
    damaged = blob_of(engine, "encode", "train.tokens")
    os.chmod(damaged, 0o644)
    damaged.write_bytes(b"other bytes")
    missing = blob_of(engine, "tokenizer", "tokenizer.json")
    missing.unlink()
    told = pipeline("verify", "--store", engine.store.root)
    assert told.code == 1
    assert f"{damaged} is damaged" in told.err
    assert f"blob {missing.name[:12]} of tokenizer" in told.err and "is missing" in told.err
    assert damaged.read_bytes() == b"other bytes"


def test_what_it_advises_works(engine):
    blob_of(engine, "tokenizer", "tokenizer.json").unlink()
    run(engine, "encode")
    assert pipeline("verify", "--store", engine.store.root).code == 0
