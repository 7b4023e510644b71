"""``pipeline verify``: quiet about a whole store, precise about a damaged one."""

import errno
import json
import os
import shutil

import pytest
from commands import pipeline
from pipelines import run, toy_engine, write_corpus

from pipeline.engine import log, verify
from pipeline.engine.needed import untold
from pipeline.hashing import canonical
from pipeline.store.disk import Disk
from pipeline.store.store import Store


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store with a run up to encode; tests copy it."""
    folder = tmp_path_factory.mktemp("whole")
    run(toy_engine(folder / "store", write_corpus(folder / "text.txt")), "encode")
    return folder


@pytest.fixture
def engine(whole, tmp_path):
    shutil.copytree(whole / "store", tmp_path / "store")
    return toy_engine(tmp_path / "store", whole / "text.txt")


def planned(engine, stage: str):
    return next(item for item in engine.plan() if item.stage.name == stage)


def blob_of(engine, stage: str, name: str):
    return engine.store.blob_path(planned(engine, stage).result.body["files"][name]["digest"])


def overwrite(path, data: bytes) -> None:
    os.chmod(path, 0o644)
    path.write_bytes(data)


def tree(root) -> dict:
    return {p: p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def told(store: Store, *words: str) -> dict:
    return json.loads(pipeline("verify", "--store", store.root, "--json", *words).out)


def kinds(store: Store, *words: str) -> list[str]:
    return [problem["kind"] for problem in told(store, *words)["problems"]]


def test_a_whole_store_verifies(engine):
    for words in ([], ["--quick"]):
        said = pipeline("verify", "--store", engine.store.root, *words)
        assert said.code == 0 and said.err == "" and "3 keys" in said.out
    assert "every blob matches" in pipeline("verify", "--store", engine.store.root).out
    found = told(engine.store)
    assert found["problems"] == [] and found["keys"] == 3 and found["unneeded"] == 0
    assert found["size"] == sum(path.stat().st_size for path in engine.store.root.glob("blob/*/*"))


def test_damage_and_loss_are_named_and_nothing_is_changed(engine):
    damaged = blob_of(engine, "encode", "train.tokens")
    overwrite(damaged, b"other bytes")
    missing = blob_of(engine, "tokenizer", "tokenizer.json")
    missing.unlink()
    before = tree(engine.store.root)
    said = pipeline("verify", "--store", engine.store.root)
    assert said.code == 1
    assert f"{damaged} is damaged (its 11 bytes hash to" in said.err
    assert f"blob {missing.name[:12]} of tokenizer" in said.err and "is missing" in said.err
    assert tree(engine.store.root) == before


def test_what_it_advises_works(engine):
    blob_of(engine, "tokenizer", "tokenizer.json").unlink()
    run(engine, "encode")
    assert pipeline("verify", "--store", engine.store.root).code == 0


def test_quick_sees_sizes_and_reads_no_byte(engine, monkeypatch):
    path = blob_of(engine, "encode", "train.tokens")
    data = path.read_bytes()
    overwrite(path, data[:-2])
    monkeypatch.setattr(Disk, "chunks", None)
    said = pipeline("verify", "--store", engine.store.root, "--quick")
    assert said.code == 1
    assert f"{path} has {len(data) - 2:,} bytes, and log/" in said.err
    overwrite(path, bytes(len(data)))
    assert kinds(engine.store, "--quick") == []


def test_an_entry_that_says_a_wrong_size(engine):
    """The bytes are right, so it is the entry that is not; what is advised mends it."""
    encode = planned(engine, "encode")
    body = dict(encode.result.body)
    body["files"] = {name: {**item, "size": 1} for name, item in body["files"].items()}
    name = log.entry_name(encode.key, encode.result.position)
    overwrite(engine.store.root / name, canonical(body))
    said = pipeline("verify", "--store", engine.store.root)
    assert said.code == 1 and said.err.count("says 1, wrongly") == len(body["files"])
    again = toy_engine(engine.store.root, engine.recipe.data.source)
    run(again, "encode")
    assert kinds(again.store) == []


def test_a_damaged_entry_is_named_with_its_position(engine):
    encode = planned(engine, "encode")
    name = log.entry_name(encode.key, encode.result.position)
    overwrite(engine.store.root / name, b"{")
    found = told(engine.store)
    (problem,) = found["problems"]
    assert (problem["kind"], problem["name"]) == ("entry", name)
    assert found["unneeded"] == 0 and "`pipeline pull`" in problem["said"]


def test_a_damaged_entry_of_a_key_with_a_result_is_harmless(engine):
    encode = planned(engine, "encode")
    name = log.entry_name(encode.key, 0)
    overwrite(engine.store.root / name, b"{")
    found = told(engine.store)
    assert found["problems"] == [] and [each["name"] for each in found["harmless"]] == [name]
    said = pipeline("verify", "--store", engine.store.root)
    assert said.code == 0 and said.err.startswith("note: ") and "nothing hangs on it" in said.err
    assert "every blob matches" in said.out


def test_running_again_heals_what_a_damaged_entry_said(engine):
    """As verify says; and by then gc may free what only that entry named."""
    encode = planned(engine, "encode")
    blobs = {path.name for path in engine.store.root.glob("blob/*/*")}
    overwrite(engine.store.root / log.entry_name(encode.key, encode.result.position), b"{")
    assert pipeline("verify", "--store", engine.store.root).code == 1
    run(toy_engine(engine.store.root, engine.recipe.data.source), "encode")
    assert pipeline("verify", "--store", engine.store.root).code == 0
    assert {path.name for path in engine.store.root.glob("blob/*/*")} == blobs


def test_a_gap_is_named_and_a_run_fills_it(engine):
    """What stands behind it is not read, and not robbed of its blobs either."""
    encode = planned(engine, "encode")
    assert encode.result.position > 0
    name = log.entry_name(encode.key, 0)
    (engine.store.root / name).unlink()
    found = told(engine.store)
    assert [(each["kind"], each["name"]) for each in found["problems"]] == [("gap", name)]
    assert found["unneeded"] == 0
    again = toy_engine(engine.store.root, engine.recipe.data.source)
    run(again, "encode")
    assert kinds(again.store) == []


def test_what_nothing_needs_is_counted_and_no_damage(engine):
    with engine.store.scratch() as scratch:
        (scratch / "file").write_bytes(b"loose")
        blob = engine.store.put(scratch / "file")
    found = told(engine.store)
    assert found["problems"] == [] and (found["unneeded"], found["unneeded_size"]) == (1, 5)
    said = pipeline("verify", "--store", engine.store.root)
    assert said.code == 0 and "`pipeline gc` frees 5 B that nothing needs" in said.out
    overwrite(engine.store.blob_path(blob), b"lOOse")
    (problem,) = told(engine.store)["problems"]
    assert problem["kind"] == "damaged" and "nothing needs it, delete it" in problem["said"]


def test_a_blob_that_a_disk_cannot_read(engine, monkeypatch):
    bad = blob_of(engine, "encode", "train.tokens")
    whole_chunks = Disk.chunks

    def chunks(self, name, start=0):
        if name.endswith(bad.name):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole_chunks(self, name, start)

    monkeypatch.setattr(Disk, "chunks", chunks)
    (problem,) = told(engine.store)["problems"]
    assert problem["kind"] == "damaged" and "Input/output error" in problem["said"]


def test_a_store_elsewhere_is_read_and_nothing_of_it_kept(engine, tmp_path):
    blob = blob_of(engine, "encode", "train.tokens")
    overwrite(blob, bytes(blob.stat().st_size))
    store = Store(Disk(tmp_path / "cache"), Disk(engine.store.root))
    seen = []
    verdict = verify.verify(store, False, lambda *progress: seen.append(progress))
    assert [(each.kind, each.name) for each in verdict.problems] == [("damaged", blob.name)]
    assert seen[-1] == (verdict.size, verdict.size, "B")
    assert not store.root.exists()


def test_a_blob_that_is_replaced_while_it_looks_is_no_loss(engine, monkeypatch):
    """An owner prunes: its log says so by the time that the loss is seen."""
    encode = planned(engine, "encode")
    blob = blob_of(engine, "encode", "train.tokens")
    state = log.read(engine.store, encode.key)
    retired = {"kind": "retire", "at": "now", "positions": [state.result.position]}
    look = verify.all_blobs

    def prunes_first(store):
        engine.store.create(log.entry_name(encode.key, len(state.entries)), canonical(retired))
        blob.unlink()
        return look(store)

    monkeypatch.setattr(verify, "all_blobs", prunes_first)
    assert verify.verify(engine.store, False, untold).problems == ()
