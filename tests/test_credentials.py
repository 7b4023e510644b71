"""What a box is given to open its store: little, short, and never what opens an account."""

import json
import stat
import subprocess
import sys
import time
from urllib.parse import parse_qs

import pytest
from canaries import Canaries, plant
from servers import Answer, forwarded, s3_environment, web

from launchers import aws
from launchers.credentials import (
    LEAST,
    MOST,
    PIECE,
    BoxSecrets,
    box_secrets,
    pieces,
    settle,
    together,
)
from pipeline import redact
from pipeline.redact import redacted
from pipeline.store.remote import Remote

STORE = "s3://runs/teams/ada"
HOUR = 3600


@pytest.fixture(autouse=True)
def canaries(tmp_path, monkeypatch) -> Canaries:
    found = plant(monkeypatch, tmp_path)
    monkeypatch.setattr(redact, "_hidden", {})
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    for name in ("AWS_PROFILE", "AWS_REGION", "AZURE_STORAGE_ACCOUNT_NAME", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_environment("http://127.0.0.1:9").items():
        if name not in found.words:
            monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def asked(endpoint, monkeypatch) -> list[dict[str, str]]:
    """What AWS is asked for, as its forms say it; moto answers."""
    forms: list[dict[str, str]] = []

    def answer(request):
        if request.method == "POST" and b"Action=" in request.body:
            forms.append({k: v[0] for k, v in parse_qs(request.body.decode()).items()})
        return forwarded(request, endpoint)

    with web(answer) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield forms


def write(folder, *lines: str):
    file = folder / "keys"
    file.write_text("\n".join(lines))
    return file


# Amazon


def test_what_is_asked_of_amazon_opens_one_folder(asked, canaries):
    made = box_secrets(STORE, 2 * HOUR)
    [form] = asked
    assert form["Action"] == "GetFederationToken" and form["DurationSeconds"] == str(3 * HOUR)
    assert json.loads(form["Policy"]) == {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": [
                    "s3:GetObject",
                    "s3:PutObject",
                    "s3:DeleteObject",
                    "s3:AbortMultipartUpload",
                    "s3:ListMultipartUploadParts",
                ],
                "Resource": ["arn:aws:s3:::runs/teams/ada/*"],
            },
            {
                "Effect": "Allow",
                "Action": ["s3:ListBucket"],
                "Resource": ["arn:aws:s3:::runs"],
                "Condition": {"StringLike": {"s3:prefix": ["teams/ada", "teams/ada/*"]}},
            },
        ],
    }
    assert len(form["Policy"]) <= 2048  # of AWS
    assert made.expires == pytest.approx(time.time() + 3 * HOUR, abs=60)
    canaries.assert_none_in(made.values, form)


def test_what_was_made_opens_the_store_and_cannot_be_shown(asked, monkeypatch):
    made = box_secrets(STORE, HOUR)
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    assert set(made.values) == {*names, "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3"}
    for name in names:
        assert redacted(f"x {made.values[name]}") == "x ***"
        assert made.values[name] not in repr(made)
    assert redacted(made.values["AWS_DEFAULT_REGION"]) == "us-east-1"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    for name, value in made.values.items():
        monkeypatch.setenv(name, value)
    place = Remote(STORE)
    place.create("ref/x", b"hello")
    assert place.read("ref/x") == b"hello" and place.names("ref") == ["x"]


@pytest.mark.parametrize(
    ("url", "objects", "prefixes"),
    [
        ("s3://runs", "arn:aws:s3:::runs/*", None),
        ("s3://runs/a/", "arn:aws:s3:::runs/a/*", ["a", "a/*"]),
        ("s3://runs/a*b", "arn:aws:s3:::runs/a${*}b/*", ["a${*}b", "a${*}b/*"]),
        ("s3://runs/${x}?", "arn:aws:s3:::runs/${$}{x}${?}/*", ["${$}{x}${?}", "${$}{x}${?}/*"]),
    ],
)
def test_a_policy_means_the_folder_and_nothing_else(url, objects, prefixes):
    inside, listing = aws.policy(url)["Statement"]
    assert inside["Resource"] == [objects]
    assert listing.get("Condition", {}).get("StringLike", {}).get("s3:prefix") == prefixes
    assert aws.policy(url, "aws-cn")["Statement"][1]["Resource"] == ["arn:aws-cn:s3:::runs"]


