"""The command lines as users meet them: output, exit codes, mistakes, signals, pipes."""

import json
import subprocess
import sys

import click
import pytest
from commands import ROOT, TOY, TOY_RECIPE, launch, pipeline
from pipelines import local_store

from launchers import cli as launch_cli
from pipeline.cli import main as pipeline_cli
from pipeline.cli.machine_options import machine_options, machine_words, said_of_machine
from pipeline.engine import log
from pipeline.engine.beat import Beat
from pipeline.engine.log import Claim
from pipeline.recipe import SIZES
from pipeline.stages import STAGES as DECLARED
from pipeline.store.locks import machine_id

STAGES = [stage.name for stage in DECLARED]


# help and usage


VERBS = [("pipeline", name) for name in pipeline_cli.cli.commands]
VERBS += [("launch", name) for name in launch_cli.VERBS]


@pytest.mark.parametrize(("program", "verb"), VERBS)
def test_every_verb_says_what_it_does(program, verb):
    told = {"pipeline": pipeline, "launch": launch}[program](verb, "--help")
    assert told.code == 0
    usage, _, description = told.out.partition("\n\n")
    assert usage.startswith(f"Usage: {program} {verb}")
    assert "." in description.split("Options:")[0]


def test_the_program_alone_shows_its_verbs_and_examples():
    told = pipeline("--help")
    assert told.code == 0
    assert all(f"  {verb} " in told.out for program, verb in VERBS if program == "pipeline")
    assert "pipeline run --size tiny --data tinyshakespeare" in told.out


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["rnu"], "No such command 'rnu'"),
        (["run", "trian"], "'trian' is not one of 'prepare', 'tokenizer', 'encode', 'train'"),
        (["run", "--szie", "tiny"], "--szie"),
        (["run", "--size", "huge"], "unknown size 'huge': choose one of tiny, small"),
        (["run", "--set", "tain.lr=1"], "unknown setting 'tain.lr': did you mean train.lr?"),
        (["run", "--set", "train.lr"], "write it as section.key=value"),
        (["run", "--set", "train.lr=-1"], "train.lr = -1.0 is out of range: it must be above 0"),
        (["run", "--recipe", "nothing.toml"], "there is no recipe file nothing.toml"),
        (
            ["run", "--checkpoint-every", "soon"],
            "'--checkpoint-every': 'soon' is not a duration: write it as 90s",
        ),
        (["run", "--device", "tpu"], "--device tpu: it must be auto, cpu, cuda, cuda:N or mps"),
        (["run", "--precision", "fp8"], "'fp8' is not one of 'auto', 'fp32', 'bf16'"),
        (["run", "--threads", "100000"], "100000 is not in the range 0<=x<=1024"),
        (["run", "--micro-batch", "-1"], "-1 is not in the range x>=0"),
        (["explain"], "Missing argument"),
        (["generate", "--keep", "3"], "No such option"),
        (["generate", "--temperature", "-1"], "temperature = -1.0 is out of range"),
        (["generate", "--top-p", "nan"], "top_p = nan is out of range"),
        (["generate", "--tokens", "0"], "0 is not in the range x>=1"),
    ],
)
def test_a_mistake_is_answered_and_changes_nothing(tmp_path, words, answer):
    told = pipeline(*words, *(["--store", tmp_path / "store"] if words[0] != "rnu" else []))
    assert told.code == 2
    assert answer in told.err and "Traceback" not in told.err
    assert told.out == ""
    assert not (tmp_path / "store").exists()


# data that cannot be trained on


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (None, "Give a data set (python-stdlib, tinyshakespeare), a file, a directory"),
        (b"", "there is no text in text.txt: give other --data"),
        (b"a", "is one text of 1 byte(s), too short to be split into training and validation"),
        (b"hello world, hello", "one window needs 17: give more text, or a shorter context"),
        (b"\x7fELF\x00\x01", "is not plain text: byte 4 is NUL. Leave binary files out"),
        (b"caf\xe9 au lait" * 99, "is not valid UTF-8: byte 0xE9 at offset 3 (line 1)"),
        ("text".encode("utf-16"), "It looks like UTF-16: convert it with `iconv"),
    ],
)
def test_data_that_is_no_use_is_answered_with_the_fix(tmp_path, content, answer):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    told = pipeline("run", "--store", tmp_path / "s", "--data", tmp_path / "text.txt", *TOY)
    assert told.code == 1
    assert told.err.startswith("error: ") and told.err.count("\n") == 1
    assert answer in told.err


