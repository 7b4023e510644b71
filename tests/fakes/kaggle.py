"""Kaggle on this machine: an HTTP server that speaks its wire format and really runs the sessions.

    with FakeKaggle(folder, secrets={...}) as fake:     # folder: where everything of it lies
        fake.install(monkeypatch)                       # this process finds it, as the user "ada"
        environment = fake.environment()                # and so do processes that a test starts
        ...
        fake.wait("ignite-tiny-0000aa")                 # until the newest session has ended
        fake.kill("ignite-tiny-0000aa")                 # a session that is killed
        fake.fail("SaveKernel", 503, carried_out=True)  # the next call of that method
        fake.fail("SaveKernel", 200, body={"error": "..."})

SaveKernel runs the file of code as a process of its own in /kaggle/working, with the data sets
under /kaggle/input. Both lie in ``folder``, and other names for them are written into the code,
where a mount would need none. Its python is that of the tests, and what it imports of ours is what
came in the file. A session is QUEUED, RUNNING, and COMPLETE or ERROR. It is killed, and all that it
has started, at the limit that the request or Kaggle sets, on a clock that is ``speed`` times faster
than ours. Nobody can cancel one, and a new version does not end an older one.

Attributes that tests may set: ``queue`` (seconds before it runs), ``processing`` (seconds for which
a data set is not ready, and takes no version), ``layout`` (of mounts: "old" or "new"),
``keeps_output`` (of sessions that were killed), ``quota`` (seconds), ``limit`` (seconds),
``page`` (files that one answer lists), ``stale_mounts`` (the last version but one is mounted).
``requests`` holds (method, body) of all that was asked.
"""

import base64
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes.kaggle_http import Fault, Handler, No, Server
from fakes.kaggle_sessions import STUB, Session, kill, run

OWNER, KEY, TOKEN = "ada", "canary-kaggle-key", "canary-kaggle-token"
_SITE = """
from kagglesdk import kaggle_env

kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.PROD] = {url!r}
"""


@dataclass
class Data:
    """A data set: the files of each version, and when the newest is ready."""

    request: dict[str, Any]
    versions: list[list[tuple[str, bytes]]]
    subtitle: str
    ready: float


