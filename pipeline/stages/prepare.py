"""Split the documents of a source into those to train on and those to validate on.

One text is cut in two: the end is held out, as is custom for TinyShakespeare (byte 1,003,854 at a
share of 0.1). Of many documents each goes where the sha256 of its own bytes says. So the split
does not depend on their order, a document never changes sides because others were added, and exact
duplicates always lie on the same side: no validation document was seen in training word by word.

If all documents fell on one side, as may be with a few, those with the smallest hash (of all that
there are) go to validation, or those with the largest to training.

The source is read once, and a second time where the first shows that it is one text or that a side
is empty. In memory there is one document at a time.
"""

import hashlib
from dataclasses import dataclass

from pipeline.data.documents import Tally, documents
from pipeline.data.splits import SplitWriter
from pipeline.stage import Context

HASHES = 1 << 64  # a document's place among them is the first 8 bytes of its sha256
REPORT = 1 << 22  # bytes between two reports of progress


def run(context: Context) -> dict[str, object]:
    """Write {train,validation}.{text,ends} (``splits.py``) to ``context.out``; returns their sizes.

    Raises ValueError if there is no text, or too little for two splits, and what ``documents``
    raises.
    """
    if context.source.single:
        return _cut_text(context)
    # exact: multiplied by a power of two, and Python compares ints and floats by their values
    cut = context.recipe.data.validation * HASHES
    parted = _part_documents(context, cut)
    if parted.metrics["documents"] == 1:
        return _cut_text(context)
    if parted.lowest == parted.highest:
        raise ValueError(
            f"all {parted.metrics['documents']:,} documents of {context.source.label} are the "
            "same text, which must not be in both splits: give other documents"
        )
    if parted.lowest >= cut:
        parted = _part_documents(context, parted.lowest + 1)
    elif parted.highest < cut:
        parted = _part_documents(context, parted.highest)
    return parted.metrics


def _cut_text(context: Context) -> dict[str, object]:
    tally = Tally()
    text = b"".join(documents(context.source, context.recipe.data, tally))
    _check_not_empty(context, tally)
    at = _cut(text, context.recipe.data.validation)
    if not 0 < at < len(text):
        raise ValueError(
            f"{context.source.label} is one text of {len(text)} byte(s), too short to be split "
            "into training and validation: give a longer one"
        )
    view = memoryview(text)
    with SplitWriter(context.out, "train") as train:
        train.add(view[:at])
    context.progress(at, len(text), "B")
    with SplitWriter(context.out, "validation") as validation:
        validation.add(view[at:])
    context.progress(len(text), len(text), "B")
    return _metrics(context, tally, train, validation)


def _cut(text: bytes, validation: float) -> int:
    """Offset at which the validation text begins: between characters, neither side empty.

    0 or the length of the text if there is no such offset.
    """
    at = max(1, int(len(text) * (1 - validation)))
    while at < len(text) and _continues(text[at]):
        at += 1
    if at == len(text):  # behind the last character: take the last one's beginning
        at -= 1
        while at > 0 and _continues(text[at]):
            at -= 1
    return at


def _continues(byte: int) -> bool:
    """Is this a byte of a UTF-8 character other than its first?"""
    return byte & 0b1100_0000 == 0b1000_0000


@dataclass(frozen=True)
class _Parted:
    metrics: dict[str, object]
    lowest: int  # of the documents' hashes
    highest: int


def _part_documents(context: Context, cut: float) -> _Parted:
    """Documents whose hash is below ``cut`` go to validation, the others to training."""
    tally, lowest, highest, reported = Tally(), HASHES, -1, 0
    with (
        SplitWriter(context.out, "train") as train,
        SplitWriter(context.out, "validation") as validation,
    ):
        for document in documents(context.source, context.recipe.data, tally):
            place = int.from_bytes(hashlib.sha256(document).digest()[:8])
            (validation if place < cut else train).add(document)
            lowest, highest = min(lowest, place), max(highest, place)
            if (done := train.bytes + validation.bytes) >= reported + REPORT:
                context.progress(done, None, "B")
                reported = done
    _check_not_empty(context, tally)
    return _Parted(_metrics(context, tally, train, validation), lowest, highest)


def _check_not_empty(context: Context, tally: Tally) -> None:
    if not tally.documents:
        why = f": all that is there was skipped ({tally.skipped:,})" if tally.skipped else ""
        raise ValueError(f"there is no text in {context.source.label}{why}: give other --data")


def _metrics(
    context: Context, tally: Tally, train: SplitWriter, validation: SplitWriter
) -> dict[str, object]:
    return {
        "documents": tally.documents,
        "train_documents": train.documents,
        "validation_documents": validation.documents,
        "train_bytes": train.bytes,
        "validation_bytes": validation.bytes,
        "skipped": context.source.left_out + tally.skipped,
        "replaced": tally.replaced,
        "empty": tally.empty,
    }