def test_a_run_that_found_no_data_is_not_the_last_run(finished):
    latest = (finished / "ref" / "latest").read_bytes()
    assert pipeline("run", "--store", finished, "--data", finished / "nothing.txt").code == 1
    assert (finished / "ref" / "latest").read_bytes() == latest


def test_too_large_a_model_is_answered_with_what_is_smaller(finished, corpus):
    settings = ["--set", "model.width=10000000"]
    told = pipeline("run", "train", "--store", finished, "--data", corpus, *TOY, *settings)
    assert told.code == 1
    assert told.err.startswith("error: not enough memory: take a smaller --micro-batch")


def test_a_last_run_that_cannot_be_read_is_not_taken_for_another(tmp_path):
    local_store(tmp_path).replace("ref/latest", b'{"size": "tiny"}')
    for verb in ("run", "status"):
        told = pipeline(verb, "--store", tmp_path)
        assert told.code == 2 and "say what to run, with --size, --data" in told.err
    assert pipeline("status", "--store", tmp_path, "--size", "tiny").code == 0


# what verbs print


def test_a_run_says_what_it_did(finished, corpus, tmp_path):
    told = pipeline("run", "encode", "--store", tmp_path / "s", "--data", corpus, *TOY)
    lines = told.out.splitlines()
    assert lines[0] == f"tiny on {corpus}, store {tmp_path / 's'}"
    assert [line.split(":")[0] for line in lines[1:4]] == STAGES[:3]
    assert [line.split()[:2] for line in lines[6:]] == [[name, "done"] for name in STAGES[:3]]


def test_a_second_run_has_nothing_to_do(finished, corpus):
    told = pipeline("run", "--store", finished, "--data", corpus, *TOY)
    assert told.code == 0
    assert "nothing to do: every stage has its result" in told.out
    assert "--- greedy" in told.out and "bits per byte" in told.out
    assert told.out == pipeline("run", "--store", finished).out


def test_run_json_prints_json_and_nothing_else(finished):
    told = pipeline("run", "--store", finished, "--json")
    assert set(json.loads(told.out)["stages"]) == set(STAGES)


def test_status_as_a_table(finished):
    lines = pipeline("status", "--store", finished).out.splitlines()
    assert [line.split()[:2] for line in lines[3:]] == [[name, "done"] for name in STAGES]


def test_status_as_json(finished, corpus):
    told = json.loads(pipeline("status", "--store", finished, "--json").out)
    assert told["recipe"]["data"]["source"] == str(corpus) and told["store"] == str(finished)
    assert list(told["stages"]) == STAGES
    for stage in told["stages"].values():
        assert stage["state"] == "done" and len(stage["key"]) == 64
        assert stage["seconds"] >= 0 and stage["bytes"] > 0
    metrics = told["stages"]["evaluate"]
    assert metrics["perplexity"] > 1
    assert 0 < metrics["bits_per_byte"] <= metrics["bits_per_byte_disjoint"] + 0.1


def test_status_of_a_store_that_is_not_there(tmp_path):
    told = pipeline("status", "--store", tmp_path / "s", "--json")
    states = [stage["state"] for stage in json.loads(told.out)["stages"].values()]
    assert states == ["to run"] + ["waiting"] * 5
    assert not (tmp_path / "s").exists()


def test_a_dry_run_says_what_would_run_and_runs_nothing(tmp_path, corpus):
    told = pipeline("run", "tokenizer", "-n", "--store", tmp_path / "s", "--data", corpus)
    assert told.code == 0
    assert told.out.startswith("prepare: to run, key ") and "tokenizer: waiting" in told.out
    assert "encode" not in told.out and not (tmp_path / "s").exists()


