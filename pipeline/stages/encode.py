"""Turn both splits into token ids on disk, ready to be memory-mapped.

Out: ``train.tokens`` and ``validation.tokens``, flat little-endian arrays of uint16 (uint32 where
the vocabulary has more than 65,536 tokens) in which every document is preceded by the end-of-text
token; and ``tokens.json``, which says what is in them. End-of-text stands *before* a document so
that its first token, too, is predicted from something.

Shards of some megabytes are encoded by as many processes as there are cores, a small text by this
one, and joined as they come. They lie in a folder that outlives a kill, so whoever comes next goes
on with those that lack. The bytes are the same in any case.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from model import bpe_choice
from model.cores import cores
from pipeline.data.joined import Joined
from pipeline.data.shards import SIZE, Encoder, Shard, shards
from pipeline.data.splits import Split
from pipeline.errors import Interrupted
from pipeline.stage import Context
from pipeline.store.disk import link
from pipeline.ui import human_bytes
from pipeline.workers import Workers

# bytes of text for which no process is started, unless somebody asks for it: one needs a quarter of
# a second to be ready, and saves no more than that
SMALL = 48 << 20
MOST = 16  # processes, unless somebody asks for more: this one joins what all encode


def run(context: Context) -> dict[str, object]:
    """The stage; see the module docstring."""
    folder = context.kept()
    files = _files(context)
    sizes = {name: _checked(context, name).bytes for name in ("train", "validation")}
    bpe_choice.program(sum(sizes.values()))  # compiles it, if it is worth that: here, and once
    encoder = Encoder(files, folder)
    joined = {}
    for name in sizes:
        parts = shards(name, Path(files[f"{name}.text"]), Path(files[f"{name}.ends"]), SIZE)
        joined[name] = Joined(encoder, list(parts))
    _encode(context, encoder, files, joined, sum(sizes.values()))
    assert all(each.whole for each in joined.values())
    described: dict[str, object] = {
        "vocab_size": encoder.tokenizer.vocab_size,
        "end_of_text": encoder.tokenizer.end_of_text,
    }
    for name, size in sizes.items():
        path = context.out / f"{name}.tokens"
        link(joined[name].path, path)  # a kill before there is a result takes nothing away
        tokens = path.stat().st_size // encoder.type.itemsize
        described |= {f"{name}_tokens": tokens, f"{name}_bytes": size}
    text = json.dumps(described, indent=2) + "\n"
    (context.out / "tokens.json").write_text(text, encoding="utf-8")
    return described


def _files(context: Context) -> dict[str, str]:
    """What Encoder is told, and a worker by a line of JSON."""
    files = {"tokenizer": str(context.inputs["tokenizer/tokenizer.json"])}
    for name in ("train", "validation"):
        for kind in ("text", "ends"):
            files[f"{name}.{kind}"] = str(context.inputs[f"prepare/{name}.{kind}"])
    return files


def _checked(context: Context, name: str) -> Split:
    return Split(context.inputs[f"prepare/{name}.text"], context.inputs[f"prepare/{name}.ends"])


def _encode(
    context: Context, encoder: Encoder, files: dict[str, str], joined: dict[str, Joined], total: int
) -> None:
    """Encode what is not there yet, and join it."""
    for left in encoder.folder.glob("*.part"):
        left.unlink(missing_ok=True)  # of a process that was killed, or is about to end
    missing = _look(context, encoder, joined)
    done = total - sum(shard.bytes for shard in missing)
    if done:
        said = f"{human_bytes(done)} of {human_bytes(total)}"
        context.note(f"goes on: {said} were encoded before")
    if not missing:
        return
    _report(context, done, total)
    with contextlib.closing(_shards_done(context, encoder, files, missing)) as finished:
        for shard in finished:
            if shard is not None:
                joined[shard.split].add(shard)
                done += shard.bytes
            _report(context, done, total)


def _look(context: Context, encoder: Encoder, joined: dict[str, Joined]) -> list[Shard]:
    """The shards that have to be encoded. Told in shards, so that bytes keep their own rate."""
    if not any(encoder.folder.glob("*.json")):
        return [shard for each in joined.values() for shard in each.look(lambda _: None)]
    missing: list[Shard] = []
    total, looked = sum(len(each.shards) for each in joined.values()), 0

    def tell(_: Shard) -> None:
        nonlocal looked
        looked += 1
        _report(context, looked, total, "shards", doing="looking at what was encoded before")

    for each in joined.values():
        missing += each.look(tell)
    return missing


def _report(context: Context, done: int, total: int, unit: str = "B", **shown: str) -> None:
    try:
        context.progress(done, total, unit, **shown)
    except Interrupted:
        raise Interrupted("what was encoded so far is kept") from None


def _shards_done(
    context: Context, encoder: Encoder, files: dict[str, str], missing: list[Shard]
) -> Iterator[Shard | None]:
    """Encode the shards; each as it is done, and None now and then."""
    size = sum(shard.bytes for shard in missing)
    count = context.machine.workers or (1 if size < SMALL else min(cores(), MOST))
    count = min(count, len(missing))
    if count == 1:
        for shard in missing:
            encoder.encode(shard)
            yield shard
        return
    words = [json.dumps(files), str(encoder.folder)]
    with Workers(count - 1, Encoder.__module__, words, encoder.folder) as workers:
        for answer in workers.do(map(asdict, missing), encoder.answer):
            yield None if answer is None else Shard(**answer)