@pytest.mark.parametrize(
    ("seconds", "lasts"),
    [(None, MOST), (60, HOUR + 60), (0, HOUR), (60 * HOUR, MOST), (-9000, LEAST)],
)
def test_how_long_keys_last(asked, seconds, lasts):
    box_secrets(STORE, seconds)
    assert asked[0]["DurationSeconds"] == str(lasts)


def refused(*arguments, **options) -> str:
    with pytest.raises(ValueError) as error:
        box_secrets(*arguments, **options)
    return str(error.value)


def test_where_amazon_makes_no_keys_it_says_what_can_be_done(asked, canaries, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", canaries.words["AWS_SESSION_TOKEN"])
    said = [refused(STORE, None)]
    assert "yours are of a session" in said[0]
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "https://sts.amazonaws.com")
    said.append(refused(STORE, None))
    assert "127.0.0.1" in said[1] and "is not AWS, which makes them" in said[1]
    monkeypatch.delenv("AWS_ENDPOINT_URL_STS")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    said.append(refused(STORE, None))
    assert "there are none to ask with" in said[2]
    said.append(refused(STORE, None, mine=True))
    assert said.pop() == (
        "--my-credentials: to open s3:// it takes AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    said.append(refused(STORE, None))
    assert "nobody" in said[3]
    assert all("--credentials FILE" in each and "--my-credentials" in each for each in said)
    assert asked == []
    canaries.assert_none_in(said)


def test_a_refusal_of_amazon_is_told_without_keys(canaries, monkeypatch):
    def answer(request):
        told = f"{request.headers['Authorization']}, {canaries.words['AWS_SECRET_ACCESS_KEY']}"
        error = f"<Error><Code>AccessDenied</Code><Message>denied {told}</Message></Error>"
        return Answer(403, {}, f"<ErrorResponse>{error}</ErrorResponse>".encode())

    with web(answer) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        said = refused(STORE, None)
    assert "(AccessDenied)" in said and "denied" in said and "--credentials FILE" in said
    canaries.assert_none_in(said)


def test_my_own_are_sent_if_i_say_so(asked, canaries, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", canaries.words["AWS_SESSION_TOKEN"])
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2030-01-01T00:00:00Z")
    made = box_secrets(STORE, None, mine=True)
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    assert {name: made.values[name] for name in names} == {n: canaries.words[n] for n in names}
    assert made.expires == 1893456000
    found = {each.split()[0] for each in canaries.found_in(made.values)}
    assert found == set(names) and asked == []


# the others


def test_azure_signs_for_one_container(canaries, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "teams")
    made = box_secrets("abfs://runs/ada", 60 * HOUR)
    assert set(made.values) == {"AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_SAS_TOKEN"}
    token = {k: v[0] for k, v in parse_qs(made.values["AZURE_STORAGE_SAS_TOKEN"]).items()}
    assert (token["sr"], token["sp"]) == ("c", "rwdl")
    assert made.expires == pytest.approx(time.time() + 61 * HOUR, abs=60)
    assert token["se"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made.expires))
    assert redacted(f"a {made.values['AZURE_STORAGE_SAS_TOKEN']}") == "a ***"
    assert redacted(f"a {token['sig']}") == "a ***"
    canaries.assert_none_in(made.values)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "abcde")
    assert "it must be base64" in refused("abfs://runs/ada", None)
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
    assert "no signature for abfs://runs/ada can be made" in refused("abfs://runs/ada", None)


