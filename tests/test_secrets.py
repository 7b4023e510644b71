"""Nothing that leaves the process holds a secret: not what is shown, stored, cached or sent."""

import base64
import gzip
import json
import os
from types import SimpleNamespace
from urllib.parse import quote

import click
import pytest
from canaries import Canaries, plant
from commands import TOY, TOY_RECIPE, launch, pipeline
from file_server import serving
from pipelines import local_store
from servers import Answer, s3_environment, web

from launchers.launches import Launch, Order
from launchers.local import command as local_module
from pipeline import redact
from pipeline.cli.process import again, run_command
from pipeline.engine.beat import ask_to_stop, asked_to_stop
from pipeline.redact import redacted


@pytest.fixture
def canaries(tmp_path, monkeypatch) -> Canaries:
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "HF_", "IGNITE_", "KAGGLE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(redact, "_hidden", {})
    return plant(monkeypatch, tmp_path)


@pytest.fixture
def s3(canaries, endpoint, monkeypatch) -> str:
    """A server that takes any key; the canaries are those."""
    for name, value in s3_environment(endpoint).items():
        if name not in canaries.words:
            monkeypatch.setenv(name, value)
    return endpoint


# the search itself


@pytest.mark.parametrize("before", range(4))
def test_the_search_finds_a_word_in_any_form(before):
    canaries = Canaries()
    word = canaries.words["VAST_API_KEY"]
    within = "x" * before + word + "!"
    encoded = base64.b64encode(within.encode()).decode()
    forms = [
        *(within, quote(within, safe=""), encoded, encoded.translate({43: "-", 47: "_"})),
        *(
            json.dumps({"a": encoded}),
            f"a=b&c={quote(encoded)}",
            encoded[:20] + "\n" + encoded[20:],
        ),
        base64.b64encode(gzip.compress(json.dumps([within]).encode())).decode(),
        base64.b64encode(base64.b64encode(within.encode())).decode(),
    ]
    for form in forms:
        assert canaries.found_in(form) == ["VAST_API_KEY in text"], form
    assert canaries.found_in("x" * 40, word[:-1], {"a": [1]}, encoded[: len(encoded) // 2]) == []


def test_the_search_looks_at_names_and_below_directories(tmp_path):
    canaries = Canaries()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / canaries.words["AWS_ACCESS_KEY_ID"]).write_text(canaries.words["HF_TOKEN"])
    found = canaries.found_in(tmp_path)
    assert [each.split(" in ")[0] for each in found] == ["AWS_ACCESS_KEY_ID", "HF_TOKEN"]


# redaction


def test_a_secret_is_found_however_it_is_written(canaries):
    for name, value in {**canaries.values(), "google key": canaries.google()}.items():
        redact.hide(value) if name == "google key" else None
        for text in (value, quote(value, safe=""), repr(value), json.dumps(json.dumps(value))):
            canaries.assert_none_in(redacted(f"before {text} after"))
            assert redacted(f"before {text} after").startswith("before ")
        for ends in range(9):
            inside = b"a" * ends + value.encode() + b"b" * (ends % 3)
            canaries.assert_none_in(redacted(base64.b64encode(inside).decode()))
            canaries.assert_none_in(redacted(base64.urlsafe_b64encode(inside).decode()))


def test_a_line_of_a_key_alone_is_hidden(canaries):
    redact.hide(canaries.google())
    canaries.assert_none_in(redacted(f"  3 | {canaries.words['google key']}"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key AKIAIOSFODNN7EXAMPLE here", "key *** here"),
        ("ASIAIOSFODNN7EXAMPLE", "***"),
        ("hf_abcdefghijklmnopqrstuvwxyz", "***"),
        ("hf_hub_download(repo)", "hf_hub_download(repo)"),
        ("'KGAT_0123456789abcdef'", "'***'"),
        ("{'Authorization': 'Bearer abc.def-012345'}", "{'Authorization': 'Bearer ***'}"),
        ("Authorization: Basic YWRhOmh1bnRlcjI=", "Authorization: Basic ***"),
        ("Basic understanding of a Bearer", "Basic understanding of a Bearer"),
        ("X-Amz-Signature=0123456789abcdef&x", "X-Amz-Signature=***&x"),
        ("AccountKey=aGVsbG8gd29ybGQ=;x", "AccountKey=***;x"),
        ("-----BEGIN RSA PRIVATE KEY-----\nab\n-----END RSA PRIVATE KEY----- x", "*** x"),
        ("-----BEGIN PRIVATE KEY-----\nab", "***"),
        ('{"private_key": "abc\\ndef", "a": 1}', '{"private_key": "***", "a": 1}'),
        ("86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",) * 2,
    ],
)
def test_what_is_known_by_its_shape(text, shown):
    assert redacted(text) == shown


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        *((name, True) for name in Canaries().values()),
        *((name, True) for name in ("IGNITE_SECRET_0", "IGNITE_SECRET_12", "MYSQL_PASSWORD")),
        *((name, True) for name in ("GITHUB_TOKEN", "FSSPEC_S3_SECRET", "OPENAI_APIKEY")),
        ("GOOGLE_APPLICATION_CREDENTIALS_JSON", True),
        *((name, False) for name in ("AWS_CREDENTIALS_FILE", "PWD", "TOKENIZERS_PARALLEL")),
        *((name, False) for name in ("AWS_ENDPOINT_URL", "SSH_KEY_PATH", "KEYBOARD", "KEY_NAME")),
    ],
)
def test_names_of_secrets(name, is_one):
    assert redact.secret(name) is is_one


