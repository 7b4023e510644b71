"""What a machine elsewhere does: the real bootstrap, from the bundle alone."""

import itertools
import time

import pytest
from boxes import ordered, start_box, unpack

from launchers import bootstrap, bundle
from launchers.box import Teller, toml
from launchers.health import judge_disk, judge_way
from pipeline import recipe
from pipeline.preflight import FAIL, OK
from pipeline.store.places import open_store


def printed(launch, attempt=1):
    numbers = itertools.count()
    pieces = iter(lambda: launch.printed(attempt, next(numbers)), None)
    return b"".join(pieces).decode()


def waited(process, seconds=90):
    out, _ = process.communicate(timeout=seconds)
    return process.returncode, out


# the bundle


def test_a_bundle_is_a_function_of_what_is_in_it(tmp_path):
    first, second = bundle.make(), bundle.make()
    assert first == second
    names = {
        path.relative_to(tmp_path).as_posix() for path in unpack(tmp_path, first.data).rglob("*")
    }
    assert {"model/gpt.py", "pipeline/recipes/tiny.toml", "requirements.json"} <= names
    assert "constraints.txt" in names and not any(name.startswith("tests") for name in names)


def test_a_file_that_git_does_not_track_is_not_sent(tmp_path, monkeypatch):
    import subprocess

    for name in ("model/a.py", "model/mine.py", "launchers/key.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["a"]\n[project.optional-dependencies]\ns3 = ["b"]\n'
    )
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "model/a.py", "launchers/key.txt"], check=True)
    packed = bundle.make(tmp_path)
    found = unpack(tmp_path / "out", packed.data)
    assert sorted(p.name for p in found.rglob("*.*")) == ["a.py", "requirements.json"]
    (tmp_path / "model" / "a.py").write_text("x = 2\n")
    assert bundle.make(tmp_path).digest != packed.digest


# installing


def test_what_is_there_is_not_installed_again():
    assert bootstrap.missing(["torch>=2.6", "click>=8.1"]) == []
    assert bootstrap.missing(["torch>=99", "no-such-package-at-all"]) == [
        "torch>=99",
        "no-such-package-at-all",
    ]


def test_the_store_decides_what_is_needed():
    needs = {"": ["torch"], "data": ["pyarrow"], "s3": ["s3fs"], "gcs": ["gcsfs"]}
    assert bootstrap.wanted(needs, "s3://bucket/run") == ["torch", "pyarrow", "s3fs"]
    assert bootstrap.wanted(needs, "/kaggle/working/store") == ["torch", "pyarrow"]


def test_torch_stays_and_what_is_new_comes_in_the_version_that_was_tested():
    kept = {"torch": "2.11.0+cu128", "numpy": "2.0.1", "fsspec": "2025.3.0"}
    lock = "torch==2.13.0\nnumpy==2.4.0\nfsspec==2026.9.0\ns3fs==2026.9.0\nclick==8.4.2\n"
    found = bootstrap.pins(lock, kept, ["s3fs>=2026.9", "fsspec>=2026"])
    assert found == [
        "torch==2.11.0+cu128",
        "numpy==2.0.1",
        "fsspec==2026.9.0",
        "s3fs==2026.9.0",
        "click==8.4.2",
    ]


# health


def test_floors_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert judge_disk(0.001, 1 << 21).state == OK
    assert judge_disk(1e9, 1 << 21).state == FAIL
    store = open_store(str(tmp_path / "store"))
    assert judge_way(store, 0.001, 1000).state == OK
    assert judge_way(store, 1e9, 1000).state == FAIL
    assert store.names("tmp") == []


def test_a_store_that_gives_back_other_bytes_is_found_out(tmp_path, monkeypatch):
    store = open_store(str(tmp_path / "store"))
    monkeypatch.setattr(store, "read", lambda name: b"something else")
    assert "other bytes" in judge_way(store, 0.001, 1000).words


# the errand


def test_a_recipe_goes_through_a_file_unchanged(tmp_path):
    tree = recipe.load("small", settings=('sample.prompt=O «Rome»\\n"so"', "train.lr=1e-5")).tree()
    file = tmp_path / "recipe.toml"
    file.write_text(toml(tree), encoding="utf-8")
    assert recipe.load(file=file).tree() == tree


