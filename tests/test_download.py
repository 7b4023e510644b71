"""Downloads: resumed, verified, atomic; against a real HTTP server on this machine."""

import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from file_server import BODY, Site, serving

from pipeline.data import download, sources
from pipeline.data.sources import resolve
from pipeline.errors import StoreError
from pipeline.memo import Memo


@pytest.fixture
def site():
    with serving() as site:
        yield site


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.01)


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "cache" / "plays.txt"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Stop(Exception):
    pass


def stop_at(limit: int):
    def progress(done: int, total: int | None, unit: str) -> None:
        if done >= limit:
            raise Stop

    return progress


def interrupted(site: Site, target: Path, expected: str | None = None) -> int:
    """Stop a download half way; returns how much of it is there."""
    with pytest.raises(Stop):
        download.fetch(site.url, target, expected, stop_at(len(BODY) // 2))
    site.gets.clear()
    return target.with_name("plays.txt.partial").stat().st_size


def test_a_download_arrives_whole_and_says_how_far_it_is(site, target):
    seen = []
    got = download.fetch(site.url, target, None, lambda *told: seen.append(told))
    assert got == download.recorded(target) == sha256(BODY)
    assert target.read_bytes() == BODY
    assert seen[0] == (0, len(BODY), "B") and seen[-1] == (len(BODY), len(BODY), "B")
    assert not list(target.parent.glob("*.partial*"))


def test_an_interrupted_download_goes_on_where_it_stopped(site, target):
    have = interrupted(site, target)
    assert 0 < have < len(BODY)
    download.fetch(site.url, target, None, None)
    assert site.gets == [f"bytes={have}-"]
    assert target.read_bytes() == BODY


def test_a_killed_download_goes_on_where_it_stopped(site, target):
    site.go_on.clear()
    code = (
        "import sys; from pathlib import Path; from pipeline.data import download\n"
        "download.fetch(sys.argv[1], Path(sys.argv[2]), None, None)"
    )
    root = Path(__file__).parent.parent
    process = subprocess.Popen([sys.executable, "-c", code, site.url, target], cwd=root)
    partial, deadline = target.with_name("plays.txt.partial"), time.monotonic() + 20
    while download._size(partial) < len(BODY) // 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    site.go_on.set()
    site.gets.clear()
    assert not target.exists()
    download.fetch(site.url, target, None, None)
    assert site.gets == [f"bytes={len(BODY) // 2}-"]
    assert target.read_bytes() == BODY


def test_a_server_without_ranges_sends_everything_again(site, target):
    interrupted(site, target)
    site.ranges = False
    assert download.fetch(site.url, target, None, None) == sha256(BODY)
    assert target.read_bytes() == BODY


def test_a_connection_that_breaks_is_taken_up_again(site, target):
    site.cuts = [1_000_000, 2_000_000]
    assert download.fetch(site.url, target, None, None) == sha256(BODY)
    first, *others = site.gets
    assert first is None and len(others) == 2
    assert all(asked and asked != "bytes=0-" for asked in others)


def test_a_file_that_never_comes_whole_is_not_accepted(site, target):
    site.cuts = [1_000_000] * 99
    with pytest.raises(ValueError, match=r"bytes that are here.*curl -L -o plays\.txt"):
        download.fetch(site.url, target, None, None)
    assert not target.exists() and download.recorded(target) is None


def test_a_file_that_changed_since_the_interruption_is_fetched_from_its_beginning(site, target):
    interrupted(site, target)
    site.body, site.etag = BODY[::-1], '"2"'
    assert download.fetch(site.url, target, None, None) == sha256(BODY[::-1])
    assert site.gets == [None]


def test_without_marks_of_its_version_a_file_is_fetched_from_its_beginning(site, target):
    site.etag = None
    interrupted(site, target)
    download.fetch(site.url, target, None, None)
    assert site.gets == [None]
    assert target.read_bytes() == BODY


def test_a_known_sha256_vouches_for_a_resumed_download_without_marks(site, target):
    site.etag = None
    have = interrupted(site, target, sha256(BODY))
    download.fetch(site.url, target, sha256(BODY), None)
    assert site.gets == [f"bytes={have}-"]


def test_a_file_that_changes_under_way_is_fetched_again(site, target):
    site.changes = BODY[::-1]
    assert download.fetch(site.url, target, None, None) == sha256(BODY[::-1])
    assert len(site.gets) == 2


def test_wrong_bytes_are_refused_and_removed(site, target):
    site.body = b"x" + BODY[1:]
    with pytest.raises(
        ValueError, match=f"expected sha256 {sha256(BODY)}, got {sha256(site.body)}"
    ):
        download.fetch(site.url, target, sha256(BODY), None)
    assert not target.exists() and not target.with_name("plays.txt.partial").exists()


def test_a_new_version_is_not_taken_for_the_one_fetched_before(site, target):
    download.fetch(site.url, target, None, None)
    target.unlink()
    site.body = b"x" + BODY[1:]
    with pytest.raises(ValueError, match="not the file that it should be"):
        download.fetch(site.url, target, None, None)


def test_an_unknown_length_is_refused_unless_the_sha256_is_known(site, target):
    site.length = False
    with pytest.raises(ValueError, match="does not say how long"):
        download.fetch(site.url, target, None, None)
    assert download.fetch(site.url, target, sha256(BODY), None) == sha256(BODY)


def test_without_a_length_chunks_tell_a_whole_file_from_a_cut_one(site, target):
    # without a length fsspec sends two GETs to look for one before that for the bytes
    site.chunked, site.cuts = True, [len(BODY), len(BODY), 1_000_000]
    assert download.fetch(site.url, target, None, None) == sha256(BODY)
    assert len(site.gets) == 3 + 4


def test_a_server_that_never_gets_to_the_end_is_given_up(site, target):
    site.ranges, site.cuts = False, [1_000_000, 500_000] * 99
    with pytest.raises(ValueError, match="cannot download"):
        download.fetch(site.url, target, None, None)


def test_a_missing_file_is_not_asked_for_again_and_again(site, target):
    site.status = 404
    with pytest.raises(ValueError, match=r"HTTP status 404.*Check the address"):
        download.fetch(site.url, target, None, None)
    assert len(site.gets) == 1


def test_a_failing_server_is_asked_again(site, target):
    site.status = 503
    with pytest.raises(ValueError, match="HTTP status 503"):
        download.fetch(site.url, target, None, None)
    assert len(site.gets) == download.ATTEMPTS


def test_no_server_at_all(target):
    with pytest.raises(ValueError, match=r"cannot download http://127\.0\.0\.1:9/a\.txt: .*onnect"):
        download.fetch("http://127.0.0.1:9/a.txt", target, None, None)


def test_messages_show_no_password_and_no_signature(target):
    url = "http://me:hunter2@127.0.0.1:9/a.txt?Signature=s3cret"
    with pytest.raises(ValueError) as caught:
        download.fetch(url, target, None, None)
    assert "hunter2" not in str(caught.value) and "s3cret" not in str(caught.value)


def test_two_downloads_of_one_file_do_not_meet(site, target):
    site.go_on.clear()
    results: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(download.fetch(site.url, target, None, None))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    site.go_on.set()
    for thread in threads:
        thread.join()
    assert results == [sha256(BODY)] * 2
    assert len(site.gets) == 1


def test_a_directory_in_the_way_is_named(site, tmp_path):
    (tmp_path / "cache").write_text("a file where a directory should be")
    with pytest.raises(StoreError, match="cache"):
        download.fetch(site.url, tmp_path / "cache" / "plays.txt", None, None)


# as sources


def test_a_url_is_a_source_whose_digest_is_known_after_the_first_download(site, tmp_path):
    memo = Memo(tmp_path / "memo")
    before = resolve(site.url, tmp_path, memo, fetch=False)
    assert before.digest is None and before.files[0].path is None and before.single
    fetched = resolve(site.url, tmp_path, memo, fetch=True)
    assert fetched.label == "plays.txt" and fetched.files[0].path.read_bytes() == BODY
    site.status = 503  # from here on, all is offline
    assert resolve(site.url, tmp_path, memo, fetch=True) == fetched
    fetched.files[0].path.unlink()
    gone = resolve(site.url, tmp_path, memo, fetch=False)
    assert gone.digest == fetched.digest and gone.files[0].path is None


def test_a_remote_file_is_the_same_source_as_a_local_copy(site, tmp_path):
    memo, local = Memo(tmp_path / "memo"), tmp_path / "copy.txt"
    local.write_bytes(BODY)
    remote = resolve(site.url, tmp_path, memo, fetch=True)
    assert remote.digest == resolve(str(local), tmp_path, memo, fetch=False).digest


def test_a_download_that_was_damaged_on_the_disk_is_fetched_again(site, tmp_path):
    memo = Memo(tmp_path / "memo")
    path = resolve(site.url, tmp_path, memo, fetch=True).files[0].path
    path.write_bytes(b"damaged")
    assert resolve(site.url, tmp_path, memo, fetch=False).files[0].path is None
    resolve(site.url, tmp_path, memo, fetch=True)
    assert path.read_bytes() == BODY


def test_tinyshakespeare_is_known_before_it_is_fetched(site, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SHAKESPEARE_URL", site.url)
    monkeypatch.setattr(sources, "SHAKESPEARE_SHA256", sha256(BODY))
    memo = Memo(tmp_path / "memo")
    before = resolve("tinyshakespeare", tmp_path, memo, fetch=False)
    assert before.label == "tinyshakespeare" and before.single and before.files[0].path is None
    after = resolve("tinyshakespeare", tmp_path, memo, fetch=True)
    assert before.digest == after.digest and after.files[0].path.read_bytes() == BODY


def test_any_file_system_that_fsspec_reads(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("b.txt", "a.jsonl"):
        memory.pipe(f"/corpus/{name}", name.encode())
    memo = Memo(tmp_path / "memo")
    assert resolve("memory://corpus/*", tmp_path, memo, fetch=False).files == ()
    source = resolve("memory://corpus/*", tmp_path, memo, fetch=True)
    assert [(file.name, file.kind) for file in source.files] == [
        ("a.jsonl", "jsonl"),
        ("b.txt", "text"),
    ]
    assert [file.path.read_text() for file in source.files] == ["a.jsonl", "b.txt"]
    memory.rm("/corpus", recursive=True)
    assert resolve("memory://corpus/*", tmp_path, memo, fetch=True) == source
    with pytest.raises(ValueError, match="no file matches"):
        resolve("memory://corpus/*.txt", tmp_path, memo, fetch=True)


def test_a_file_inside_a_remote_archive(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("one.txt", "1")
        archive.writestr("two.txt", "2")
    url = f"zip://*.txt::file://{tmp_path}/a.zip"
    source = resolve(url, tmp_path, Memo(tmp_path / "memo"), fetch=True)
    assert [file.path.read_text() for file in source.files] == ["1", "2"]


def test_an_unknown_kind_of_url(tmp_path):
    with pytest.raises(ValueError, match=r"cannot open nosuch://a/b\.txt"):
        resolve("nosuch://a/b.txt", tmp_path, Memo(tmp_path / "memo"), fetch=True)


def test_the_record_beside_a_download_is_json(site, target):
    download.fetch(site.url, target, None, None)
    assert json.loads(target.with_name("plays.txt.json").read_bytes()) == {
        "sha256": sha256(BODY),
        "size": len(BODY),
    }