def test_words_and_paths_stay_readable(tmp_path, monkeypatch):
    file = tmp_path / "key.json"
    file.write_text("{}")
    monkeypatch.setenv("A_SECRET", "testing")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    assert redacted(f"testing {file}") == f"testing {file}"
    monkeypatch.setenv("A_SECRET", "/not/a/path/but+a/key")
    assert redacted("is /not/a/path/but+a/key") == "is ***"


# what leaves a process


def objects() -> dict[str, bytes]:
    """All that the bucket holds."""
    import s3fs

    bucket = s3fs.S3FileSystem(skip_instance_cache=True)
    return bucket.cat(bucket.find("runs"))


def test_a_run_tells_no_secret_to_anybody(s3, canaries, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serving() as site:
        site.body = corpus.read_bytes()
        data = canaries.url(site.url)
        store = ("--store", "s3://runs/secrets")
        told = [pipeline("run", *store, "--data", data, *TOY)]
        assert told[0].code == 0, told[0].err
        for verb in (["status", "--json"], ["log", "train", "--json"], ["explain", "train"]):
            told.append(pipeline(*verb, *store))
        told.append(pipeline("report", *store, "-o", "report.html"))
        told.append(pipeline("pull", "s3://runs/secrets", "--store", tmp_path / "pulled"))
    assert [each.code for each in told] == [0] * len(told), told
    stored = objects()
    assert len(stored) > 20 and any(name.startswith("runs/secrets/log/") for name in stored)
    canaries.assert_none_in(*[each.out + each.err for each in told], *stored, *stored.values())
    for folder in ("cache", "pulled", "report.html"):
        assert (tmp_path / folder).exists()
        canaries.assert_none_in(tmp_path / folder)


def test_a_service_that_repeats_our_keys_is_not_repeated(s3, canaries, corpus, monkeypatch):
    def answer(request):
        token = request.headers["X-Amz-Security-Token"]
        told = f"{token} of {request.headers['Authorization']}"
        assert canaries.found_in(told)
        secret = canaries.words["AWS_SECRET_ACCESS_KEY"]
        words = f"<Code>InvalidToken</Code><Message>bad {told}, {secret}</Message>"
        body = f'<?xml version="1.0"?><Error>{words}</Error>'.encode()
        return Answer(403, {"Content-Type": "application/xml"}, body)

    with web(answer) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        told = pipeline("run", "--store", "s3://runs/refused", "--data", corpus, *TOY)
    assert told.code == 1 and "refused: bad ***" in told.err
    canaries.assert_none_in(told.out, told.err)


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (ValueError, 1, "error: it is ***"),
        (click.UsageError, 2, "Error: it is ***"),
        (click.BadParameter, 2, "Invalid value: it is ***"),
        (RuntimeError, 1, "RuntimeError: it is ***"),
        (KeyError, 1, "KeyError: 'it is ***'"),
    ],
)
def test_no_error_shows_a_secret(canaries, capsys, monkeypatch, error, code, shown):
    @click.command()
    def fail():
        raise error(f"it is {canaries.words['VAST_API_KEY']}")

    monkeypatch.setattr("sys.argv", ["fail"])
    monkeypatch.setattr("sys.stdout.reconfigure", lambda **_: None, raising=False)
    monkeypatch.setattr("sys.stderr.reconfigure", lambda **_: None, raising=False)
    with pytest.raises(SystemExit) as ended:
        run_command(fail, "fail")
    said = capsys.readouterr()
    assert ended.value.code == code and shown in said.err
    canaries.assert_none_in(said.out, said.err)