def test_a_dry_run_as_json(finished, corpus):
    words = ["--data", corpus, *TOY_RECIPE, "--set", "train.warmup=3"]
    told = pipeline("run", "evaluate", "-n", "--json", "--store", finished, *words)
    assert told.code == 0 and told.err == ""
    found = json.loads(told.out)
    assert found["dry_run"] and found["store"] == str(finished)
    assert list(found["stages"]) == STAGES[:5]
    train = found["stages"]["train"]
    assert train["state"] == "to run" and len(train["key"]) == 64
    assert "  train.warmup 2 -> 3" in train["why"]
    assert found["stages"]["evaluate"]["why"] == [
        "evaluate: waiting for train, encode, whose result decides its key"
    ]
    assert found["stages"]["prepare"]["state"] == "done"


def test_explain_names_what_differs(finished, corpus):
    words = ["--data", corpus, *TOY_RECIPE, "--set", "train.warmup=3"]
    told = pipeline("explain", "train", "--store", finished, *words)
    assert told.code == 0 and "  train.warmup 2 -> 3" in told.out.splitlines()


def test_log_as_a_story_and_as_json(finished):
    told = pipeline("log", "train", "--store", finished)
    kinds = [line.split()[2] for line in told.out.splitlines()]
    assert (kinds[0], kinds[-1]) == ("claim", "result")
    assert set(kinds[1:-1]) <= {"checkpoint"}
    told = pipeline("log", "train", "--store", finished, "--json")
    assert [json.loads(line)["kind"] for line in told.out.splitlines()] == kinds


def test_log_of_a_stage_that_never_ran(tmp_path):
    told = pipeline("log", "train", "--store", tmp_path / "s")
    assert told.code == 0 and told.out == "" and "train has never run" in told.err


def test_graph_and_sizes():
    assert [line.split()[0] for line in pipeline("graph").out.splitlines()[1:]] == STAGES
    sizes = pipeline("sizes").out
    assert [line.split()[0] for line in sizes.splitlines()[1:]] == list(SIZES)
    assert "334,808,064" in sizes


def test_sample_shows_the_runs_own_samples_or_those_of_a_prompt(finished):
    own = json.loads(pipeline("sample", "--store", finished, "--json").out)
    assert [each["method"] for each in own["samples"]] == [
        "greedy",
        "temperature",
        "top-k",
        "top-p",
    ]
    told = pipeline("sample", "--store", finished, "--prompt", "héllo", "--device", "cpu")
    assert told.code == 0 and told.out.startswith(
        "prompt: 'héllo'\n\n--- greedy (temperature 0.0)\n"
    )
    assert told.out.count("\nhéllo") == 4


@pytest.mark.parametrize("prompt", ["", "abc", "é☃ <|endoftext|>", "long " * 100, "\udcff"])
def test_generate_goes_on_from_any_prompt(finished, prompt):
    words = ["--prompt", prompt, "--tokens", "5", "--device", "cpu"]
    told = pipeline("generate", "--store", finished, *words)
    assert told.code == 0
    assert told.out.startswith(prompt.replace("\udcff", "?")) and told.out.endswith("\n")
    assert told == pipeline("generate", "--store", finished, *words)


@pytest.mark.parametrize(
    "words", [["sample"], ["sample", "--prompt", "a"], ["generate", "--prompt", "a"]]
)
def test_writing_without_a_model_says_what_to_run(tmp_path, words):
    told = pipeline(*words, "--store", tmp_path / "s")
    assert told.code == 1 and told.out == ""
    assert told.err.endswith("run `pipeline run` first\n")


def test_the_store_of_the_environment(finished, monkeypatch):
    monkeypatch.setenv("IGNITE_STORE", str(finished))
    assert pipeline("status").out.splitlines()[3].split()[:2] == ["prepare", "done"]
    assert launch("ps").out == f"nothing runs on {finished}\n"


