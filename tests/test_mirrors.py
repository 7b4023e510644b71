"""Places that hold a copy and cannot be the store: a folder behind ssh, a careless server."""

import time
import uuid
from pathlib import Path

import fsspec
import pytest
from servers import gcs_emulator, sftp_server

from pipeline.errors import StoreAway, StoreError
from pipeline.store.remote import NotExclusive, Remote


@pytest.fixture(scope="module")
def sftp_home(tmp_path_factory):
    with sftp_server(tmp_path_factory.mktemp("sftp")) as (url, home):
        yield url, home


@pytest.fixture
def sftp(sftp_home, monkeypatch) -> Remote:
    url, home = sftp_home
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return Remote(f"{url}/{uuid.uuid4().hex}")


@pytest.fixture(scope="module")
def google():
    with gcs_emulator() as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        yield Remote("gs://bucket/store")


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(251)) * (20_000_000 // 251))
    return path


class Enough(Exception):
    pass


def silent(_: int) -> None:
    pass


def test_a_folder_behind_ssh_can_be_a_mirror(sftp, file):
    told = []
    assert sftp.read("log/a/0") is None and sftp.names("log") == []
    sftp.upload(file, "blob/ab/cd", told.append)
    assert sum(told) == file.stat().st_size == sftp.stat("blob/ab/cd")[0]
    assert b"".join(sftp.chunks("blob/ab/cd", 9_000_000)) == file.read_bytes()[9_000_000:]
    assert b"".join(sftp.chunks("blob/ab/cd")) == file.read_bytes()
    file.write_bytes(b"shorter")
    sftp.upload(file, "blob/ab/cd", silent)
    assert list(sftp.chunks("blob/ab/cd")) == [b"shorter"]
    for content in (b"one", b"two"):
        sftp.replace("ref/name", content)
    assert sftp.read("ref/name") == b"two" and abs(sftp.stat("ref/name")[1] - time.time()) < 5
    assert sftp.names("") == ["blob", "ref", "tmp"] and sftp.names("tmp") == []
    sftp.remove("ref/name")
    sftp.remove("ref/name")
    assert sftp.read_many(["ref/name", "blob/ab/cd"]) == [None, b"shorter"]


def test_an_upload_in_place_is_never_seen_half(sftp, file):
    def report(count: int) -> None:
        if count:
            raise Enough

    file.write_bytes(bytes(60_000_000))
    with pytest.raises(Enough):
        sftp.upload(file, "blob/ab", report)
    assert sftp.names("blob") == [] and sftp.names("tmp") == []


def test_an_unknown_host_is_not_trusted(sftp, sftp_home, tmp_path, monkeypatch):
    keys = tmp_path / ".ssh"
    keys.mkdir()
    (keys / "id_ed25519").write_bytes((sftp_home[1] / ".ssh" / "id_ed25519").read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StoreError, match=r"not in ~/.ssh/known_hosts") as caught:
        sftp.replace("name", b"secret")
    assert not isinstance(caught.value, StoreAway)


def test_a_key_that_the_host_does_not_take(sftp, sftp_home, tmp_path, monkeypatch):
    (tmp_path / ".ssh").mkdir()
    known = (sftp_home[1] / ".ssh" / "known_hosts").read_bytes()
    (tmp_path / ".ssh" / "known_hosts").write_bytes(known)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StoreError, match=r"refused: .*ssh-agent"):
        sftp.read("name")


def test_a_lost_ssh_connection_is_made_anew(sftp):
    sftp.replace("name", b"one")
    sftp._fs().client.abort()
    with pytest.raises(StoreAway):
        for _ in range(10):
            sftp.read("name")
            time.sleep(0.02)
    assert sftp.read("name") == b"one"


def test_google_can_hold_a_mirror(google, file):
    google.upload(file, "blob/ab", silent)
    assert b"".join(google.chunks("blob/ab")) == file.read_bytes()
    google.replace("ref/name", b"one")
    assert google.read("ref/name") == b"one" and google.read("ref/other") is None
    assert google.names("") == ["blob", "ref"]
    for name in ("blob/ab", "ref/name", "ref/other"):
        google.remove(name)
    assert google.names("") == []


MIRROR = r"cannot serve as --store: .*mirror.*`pipeline push {0}` and `pipeline pull {0}`$"


def test_a_server_that_ignores_conditions_is_found_out(google):
    assert google.exclusive  # as far as its kind can tell
    with pytest.raises(NotExclusive, match=MIRROR.format(google.place)):
        google.probe()
    assert google.names("") == []


@pytest.mark.parametrize("call", [Remote.read, Remote.stat, Remote.names, Remote.remove])
def test_a_missing_bucket_is_not_an_empty_one(google, call):
    with pytest.raises(StoreError, match=r"^gs://missing/x: the bucket.*does not exist"):
        call(Remote("gs://missing/x"), "name")
    with pytest.raises(StoreError, match="does not exist"):
        Remote("gs://missing/x").replace("name", b"data")
