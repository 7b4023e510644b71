"""Scripts that need a machine of their own still run here, at toy size: ``pytest -m slow``."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pipelines import write_corpus

BENCH = Path(__file__).parents[1] / "bench"
pytestmark = pytest.mark.slow


def bench(script: str, *words: object) -> str:
    command = [sys.executable, BENCH / script, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=BENCH.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_gpus_script(tmp_path):
    corpus = write_corpus(tmp_path / "text.txt", words=8000)
    told = bench("gpu.py", corpus, "--toy")
    assert '"failed": "' not in told, told
    parts = {}
    for name in ("training", "quality", "classic", "exactness", "precision"):
        start = told.index(f"{name} {{") + len(name)
        parts[name], _ = json.JSONDecoder().raw_decode(told[start:].lstrip())
    assert parts["training"]["tiny"]["ours"]["tokens_per_second"] > 0
    assert parts["exactness"]["kills"] >= 1
    assert parts["exactness"]["killed_equals"] and parts["exactness"]["repeated_equals"]
    other = parts["precision"]["another seed"]["mean_distance_from_bf16"]
    assert parts["precision"]["fp32"]["mean_distance_from_bf16"] < other / 10
    assert parts["quality"]["bits_per_byte"] > 0


def test_decodings_script():
    words = ("--size", "tiny", "--device", "cpu", "--tokens", 32, "--vocab", 512, "--dry")
    told = bench("decode.py", *words)
    assert "'way': 'graph'" in told and "failed" not in told


def test_encodings_script(tmp_path):
    corpus = write_corpus(tmp_path / "text.txt")
    told = bench("encode.py", corpus, "--megabytes", 100, "--rounds", 1, "--dry")
    result = json.loads(told[told.index("{\n") :])
    assert result["killed"]["kills"] == 5 and result["killed"]["same_bytes"]
    assert result["killed"]["encoded_twice_mb"] < result["megabytes"]


def test_the_tokenizers_memory_script(tmp_path):
    corpus = write_corpus(tmp_path / "text.txt", words=8000)
    words = ("--text", corpus, "--megabytes", 1, "--alone", 2, "--dry")
    told = bench("tokenizer_memory.py", *words, "--subjects", "ours", "tokenizers", "counted")
    found = [line.split(maxsplit=3) for line in told.splitlines()]
    assert [line[2] for line in found] == ["ours", "tokenizers", "counted", "ours", "counted"]
    figures = [json.loads(line[3]) for line in found]
    assert all(one["peak_bytes"] > one["idle_bytes"] > 0 for one in figures)
    assert figures[4]["found"]["distinct"] > figures[2]["found"]["distinct"] > 2000


def test_a_sweep(tmp_path):
    """All but its writing of results, which would leave a file in the tree."""
    rows = tmp_path / "rows.toml"
    toy = ["tokenizer.vocab_size=300", "model.layers=1", "model.width=32", "model.heads=2"]
    toy += ["model.context=32", "train.steps=3", "train.batch=2", "model.feed_forward=64"]
    row = '[[row]]\nname = "base"\nset = []\n[[row]]\nname = "bad"\nset = ["train.lr=-1"]\n'
    rows.write_text(f'size = "tiny"\nset = {json.dumps(toy)}\n{row}')
    corpus = write_corpus(tmp_path / "text.txt", words=4000)
    corpus.write_text(corpus.read_text(encoding="utf-8").replace(" ", "\n"), encoding="utf-8")
    told = bench("sweep.py", corpus, rows, "--dry", "--machine=--device cpu", "--parts", 9, 0)
    scores = [re.search(rf"base 0 {part} {{'bits_per_byte': ([^,]+),", told) for part in (9, 0)]
    assert all(scores) and scores[0][1] != scores[1][1]
    assert "bad 0 9 {'failed': " in told and "train.lr" in told
