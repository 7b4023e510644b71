"""The notebook as a file, what its cells say when something is missing, and `launch colab`."""

import base64
import hashlib
import io
import json
import os
import sys
import tarfile
from types import SimpleNamespace

import nbformat
import pytest
from boxes import MACHINE
from click.testing import CliRunner
from commands import TOY_RECIPE
from fakes.colab import STUB, Colab
from servers import s3_environment

from launchers import bundle
from launchers.colab import cells, mirror
from launchers.colab.command import colab
from launchers.colab.notebook import Told, notebook
from launchers.colab.unattended import Unattended, script
from launchers.credentials import names
from launchers.launches import Launch, Order
from pipeline import recipe
from pipeline.errors import Damaged
from pipeline.store.places import open_store

SECRETS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN"),
    *("VAST_API_KEY", "KAGGLE_KEY", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"),
    *("GOOGLE_APPLICATION_CREDENTIALS_JSON", "COLAB_TOKEN"),
)


def order(data: str = "tinyshakespeare") -> Order:
    tree = recipe.load("tiny", data=data).tree()
    return Order("ignite-tiny-0000aa", "colab", tree, MACHINE, bundle.make().digest, at=0, by="me")


def told(**more) -> Told:
    return Told(order(), bundle.make(), **{"store": "s3://bucket/run", **more})


@pytest.fixture
def canaries(monkeypatch) -> dict[str, str]:
    planted = {name: f"canary-{number}-7d31f0ce" for number, name in enumerate(SECRETS)}
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    return planted


def inside(text: str) -> bytes:
    """All that is in a notebook, the sources unpacked."""
    node = nbformat.reads(text, as_version=4)
    (cell,) = (cell for cell in node.cells if cell.id == "program")
    found = {}
    exec(cell.source, found)
    data = base64.b64decode(found["PROGRAM"])
    assert hashlib.sha256(data).hexdigest() == found["TOLD"]["bundle"]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        files = [archive.extractfile(member).read() for member in archive if member.isfile()]
    return text.encode() + b"".join(files)


# the notebook as a file


@pytest.mark.parametrize("where", [{}, {"store": "", "drive": "runs"}])
def test_it_is_valid_has_no_outputs_and_asks_for_the_gpu(where):
    text = notebook(told(gpu="L4", **where))
    node = nbformat.reads(text, as_version=4)
    nbformat.validate(node)
    code = [cell for cell in node.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert node.metadata["accelerator"] == "GPU"
    assert node.metadata["colab"] == {"gpuType": "L4", "provenance": []}
    ids = [cell.id for cell in node.cells]
    assert ids == ["about", "settings", "program", "unpack", "drive" if where else "secrets",
                   "train", "end"]  # fmt: skip
    for cell in code:
        compile(cell.source, cell.id, "exec")


def test_it_is_a_function_of_what_it_is_told(canaries):
    first = notebook(told())
    assert notebook(told()) == first
    assert len(first) < 800_000
    assert not [name for name, value in canaries.items() if value.encode() in inside(first)]


def test_what_runs_unattended_holds_no_secret_either(canaries):
    text = script(told(environment={"AWS_DEFAULT_REGION": "x"}), "/content/secret.json")
    compile(text, "script", "exec")
    assert not [value for value in canaries.values() if value in text]


def test_an_order_that_tells_a_secret_becomes_no_notebook():
    asked = order("https://host/text.txt?sig=abcdefgh12345678")
    with pytest.raises(ValueError, match="would tell a secret"):
        notebook(Told(asked, bundle.make(), drive="runs"))


def test_only_the_store_decides_what_secrets_are_asked_for():
    text = notebook(told(environment={"AWS_ENDPOINT_URL": "https://r2", "OTHER": "no"}))
    assert "cells.secrets([['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY']]" in text
    assert "os.environ['AWS_ENDPOINT_URL'] = 'https://r2'" in text and "OTHER" not in text
    assert names("hf://buckets/me/x") == ([["HF_TOKEN"]], ["HF_ENDPOINT"])
    assert names("/somewhere") == ([], [])


# what the cells say


@pytest.fixture
def account(tmp_path, monkeypatch):
    """A kernel whose account has these secrets; None is one that it may not read."""
    (tmp_path / "account").mkdir()
    monkeypatch.setenv("COLAB_FAKE", str(tmp_path / "account"))
    monkeypatch.syspath_prepend(STUB)
    for name in [name for name in sys.modules if name.startswith("google.colab")]:
        monkeypatch.delitem(sys.modules, name)  # of another account
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "")
    return lambda **has: (tmp_path / "account" / "secrets.json").write_text(json.dumps(has))


