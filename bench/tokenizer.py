"""How fast the tokenizer learns, encodes and decodes, beside tokenizers and tiktoken.

    python bench/tokenizer.py                          # TinyShakespeare and the standard library
    python bench/tokenizer.py --large english.txt      # and a text of one's own, say of 100 MB

Every figure is the median of five, all contenders in turn, on one thread, with the same output on
both sides, and taken only after their results were found equal. Compilation is not in it (it is
done once on a machine), the state of what is known of the text is said: "warm" is a tokenizer that
has seen it, "fresh" one that has not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import tiktoken
import tokenizers
from common import ROOT, save
from tokenizers import Regex, models, pre_tokenizers, trainers

from model.bpe import END_OF_TEXT, Tokenizer
from model.bpe_export import to_tiktoken
from model.split import PATTERN_NAME, PATTERNS

TIMES = 5
PLAY = Path(os.environ.get("IGNITE_TEST_CORPUS", ROOT.parent / "shared/data/tinyshakespeare.txt"))


def sources(limit: int) -> str:
    """The standard library's own modules, one after the other."""
    folder = Path(sysconfig.get_path("stdlib"))
    text = "".join(p.read_text("utf-8", "replace") for p in sorted(folder.glob("*.py")))
    return text[:limit]


def medians(work: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of each contender, in turn."""
    spent: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(TIMES):
        for name, do in work.items():
            started = time.perf_counter()
            do()
            spent[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def huggingface(documents: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    trained = tokenizers.Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(PATTERNS[PATTERN_NAME]), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.pre_tokenizer = pre_tokenizers.Sequence([pieces, level])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(documents, trainer)
    return trained


def merges_of(trained: tokenizers.Tokenizer) -> list[tuple[int, int]]:
    model = json.loads(trained.to_str())["model"]
    return [(model["vocab"][left], model["vocab"][right]) for left, right in model["merges"]]


def training(documents: list[str], vocab_size: int) -> dict[str, Any]:
    ours = Tokenizer.train(documents, vocab_size=vocab_size)
    assert ours.merges == merges_of(huggingface(documents, vocab_size)), "merges differ"
    seconds = medians(
        {
            "ours": lambda: Tokenizer.train(documents, vocab_size=vocab_size),
            "tokenizers": lambda: huggingface(documents, vocab_size),
        }
    )
    return {"seconds": seconds, "merges": len(ours.merges), "stopped": ours.stopped_because}


def coding(text: str, ours: Tokenizer, theirs: tokenizers.Tokenizer) -> dict[str, Any]:
    """MB/s of UTF-8, but for the seconds that are said to be seconds."""
    rank = tiktoken.Encoding(**to_tiktoken(ours))
    ids = ours.encode(text)
    array = ours.encode_array(text)
    assert ids == array.tolist() == rank.encode_ordinary(text) == theirs.encode(text).ids
    assert ours.decode(ids) == rank.decode(ids) == text
    megabytes = len(text.encode()) / 1e6

    def fresh() -> Tokenizer:
        return Tokenizer(ours.merges)

    to_array = {
        "ours": lambda: ours.encode_array(text),
        "ours, fresh": lambda: fresh().encode_array(text),
        "tiktoken": lambda: rank.encode_to_numpy(text, disallowed_special=()),
        "tokenizers": lambda: np.array(theirs.encode(text).ids),
    }
    to_list = {
        "ours": lambda: ours.encode(text),
        "ours, fresh": lambda: fresh().encode(text),
        "tiktoken": lambda: rank.encode_ordinary(text),
    }
    works = {
        "encode to an array": to_array,
        "encode to a list": to_list,
        "decode an array to bytes": {
            "ours": lambda: ours.decode_bytes(array),
            "tiktoken": lambda: rank.decode_bytes(array),
        },
        "decode a list to text": {
            "ours": lambda: ours.decode(ids),
            "tiktoken": lambda: rank.decode(ids),
        },
    }
    found = {name: medians(work) for name, work in works.items()}
    speeds = {
        name: {who: megabytes / seconds for who, seconds in spent.items()}
        for name, spent in found.items()
    }
    return {"megabytes": megabytes, "tokens": len(ids), "MB/s": speeds}


def latency(text: str, ours: Tokenizer) -> dict[str, Any]:
    """Microseconds of a short call."""
    rank, calls = tiktoken.Encoding(**to_tiktoken(ours)), 5000
    found = {}
    for size in (13, 100, 1000):
        short = text[:size]

        def repeat(do: Callable[[str], Any], short: str = short) -> Callable[[], None]:
            return lambda: [do(short) for _ in range(calls)] and None

        seconds = medians(
            {
                "ours": repeat(ours.encode),
                "ours, array": repeat(ours.encode_array),
                "tiktoken": repeat(rank.encode_ordinary),
            }
        )
        found[f"{size} bytes"] = {who: 1e6 * spent / calls for who, spent in seconds.items()}
    return found


_OURS = """
from model.bpe import Tokenizer
text = open({path!r}).read()
Tokenizer.train([text], vocab_size=4096).encode_array(text)
"""
_THEIRS = """
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
text = open({path!r}).read()
it = Tokenizer(models.BPE())
level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
split = pre_tokenizers.Split(Regex({pattern!r}), behavior="isolated")
it.pre_tokenizer = pre_tokenizers.Sequence([split, level])
alphabet = pre_tokenizers.ByteLevel.alphabet()
it.train_from_iterator([text], trainers.BpeTrainer(
    vocab_size=4096, min_frequency=2, initial_alphabet=alphabet, show_progress=False))
it.encode(text)
"""


def fresh_process(path: Path) -> dict[str, float]:
    """Seconds to start Python, import, learn 4,096 tokens from a text and encode it."""

    def process(code: str) -> Callable[[], None]:
        filled = code.format(path=str(path), pattern=PATTERNS[PATTERN_NAME])
        return lambda: subprocess.run([sys.executable, "-c", filled], cwd=ROOT, check=True) and None

    return medians({"ours": process(_OURS), "tokenizers": process(_THEIRS)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--large", type=Path, help="a large UTF-8 text, to learn 32,000 tokens")
    parser.add_argument("--note", default="", help="what a reader should know of the machine's day")
    options = parser.parse_args()
    play = PLAY.read_text()
    texts = {"TinyShakespeare": play, "standard library": sources(8_000_000)}
    trained = {"TinyShakespeare, 4,096": training([play], 4096)}
    coded = {}
    if options.large:
        large = options.large.read_text()
        documents = [large[i : i + 16_384] for i in range(0, len(large), 16_384)]
        trained["large, 32,000"] = training(documents, 32_000)
        texts["large, its first 8 MB"] = large[:8_000_000]
    for name, text in texts.items():
        vocabulary = Tokenizer.train([text], vocab_size=32_000)
        coded[name] = coding(text, vocabulary, huggingface([text], 32_000))
    result = {
        "note": options.note,
        "versions": {"tokenizers": tokenizers.__version__, "tiktoken": tiktoken.__version__},
        "train": trained,
        "code": coded,
        "microseconds": latency(play, Tokenizer.train([play], vocab_size=4096)),
        "fresh process, seconds": fresh_process(PLAY),
    }
    print(json.dumps(result, indent=2))
    save("tokenizer", result)


if __name__ == "__main__":
    main()
