"""Turn both splits into token ids on disk, ready to be memory-mapped.

Out: ``train.tokens`` and ``validation.tokens``, flat little-endian arrays of uint16 (uint32 where
the vocabulary has more than 65,536 tokens) in which every document is preceded by the end-of-text
token; and ``tokens.json``, which says what is in them. End-of-text stands *before* a document so
that its first token, too, is predicted from something.
"""

import json

import numpy as np

from model.bpe import Tokenizer
from pipeline.data.splits import Split
from pipeline.stage import Context
from pipeline.tokens import token_type

_CHUNK = 1 << 20  # tokens written at once


def run(context: Context) -> dict[str, object]:
    """The stage; see the module docstring."""
    tokenizer = Tokenizer.load(context.inputs["tokenizer/tokenizer.json"])
    splits = {
        name: Split(context.inputs[f"prepare/{name}.text"], context.inputs[f"prepare/{name}.ends"])
        for name in ("train", "validation")
    }
    total = sum(split.bytes for split in splits.values())
    described: dict[str, object] = {
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
    }
    done = 0
    for name, split in splits.items():
        tokens = 0
        dtype = token_type(tokenizer.vocab_size)
        with (context.out / f"{name}.tokens").open("wb") as file:
            waiting: list[int] = []
            for document in split:
                waiting.append(tokenizer.end_of_text)
                waiting += tokenizer.encode(document)
                done += len(document)
                if len(waiting) >= _CHUNK:
                    tokens += len(waiting)
                    file.write(np.asarray(waiting, dtype))
                    waiting.clear()
                context.progress(done, total, "B", split=name)
            tokens += len(waiting)
            file.write(np.asarray(waiting, dtype))
        described |= {f"{name}_tokens": tokens, f"{name}_bytes": split.bytes}
    text = json.dumps(described, indent=2) + "\n"
    (context.out / "tokens.json").write_text(text, encoding="utf-8")
    return described
