"""Keys: what of the code counts, what does not, and that it counts the same everywhere."""

import ast
import json
import math
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pipeline import hashing
from pipeline.engine import code, keys
from pipeline.memo import Memo
from pipeline.stages import STAGES

MODULE = '''"""What it does."""
import math
from math import sqrt as root

from model import other

SCALE = 2  # a module constant


def area(radius: float, times=1) -> float:
    """Of a circle."""
    # exact
    return math.pi * radius**2 * times


@staticmethod
def twice(value):
    return value * SCALE


class Shape(object):
    """A thing with sides."""

    sides: int = 3

    def corners(self):
        "As many."
        return self.sides

    @property
    def colour(self):
        return "red"

    @colour.setter
    def colour(self, value):
        self.paint = value
'''


def units(source: str) -> dict[str, str]:
    """Digests of the units of one module's source."""
    return code.units(ast.parse(source))


def changed(old: str, new: str) -> list[str]:
    """The units that differ once ``old`` is replaced by ``new`` in the module."""
    assert MODULE.count(old) == 1, f"{old!r} is not there once"
    before, after = units(MODULE), units(MODULE.replace(old, new))
    return sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    # exact\n", ""),
        ("# a module constant", "# another remark"),
        ('"""Of a circle."""', '"""Of a disc, in square metres."""'),
        ('    """Of a circle."""\n', ""),
        ('        "As many."\n', ""),
        ('"""What it does."""', '"""What it is for."""'),
        ('    """A thing with sides."""\n\n', ""),
        ("\n\nSCALE", "\n\n\n\nSCALE"),
        ("math.pi * radius**2 * times", "(math.pi * radius ** 2\n        * times)"),
        ('"red"', "'red'"),
        (
            "import math\nfrom math import sqrt as root\n",
            "from math import sqrt as root\nimport math\n",
        ),
    ],
)
def test_layout_and_words_do_not_count(old, new):
    assert changed(old, new) == []


def test_moving_a_function_does_not_count():
    start, end = MODULE.index("def area"), MODULE.index("@staticmethod")
    moved = MODULE[:start] + MODULE[end:] + "\n\n" + MODULE[start:end]
    assert units(moved) == units(MODULE)


@pytest.mark.parametrize(
    ("old", "new", "unit"),
    [
        ("radius**2 * times", "times * radius**2", "area"),
        ("times=1", "times=1.0", "area"),
        ("times=1", "times=True", "area"),
        ("radius: float", "radius: int", "area"),
        ("@staticmethod", "@classmethod", "twice"),
        ("sides: int = 3", "sides: int = 4", "Shape"),
        ("sides: int = 3", "sides: float = 3", "Shape"),
        ("Shape(object)", "Shape", "Shape"),
        ("class Shape(object)", "@object\nclass Shape", "Shape"),
        ("return self.sides", "return -self.sides", "Shape.corners"),
        ('return "red"', 'return "blue"', "Shape.colour"),
        ("self.paint = value", "self.paint = None", "Shape.colour"),
        ("SCALE = 2", "SCALE = 3", "(top level)"),
        ("sqrt as root", "cbrt as root", "(top level)"),
        ("import math\n", "import cmath as math\n", "(top level)"),
    ],
)
def test_what_a_program_does_counts_where_it_stands(old, new, unit):
    assert changed(old, new) == [unit]


def test_a_new_name_is_another_unit():
    assert changed("def twice", "def double") == ["double", "twice"]


# which modules


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A tree of sources instead of ours; returns what writes a module into it."""
    monkeypatch.setattr(code, "ROOT", tmp_path)

    def write(name: str, source: str) -> None:
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")

    return write


def files(*modules: str) -> set[str]:
    digests = code.code_digests(modules, Memo(Path("/nowhere/memo.json")))
    return {unit.split(" ", 1)[0] for unit in digests}


@pytest.mark.parametrize(
    ("source", "followed"),
    [
        ("import model.b", True),
        ("from model import b", True),
        ("from model.b import anything", True),
        ("def f():\n    from model.b import anything", True),
        ("if True:\n    pass\nelse:\n    import model.b", True),
        ("try:\n    import model.b\nexcept ImportError:\n    pass", True),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import model.b",
            False,
        ),
        ("import typing\nif typing.TYPE_CHECKING:\n    from model import b", False),
        ("import b", False),
        ("from other.model import b", False),
    ],
)
def test_which_imports_are_followed(tree, source, followed):
    tree("model.a", source)
    tree("model.b", "X = 1")
    assert files("model.a") == {"model/a.py"} | ({"model/b.py"} if followed else set())


def test_imports_are_followed_to_the_end_and_round_in_circles(tree):
    tree("model.a", "import model.b")
    tree("model.b", "import model.c")
    tree("model.c", "import model.a")
    assert files("model.a") == {"model/a.py", "model/b.py", "model/c.py"}


def test_a_relative_import_is_refused_because_it_would_go_unseen(tree):
    tree("model.a", "from . import b")
    with pytest.raises(AssertionError, match="full name"):
        files("model.a")


class _Finalized:
    """In a circle, so that the collector runs Python code in the middle of whatever goes on."""

    def __init__(self):
        self.me = self

    def __del__(self):
        time.sleep(0)


def test_two_threads_may_look_at_the_code_at_once():
    ended = []

    def look():
        try:
            for _ in range(15):
                code.code_digests(["pipeline.stages.train"], Memo(Path("nowhere")))
                [_Finalized() for _ in range(50)]
            ended.append(None)
        except SystemError as error:  # of Python 3.11 (python/cpython#106905)
            ended.append(error)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [None, None]


@pytest.mark.parametrize(
    ("stage", "inside", "outside"),
    [
        ("prepare", "pipeline/data/documents.py", "model/bpe.py"),
        ("tokenizer", "model/bpe.py", "model/attention.py"),
        ("encode", "model/bpe.py", "model/attention.py"),
        ("train", "model/attention.py", "model/bpe.py"),
        ("train", "model/optimizer.py", "model/sampling.py"),
        ("evaluate", "model/evaluate.py", "model/optimizer.py"),
        ("sample", "model/sampling.py", "model/optimizer.py"),
    ],
)
def test_what_a_stage_depends_on(stage, inside, outside):
    found = files(f"pipeline.stages.{stage}")
    assert inside in found and outside not in found


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_no_stage_depends_on_the_engine(stage):
    rooms = tuple(f"{room.replace('.', '/')}/" for room in code.ROOMS)
    beside = {f"pipeline/{name}.py" for name in code.BESIDE}
    assert not [file for file in files(stage.module) if file.startswith(rooms) or file in beside]


# the same everywhere

PRINT_DIGESTS = """
import json
from pathlib import Path
from pipeline.engine import code
from pipeline.memo import Memo
from pipeline.stages import STAGES

