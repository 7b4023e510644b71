"""The report as HTML: each section is one function from facts to markup. Its looks: page.css."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

from pipeline.recipe import Recipe
from pipeline.report.curves import curves
from pipeline.report.facts import Facts
from pipeline.report.markup import Html, join, tag
from pipeline.report.story import provenance
from pipeline.ui import human_bytes, human_seconds


def page(facts: Facts) -> str:
    """The whole document."""
    source = Path(facts.recipe.data.source)
    name = f"{facts.recipe.size} on {source.name if source.is_absolute() else source}"
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    viewport = "width=device-width, initial-scale=1"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content=viewport),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", name),
        tag("style", Html(style)),
    )
    sections = (heading, unfinished, training, samples, stages, tokenizer, recipe, provenance)
    body = tag("body", tag("main", tag("h1", name), *(section(facts) for section in sections)))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def heading(facts: Facts) -> Html:
    """The numbers that one asks for first, and what they mean."""
    evaluated = facts.metrics("evaluate")
    figures = []
    if evaluated:
        figures += [
            _figure(f"{evaluated['bits_per_byte']:.4f}", "bits per byte"),
            _figure(f"{evaluated['bits_per_byte_disjoint']:.4f}", "bits per byte, disjoint"),
            _figure(f"{evaluated['perplexity']:.2f}", "perplexity per token"),
        ]
    if learned := facts.metrics("tokenizer"):
        parameters = facts.recipe.model.parameters(learned["vocab_size"])
        figures.append(_figure(f"{parameters:,}", "parameters"))
    return join(tag("div", *figures, class_="figures"), _meaning(evaluated) if evaluated else "")


def _figure(value: str, label: str) -> Html:
    return tag("div", tag("strong", value), tag("span", label))


def _meaning(evaluated: dict[str, Any]) -> Html:
    which = {
        "last": "the last step's weights",
        "best": "the best weights, which were chosen by looking at this very text, so the "
        "numbers flatter them",
    }[evaluated["weights"]]
    return tag(
        "p",
        f"Measured on the whole validation split, {evaluated['text_bytes']:,} bytes that training "
        f"did not see, with {which}. Bits per byte is what the model needs to write down one byte "
        "of that text: less is better, and it compares any two models on the same text. "
        "Disjoint windows give it less to go by and are how published numbers are often made. "
        "Perplexity is among how many tokens it hesitates; "
        "it says nothing across vocabularies.",
        class_="quiet",
    )


def unfinished(facts: Facts) -> Html:
    """A banner, if anything is missing."""
    if not facts.unfinished:
        return Html("")
    store = shlex.join(["--store", facts.place])
    missing = [
        tag("li", tag("b", name), f": {_state(facts.told[name])}") for name in facts.unfinished
    ]
    return tag(
        "aside",
        tag("p", tag("b", "This run is not finished."), " This page shows it as far as it is."),
        tag("ul", *missing),
        tag("p", "Go on with ", tag("code", f"{command(facts.recipe, facts.defaults)} {store}")),
        role="note",
    )


def _state(told: dict[str, Any]) -> str:
    if told["state"] == "waiting":
        return f"waits for {', '.join(told['for'])}"
    state = f"{told['state']}, {told['why']}" if "why" in told else told["state"]
    if "checkpoint_step" in told:
        state += f", newest checkpoint at step {told['checkpoint_step']:,}"
    return state


def training(facts: Facts) -> Html:
    """The curves and what can be read off them."""
    encoded = facts.metrics("encode")
    if facts.history is None or encoded is None:
        return Html("")
    losses, looks = facts.history["losses"], facts.history["validation"]
    train = facts.recipe.train
    bits = (encoded["validation_tokens"] - 1) / encoded["validation_bytes"] / math.log(2)
    seen = len(losses) * train.batch * facts.recipe.model.context
    rows = {
        "steps": f"{len(losses):,} of {train.steps:,}",
        "tokens seen": f"{seen:,}, {seen / encoded['train_tokens']:.2f} times the training split",
        "last training loss": f"{losses[-1]:.4f}",
    }
    if looks:
        best = min(looks, key=lambda look: look["loss"])
        rows["last validation loss"] = f"{looks[-1]['loss']:.4f}"
        rows["best validation loss"] = f"{best['loss']:.4f} at step {best['step']:,}"
    if trained := facts.metrics("train"):
        parts = trained.get("segments", [])  # older results have none
        each = parts or [trained]
        rows["computed on"] = ", then ".join(
            dict.fromkeys(f"{part['device']} in {part['precision']}" for part in each)
        )
        if returns := sum(part["rollbacks"] for part in parts):
            rows["returns after divergence"] = (
                f"{returns}, each to a checkpoint and on with half the learning rate"
            )
        if speed := trained["tokens_per_second"]:
            rows["speed"] = f"{speed:,} tokens per second"
    return tag(
        "section",
        tag("h2", "Training"),
        tag("figure", Html(curves(facts.history, train.steps, bits))),
        tag(
            "p",
            "Validation losses are quick looks at the beginning of the validation split, in "
            "disjoint windows. They differ a little from a measurement of all of it.",
            class_="quiet",
        ),
        _facts(rows),
        _segments(facts.told["train"]["segments"]),
    )


def _segments(segments: list[dict[str, Any]]) -> Html:
    """Who computed which part, where, on what and how fast; nothing of it decides what came out."""
    if not segments:
        return Html("")
    names = ("steps", "machine", "device", "in", "micro-batch", "tokens/s", "MFU", "time")
    rows = []
    for each in segments:
        cells = (
            f"{each['from']:,} to {each['to']:,}",
            each["machine"],
            each["device"] + (f" x {each['world_size']}" if each["world_size"] > 1 else ""),
            each["precision"],
            f"{each['micro_batch']:,}",
            f"{each['tokens_per_second']:,}",
            "" if each["mfu"] is None else f"{each['mfu']:.1%}",
            human_seconds(each["seconds"]),
        )
        rows.append(tag("tr", *(tag("td", cell) for cell in cells)))
    header = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in names)))
    return tag("div", tag("table", header, tag("tbody", *rows)), class_="wide")


def samples(facts: Facts) -> Html:
    """What the model writes, each way of choosing the next token."""
    if facts.samples is None:
        return Html("")
    prompt, parts = facts.samples["prompt"], []
    for sample in facts.samples["samples"]:
        settings = ", ".join(
            f"{key.replace('_', '-')} {value}"
            for key, value in sample.items()
            if key not in ("method", "text")
        )
        parts.append(tag("h3", sample["method"], " ", tag("small", settings)))
        parts.append(tag("pre", tag("b", prompt), sample["text"]))
    return tag("section", tag("h2", "Samples"), *parts)


def stages(facts: Facts) -> Html:
    """Which stages are done, what they took, and under which key."""
    rows = []
    for name, told in facts.told.items():
        seconds, size, key = told["seconds"], told["bytes"], told["key"]
        rows.append(
            tag(
                "tr",
                tag("th", name, " ", tag("small", facts.plan[name].stage.summary), scope="row"),
                tag("td", told["state"]),
                tag("td", "" if seconds is None else human_seconds(seconds), class_="number"),
                tag("td", "" if size is None else human_bytes(size), class_="number"),
                tag("td", tag("code", (key or "")[:12])),
            )
        )
    names = ("stage", "state", "time", "size", "key")
    header = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in names)))
    table = tag("table", header, tag("tbody", *rows))
    return tag("section", tag("h2", "Stages"), tag("div", table, class_="wide"))


def tokenizer(facts: Facts) -> Html:
    """The vocabulary, why it has that size, and how much text a token holds."""
    learned = facts.metrics("tokenizer")
    if learned is None:
        return Html("")
    asked = facts.recipe.tokenizer.vocab_size
    rows = {
        "vocabulary": f"{learned['vocab_size']:,} tokens of {asked:,} asked for",
        "stopped because": learned["stopped_because"],
    }
    if encoded := facts.metrics("encode"):
        for split in ("train", "validation"):
            size, tokens = encoded[f"{split}_bytes"], encoded[f"{split}_tokens"]
            rows[f"{split} split"] = (
                f"{size:,} bytes, {tokens:,} tokens, {size / tokens:.3f} bytes per token"
            )
    return tag("section", tag("h2", "Tokenizer"), _facts(rows))


def _facts(rows: dict[str, str]) -> Html:
    """Names and values."""
    return tag("dl", *(join(tag("dt", name), tag("dd", value)) for name, value in rows.items()))


def recipe(facts: Facts) -> Html:
    """Every setting; those that are not the size's own stand out. And how to run it again."""
    own, standard = facts.recipe.tree(), facts.defaults.tree()
    tables = []
    for section, values in own.items():
        if section == "size":
            continue
        rows = []
        for name, value in values.items():
            default = standard[section][name]
            changed = value != default
            note = tag("small", f" not {_shown(default)}") if changed else ""
            cells = (tag("th", name, scope="row"), tag("td", _shown(value), note))
            rows.append(tag("tr", *cells, **({"class_": "changed"} if changed else {})))
        tables.append(tag("table", tag("caption", section), tag("tbody", *rows)))
    return tag(
        "section",
        tag("h2", "Recipe"),
        tag("p", "Marked is what differs from the defaults of ", tag("b", facts.recipe.size), "."),
        tag("div", *tables, class_="columns"),
        tag("p", "The command for all of it:"),
        tag("pre", command(facts.recipe, facts.defaults)),
    )


def _shown(value: Any) -> str:
    return value or "(empty)" if isinstance(value, str) else json.dumps(value)


def command(own: Recipe, standard: Recipe) -> str:
    """The command line that has this recipe, for a POSIX shell."""
    words = ["pipeline", "run", "--size", own.size, "--data", own.data.source]
    for section, values in own.tree().items():
        if section == "size":
            continue
        for name, value in values.items():
            if value != getattr(getattr(standard, section), name) and name != "source":
                # JSON writes numbers, true, false and quoted text as TOML reads them
                words += ["--set", f"{section}.{name}={json.dumps(value, ensure_ascii=False)}"]
    return shlex.join(words)