WAYS = (["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],)


@pytest.mark.parametrize(
    "has, said",
    [
        ({}, "needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, .* click the key"),
        ({"AWS_ACCESS_KEY_ID": None}, "secret AWS_ACCESS_KEY_ID, .* switch on Notebook access"),
        ({"AWS_ACCESS_KEY_ID": "slow"}, "did not answer .* keep this tab open"),
    ],
)
def test_a_secret_that_cannot_be_had_is_explained(account, has, said):
    account(**has)
    with pytest.raises(ValueError, match=said):
        cells.secrets(WAYS, [])


def test_secrets_reach_the_environment(account, capsys):
    account(AWS_ACCESS_KEY_ID="new", AWS_SECRET_ACCESS_KEY="two", AWS_SESSION_TOKEN=None)
    os.environ["AWS_ACCESS_KEY_ID"] = "changed since"
    cells.secrets(WAYS, ["AWS_SESSION_TOKEN", "AWS_REGION"])
    assert os.environ["AWS_ACCESS_KEY_ID"] == "new"
    out = capsys.readouterr().out
    assert "going on without AWS_SESSION_TOKEN" in out and "new" not in out.split()


# the copy on Drive


def test_bytes_that_come_back_changed_are_brought_again(finished, tmp_path, monkeypatch):
    launch = Launch(open_store(str(finished)), "ignite-tiny-0000aa")
    copy = mirror.Mirror(launch, str(tmp_path / "drive"))
    digest, spoiled = mirror.file_digest, list[str]()

    def careless(path):
        if not spoiled:
            spoiled.append(path.name)
            return "0" * 64
        return digest(path)

    monkeypatch.setattr(mirror, "file_digest", careless)
    with pytest.raises(Damaged, match="back as 000000000000"):
        copy.push()
    assert copy.target.stat(f"blob/{spoiled[0][:2]}/{spoiled[0]}") is None
    copy.push()
    assert open_store(str(tmp_path / "drive")).blob(spoiled[0]).exists()


def test_a_drive_that_fails_is_said_and_tried_again(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mirror, "_PAUSE", 0.0)
    launch = Launch(open_store(str(finished)), "ignite-tiny-0000aa")
    copy = mirror.Mirror(launch, str(tmp_path / "drive"))
    failures = iter([OSError(5, "Input/output error"), OSError(107, "not connected")])
    push = copy.push

    def sometimes() -> None:
        for error in failures:
            raise error
        push()

    monkeypatch.setattr(copy, "push", sometimes)
    with mirror.copying(copy, 3600) as arrived:
        assert not arrived()
    assert arrived()
    out = capsys.readouterr().out
    assert out.count("trying again") == 2 and "copied to" in out


def test_what_is_not_on_drive_in_the_end_is_not_called_saved(tmp_path, monkeypatch):
    def never() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mirror, "_PAUSE", 0.0)
    with mirror.copying(SimpleNamespace(push=never, place="/drive"), 3600) as arrived:
        pass
    assert not arrived()


# the command


def called(*words: object):
    return CliRunner().invoke(colab, [str(word) for word in words])


@pytest.fixture
def bucket(endpoint, tmp_path, monkeypatch) -> str:
    for name, value in s3_environment(endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))
    return f"s3://runs/{tmp_path.name}"