memo = Memo(Path("/nowhere/memo.json"))
print(json.dumps({stage.name: code.code_digests([stage.module], memo) for stage in STAGES}))
"""


def other_python(version: str) -> str:
    """An interpreter of that version; skips the test if there is none."""
    name = f"python{version}"
    beside = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/{name}"))
    for place in [shutil.which(name), *beside]:
        if place and subprocess.run([place, "-c", ""], capture_output=True).returncode == 0:
            return str(place)
    pytest.skip(f"there is no {name} here")


@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_every_python_finds_the_same_digests(version):
    environment = {**os.environ, "PYTHONPATH": str(code.ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [other_python(version), "-c", PRINT_DIGESTS]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    memo = Memo(Path("/nowhere/memo.json"))
    here = {stage.name: code.code_digests([stage.module], memo) for stage in STAGES}
    assert json.loads(told.stdout) == here


# records


def test_canonical_does_not_see_the_order_of_keys():
    assert hashing.canonical({"a": 1, "b": [2, {"d": 3, "c": 4}]}) == (
        b'{"a":1,"b":[2,{"c":4,"d":3}]}'
    )
    assert hashing.canonical({"b": 1, "a": 2}) == hashing.canonical({"a": 2, "b": 1})


def test_canonical_tells_apart_what_python_calls_equal():
    values = [1, 1.0, "1", True, None, "true", [1], {"1": 1}, 0, -0.0, 0.0, "", False]
    assert len({hashing.canonical(value) for value in values}) == len(values)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, {"a": [math.nan]}])
def test_canonical_refuses_what_is_no_number(value):
    with pytest.raises(ValueError):
        hashing.canonical(value)


@pytest.mark.parametrize("text", ["é", "\U0001f600", '\n"\\', "\udcff"])
def test_canonical_is_ascii_and_reads_back(text):
    assert json.loads(hashing.canonical(text).decode("ascii")) == text


def record(**changes):
    parts = {
        "stage": "train",
        "version": 1,
        "code": {"model/a.py f": "0123456789abcdef"},
        "recipe": {"train.lr": 0.1, "train.steps": 5},
        "inputs": {"encode/train.tokens": "f" * 64},
    }
    return keys.record(**{**parts, **changes})


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, []),
        ({"recipe": {"train.lr": 0.2, "train.steps": 5}}, ["train.lr 0.1 -> 0.2"]),
        ({"recipe": {"train.lr": 0.1}}, ["train.steps 5 -> (none)"]),
        (
            {"recipe": {"train.lr": 0.1, "train.steps": 5, "train.tie": "a"}},
            ['train.tie (none) -> "a"'],
        ),
        (
            {"inputs": {"encode/train.tokens": "e" * 64}},
            ["input encode/train.tokens ffffffff -> eeeeeeee"],
        ),
        ({"code": {"model/a.py f": "1123456789abcdef"}}, ["code model/a.py f"]),
        ({"code": {}}, ["code model/a.py f"]),
        ({"version": 2}, ["version 1 -> 2"]),
        (
            {"version": 2, "code": {}, "inputs": {}, "recipe": {"train.steps": 5}},
            [
                "train.lr 0.1 -> (none)",
                "input encode/train.tokens ffffffff -> (none)",
                "code model/a.py f",
                "version 1 -> 2",
            ],
        ),
    ],
)
def test_differences_are_named_settings_first(changes, lines):
    assert keys.differences(record(), record(**changes)) == lines


def test_a_key_follows_every_part_of_a_record():
    others = [
        record(stage="encode"),
        record(version=2),
        record(code={}),
        record(recipe={}),
        record(inputs={}),
    ]
    assert len({keys.key(other) for other in [record(), *others]}) == 6
