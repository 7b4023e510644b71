"""Walk a store and hold every byte against its name."""

from collections.abc import Callable

from pipeline import log
from pipeline.errors import StoreError
from pipeline.keys import file_digest
from pipeline.store import Store

FIX = "run `pipeline run` again: the stage that made it makes it again"


def problems(store: Store, progress: Callable[[int, int], None]) -> list[str]:
    """What is wrong with a store, a line each with what to do; nothing is changed.

    Every blob is read once; of every log, the blobs that are still needed must be there.
    ``progress(done, total)`` counts blobs.
    """
    found = []
    blobs = list(store.blobs())
    for done, blob in enumerate(blobs, start=1):
        if file_digest(store.blob_path(blob)) != blob:
            found.append(f"{store.blob_path(blob)} is damaged: delete it and {FIX}")
        progress(done, len(blobs))
    there = set(blobs)
    for key in log.keys(store):
        try:
            state = log.read(store, key)
        except StoreError as error:
            found.append(str(error))
            continue
        stage = (state.record or {}).get("stage", "a stage")
        found += [
            f"blob {blob[:12]} of {stage} (key {key[:12]}) is missing: {FIX}"
            for blob in sorted(state.needed - there)
        ]
    return found
