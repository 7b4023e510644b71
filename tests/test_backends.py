"""What is known of each kind of remote place before any traffic: URLs, packages, promises."""

import subprocess
import sys
from typing import ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from pipeline.errors import StoreError
from pipeline.store.remote import NotExclusive, Remote

MIRROR = r"cannot serve as --store: .*mirror.*`pipeline push {0}` and `pipeline pull {0}`$"


@pytest.mark.parametrize("call", [Remote.probe, lambda place: place.create("name", b"")])
@pytest.mark.parametrize("url", ["sftp://user@host/path", "hf://datasets/a/b", "file:///tmp/none"])
def test_kinds_that_cannot_create_exclusively(url, call):
    place = Remote(url)
    assert not place.exclusive
    with pytest.raises(NotExclusive, match=MIRROR.format(url)):
        call(place)


@pytest.mark.parametrize(
    "url",
    [
        "sftp://user:sesame@host/path",
        "sftp://user:open/sesame@host/path",
        "s3://key:sesame@bucket/store",
        "https://host/path?signature=sesame",
        "abfs://container@account.dfs.core.windows.net/path?sig=sesame",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url):
    with pytest.raises(StoreError, match=r"no password and no query.*looked for in") as caught:
        Remote(url)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "plain/path", "s3://", "simplecache::s3://bucket/x"])
def test_what_is_no_place(url):
    with pytest.raises(StoreError, match="is no remote place: give one such as s3://bucket"):
        Remote(url)


@pytest.mark.parametrize(
    ("protocol", "package", "extra"),
    [
        ("s3", "s3fs", "s3"),
        ("gs", "gcsfs", "gcs"),
        ("abfs", "adlfs", "azure"),
        ("hf", "huggingface_hub", "hf"),
        ("sftp", "sshfs.spec", "sftp"),
    ],
)
def test_a_package_that_is_not_installed(monkeypatch, protocol, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(_registry, protocol, raising=False)
    with pytest.raises(StoreError, match=rf"pip install 'ignite-llm\[{extra}\]'$"):
        Remote(f"{protocol}://bucket/store").read("name")


def test_the_ssh_that_trusts_any_host_is_not_used(monkeypatch):
    class Paramiko:
        async_impl = False

    monkeypatch.setitem(_registry, "sftp", Paramiko)
    with pytest.raises(StoreError, match=r"pip install 'ignite-llm\[sftp\]'$"):
        Remote("sftp://host/store").read("name")


def test_what_a_backend_remembers_is_forgotten(monkeypatch):
    class Remembers(MemoryFileSystem):
        seen: ClassVar[dict] = {}

        def cat_file(self, path, **kwargs):
            if path not in self.seen:
                self.seen[path] = super().cat_file(path, **kwargs)
            return self.seen[path]

        def invalidate_cache(self, path=None):
            self.seen.clear()

    monkeypatch.setitem(_registry, "memory", Remembers)
    place = Remote("memory://remembers")
    for content in (b"one", b"two"):
        place.replace("name", content)
        assert place.read("name") == content


def test_an_unknown_protocol():
    with pytest.raises(StoreError, match=r"^s4:// is no protocol.*it knows .*\bs3\b"):
        Remote("s4://bucket/store").read("name")


def test_importing_it_imports_no_backend():
    code = (
        "import sys, pipeline.store.remote; print({'fsspec', 's3fs', 'botocore'} & {*sys.modules})"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"
