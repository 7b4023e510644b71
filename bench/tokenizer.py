"""How fast the tokenizer learns, encodes and decodes, beside all the others that are installed.

    python bench/tokenizer.py --corpora FOLDER     # texts of bench/corpora.py: twenty minutes
    python bench/tokenizer.py --quick --corpora FOLDER    # the same on a tenth of the texts, once
    python bench/tokenizer.py                      # TinyShakespeare alone: a minute

Every figure is the median of five, all contenders in turn, with the same output on both sides, and
taken only after merges or ids were found equal to those of tokenizers, tiktoken, gigatoken and
fastokens. rustbpe numbers the bytes otherwise and so breaks ties otherwise: of it only the size of
the vocabulary is compared. Seconds are of the wall, beside them those of the processor; one thread
and two are two processes, as most libraries start their threads once. Compilation is not in it (it
is done once on a machine). "Fresh" is a tokenizer that has seen no text, "warm" one that has.

The result names each goal, what was measured for it, and whether it is met; but for --quick, which
is to try the script: ratios on a tenth of a text are others. gigatoken takes longer to learn 32,000
tokens from 10 MB than from 100 MB, as it slows down where few pairs are left.
"""

import argparse
import functools
import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["IGNITE_TOKENIZER"] = "fast"  # also for a small text, on a machine that compiles first

import numpy as np
import tokenizer_peers as peers
from common import ROOT, save
from tokenizer_timing import Cell, measure
from tokenizer_timing import fresh_process as in_a_fresh_process

from model.bpe import Tokenizer
from model.split import PATTERN_NAME

PLAY = Path(os.environ.get("IGNITE_TEST_CORPUS", ROOT.parent / "shared/data/tinyshakespeare.txt"))
HAVE, CHUNK = peers.PEERS, 16_384
TWO_THREADS = {"workers": 2} if "workers" in inspect.signature(Tokenizer.train).parameters else {}
ONE_THREAD = {"workers": 1} if TWO_THREADS else {}


def documents_of(text: str) -> list[str]:
    """Pieces of some 16 KB, each up to the end of a line."""
    documents, at = [], 0
    while at < len(text):
        end = text.rfind("\n", at, at + CHUNK) + 1 or at + CHUNK
        documents.append(text[at:end])
        at = end
    return documents


def train(name: str, documents: list[str], vocab_size: int, threads: int) -> list[Cell]:
    """Learn with the default pattern, and beside gigatoken with GPT-2's."""
    more = TWO_THREADS if threads > 1 else ONE_THREAD

    def ours(pattern: str) -> Tokenizer:
        return Tokenizer.train(documents, vocab_size=vocab_size, pattern=pattern, **more)

    made = ours(PATTERN_NAME)
    works: dict[str, Callable[[], Any]] = {"ours": lambda: ours(PATTERN_NAME)}
    if "tokenizers" in HAVE:
        theirs = peers.merges_of(peers.huggingface(documents, vocab_size))
        assert made.merges == theirs, f"{name}: merges differ from those of tokenizers"
        works["tokenizers"] = lambda: peers.huggingface(documents, vocab_size)
    if "rustbpe" in HAVE:
        size = peers.rustbpe(documents, vocab_size).vocab_size
        assert size == made.vocab_size - 1, f"{name}: rustbpe has {size} tokens"
        works["rustbpe"] = lambda: peers.rustbpe(documents, vocab_size)
    cells = [measure(f"train {name}", works)]
    if "gigatoken" in HAVE and made.vocab_size == vocab_size:  # it loops when nothing is left
        old = ours("gpt2")
        merges = [(old.token_bytes[a], old.token_bytes[b]) for a, b in old.merges]
        found = peers.gigatoken_merges(documents, vocab_size)
        assert merges == found, f"{name}: merges differ from those of gigatoken"
        works = {"ours": lambda: ours("gpt2")}
        works["gigatoken"] = lambda: peers.gigatoken_merges(documents, vocab_size)
        cells.append(measure(f"train {name}, GPT-2's pattern", works))
    return cells


