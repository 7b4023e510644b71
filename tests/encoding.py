"""Inputs for the stage ``encode``, and what must come out."""

import json
import random
from pathlib import Path

import numpy as np

from model.bpe import END_OF_TEXT, Tokenizer
from pipeline import recipe
from pipeline.data import shards
from pipeline.data.splits import SplitWriter
from pipeline.machine import Machine
from pipeline.stage import Context
from pipeline.stages import encode

SIZE = 1 << 10  # of a shard here


def documents(seed: int) -> list[bytes]:
    """Long ones and short ones, ends of lines, names of special tokens, what cannot be cut."""
    draw = random.Random(seed)
    words = ["the", "cat's", "sat", "on", "42", "été", "中文", END_OF_TEXT, "1234567", "(so)", "😀"]
    texts = [
        draw.choice([" ", "  ", "\n"]).join(draw.choices(words, k=count))
        for count in (1, 900, 2, 3, *[40] * 30, 1500)
    ]
    return [text.encode() for text in (*texts, "oneword" * 600, "\n\n", "the end\n")]


class Case:
    """Inputs on disk, and the folder that outlives a kill."""

    def __init__(self, folder: Path, train: list[bytes], validation: list[bytes]) -> None:
        self.folder, self.kept = folder, folder / "kept"
        self.texts = {"train": train, "validation": validation}
        self.tokenizer = Tokenizer.train(train, vocab_size=400)
        self.tokenizer.save(folder / "tokenizer.json")
        self.inputs = {"tokenizer/tokenizer.json": folder / "tokenizer.json"}
        for name, texts in self.texts.items():
            with SplitWriter(folder, name) as split:
                for text in texts:
                    split.add(text)
            for kind in ("text", "ends"):
                self.inputs[f"prepare/{name}.{kind}"] = folder / f"{name}.{kind}"
        self.notes: list[str] = []
        self.shown: list[tuple] = []

    def context(self, workers: int, stopping=lambda: False) -> Context:
        self.kept.mkdir(exist_ok=True)
        number = sum(1 for _ in self.folder.glob("out*"))
        out = self.folder / f"out{number}"
        out.mkdir()
        return Context(
            recipe.load("tiny", data="none"),
            Machine(workers=workers),
            self.inputs,
            out,
            stopping=stopping,
            show=lambda *shown: self.shown.append(shown),
            note=self.notes.append,
            kept=lambda: self.kept,
        )

    def run(self, workers: int = 1) -> dict[str, bytes]:
        context = self.context(workers)
        encode.run(context)
        return {path.name: path.read_bytes() for path in context.out.iterdir()}

    def expected(self) -> dict[str, bytes]:
        """Encoded as it is defined: a document after the other."""
        coder, files = self.tokenizer, {}
        told: dict[str, object] = {"vocab_size": coder.vocab_size, "end_of_text": coder.end_of_text}
        wide = "<u2" if coder.vocab_size <= 1 << 16 else "<u4"
        for name, texts in self.texts.items():
            ids = [i for text in texts for i in (coder.end_of_text, *coder.encode(text))]
            files[f"{name}.tokens"] = np.array(ids, wide).tobytes()
            told |= {f"{name}_tokens": len(ids), f"{name}_bytes": sum(map(len, texts))}
        return files | {"tokens.json": (json.dumps(told, indent=2) + "\n").encode()}

    def described(self) -> int:
        """Shards that are done."""
        return len(list(self.kept.glob("*.json")))

    def planned(self) -> list[shards.Shard]:
        """All shards that there are to be."""
        return [
            shard
            for name in self.texts
            for shard in shards.shards(
                name,
                self.inputs[f"prepare/{name}.text"],
                self.inputs[f"prepare/{name}.ends"],
                encode.SIZE,
            )
        ]
