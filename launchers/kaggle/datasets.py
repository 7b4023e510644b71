"""A private data set with one file: how a store gets to Kaggle where there is no other store.

A new version replaces the ones before it. Kaggle takes none while it processes the last one (403,
for minutes), and what it processes is not mounted anywhere yet: both are waited for. The subtitle
holds the sha256 of the file, so that one that has arrived is not sent again, whoever asks.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launchers.kaggle.client import TIMEOUT, Client, Dataset, Denied
from launchers.target import Away, Refused

LICENSE = "other"  # one must be named, and this one gives nothing away
PATIENCE = 900.0  # seconds
_TRIES = 5  # of sending what is left of a file
_READY, _BROKEN = "READY", ("FAILED", "DELETED")


class Datasets:
    """The data sets of one account."""

    def __init__(
        self,
        client: Client,
        note: Callable[[str], None],
        pause: Callable[[float], None] = time.sleep,
        patience: float = PATIENCE,
    ) -> None:
        from kagglesdk.blobs.services.blob_api_service import BlobApiClient
        from kagglesdk.datasets.services.dataset_api_service import DatasetApiClient

        self.client, self.note, self.pause, self.patience = client, note, pause, patience
        self.datasets, self.blobs = (
            DatasetApiClient(client.transport),
            BlobApiClient(client.transport),
        )

    def publish(self, slug: str, file: Path, digest: str) -> None:
        """Make a file the content of a data set, and wait until it can be mounted."""
        subtitle = f"ignite-llm store {digest[:48]}"
        before = self.newest(slug)
        if before is None or before.subtitle != subtitle:
            token = self.upload(file)
            self._patiently(slug, lambda: self._make(slug, subtitle, token, before))
        self._patiently(slug, lambda: self._is_ready(slug, subtitle, before))

    def newest(self, slug: str) -> Dataset | None:
        """What Kaggle has, if anything."""
        from kagglesdk.datasets.types.dataset_api_service import ApiGetDatasetRequest

        try:
            told = self.datasets.get_dataset(self._of(ApiGetDatasetRequest(), slug))
        except Denied:
            return None
        return Dataset(told.current_version_number, told.subtitle or "")

    def state(self, slug: str) -> str:
        """READY, FAILED, or a step on the way."""
        from kagglesdk.datasets.types.dataset_api_service import ApiGetDatasetStatusRequest

        request = self._of(ApiGetDatasetStatusRequest(), slug)
        return self.datasets.get_dataset_status(request).status.name

    def _of(self, request: Any, slug: str) -> Any:
        request.owner_slug, request.dataset_slug = self.client.owner, slug
        return request

    def _patiently(self, slug: str, done: Callable[[], str | None]) -> None:
        """Ask again until ``done`` has nothing to complain of. Raises Away if that takes long."""
        start, every = time.monotonic(), 2.0
        while (why := done()) is not None:
            if time.monotonic() - start > self.patience:
                raise Away(f"the data set {slug}: {why}, for {self.patience:.0f} s")
            self.note(f"waiting for the data set {slug}: {why}")
            self.pause(every)
            every = min(2 * every, 20.0)

    def _make(self, slug: str, subtitle: str, token: str, before: Dataset | None) -> str | None:
        """Make the data set or its next version; says why not yet."""
        try:
            if before is None:
                told = self.datasets.create_dataset(self._new(slug, subtitle, token))
            else:
                told = self.datasets.create_dataset_version(self._next(slug, subtitle, token))
        except Denied as error:
            if before is None:
                raise
            return f"Kaggle takes no new version while it processes the last one ({error})"
        if told.error:
            raise Refused(f"Kaggle makes no data set: {self.client.transport.clean(told.error)}")
        return None

    def _is_ready(self, slug: str, subtitle: str, before: Dataset | None) -> str | None:
        """Why it cannot be mounted yet. Right after a push, Kaggle may speak of the last version:
        what is mounted is checked once more by whoever reads it."""
        state = self.state(slug)
        if state in _BROKEN:
            raise Refused(
                f"Kaggle could not process the data set {slug} ({state}): see "
                f"https://www.kaggle.com/datasets/{self.client.owner}/{slug}"
            )
        if state != _READY:
            return f"Kaggle processes it ({state})"
        now = self.newest(slug)
        if now is None or before is None or before.subtitle == subtitle:
            return None
        if now.number is not None and now.number == before.number:
            return "Kaggle does not show the new version yet"
        return None

    def _new(self, slug: str, subtitle: str, token: str) -> Any:
        from kagglesdk.datasets.types.dataset_api_service import ApiCreateDatasetRequest

        return ApiCreateDatasetRequest.from_dict(
            new_request(self.client.owner, slug, subtitle, token)
        )

    def _next(self, slug: str, subtitle: str, token: str) -> Any:
        from kagglesdk.datasets.types.dataset_api_service import ApiCreateDatasetVersionRequest

        body = {"subtitle": subtitle, "versionNotes": subtitle, "files": [{"token": token}]}
        body["deleteOldVersions"] = True
        owner = self.client.owner
        return ApiCreateDatasetVersionRequest.from_dict(
            {"ownerSlug": owner, "datasetSlug": slug, "body": body}
        )

    # files

    def upload(self, file: Path) -> str:
        """Send a file; the token by which a data set can name it."""
        from kagglesdk.blobs.types.blob_api_service import ApiBlobType, ApiStartBlobUploadRequest

        request = ApiStartBlobUploadRequest()
        request.type, request.name = ApiBlobType.DATASET, file.name
        request.content_length = size = file.stat().st_size
        request.last_modified_epoch_seconds = int(file.stat().st_mtime)
        told = self.blobs.start_blob_upload(request)
        start, failed = 0, Away(f"Kaggle cannot be reached: upload {file.name}")
        for attempt in range(_TRIES):
            try:
                if attempt and (start := self._arrived(told.create_url, size)) == size:
                    return told.token
                if self._send(told.create_url, file, start, size):
                    return told.token
            except Away as error:
                failed = error
            self.note(f"sending {file.name} was cut: going on")
            self.pause(2.0**attempt)
        raise failed

    def _send(self, url: str, file: Path, start: int, size: int) -> bool:
        """Send the rest of a file; False if not all of it has arrived."""
        headers = {"Content-Range": f"bytes {start}-{size - 1}/{size}"} if start else {}
        with file.open("rb") as opened:
            opened.seek(start)
            return self._put(url, opened, headers, size) == size

    def _arrived(self, url: str, size: int) -> int:
        """How many bytes of a file whose sending was cut are there."""
        return self._put(url, b"", {"Content-Range": f"bytes */{size}"}, size)

    def _put(self, url: str, data: Any, headers: dict[str, str], size: int) -> int:
        """PUT by the protocol of Google's resumable uploads: how many bytes are there now."""
        transport, doing = self.client.transport, "upload"
        with transport.explained(doing):
            response = transport.session.put(
                url, data=data, headers=headers, timeout=TIMEOUT, auth=lambda request: request
            )
        if response.status_code == 308:  # not all of it: Range says what
            _, _, last = response.headers.get("Range", "").rpartition("-")
            return int(last) + 1 if last.isdigit() else 0
        transport.check(response, doing)
        return size


def new_request(owner: str, slug: str, subtitle: str, token: str) -> dict[str, Any]:
    """The request for a new data set, as it is sent."""
    return {
        "ownerSlug": owner,
        "slug": slug,
        "title": slug,
        "subtitle": subtitle,
        "licenseName": LICENSE,
        "isPrivate": True,
        "files": [{"token": token}],
    }