def code(name: str, text: str, make: peers.Encoders) -> list[Cell]:
    """Encode one text into arrays and lists, and decode it."""
    ours = make.ours()
    ids, array = ours.encode(text), ours.encode_array(text)
    to_array = {"ours": lambda: ours.encode_array(text)}
    to_list = {"ours": lambda: ours.encode(text)}
    to_bytes = {"ours": lambda: ours.decode_bytes(array)}
    to_text = {"ours": lambda: ours.decode(ids)}
    if "tiktoken" in HAVE:
        rank = make.tiktoken()
        assert ids == rank.encode_ordinary(text), f"{name}: ids differ from those of tiktoken"
        to_array["tiktoken"] = lambda: rank.encode_to_numpy(text, disallowed_special=())
        to_list["tiktoken"] = lambda: rank.encode_ordinary(text)
        to_bytes["tiktoken"] = lambda: rank.decode_bytes(array.tolist())
        to_text["tiktoken"] = lambda: rank.decode(ids)
    if "tokenizers" in HAVE:
        slow = make.tokenizers()
        assert ids == slow.encode(text).ids, f"{name}: ids differ from those of tokenizers"
        to_array["tokenizers"] = lambda: np.array(slow.encode(text).ids)
        to_text["tokenizers"] = lambda: slow.decode(ids)
    if "gigatoken" in HAVE:
        giga = make.gigatoken()
        assert ids == giga.encode(text).tolist(), f"{name}: ids differ from those of gigatoken"
        to_array["gigatoken"] = lambda: giga.encode(text)
        to_bytes["gigatoken"] = lambda: giga.decode(array.astype(np.uint32))
    if "fastokens" in HAVE:
        fast = make.fastokens()
        assert ids == fast.encode(text).ids, f"{name}: ids differ from those of fastokens"
        to_array["fastokens"] = lambda: np.array(fast.encode(text).ids)
        to_list["fastokens"] = lambda: fast.encode(text).ids
    assert array.tolist() == ids and ours.decode(ids) == text
    return [
        measure(f"encode {name} to an array, warm", to_array),
        measure(f"encode {name} to a list, warm", to_list),
        measure(f"decode {name}, an array to bytes", to_bytes),
        measure(f"decode {name}, a list to text", to_text),
    ]


def encode_fresh(name: str, documents: list[str], make: peers.Encoders, threads: int) -> list[Cell]:
    """Encode many documents to lists with a tokenizer that has seen no text."""

    def ours() -> Callable[[], Any]:
        return in_threads([make.ours() for _ in range(threads)], documents)

    works: dict[str, Callable[[], Callable[[], Any]]] = {"ours": ours}
    found = ours()()
    if "tiktoken" in HAVE:
        assert found == make.tiktoken().encode_ordinary_batch(documents, num_threads=threads)
        works["tiktoken"] = lambda: (
            lambda rank: lambda: rank.encode_ordinary_batch(documents, num_threads=threads)
        )(make.tiktoken())
    if "gigatoken" in HAVE:
        works["gigatoken"] = lambda: (
            lambda giga: lambda: giga.encode_batch_list(documents, parallel=threads > 1)
        )(make.gigatoken())
        assert found == works["gigatoken"]()()
    return [measure(f"encode {name} to lists, fresh", works, fresh=True)]


def encode_fresh_arrays(name: str, documents: list[str], make: peers.Encoders) -> list[Cell]:
    """The same to arrays, one document after the other, as tiktoken has no batch of them."""

    def each(encode: Callable[[str], Any]) -> Callable[[], Any]:
        return lambda: [encode(document) for document in documents]

    works: dict[str, Callable[[], Callable[[], Any]]] = {
        "ours": lambda: each(make.ours().encode_array)
    }
    if "tiktoken" in HAVE:
        works["tiktoken"] = lambda: each(
            functools.partial(make.tiktoken().encode_to_numpy, disallowed_special=())
        )
    if "gigatoken" in HAVE:
        works["gigatoken"] = lambda: each(make.gigatoken().encode)
    found = works["ours"]()()
    for who, work in works.items():
        assert all(map(np.array_equal, found, work()())), f"{name}: ids differ from those of {who}"
    return [measure(f"encode {name} to arrays, fresh", works, fresh=True)]


