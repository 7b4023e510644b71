"""Learn the vocabulary from the training split, and from nothing else.

Out: ``tokenizer.json``. The validation split is not looked at: a vocabulary that has seen it would
know its rare words.
"""

from model.bpe import Tokenizer
from pipeline.data.splits import Split
from pipeline.stage import Context


def run(context: Context) -> dict[str, object]:
    """The stage; see the module docstring."""
    settings = context.recipe.tokenizer
    split = Split(context.inputs["prepare/train.text"], context.inputs["prepare/train.ends"])

    def progress(done: int, total: int | None, what: str) -> None:
        if what == "read":
            split.let_go()
            context.progress(done, split.bytes, "B", doing="counting pieces")
        else:
            context.progress(done, total, "merges", doing="merging pairs")

    tokenizer = Tokenizer.train(
        split.views(),
        vocab_size=settings.vocab_size,
        min_pair_count=settings.min_pair_count,
        progress=progress,
    )
    tokenizer.save(context.out / "tokenizer.json")
    return {
        "vocab_size": tokenizer.vocab_size,
        "merges": len(tokenizer.merges),
        "stopped_because": tokenizer.stopped_because,
    }