def test_two_stores_know_nothing_of_each_other(finished, corpus, tmp_path):
    told = pipeline("run", "prepare", "--store", tmp_path / "s", "--data", corpus, *TOY)
    assert told.out.splitlines()[-1].split()[:2] == ["prepare", "done"]
    assert len(local_store(tmp_path / "s").names("log")) == 1


def test_launch_ps_shows_who_works_and_how_far(tmp_path):
    store = local_store(tmp_path / "s")
    with Beat(store, "key") as beat:
        beat.progress = {"done": 4096, "total": None, "unit": "B"}
        beat._write()
        body = {"machine_id": machine_id(), "record": {"stage": "prepare"}}
        Claim.take(store, "key", log.read(store, "key"), beat.owner, body)
        told = launch("ps", "--store", store.root)
        assert told.out.splitlines()[1].split()[:2] == ["prepare", beat.owner]
        assert told.out.splitlines()[1].endswith("4,096 B")
        (work,) = json.loads(launch("ps", "--store", store.root, "--json").out)["workers"]
        assert work["stage"] == "prepare" and work["progress"]["done"] == 4096
    assert launch("ps", "--store", store.root).out.startswith("nothing runs on")


def test_a_setting_alone_is_laid_over_the_last_run(tmp_path, corpus, monkeypatch):
    """And the last run is found from any directory, though its data had a relative path."""
    store = tmp_path / "store"
    monkeypatch.chdir(corpus.parent)
    assert pipeline("run", "encode", "--store", store, "--data", corpus.name, *TOY).code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    told = pipeline("status", "--store", store, "--json", "--set", "train.lr=1e-3")
    assert told.code == 0, told.err
    told_json = json.loads(told.out)
    assert told_json["recipe"]["data"]["source"] == str(corpus)
    assert told_json["recipe"]["train"]["lr"] == 1e-3
    assert told_json["stages"]["encode"]["state"] == "done"


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in launch_cli.VERBS)])
def test_no_verb_of_launch_loads_what_it_does_not_need_yet(words):
    """Whoever asks for help needs no torch, no engine and no cloud's package."""
    code = (
        "import sys\nfrom launchers.cli import cli\n"
        f"try:\n    cli({words!r})\nexcept SystemExit: pass\n"
        "heavy = 'torch numpy docker vastai kagglesdk kaggle s3fs botocore requests nbformat'\n"
        "print([name for name in heavy.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_launch_alone_shows_its_verbs_and_examples():
    told = launch("--help").out
    assert all(f"  {verb} " in told for verb in launch_cli.VERBS)
    assert "launch vast --size large --store s3://me/run" in told


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--deterministic"],
        ["--micro-batch", "auto", "--processes", "2", "--checkpoint-every", "5m"],
        ["--device", "cpu", "--precision", "fp32", "--threads", "1", "--keep", "3"],
    ],
)
def test_what_is_said_of_a_machine_can_be_said_again(words):
    """As `launch` does it, whose boxes and containers run `pipeline run`."""
    told = []

    @click.command()
    @machine_options
    def parsed(**options):
        told.append((machine_words(said_of_machine()), options))

    parsed(words, standalone_mode=False)
    again, options = told[0]
    parsed(again, standalone_mode=False)
    assert told[1] == (again, options)
    assert len(again) == len(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--precision", "fp16"], "--precision fp16: slow and no use on a CPU"),
        (["--device", "cuda:99"], "--device cuda:99: "),
        (["--sharding", "on"], "--sharding on: one process has nothing to share out"),
        (["--compile", "on", "--set", "model.qk_norm=true"], "--compile on: attention compiled"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["-n"]])
def test_what_the_machine_cannot_do_is_refused_before_any_stage(tmp_path, corpus, words, said, dry):
    told = pipeline("run", *dry, "--store", tmp_path, "--data", corpus, *TOY_RECIPE, *words)
    assert told.code == 1 and said in told.err and "prepare" not in told.out
    earlier = ["--store", tmp_path, "--data", corpus, *TOY_RECIPE, *words]
    assert pipeline("run", "prepare", *earlier).code == 0