def in_threads(ours: list[Tokenizer], documents: list[str]) -> Callable[[], list[list[int]]]:
    """Give each tokenizer a thread and its share of the documents, a run of them."""
    step = -(-len(documents) // len(ours))
    shares = [documents[i : i + step] for i in range(0, len(documents), step)]

    def work() -> list[list[int]]:
        if len(ours) == 1:
            return ours[0].encode_batch(documents)
        with ThreadPoolExecutor(len(ours)) as pool:
            parts = pool.map(lambda one, share: one.encode_batch(share), ours, shares)
            return [ids for part in parts for ids in part]

    return work


def latency(text: str, make: peers.Encoders, calls: int = 5000) -> list[Cell]:
    """`calls` calls with one short text."""
    encoders = {"ours": make.ours().encode}
    if "tiktoken" in HAVE:
        encoders["tiktoken"] = make.tiktoken().encode_ordinary
    if "gigatoken" in HAVE:
        encoders["gigatoken"] = make.gigatoken().encode

    def repeat(encode: Callable[[str], Any], short: str) -> Callable[[], None]:
        return lambda: [encode(short) for _ in range(calls)] and None

    return [
        measure(
            f"{calls} calls of {size} bytes",
            {k: repeat(e, text[:size]) for k, e in encoders.items()},
        )
        for size in (13, 100, 1000)
    ]


def cells(options: argparse.Namespace, folder: Path) -> list[Cell]:
    """All that is measured with the number of threads asked for; the folder is for files."""
    threads, play = options.threads, PLAY.read_text()
    found = train("TinyShakespeare to 4,096", [play], 4096, threads)
    if options.corpora is None:
        make = peers.Encoders(Tokenizer.train([play], vocab_size=4096), folder)
        if threads == 1:
            found += code("TinyShakespeare", play, make) + latency(play, make)
            found.append(in_a_fresh_process(PLAY))
        return found
    part = 10 if options.quick else 1
    texts = {}
    for name in ("english", "multilingual", "stdlib"):
        data = (options.corpora / f"{name}.txt").read_bytes()
        texts[name] = data[: len(data) // part].decode("utf-8", "ignore")
    for name, text in texts.items():
        documents = documents_of(text)
        if name == "english":
            found += train(f"{name} to 32,000", documents, 32_000, threads)
        elif threads == 1 and "tokenizers" in HAVE:
            theirs = peers.merges_of(peers.huggingface(documents, 32_000))
            assert theirs == Tokenizer.train(documents, vocab_size=32_000).merges, name
        make = peers.Encoders(Tokenizer.train(documents, vocab_size=32_000), folder)
        found += encode_fresh(name, documents, make, threads)
        found += encode_fresh_arrays(name, documents, make) if threads == 1 else []
        if threads == 1:
            sample = "".join(documents[len(documents) // 2 :])[:8_000_000]
            found += code(f"8 MB of {name}", sample, make)
        if name == "english" and threads == 1:
            found += latency(play, make)
    if threads == 1:
        found.append(in_a_fresh_process(PLAY))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpora", type=Path, help="the folder that bench/corpora.py filled")
    parser.add_argument("--quick", action="store_true", help="a tenth of the texts, each once")
    parser.add_argument("--note", default="", help="what a reader should know of the machine's day")
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps([cell.as_dict() for cell in cells(options, Path(folder))]))
        return
    found = {}
    for threads in (1, 2):
        again = [sys.executable, __file__, *sys.argv[1:], "--threads", str(threads)]
        more = {
            "RAYON_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": str(threads > 1).lower(),
        }
        if options.quick:
            more["IGNITE_BENCH_TIMES"] = "1"
        told = subprocess.run(again, env=os.environ | more, stdout=subprocess.PIPE, check=True)
        found[threads] = json.loads(told.stdout)
    from tokenizer_goals import judge

    goals = "not judged: they are for whole texts" if options.quick else judge(found)
    result = {"note": options.note, "versions": peers.VERSIONS, "goals": goals}
    result |= {f"threads: {threads}": told for threads, told in found.items()}
    print(json.dumps(result, indent=2))
    if not options.quick:
        save("tokenizer", result)


if __name__ == "__main__":
    main()