def test_google_and_hugging_face_need_a_word_of_the_caller(canaries, tmp_path, monkeypatch):
    for url in ("gs://runs/ada", "hf://datasets/ada/runs"):
        said = refused(url, None)
        assert "no keys for this place alone" in said and "--credentials FILE" in said
    made = box_secrets("gs://runs/ada", None, mine=True)
    assert made.values == {"GOOGLE_APPLICATION_CREDENTIALS_JSON": canaries.google()}
    canaries.assert_none_in(redacted(canaries.google()))
    folder = tmp_path / "box" / "secrets"
    for _ in range(2):  # a box may begin again
        settled = settle(made.values, folder)
    file = folder / "google.json"
    assert settled == {"GOOGLE_APPLICATION_CREDENTIALS": str(file)}
    assert file.read_text() == canaries.google()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    made = box_secrets("hf://datasets/ada/runs", None, mine=True)
    assert made.values == {"HF_TOKEN": canaries.words["HF_TOKEN"]} == settle(made.values, folder)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "gone.json"))
    assert "must name a JSON file" in refused("gs://runs/ada", None, mine=True)


def test_places_that_need_nothing_and_those_that_no_box_can_open():
    for place in ("artifacts", "/mnt/runs", "file:///mnt/runs"):
        assert box_secrets(place, HOUR) == box_secrets(place, HOUR, mine=True) == BoxSecrets()
    assert "a box cannot be given what opens sftp://" in refused("sftp://ada@host/runs", None)


# a file


def test_a_file_says_what_a_box_gets(tmp_path, canaries):
    file = write(
        tmp_path,
        *("# for this bucket only", "", "export AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE"),
        *("AWS_SECRET_ACCESS_KEY = 'a=b/c+d12345'", 'AWS_ENDPOINT_URL="https://r2.example"'),
        f"GOOGLE_APPLICATION_CREDENTIALS={tmp_path / 'google-key.json'}",
    )
    made = box_secrets(STORE, HOUR, file)
    assert made == BoxSecrets(
        {
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "a=b/c+d12345",
            "AWS_ENDPOINT_URL": "https://r2.example",
            "GOOGLE_APPLICATION_CREDENTIALS_JSON": canaries.google(),
        }
    )
    assert redacted("a=b/c+d12345") == "***"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        *(
            (f"{name}=CANARY", f"line 2: {name} does not go to a box")
            for name in ("VAST_API_KEY", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "CONTAINER_API_KEY")
        ),
        ("WANDB_API_KEY=CANARY", "line 2: WANDB_API_KEY does not go to a box"),
        ("CANARY", "line 2: it must say NAME=VALUE"),
        ("a b=CANARY", "line 2: it must say NAME=VALUE"),
        ("AWS_SECRET_ACCESS_KEY=", "to open s3:// it takes AWS_ACCESS_KEY_ID and AWS_SECRET"),
        ("HF_TOKEN=CANARY", "to open s3:// it takes AWS_ACCESS_KEY_ID and AWS_SECRET"),
    ],
)
def test_what_a_file_may_not_say(tmp_path, line, why):
    file = write(tmp_path, "AWS_ACCESS_KEY_ID=x", line)
    said = refused(STORE, None, file)
    assert why in said and "CANARY" not in said


def test_files_that_cannot_be_read(tmp_path):
    assert "cannot read it: No such file" in refused(STORE, None, tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "cannot read it: it is no text" in refused(STORE, None, tmp_path / "binary")
    assert "give one of them" in refused(STORE, None, tmp_path / "none", mine=True)


# on the way


def test_pieces_are_short_and_come_together_again(canaries):
    values = {"GOOGLE_APPLICATION_CREDENTIALS_JSON": canaries.google(), **canaries.values()}
    sent = pieces(values)
    assert len(sent) > 3 and max(map(len, sent.values())) <= PIECE
    assert list(sent) == [f"IGNITE_SECRET_{number}" for number in range(len(sent))]
    assert together({"PATH": "/bin", **sent}) == values
    for part in sent.values():
        assert redacted(f"x {part} y") == "x *** y"
    assert pieces({}) == together({"PATH": "/bin"}) == {}
    with pytest.raises(ValueError, match="are not what was sent") as error:
        together({**sent, "IGNITE_SECRET_0": sent["IGNITE_SECRET_1"]})
    canaries.assert_none_in(str(error.value))


def test_no_cloud_is_loaded_before_it_is_asked():
    heavy = "'torch', 'botocore', 'azure', 'google', 'fsspec', 'vastai', 'kaggle'"
    code = f"import sys, launchers.credentials; print([n for n in ({heavy}) if n in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
