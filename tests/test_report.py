"""The report page: what it shows, that nothing in it can do harm, and that it is reproducible."""

import html.parser
import platform
import re
import shlex
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import SETTINGS, run, toy_engine, write_corpus

from pipeline import recipe
from pipeline.engine.engine import Engine
from pipeline.engine.log import Entry
from pipeline.errors import Interrupted
from pipeline.report import write_report
from pipeline.report.curves import curves, outline, smooth
from pipeline.report.markup import tag
from pipeline.report.page import command
from pipeline.report.story import interruptions

PROMPT = "<script>alert('x')</script>\x1b &amp;"
VOID = {"meta", "br"}


class Page(html.parser.HTMLParser):
    """Reads a page; asserts that its tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.names.add(name)
        self.attributes += attributes
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.attributes += attributes

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text += data

    def values(self, *names: str) -> list[str]:
        return [value for name, value in self.attributes if name in names]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "a <b> text.txt")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus) -> Engine:
    engine = toy_engine(tmp_path_factory.mktemp("finished"), corpus, f"sample.prompt={PROMPT}")
    run(engine)
    return engine


@pytest.fixture(scope="module")
def text(tmp_path_factory, finished) -> str:
    output = tmp_path_factory.mktemp("page") / "report.html"
    write_report(finished, output)
    return output.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def result(engine: Engine, stage: str) -> dict:
    found = next(planned for planned in engine.plan() if planned.stage.name == stage).result
    assert found is not None
    return found.body


def test_is_one_balanced_document(text, page):
    assert text.startswith("<!doctype html>")
    assert {"title", "h1", "svg", "table", "pre"} <= page.names


def test_refers_to_nothing_outside(text, page):
    references = page.values("src", "href", "xlink:href") + re.findall(r"url\(([^)]*)\)", text)
    assert [name for name in references if not name.startswith("#")] == []
    assert "@import" not in text
    assert not page.names & {"link", "script", "iframe", "img", "object"}


def test_ids_are_unique(page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))


def test_shows_the_metrics(finished, page):
    metrics = result(finished, "evaluate")["metrics"]
    for name in ("bits_per_byte", "bits_per_byte_disjoint"):
        assert f"{metrics[name]:.4f}" in page.text
    assert f"{metrics['perplexity']:.2f}" in page.text
    assert "with the last step's weights" in page.text
    assert f"{result(finished, 'train')['metrics']['parameters']:,}" in page.text


def test_samples_are_inert_text(text, page):
    assert "<script" not in text
    assert "<script>alert('x')</script>␛ &amp;" in page.text
    assert "tiny on a <b> text.txt" in page.text


def test_shows_stages_and_provenance(finished, page):
    for planned in finished.plan():
        assert planned.key[:12] in page.text
        assert planned.state.entries[0].body["owner"] in page.text
    assert re.search(r"\d checkpoints, steps \d+ to \d+|checkpoint at step \d+", page.text)


def test_shows_every_setting_and_marks_changed_ones(text, page):
    own = recipe.load("tiny", settings=SETTINGS).tree()
    for section in own.values():
        if isinstance(section, dict):
            assert all(name in page.text for name in section)
    assert text.count('class="changed"') == len(SETTINGS) + 2  # and the data, and the prompt


def test_same_results_make_the_same_bytes(finished, text, tmp_path):
    write_report(finished, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == text.encode()
    assert [path.name for path in tmp_path.iterdir()] == ["again.html"]


def test_finished_run_has_no_banner(page):
    assert "not finished" not in page.text


def test_interrupted_run_gets_its_page_so_far(tmp_path, corpus):
    engine = toy_engine(tmp_path / "store", corpus)
    run(engine, "encode")
    with pytest.raises(Interrupted):
        run(engine, stopping=lambda: True)
    write_report(engine, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "This run is not finished." in page.text
    assert "train: interrupted, newest checkpoint at step 1" in page.text
    assert "evaluate: waits for train" in page.text
    assert "stopped: Interrupted" in page.text
    assert "svg" in page.names and "1 of 12" in page.text


def test_run_without_training_has_no_curves(tmp_path, corpus):
    engine = toy_engine(tmp_path / "store", corpus)
    run(engine, "tokenizer")
    write_report(engine, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "svg" not in page.names and "270 tokens" in page.text


def test_a_table_says_who_computed_which_part(tmp_path, corpus):
    engine = toy_engine(tmp_path / "store", corpus)
    run(engine, "encode")
    for _ in range(2):
        steps = iter(range(1, 100))
        with pytest.raises(Interrupted):
            run(engine, stopping=lambda steps=steps: next(steps) == 3)
    write_report(engine, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<td>1 to 3</td>" in text and "<td>4 to 6</td>" in text
    assert f"<td>{platform.node()}</td><td>cpu</td><td>float32</td>" in text
    run(engine)
    write_report(engine, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "7 to 12" in page.text and "segments" not in page.text


def test_lost_history_costs_only_the_curves(tmp_path, corpus):
    engine = toy_engine(tmp_path / "store", corpus)
    run(engine)
    engine.store.remove_blob(result(engine, "train")["files"]["history.json"]["digest"])
    write_report(engine, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "svg" not in page.names and "This run is not finished." in page.text


def test_nothing_yet_is_an_error_that_leaves_the_old_page(tmp_path, corpus):
    output = tmp_path / "report.html"
    output.write_text("old")
    with pytest.raises(ValueError, match=r"nothing to report yet.*Run `pipeline run` first"):
        write_report(toy_engine(tmp_path / "store", corpus), output)
    assert output.read_text() == "old"


def test_secrets_of_the_source_are_left_out(tmp_path, finished, monkeypatch):
    engine = toy_engine(tmp_path, "https://me:hunter2@example.org/a.txt?key=s3cret")
    engine.store = finished.store
    monkeypatch.setattr(engine, "plan", finished.plan)
    write_report(engine, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "example.org/a.txt" in text
    assert "hunter2" not in text and "s3cret" not in text


def test_missing_directory_is_named(finished, tmp_path):
    with pytest.raises(ValueError, match=r"there is no directory .*nowhere"):
        write_report(finished, tmp_path / "nowhere" / "report.html")


def test_output_that_cannot_be_written_is_named(finished, tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ValueError, match=r"cannot write .*report\.html"):
        write_report(finished, tmp_path / "report.html")
    assert len(list(tmp_path.iterdir())) == 1


def test_missing_matplotlib_says_what_to_install(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'ignite-llm\[report\]'"):
        write_report(finished, tmp_path / "report.html")


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
@settings(deadline=None, derandomize=True)
def test_any_text_survives_as_text(content):
    page = Page(tag("p", content, title=content))
    assert page.text == content
    assert page.values("title") == [content]


@pytest.mark.parametrize("prompt", ["ROMEO:", "'\"$x\\", " 1.0", "true", "a\nb", "é=ü"])
def test_command_makes_the_same_recipe(prompt):
    chosen = recipe.load(
        "tiny", data="my texts/*.txt", settings=("train.lr=1e-5", "model.bias=false")
    )
    tree = chosen.tree()
    tree["sample"]["prompt"] = prompt
    chosen = recipe.from_tree(tree)
    words = shlex.split(command(chosen, recipe.load("tiny")))
    assert words[:6] == ["pipeline", "run", "--size", "tiny", "--data", "my texts/*.txt"]
    assert set(words[6::2]) == {"--set"}
    assert recipe.load("tiny", data=words[5], settings=words[7::2]) == chosen


def entries(*kinds: str) -> tuple[Entry, ...]:
    owners = {"claim": "somebody", "release": None}
    return tuple(
        Entry(at, "claim" if kind in owners else kind, {"owner": owners.get(kind)})
        for at, kind in enumerate(kinds)
    )


@pytest.mark.parametrize(
    ("kinds", "count"),
    [
        (("claim",), 0),
        (("claim", "result"), 0),
        (("claim", "release"), 1),
        (("claim", "checkpoint", "claim", "result"), 1),
        (("claim", "release", "claim", "claim", "result"), 2),
        (("claim", "result", "claim", "retire", "result"), 0),
    ],
)
def test_interruptions_are_claims_that_came_to_nothing(kinds, count):
    assert interruptions(entries(*kinds)) == count


def test_smoothing_keeps_a_level_and_lessens_noise():
    noise = np.random.default_rng(0).normal(3, 1, size=2000)
    assert smooth(np.full(50, 2.5)) == pytest.approx(2.5)
    assert smooth(noise)[100:].std() < 0.3
    assert smooth(noise)[0] == noise[0]


def test_smoothing_is_the_mean_around_a_step():
    losses = np.random.default_rng(0).normal(size=500)
    assert smooth(losses)[250] == pytest.approx(losses[245:256].mean())
    assert smooth(losses)[499] == pytest.approx(losses[494:].mean())


def test_outline_keeps_the_extremes_of_a_long_run():
    losses = np.random.default_rng(0).normal(size=40_000)
    at = outline(losses)
    assert len(at) <= 1000 and (np.diff(at) > 0).all()
    assert {losses.argmin(), losses.argmax()} <= set(at)


@pytest.mark.parametrize("steps", [1, 2, 5000])
def test_curves_take_their_colours_from_the_page(steps):
    losses = np.linspace(5, 2, steps).tolist()
    svg = curves({"losses": losses, "validation": []}, 10_000, 0.6)
    assert svg.startswith("<svg") and "var(--accent)" not in svg
    assert not re.search("#0[1-4]0[1-4]0[1-4]", svg)
    looked = curves({"losses": losses, "validation": [{"step": 1, "loss": 2.5}]}, 10_000, 0.6)
    assert "var(--accent)" in looked and "best: 2.500 at step 1" in looked