class FakeKaggle:
    """See the module."""

    def __init__(self, folder: Path, secrets: dict[str, str] | None = None) -> None:
        self.folder, self.secrets = folder, secrets or {}
        self.speed, self.limit, self.quota, self.used = 1.0, 12 * 3600.0, 30 * 3600.0, 0.0
        self.queue = self.processing = 0.0
        self.layout, self.keeps_output, self.page, self.stale_mounts = "new", False, 20, False
        self.kernels: dict[str, list[Session]] = {}
        self.datasets: dict[str, Data] = {}
        self.uploads: dict[str, tuple[str, int, bytearray]] = {}
        self.env: dict[str, str] = {}  # more variables of sessions
        self.requests: list[tuple[str, Any]] = []
        self.cuts: list[int] = []  # after how many bytes an upload is cut, one for each PUT
        self.faults: list[tuple[str, int, bool, Any]] = []
        self.lock = threading.RLock()
        self.url = ""

    # for tests

    def __enter__(self) -> "FakeKaggle":
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.fake = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        site, stub = self.folder / "site", self.folder / "stub"
        for each in (site, stub):
            each.mkdir(parents=True)
        (site / "sitecustomize.py").write_text(_SITE.format(url=self.url))
        (stub / "kaggle_secrets.py").write_text(STUB)
        return self

    def __exit__(self, *_: object) -> None:
        for session in (each for versions in self.kernels.values() for each in versions):
            session.killed = session.killed or "the test is over"
            kill(session.mark)
            session.ended.wait(10)
        self.server.shutdown()
        self.server.server_close()

    def install(self, monkeypatch: Any, token: bool = False) -> None:
        """Let this process find it, with a name and a key or with a token."""
        from kagglesdk import kaggle_env

        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, self.url)
        for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in self._credentials(token).items():
            monkeypatch.setenv(name, value)

    def environment(self, token: bool = False) -> dict[str, str]:
        """Variables by which a process that a test starts finds it; PYTHONPATH is one."""
        return {"PYTHONPATH": str(self.folder / "site"), **self._credentials(token)}

    @staticmethod
    def _credentials(token: bool) -> dict[str, str]:
        names = {"KAGGLE_API_TOKEN": TOKEN} if token else {"KAGGLE_USERNAME": OWNER}
        return names if token else {**names, "KAGGLE_KEY": KEY}

    def fail(
        self,
        method: str,
        status: int,
        message: str = "",
        carried_out: bool = False,
        body: Any = None,
    ) -> None:
        """Let the next call of a method answer so; a status of 0 hangs up. GET is a file's."""
        told = {"code": status, "message": message} if body is None else body
        self.faults.append((method, status, carried_out, told))

    def sessions(self, slug: str) -> list[Session]:
        return self.kernels.get(slug, [])

    def wait(self, slug: str, seconds: float = 900.0) -> Session:
        """The newest session of a kernel, once it has ended."""
        session = self.sessions(slug)[-1]
        assert session.ended.wait(seconds), f"{slug} still runs:\n{session.log}"
        return session

    def kill(self, slug: str, why: str = "the machine was lost") -> None:
        """Kill the newest session with all its processes, without a word."""
        session = self.sessions(slug)[-1]
        session.killed = why
        kill(session.mark)
        session.ended.wait(10)

    # answering

    def answer(self, method: str, body: Any, headers: Any) -> Any:
        """What the service says to a method: a dict, or an iterator of lines of a stream."""
        with self.lock:
            self.requests.append((method, body))
            found = next((each for each in self.faults if each[0] == method), None)
            if found is not None:
                self.faults.remove(found)
                if found[2]:
                    getattr(self, method)(body)
                raise Fault(found[1], found[3])
            self._allowed(headers.get("Authorization", ""))
            return getattr(self, method)(body)

    @staticmethod
    def _allowed(said: str) -> None:
        basic = base64.b64encode(f"{OWNER}:{KEY}".encode()).decode()
        if said not in (f"Basic {basic}", f"Bearer {TOKEN}"):
            raise No(401, "Unauthenticated")

    def IntrospectToken(self, body: Any) -> Any:
        return {"active": body["token"] == TOKEN, "username": OWNER}

    def GetAcceleratorQuotaStatistics(self, body: Any) -> Any:
        gpu = {"timeUsed": f"{int(self.used)}s", "totalTimeAllowed": f"{int(self.quota)}s"}
        return {"quotaRefreshTime": "2026-11-28T00:00:00Z", "gpuQuota": gpu}

    def SaveKernel(self, body: Any) -> Any:
        owner, slug = body["slug"].split("/")
        if owner != OWNER:
            raise No(403, "Permission 'kernels.update' was denied")
        versions = self.kernels.setdefault(slug, [])
        number = len(versions) + 1
        known = {f"{OWNER}/{each}" for each in self.datasets}
        wrong = [each for each in body.get("datasetDataSources", []) if each not in known]
        if re.sub(r"[^a-z0-9]+", "-", body["newTitle"].lower()) != slug or len(slug) < 5:
            raise No(400, "The title does not resolve to the specified id")
        body = body | {
            "datasetDataSources": [e for e in body.get("datasetDataSources", []) if e in known]
        }
        session = Session(slug, number, body, self.folder / "sessions" / f"{slug}-{number}")
        session.folder.mkdir(parents=True)
        versions.append(session)
        threading.Thread(target=run, args=(session, self), daemon=True).start()
        told = {"ref": f"/code/{OWNER}/{slug}", "versionNumber": number, "kernelId": 1}
        told["url"] = f"https://www.kaggle.com/code/{OWNER}/{slug}"
        return told | ({"invalidDatasetSources": wrong} if wrong else {})

    def _session(self, body: Any) -> Session:
        versions = self.kernels.get(body["kernelSlug"])
        if not versions or body["userName"] != OWNER:
            raise No(403, "Permission 'kernels.get' was denied")
        label = body.get("versionLabel")
        if label is None:
            return versions[-1]
        found = re.fullmatch(r"v(\d+)", label)
        if found is None or not 1 <= int(found[1]) <= len(versions):
            raise No(404, "Not found")
        return versions[int(found[1]) - 1]

    def _metadata(self, session: Session) -> dict[str, Any]:
        newest = self.kernels[session.slug][-1]
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(newest.begun))
        told = {"ref": f"{OWNER}/{session.slug}", "slug": session.slug, "title": session.slug}
        return told | {"lastRunTime": f"{when}.1234567Z", "currentVersionNumber": newest.number}

    def GetKernel(self, body: Any) -> Any:
        session = self._session(body)
        return {"metadata": self._metadata(session), "blob": {"source": session.request["text"]}}

    def ListKernels(self, body: Any) -> Any:
        page = int(body.get("pageToken") or 0)
        found = [each[-1] for slug, each in self.kernels.items() if body.get("search", "") in slug]
        told = {"kernels": [self._metadata(each) for each in found[page : page + self.page]]}
        more = page + self.page < len(found)
        return told | ({"nextPageToken": str(page + self.page)} if more else {})

    def DeleteKernel(self, body: Any) -> Any:
        self._session(body)
        for session in self.kernels.pop(body["kernelSlug"]):
            session.killed = "deleted"
        return {}

    def GetKernelSessionStatus(self, body: Any) -> Any:
        session = self._session(body)
        return {"status": session.state} | ({"failureMessage": session.why} if session.why else {})

    def ListKernelSessionOutput(self, body: Any) -> Any:
        session = self._session(body)
        if not session.ended.is_set():
            return {"files": [], "log": None}
        files = sorted(each for each in session.working.rglob("*") if each.is_file())
        page, size = int(body.get("pageToken") or 0), min(self.page, body.get("pageSize") or 20)
        listed = [self._file(session, each) for each in files[page : page + size]]
        told = {"files": listed, "log": json.dumps(list(self._events(session)))}
        return told | ({"nextPageToken": str(page + size)} if page + size < len(files) else {})

    def _file(self, session: Session, file: Path) -> dict[str, str]:
        name = file.relative_to(session.working).as_posix()
        at = file.relative_to(self.folder).as_posix()
        return {"fileName": name, "url": f"{self.url}/files/{at}?signature=canary"}

    @staticmethod
    def _events(session: Session) -> Iterator[dict[str, Any]]:
        for line in session.log.splitlines(keepends=True):
            yield {"stream_name": "stdout", "time": 1.5, "data": line}

    def GetKernelSessionLogsStream(self, body: Any) -> Iterator[bytes]:
        session = self._session(body)

        def lines() -> Iterator[bytes]:
            told = 0
            while True:
                over = session.ended.is_set()
                events = list(self._events(session))[told:]
                for event in events:
                    yield b"data: " + json.dumps(event).encode() + b"\n\n"
                told += len(events)
                if over:
                    yield b"data: END_OF_LOG\n\n"
                    return
                time.sleep(0.05)

        return lines()

    # data sets

    def StartBlobUpload(self, body: Any) -> Any:
        token = uuid.uuid4().hex
        self.uploads[token] = (body["name"], body["contentLength"], bytearray())
        return {"token": token, "createUrl": f"{self.url}/upload/{token}?upload_id=canary"}

    def _files(self, body: Any) -> list[tuple[str, bytes]]:
        found = [self.uploads[each["token"]] for each in body["files"]]
        if any(len(data) != size for _, size, data in found):
            raise No(400, "an upload is not complete")
        return [(name, bytes(data)) for name, _, data in found]

    def CreateDataset(self, body: Any) -> Any:
        title = body.get("title", "")
        if not 6 <= len(title) <= 50 or not body.get("licenseName") or not body.get("isPrivate"):
            return {"status": "error", "error": "The title or the license is not valid"}
        if body["slug"] in self.datasets:
            return {"status": "error", "error": f'The requested title "{title}" is already in use'}
        ready = time.monotonic() + self.processing
        self.datasets[body["slug"]] = Data(body, [self._files(body)], body["subtitle"], ready)
        return {"status": "ok", "ref": f"/{OWNER}/{body['slug']}", "error": ""}

    def _data(self, body: Any) -> Data:
        if body["datasetSlug"] not in self.datasets:
            raise No(403, "Permission 'datasets.get' was denied")
        return self.datasets[body["datasetSlug"]]

    def CreateDatasetVersion(self, body: Any) -> Any:
        data = self._data(body)
        if time.monotonic() < data.ready:
            raise No(403, "The dataset is being processed")
        data.versions.append(self._files(body["body"]))
        data.subtitle = body["body"]["subtitle"]
        data.ready = time.monotonic() + self.processing
        return {"status": "ok", "ref": f"/{OWNER}/{body['datasetSlug']}"}

    def GetDatasetStatus(self, body: Any) -> Any:
        ready = time.monotonic() >= self._data(body).ready
        return {"status": "READY" if ready else "BLOBS_DECOMPRESSED"}

    def GetDataset(self, body: Any) -> Any:
        data = self._data(body)
        return {"currentVersionNumber": len(data.versions), "subtitle": data.subtitle}

    def put(self, token: str, body: bytes, said: str | None) -> tuple[int, dict[str, str]]:
        """A piece of an upload, or the question how much has come."""
        _, size, data = self.uploads[token]
        if said and said.startswith("bytes */"):
            pass
        else:
            assert said is None or int(said.split()[1].split("-")[0]) == len(data)
            cut = self.cuts.pop(0) if self.cuts else None
            data += body if cut is None else body[:cut]
            if cut is not None:
                return 503, {}
        if len(data) == size:
            return 200, {}
        return 308, {"Range": f"bytes=0-{len(data) - 1}"} if data else {}