def test_a_text_of_this_machine_goes_into_the_bucket_with_the_order(bucket, corpus, tmp_path):
    words = ["--store", bucket, "--data", corpus, *TOY_RECIPE, "-o", tmp_path / "a.ipynb"]
    out = called(*words)
    assert out.exit_code == 0, out.output
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in out.output and "launch ps" in out.output
    store = open_store(bucket)
    (name,) = store.names("launch")
    asked = Launch(store, name).order()
    assert asked.target == "colab" and asked.options["store"] == bucket
    assert store.read(bundle.name_of(asked.bundle)) == bundle.make().data
    assert len(store.names("log")) == 1  # prepare has run here
    # the same command again is about the same launch, and would write the same
    text = (tmp_path / "a.ipynb").read_text()
    assert called(*words).exit_code == 0 and store.names("launch") == [name]
    assert (tmp_path / "a.ipynb").read_text() == text
    (tmp_path / "a.ipynb").write_text("mine")
    assert "is there already" in called(*words).output


def test_on_drive_nothing_is_written_but_the_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "/content/drive/MyDrive/text.txt"
    out = called("--size", "tiny", "--data", text, "--drive", "my runs/new", "--gpu", "A100")
    assert out.exit_code == 0, out.output
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".ipynb" and file.stem in out.output
    node = nbformat.reads(file.read_text(), as_version=4)
    assert node.metadata["colab"]["gpuType"] == "A100"
    assert "my runs/new" in node.cells[0].source and text in file.read_text()


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch, bucket):
    monkeypatch.chdir(tmp_path)
    out = called("--size", "tiny", "--store", bucket, "-n", "--json")
    told = json.loads(out.output)
    assert told["cells"] == ["settings", "program", "unpack", "secrets", "train", "end"]
    assert ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] in told["secrets"]["one_of"]
    assert not list(tmp_path.glob("*.ipynb")) and not open_store(bucket).names("launch")


@pytest.mark.parametrize(
    "words, said",
    [
        (["--data", "{corpus}"], "put the text on your Drive"),
        (["--drive", "../elsewhere"], "a folder inside My Drive"),
        (["--via", "colab-cli"], "needs a --store elsewhere"),
        (["--store", "s3://bucket/run", "--drive", "x"], "--drive goes with no --store elsewhere"),
        (["--store", "sftp://host/run"], "cannot be given"),
        (["--my-credentials"], "go with --via colab-cli"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    words, said, corpus, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    out = called("--size", "tiny", *(word.format(corpus=corpus) for word in words))
    assert out.exit_code != 0 and said in (out.output + str(out.exception)), out.output
    assert not list(tmp_path.iterdir())


def test_without_its_program_nothing_is_rented(monkeypatch):
    job = Unattended(told(), None, mine=True)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="pip install google-colab-cli"):
        job.check()


def test_a_machine_that_cannot_be_had_is_given_back_all_the_same(tmp_path, monkeypatch):
    account = Colab(tmp_path / "colab", monkeypatch)
    account.program(monkeypatch)
    (account.account / "breaks").touch()  # after it has rented
    job = Unattended(told(), None, mine=True)
    with pytest.raises(ValueError, match="could not rent a machine"):
        job.run(Launch(open_store(str(tmp_path / "store")), "ignite-tiny-0000aa"))
    assert [call[0] for call in account.calls()] == ["sessions", "new", "stop", "sessions"]
    assert not list((account.account / "sessions").iterdir())


def test_a_machine_that_another_has_is_left_to_them(tmp_path, monkeypatch):
    account = Colab(tmp_path / "colab", monkeypatch)
    account.program(monkeypatch)
    job = Unattended(told(), None, mine=True)
    (account.account / "sessions").mkdir()
    (account.account / "sessions" / job.name).touch()
    with pytest.raises(ValueError, match="colab stop -s"):
        job.run(Launch(open_store(str(tmp_path / "store")), job.name))
    assert [call[0] for call in account.calls()] == ["sessions"]
    assert list((account.account / "sessions").iterdir())
