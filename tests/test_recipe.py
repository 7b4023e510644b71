"""The recipe: how it is put together, and how it answers a mistake."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from model.config import SIZES
from pipeline import recipe
from pipeline.recipe import Recipe, from_tree, load


@pytest.mark.parametrize("size", SIZES)
def test_every_size_loads(size):
    loaded, shape = load(size), SIZES[size]
    assert loaded.size == size
    assert loaded.model.trunk_parameters() == shape.trunk_parameters()


def test_without_a_size_it_is_tiny():
    assert load() == load("tiny")


def test_every_size_has_its_own_file_and_no_file_is_left_over():
    files = {path.stem for path in recipe.RECIPES.glob("*.toml")}
    assert files == {*SIZES, *recipe.NAMED}


@pytest.mark.parametrize("size", SIZES)
def test_a_recipe_survives_json(size):
    loaded = load(size, data="text.txt", settings=["sample.prompt=é", "train.lr=1e-5"])
    assert from_tree(json.loads(json.dumps(loaded.tree()))) == loaded


# layers


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes):
        path = tmp_path / "own.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


OWN = '[train]\nsteps = 7\nlr = 0.5\n[data]\nsource = "own.txt"\n'


def test_a_file_lies_over_the_size_and_settings_over_the_file(write):
    loaded = load("small", write(OWN), None, ["train.lr=0.25"])
    assert (loaded.train.steps, loaded.train.lr) == (7, 0.25)
    assert loaded.train.batch == load("small").train.batch
    assert loaded.data.source == "own.txt"


def test_data_lies_over_the_file_and_settings_over_data(write):
    assert load(None, write(OWN), "told.txt").data.source == "told.txt"
    assert load(None, write(OWN), "told.txt", ["data.source=set.txt"]).data.source == "set.txt"


def test_the_last_of_two_settings_holds():
    assert load(settings=["train.lr=1", "train.lr=2"]).train.lr == 2


def test_a_file_may_name_its_size_and_the_command_line_another(write):
    own = write('size = "small"\n' + OWN)
    assert load(None, own).size == "small"
    assert load("medium", own).size == "medium"


# values


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("train.steps=1e4", 10_000),
        ("train.steps=1_000", 1000),
        ("train.steps = 5", 5),
        ("train.lr=1", 1.0),
        ("train.lr=3e-4", 3e-4),
        ("model.tied=false", False),
        ("model.tied=true", True),
        ("model.norm=rmsnorm", "rmsnorm"),
        ('model.norm="rmsnorm"', "rmsnorm"),
        ("sample.prompt='a b'", "a b"),
        ("sample.prompt=ROMEO: # 1", "ROMEO: # 1"),
        ("sample.prompt=", ""),
        ("sample.prompt=a=b", "a=b"),
        # text stays as it was typed, whatever TOML would make of it
        ("sample.prompt=1.50", "1.50"),
        ("sample.prompt=true", "true"),
        ("sample.prompt=2024-01-01", "2024-01-01"),
        ("sample.prompt=[1]", "[1]"),
    ],
)
def test_how_a_setting_is_read(setting, value):
    section, name = setting.partition("=")[0].strip().split(".")
    found = getattr(getattr(load(settings=[setting]), section), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        # a key that is not known, and the nearest one that is
        ("tain.lr=1", "unknown setting 'tain.lr': did you mean train.lr?"),
        ("train.lr_rate=1", "unknown setting 'train.lr_rate': train has steps, batch, lr, "),
        ("train.batch_size=1", "unknown setting 'train.batch_size': did you mean train.batch?"),
        ("lr=1", "unknown setting 'lr': did you mean train.lr?"),
        ("train.micro_batch=1", "no matter of the recipe but of the machine: --micro-batch"),
        ("device=cpu", "no matter of the recipe but of the machine: --device"),
        ("vocab_size=1", "unknown setting 'vocab_size': did you mean tokenizer.vocab_size?"),
        ("evaluate.zzz=1", "unknown setting 'evaluate.zzz': evaluate has weights"),
        (
            "train.vocab_size=1",
            "unknown setting 'train.vocab_size': did you mean tokenizer.vocab_s",
        ),
        ("tokeniser.seed=1", "unknown setting 'tokeniser.seed': did you mean "),
        ("modle.layers=1", "unknown setting 'modle.layers': did you mean model.layers?"),
        ("model.layer=1", "unknown setting 'model.layer': did you mean model.layers?"),
        ("zzz=1", "unknown setting 'zzz': sections are data, tokenizer, model, train, "),
        ("train=1", "unknown setting 'train': "),
        ("train.lr", "--set train.lr: write it as section.key=value, such as train.lr=3e-4"),
        # the wrong kind of value
        ("train.lr=fast", "train.lr = 'fast': it must be a number"),
        ("train.lr=nan", "train.lr = nan: it must be a finite number"),
        ("train.lr=-inf", "train.lr = -inf: it must be a finite number"),
        ("train.lr=true", "train.lr = True: it must be a number"),
        ("train.steps=1.5", "train.steps = 1.5: it must be a whole number"),
        ("train.steps=true", "train.steps = True: it must be a whole number"),
        ("train.steps=[1]", "train.steps = [1]: it must be a whole number"),
        ("model.tied=yes", "model.tied = 'yes': it must be true or false"),
        ("model.tied=1", "model.tied = 1: it must be true or false"),
        # out of range
        ("train.seed=1e300", "is out of range: it must be below 2^63"),
        (
            "data.validation=1",
            "data.validation = 1.0 is out of range: it must be between 0 and 1",
        ),
        ("data.on_invalid=x", "data.on_invalid = 'x': it must be error, replace or skip"),
        (
            "tokenizer.vocab_size=257",
            "tokenizer.vocab_size = 257 is out of range: it must be at least 258",
        ),
        (
            "tokenizer.min_pair_count=0",
            "tokenizer.min_pair_count = 0: it must be at least 1",
        ),
        ("evaluate.weights=first", "evaluate.weights = 'first': it must be last or best"),
        ("sample.tokens=0", "sample.tokens = 0 is out of range: it must be between 1 and"),
        ("sample.temperature=-1", "sample.temperature = -1.0 is out of range"),
        ("sample.top_k=0", "sample.top_k = 0 is out of range: it must be between 1 and"),
        ("sample.top_p=0", "sample.top_p = 0.0 is out of range: it must be between"),
        ("sample.seed=-1", "sample.seed = -1 is out of range: it must be between 0 and"),
        ("model.layers=0", "model.layers = 0 is out of range: it must be at least 1"),
        (
            "model.heads=3",
            "model.heads = 3 is out of range: it must be a divisor of model.width = 128",
        ),
        ("model.heads=128", "model.heads = 128 is out of range: it must be such that width"),
        ("model.dropout=1", "model.dropout = 1.0 is out of range: it must be in [0, 1)"),
        (
            "model.norm=batchnorm",
            "model.norm = 'batchnorm' is out of range: it must be layernorm or rmsnorm",
        ),
        ("model.rope_base=1", "model.rope_base = 1.0 is out of range: it must be above 1"),
        ("train.batch=0", "train.batch = 0 is out of range: it must be at least 1"),
        ("train.lr=0", "train.lr = 0.0 is out of range: it must be above 0"),
        ("train.clip=-1", "train.clip = -1.0 is out of range: it must be at least 0"),
        ("train.beta2=1", "train.beta2 = 1.0 is out of range: it must be in [0, 1)"),
        ("train.final_lr=2", "train.final_lr = 2.0 is out of range: it must be in [0, 1]"),
        (
            "train.optimizer=sgd",
            "train.optimizer = 'sgd' is out of range: it must be adamw or muon",
        ),
        (
            "train.schedule=step",
            "train.schedule = 'step' is out of range: it must be cosine or linear",
        ),
    ],
)
def test_a_mistake_is_answered_with_key_value_and_what_is_allowed(setting, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        load(settings=[setting])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\nsteps = 'x'", "own.toml: train.steps = 'x': it must be a whole number"),
        ("steps = 5", "own.toml: steps must stand in a section: did you mean train.steps?"),
        ("keep = 5", "own.toml: unknown setting 'keep': it is no matter of the recipe but of the"),
        ("[train]\nsteps = -5", "own.toml: train.steps = -5 is out of range"),
        ("[train]\nstep = 5", "own.toml: unknown setting 'train.step': did you mean train.steps?"),
        ("[modle]\nlayers = 5", "own.toml: unknown setting 'modle.layers': did you mean model.la"),
        ("train = 5", "own.toml: train must be a section, such as [train]"),
        ("[train]\nlr = 1\nlr = 2", "own.toml is not valid TOML: "),
        ("[train", "own.toml is not valid TOML: "),
        (b"\xff\xfe", "own.toml is not valid TOML: "),
        ("size = 'huge'", "unknown size 'huge': choose one of tiny, small, medium, large"),
        ("size = ['tiny']", "unknown size ['tiny']: choose one of tiny"),
        ("[sample]\nprompt = 5", "own.toml: sample.prompt = 5: it must be text"),
    ],
)
def test_a_mistake_in_a_file_is_answered_with_its_name(write, text, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        load(None, write(text))


def test_a_file_that_is_not_there_or_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"there is no recipe file .*nothing\.toml"):
        load(None, tmp_path / "nothing.toml")
    with pytest.raises(ValueError, match=r"cannot read the recipe file .*: Is a directory"):
        load(None, tmp_path)


# what goes into keys


def test_a_stage_reads_its_sections_by_full_names():
    settings = load(settings=["tokenizer.vocab_size=300"]).settings(["tokenizer", "evaluate"])
    assert settings == {
        "tokenizer.vocab_size": 300,
        "tokenizer.min_pair_count": 2,
        "evaluate.weights": "last",
    }


def test_the_place_of_the_data_is_in_no_key():
    assert "data.source" not in load().settings(["data"])


def test_every_section_is_of_plain_values():
    """They are compared, printed and hashed: numbers, truth values and text only."""
    for section in dataclasses.fields(Recipe)[1:]:
        for name, value in load().settings([section.name]).items():
            assert type(value) in (int, float, bool, str), name


def test_classic_is_a_recipe_of_ours_for_any_size(tmp_path, monkeypatch):
    for size in ("tiny", "large"):
        classic = load(size, file=Path("classic"))
        assert classic.model.layers == load(size).model.layers
        assert (classic.train.optimizer, classic.train.batch) == ("adamw", 256)
        assert (classic.model.dropout, classic.model.norm) == (0.1, "layernorm")
    monkeypatch.chdir(tmp_path)
    Path("classic").write_text("[train]\nsteps = 7\n")  # one's own file of that name comes first
    assert load("tiny", file=Path("classic")).train.steps == 7
    with pytest.raises(ValueError, match="no recipe file modern: give the path of one, or classic"):
        load("tiny", file=Path("modern"))
