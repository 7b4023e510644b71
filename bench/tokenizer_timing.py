"""Time what several contenders do, in turn."""

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import ROOT
from tokenizer_peers import PEERS

from model.split import PATTERN_NAME, PATTERNS

TIMES = int(os.environ.get("IGNITE_BENCH_TIMES", "5"))


@dataclass
class Cell:
    """Medians of one kind of work: seconds of the wall and of the processor, by contender."""

    work: str
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _used() -> float:
    """Processor seconds of this process and of those that it waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def measure(name: str, works: dict[str, Callable[[], Any]], fresh: bool = False) -> Cell:
    """Let all contenders work in turn, TIMES times.

    fresh: each of `works` makes anew what is to be timed.
    """
    seconds: dict[str, list[float]] = {who: [] for who in works}
    cpu: dict[str, list[float]] = {who: [] for who in works}
    for _ in range(TIMES):
        for who, work in works.items():
            do = work() if fresh else work
            started, used = time.perf_counter(), _used()
            result = do()
            seconds[who].append(time.perf_counter() - started)
            cpu[who].append(_used() - used)
            del result, do
    cell = Cell(name, _medians(seconds), _medians(cpu))
    print(name, {who: round(spent, 4) for who, spent in cell.seconds.items()}, file=sys.stderr)
    return cell


def _medians(of: dict[str, list[float]]) -> dict[str, float]:
    return {who: statistics.median(values) for who, values in of.items()}


_OURS = """
from model.bpe import Tokenizer
text = open({path!r}).read()
Tokenizer.train([text], vocab_size=4096).encode_array(text)
"""
_TOKENIZERS = """
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
_RUSTBPE = """
import rustbpe
text = open({path!r}).read()
it = rustbpe.Tokenizer()
it.train_from_iterator(iter([text]), 4096, pattern={pattern!r})
it.encode(text)
"""


def fresh_process(path: Path) -> Cell:
    """Start Python, import, learn 4,096 tokens from a text and encode it."""

    def process(code: str) -> Callable[[], Any]:
        filled = code.format(path=str(path), pattern=PATTERNS[PATTERN_NAME])
        return lambda: subprocess.run([sys.executable, "-c", filled], cwd=ROOT, check=True)

    codes = {"ours": _OURS, "tokenizers": _TOKENIZERS, "rustbpe": _RUSTBPE}
    here = {who: process(code) for who, code in codes.items() if who == "ours" or who in PEERS}
    return measure("fresh process: import, train and encode TinyShakespeare", here)
