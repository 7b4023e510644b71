"""Score the whole validation split by the protocol of model/evaluate.py.

Out: ``metrics.json``. Reported are the last weights, unless ``evaluate.weights = best``; the best
were chosen by looking at this very split, so their numbers flatter them.
"""

import json

from model.evaluate import score
from pipeline.stage import Context
from pipeline.tokens import open_tokens
from pipeline.weights import load_model


def run(context: Context) -> dict[str, object]:
    """The stage; see the module docstring."""
    tokens = json.loads(context.inputs["encode/tokens.json"].read_text(encoding="utf-8"))
    which = {"last": "weights", "best": "best"}[context.recipe.evaluate.weights]
    weights = context.inputs[f"train/{which}.safetensors"]
    model = load_model(context.recipe, tokens["vocab_size"], weights, context.machine)
    stream = open_tokens(context.inputs["encode/validation.tokens"], tokens["vocab_size"])
    length = model.config.context
    scores = {}
    for protocol, stride in (("half stride", max(1, length // 2)), ("disjoint", length)):
        scores[protocol] = score(
            model,
            stream,
            stride=stride,
            progress=lambda done, total, name=protocol: context.progress(
                done, total, "tokens", protocol=name
            ),
        )
    half, disjoint = scores["half stride"], scores["disjoint"]
    text_bytes = tokens["validation_bytes"]
    metrics = {
        "loss": half.loss,
        "perplexity": half.perplexity,
        "bits_per_byte": half.bits_per_byte(text_bytes),
        "perplexity_disjoint": disjoint.perplexity,
        "bits_per_byte_disjoint": disjoint.bits_per_byte(text_bytes),
        "tokens": half.tokens,
        "text_bytes": text_bytes,
        "weights": context.recipe.evaluate.weights,
    }
    text = json.dumps(metrics, indent=2) + "\n"
    (context.out / "metrics.json").write_text(text, encoding="utf-8")
    return metrics
