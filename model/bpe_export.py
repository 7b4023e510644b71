"""Take a tokenizer elsewhere: to Hugging Face `tokenizers` (and `transformers`), or to tiktoken.

Both then give the ids that `Tokenizer.encode` gives, for any text that is valid Unicode. Neither
package is needed here: a tokenizer.json is plain JSON, and tiktoken starts from a dictionary.
"""

import json
from pathlib import Path
from typing import Any

from model.bpe import BYTE_ORDER, Tokenizer
from model.split import PATTERNS

# Hugging Face writes bytes as GPT-2 did: 188 printable ones as themselves, 68 as U+0100 onwards.
_CHAR_OF_BYTE = {byte: chr(byte if i < 188 else 256 + i - 188) for i, byte in enumerate(BYTE_ORDER)}


def to_huggingface(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write a tokenizer.json for `tokenizers.Tokenizer.from_file(path)`.

    That library takes the name of a special token for special wherever it stands in a text.
    ValueError: two tokens of the same bytes, which its format cannot tell apart.
    """
    names = list(tokenizer.special_tokens)
    for token in tokenizer.token_bytes[len(names) :]:
        names.append("".join([_CHAR_OF_BYTE[byte] for byte in token]))
    vocabulary = {name: i for i, name in enumerate(names)}
    if len(vocabulary) < len(names):
        raise ValueError("two tokens have the same bytes: no tokenizer.json can hold them")
    bytes_as_chars = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    pattern = PATTERNS[tokenizer.pattern]
    pieces = {"type": "Split", "behavior": "Isolated", "invert": False}
    splitters = [pieces | {"pattern": {"Regex": pattern}}, bytes_as_chars | {"use_regex": False}]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": name, **plain, "special": True}
            for name, i in tokenizer.special_tokens.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splitters},
        "post_processor": None,
        "decoder": bytes_as_chars | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [f"{names[left]} {names[right]}" for left, right in tokenizer.merges],
        },
    }
    text = json.dumps(data, ensure_ascii=False, indent=1)
    Path(path).write_bytes(text.encode() + b"\n")


def to_tiktoken(tokenizer: Tokenizer) -> dict[str, Any]:
    """What `tiktoken.Encoding(**to_tiktoken(tokenizer))` takes."""
    ordinary = list(enumerate(tokenizer.token_bytes))[len(tokenizer.special_tokens) :]
    return {
        "name": tokenizer.pattern,
        "pat_str": PATTERNS[tokenizer.pattern],
        "mergeable_ranks": {token: i for i, token in ordinary},
        "special_tokens": dict(tokenizer.special_tokens),
    }
