"""Write four samples from one prompt, one for each way of choosing the next token.

Out: ``samples.json``. The prompt is the recipe's, or else the first words of the validation split,
which the model has not seen.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.bpe import Tokenizer
from model.decode import quick_reader
from model.generate import generate
from model.gpt import GPT
from model.sampling import SamplerConfig
from pipeline.recipe import SampleConfig
from pipeline.stage import Context
from pipeline.weights import for_writing, load_model

_PROMPT_BYTES = 48


def methods(settings: SampleConfig) -> dict[str, SamplerConfig]:
    """The four ways by name, each adding one idea to the one before."""
    temperature, seed = settings.temperature, settings.seed
    return {
        "greedy": SamplerConfig(temperature=0.0, seed=seed),
        "temperature": SamplerConfig(temperature=temperature, seed=seed),
        "top-k": SamplerConfig(temperature=temperature, top_k=settings.top_k, seed=seed),
        "top-p": SamplerConfig(temperature=temperature, top_p=settings.top_p, seed=seed),
    }


def first_words(text: Path) -> str:
    """Whole words from near the beginning of a text: a prompt that fits any corpus.

    They start with a line, because a split may begin in the middle of one.
    """
    with text.open("rb") as file:
        start = file.read(8 * _PROMPT_BYTES).decode("utf-8", errors="ignore")
    _, newline, lines = start[: 4 * _PROMPT_BYTES].partition("\n")
    start = (lines if newline and lines.strip() else start).lstrip()[:_PROMPT_BYTES]
    words = start.rsplit(maxsplit=1)[0] if " " in start else start
    return words.rstrip() or start


def four_samples(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    settings: SampleConfig,
    progress: Callable[[int, int], None],
    note: Callable[[str], None],
) -> list[dict[str, Any]]:
    """For each method its name, its settings and the text that follows the prompt."""
    reader, wrong = quick_reader(model, 4 * settings.tokens)
    if wrong:
        note(wrong)
    prompt_ids = [tokenizer.end_of_text, *tokenizer.encode(prompt)]
    samples = []
    for done, (name, sampler) in enumerate(methods(settings).items()):
        ids = []
        for new_id in generate(
            model,
            prompt_ids,
            max_tokens=settings.tokens,
            sampler=sampler,
            stop_id=tokenizer.end_of_text,
            reader=reader,
        ):
            ids.append(new_id)
            progress(done * settings.tokens + len(ids), 4 * settings.tokens)
        shown = {
            key: value
            for key, value in (
                ("temperature", sampler.temperature),
                ("top_k", sampler.top_k or None),
                ("top_p", sampler.top_p if sampler.top_p < 1 else None),
            )
            if value is not None
        }
        samples.append({"method": name, **shown, "text": tokenizer.decode(ids)})
    return samples


def run(context: Context) -> dict[str, object]:
    """The stage; see the module docstring."""
    tokenizer = Tokenizer.load(context.inputs["tokenizer/tokenizer.json"])
    machine = for_writing(context.machine, context.recipe, tokenizer.vocab_size)
    weights = context.inputs["train/weights.safetensors"]
    model = load_model(context.recipe, tokenizer.vocab_size, weights, machine)
    settings = context.recipe.sample
    prompt = settings.prompt or first_words(context.inputs["prepare/validation.text"])
    samples = four_samples(
        model,
        tokenizer,
        prompt,
        settings,
        lambda done, total: context.progress(done, total, "tokens"),
        context.note,
    )
    text = json.dumps({"prompt": prompt, "samples": samples}, indent=2, ensure_ascii=False) + "\n"
    (context.out / "samples.json").write_text(text, encoding="utf-8")
    return {"prompt": prompt}
