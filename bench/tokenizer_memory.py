"""How much memory does learning 32,000 tokens need, beside tokenizers, rustbpe and gigatoken?

    python bench/tokenizer_memory.py [--text english.txt] [--megabytes 100 1000] [--alone 10000]
                                     [--peers FOLDER] [--dry]

Each subject runs in a process of its own and is handed documents of 16 KB, which are made while it
reads: the peak holds no text but what it keeps itself. gigatoken reads a file, and knows GPT-2's
pattern alone. The text is the base text over and over, after the first time with new words in the
place of others, so many that the distinct pieces grow by Heaps' law: `counted` says how many there
are. The peak is the process's VmHWM; `idle` is what it held after its imports. Needs Linux.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["IGNITE_TOKENIZER"] = "fast"  # also for a small text, on a machine that compiles first

from common import ROOT, save

from model.split import PATTERN_NAME, PATTERNS

VOCAB = 32_000
DOCUMENT = 1 << 14
PLAY = Path(os.environ.get("IGNITE_TEST_CORPUS", ROOT.parent / "shared/data/tinyshakespeare.txt"))
HEAPS = 800  # distinct pieces of n bytes: some HEAPS * n ** 0.4, at 10 GB 8 million


def write_base(path: Path, text: Path | None) -> None:
    """Write what to begin with: the given text, or TinyShakespeare and the standard library."""
    library = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    own = [text] if text else [PLAY, *(p for p in library if "site-packages" not in p.parts)]
    with path.open("w", encoding="utf-8") as file:
        for part in own:
            if part.is_file():
                file.write(part.read_text("utf-8", "replace"))


def documents(base: Path, size: int) -> Iterator[bytes]:
    """Documents of 16 KB, `size` bytes in all or a few more; the same ones each time.

    New words are made of two halves of words that are there, so that their lengths and their pairs
    of letters are as usual.
    """
    draw = random.Random(0)
    with base.open("rb") as file:
        words = sorted(set(re.findall(rb"[A-Za-z]{4,12}", file.read(1 << 22))))
        length, given, made, at = base.stat().st_size, 0, 0.0, 0
        while given < size:
            file.seek(at)
            document = file.read(DOCUMENT)
            at += DOCUMENT
            if at + DOCUMENT > length:
                at = draw.randrange(DOCUMENT)
            if given > length:
                made += HEAPS * ((given + DOCUMENT) ** 0.4 - given**0.4)
                document = _varied(document, words, int(made), draw)
                made -= int(made)
            given += len(document)
            yield document.decode("utf-8", "replace")


def _varied(document: bytes, words: list[bytes], many: int, draw: random.Random) -> bytes:
    """The document with so many new words in place of others."""
    parts = document.split(b" ")
    for i in draw.sample(range(len(parts)), min(many, len(parts))):
        first, second = draw.choice(words), draw.choice(words)
        parts[i] = first[: draw.randint(2, len(first))] + second[draw.randint(0, 3) :]
    return b" ".join(parts)


def ours() -> Callable[[Iterator[str]], Any]:
    from model.bpe import Tokenizer
    from model.fast.build import kernels

    kernels()
    return lambda texts: Tokenizer.train(texts, vocab_size=VOCAB).vocab_size


def tokenizers() -> Callable[[Iterator[str]], Any]:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    def train(texts: Iterator[str]) -> int:
        trained = Tokenizer(models.BPE())
        pieces = pre_tokenizers.Split(Regex(PATTERNS[PATTERN_NAME]), behavior="isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        trained.pre_tokenizer = pre_tokenizers.Sequence([pieces, level])
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCAB, min_frequency=2, initial_alphabet=alphabet, show_progress=False
        )
        trained.train_from_iterator(texts, trainer)
        return trained.get_vocab_size()

    return train


def rustbpe() -> Callable[[Iterator[str]], Any]:
    import rustbpe

    def train(texts: Iterator[str]) -> int:
        trained = rustbpe.Tokenizer()
        trained.train_from_iterator(texts, VOCAB, pattern=PATTERNS[PATTERN_NAME])
        return 256 + len(trained.get_mergeable_ranks())

    return train


def gigatoken() -> Callable[[Iterator[str]], Any]:
    from gigatoken import TextFileSource, train_bpe

    from model.bpe import END_OF_TEXT

    def train(texts: Iterator[str]) -> int:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
            for text in texts:
                file.write(text + END_OF_TEXT)
            file.flush()
            source = TextFileSource([file.name], separator=END_OF_TEXT)
            return len(train_bpe(source, VOCAB, [END_OF_TEXT])[0])

    return train


def counted() -> Callable[[Iterator[str]], Any]:
    """Trains nothing: how many distinct pieces there are, and the bytes."""
    from model.bpe import Tokenizer
    from model.bpe_count import count_words
    from model.fast import desk
    from model.fast.build import kernels

    kernels()

    def count(texts: Iterator[str]) -> dict[str, int]:
        work = count_words(texts, PATTERN_NAME, Tokenizer([])._byte_tokens)
        return {"distinct": work[desk.INDEX_USED], "int32 of words": work[desk.WORDS_SIZE]}

    return count


SUBJECTS = {f.__name__: f for f in (ours, tokenizers, rustbpe, gigatoken, counted)}


def peak(name: str = "VmHWM") -> int:
    """Bytes of main memory: the most this process had at once; or VmRSS, what it has now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def measure(subject: str, base: Path, megabytes: int) -> dict[str, Any]:
    """In this process: what the subject needs for so long a text."""
    train = SUBJECTS[subject]()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    idle, started = peak("VmRSS"), time.perf_counter()
    found = train(documents(base, megabytes * 1_000_000))
    return {
        "peak_bytes": peak(),
        "idle_bytes": idle,
        "seconds": round(time.perf_counter() - started, 1),
        "found": found,
    }


def in_own_process(subject: str, base: Path, megabytes: int, peers: Path | None) -> dict[str, Any]:
    command = [sys.executable, __file__, "--subject", subject, "--megabytes", str(megabytes)]
    command += ["--base", str(base)]
    environment = os.environ | ({"PYTHONPATH": str(peers)} if peers else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
        return {"failed": last[0]}
    return json.loads(done.stdout.splitlines()[-1])  # gigatoken prints, too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", type=Path, help="a UTF-8 text to begin with, say of 100 MB")
    parser.add_argument("--megabytes", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--alone", type=int, nargs="*", default=[10_000], help="ours only")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=[*SUBJECTS])
    parser.add_argument("--peers", type=Path, help="where rustbpe and gigatoken are, if not here")
    parser.add_argument("--dry", action="store_true", help="write no file of results")
    parser.add_argument("--subject", choices=SUBJECTS, help="measure this one here and print it")
    parser.add_argument("--base", type=Path, help="its text")
    options = parser.parse_args()
    if options.subject:
        print(json.dumps(measure(options.subject, options.base, options.megabytes[0])))
        return
    measured: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base.txt"
        write_base(base, options.text)
        for megabytes in sorted({*options.megabytes, *options.alone}):
            for subject in options.subjects:
                if megabytes in options.alone and subject not in ("ours", "counted"):
                    continue
                figures = in_own_process(subject, base, megabytes, options.peers)
                measured.setdefault(f"{megabytes} MB", {})[subject] = figures
                print(f"{megabytes:6,} MB  {subject:10}  {json.dumps(figures)}", flush=True)
    if not options.dry:
        save("tokenizer_memory", {"vocab": VOCAB, "document": DOCUMENT, "measured": measured})


if __name__ == "__main__":
    main()