def test_the_command_that_goes_on_shows_no_secret(canaries, monkeypatch):
    words = ["run", "--data", canaries.url("https://host/a.txt"), canaries.words["HF_TOKEN"]]
    monkeypatch.setattr("sys.argv", ["pipeline", *words])
    assert again() == "pipeline run --data 'https://host/a.txt?...' ***"
    monkeypatch.setenv("IGNITE_AGAIN", f"x --key {canaries.words['HF_TOKEN']}")
    assert again() == "x --key ***"


def test_what_launch_local_would_do_shows_no_secret(canaries, monkeypatch, tmp_path):
    engine = SimpleNamespace(info=lambda: {"Runtimes": {}, "SecurityOptions": []})
    monkeypatch.setattr(local_module, "connect", lambda: engine)
    monkeypatch.chdir(tmp_path)
    data = canaries.url("https://host/a.txt")
    words = ["--data", data, "--store", "s3://runs/x", "--image", "ready", *TOY_RECIPE]
    told = [launch("local", "--cpu", "-n", *json, *words) for json in ([], ["--json"])]
    assert [each.code for each in told] == [0, 0], told
    assert "AWS_SECRET_ACCESS_KEY" in told[0].out
    canaries.assert_none_in(*[each.out + each.err for each in told])


def test_what_people_and_services_say_is_stored_without_secrets(canaries, tmp_path):
    store = local_store(tmp_path / "store")
    said = f"no: {canaries.words['VAST_API_KEY']} at {canaries.url('https://host/x')}"
    launch_ = Launch(store, "ignite-tiny-000000")
    assert launch_.append("lost", attempt=1, why=said, more=[{"text": said}])
    launch_.tell(1, state="ended", why=said)
    launch_.stop(said)
    ask_to_stop(store, "host-1-ab", said)
    canaries.assert_none_in(tmp_path / "store")
    clean = "no: *** at https://host/x?..."
    assert launch_.events()[0].body["why"] == launch_.box(1)["why"] == clean
    assert clean in launch_.stopping() and clean in asked_to_stop(store, "host-1-ab")


def test_an_order_with_a_secret_is_refused(canaries, tmp_path):
    store = local_store(tmp_path / "store")
    settings = {"name": "x", "target": "vast", "machine": [], "bundle": "0" * 64}
    bad = Order(recipe={"data": {"source": canaries.url("https://host/a.txt")}}, **settings)
    with pytest.raises(ValueError, match="the recipe of launch x would tell a secret") as refused:
        Launch(store, "x").place(bad)
    canaries.assert_none_in(str(refused.value), tmp_path / "store")
    Launch(store, "x").place(Order(recipe={"data": {"source": "https://host/a.txt"}}, **settings))