def test_a_box_does_the_errand_and_tells_how_it_went(tmp_path, corpus):
    launch = ordered(str(tmp_path / "store"), corpus)
    code, out = waited(start_box(tmp_path / "box", launch))
    assert code == 0, out
    word = launch.box(1)
    assert (word["state"], word["code"]) == ("ended", 0)
    assert printed(launch) == out and "sample" in out


def test_a_box_that_is_asked_to_stop_saves_and_ends(tmp_path, corpus):
    launch = ordered(str(tmp_path / "store"), corpus, "train.steps=100000")
    process = start_box(tmp_path / "box", launch)
    while launch.box(1).get("state") != "running":
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    launch.stop("the card is needed")
    code, out = waited(process)
    assert code == 75, out
    assert "the card is needed" in out and launch.box(1)["code"] == 75


def test_a_box_that_is_taken_away_with_a_warning_saves_and_says_so(tmp_path, corpus):
    launch = ordered(str(tmp_path / "store"), corpus, "train.steps=100000")
    process = start_box(tmp_path / "box", launch)
    while launch.box(1).get("state") != "running":
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.terminate()
    code, out = waited(process)
    assert code == 75 and launch.box(1)["taken"] is True, out


def test_a_box_ends_when_its_time_is_nearly_over(tmp_path, corpus):
    launch = ordered(str(tmp_path / "store"), corpus, "train.steps=100000")
    code, out = waited(start_box(tmp_path / "box", launch, seconds=9.0))
    assert code == 75 and "stopped after " in out, out


def test_a_machine_that_is_too_slow_is_given_back(tmp_path, corpus):
    launch = ordered(str(tmp_path / "store"), corpus)
    order = launch.order()
    order.options["floors"]["disk"] = 1e9
    launch.store.replace(f"launch/{launch.name}/order", order.body())
    code, out = waited(start_box(tmp_path / "box", launch))
    assert code == 69, out
    assert "disk speed" in launch.box(1)["why"]


@pytest.mark.parametrize("before", [0, 2])
def test_a_box_that_nobody_asked_for_takes_the_next_number(tmp_path, corpus, before):
    """As in a notebook that somebody runs again."""
    launch = ordered(str(tmp_path / "store"), corpus)
    for number in range(before):
        launch.append("created", attempt=number + 1, id="elsewhere")
    code, out = waited(start_box(tmp_path / "box", launch, attempt=0))
    assert code == 0, out
    assert launch.box(before + 1)["code"] == 0


def test_a_box_that_comes_back_after_it_was_given_up_does_nothing(tmp_path, corpus):
    launch = ordered(str(tmp_path / "store"), corpus)
    launch.append("created", attempt=1, id="b1")
    launch.append("left", attempt=1, why="somebody bids more")
    code, out = waited(start_box(tmp_path / "box", launch))
    assert code == 75 and "somebody bids more" in out
    assert launch.box(1) == {}


class Quiet:
    """A launch whose store takes its time for some words; ``words`` are as they arrived."""

    name = "ignite-tiny-0000aa"

    def __init__(self, slow):
        self.slow, self.words, self.pieces = slow, [], {}

    def tell(self, attempt, **told):
        if told["state"] == self.slow:
            time.sleep(0.3)
        self.words.append(told["state"])

    def print(self, attempt, piece, data):
        self.pieces[piece] = data

    def printed(self, attempt, piece):
        return self.pieces.get(piece)

    def stopping(self):
        return None


def test_the_last_word_is_the_last_that_arrives():
    """Else a run that is done looks as if its machine had been lost, and another is rented."""
    told = Quiet("running")
    with Teller(told, 1, 0.02) as teller:
        teller.tell(state="running")
        time.sleep(0.1)  # the next one is on its way
        teller.tell(state="ended", code=0)
    assert told.words[-1] == "ended"


def test_a_box_that_was_paused_prints_after_what_it_has_printed():
    told = Quiet("never")
    for line in ("before it was paused", "after it"):
        with Teller(told, 1, 10.0) as teller:
            teller.say(line)
    assert b"".join(told.pieces.values()) == b"before it was paused\nafter it\n"
