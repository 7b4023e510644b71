"""The six stages in order, as the engine sees them. What each does is in the file of its name."""

from pipeline.stage import Stage

_SPLITS = (
    "prepare/train.text",
    "prepare/train.ends",
    "prepare/validation.text",
    "prepare/validation.ends",
)
_TOKENS = ("encode/train.tokens", "encode/validation.tokens", "encode/tokens.json")

STAGES = (
    Stage("prepare", "read the source, check it, split it", reads=("data",), source=True),
    Stage("tokenizer", "learn the vocabulary", reads=("tokenizer",), inputs=_SPLITS[:2]),
    Stage("encode", "turn text into tokens", inputs=("tokenizer/tokenizer.json", *_SPLITS)),
    Stage("train", "find the weights", reads=("model", "train"), inputs=_TOKENS),
    Stage(
        "evaluate",
        "score the whole validation split",
        reads=("model", "evaluate"),
        inputs=("train/weights.safetensors", "train/best.safetensors", *_TOKENS[1:]),
    ),
    Stage(
        "sample",
        "write four samples from one prompt",
        reads=("model", "sample"),
        inputs=(
            "train/weights.safetensors",
            "tokenizer/tokenizer.json",
            "prepare/validation.text",
        ),
    ),
)
