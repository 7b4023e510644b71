"""Writing with a trained model, for the verbs ``sample`` and ``generate``."""

import codecs
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from model.bpe import Tokenizer
from model.decode import quick_reader
from model.generate import generate
from model.gpt import GPT
from model.sampling import SamplerConfig
from pipeline.engine.engine import Engine
from pipeline.machine import Machine
from pipeline.stages.sample import four_samples
from pipeline.weights import for_writing, load_model


def load(engine: Engine, machine: Machine) -> tuple[GPT, Tokenizer]:
    """The last weights and the tokenizer of the engine's recipe. Raises ValueError if untrained."""
    planned = {item.stage.name: item for item in engine.plan()}
    tokenizer = Tokenizer.load(engine.file(planned["tokenizer"], "tokenizer.json"))
    weights = engine.file(planned["train"], "weights.safetensors")
    machine = for_writing(machine, engine.recipe, tokenizer.vocab_size)
    return load_model(engine.recipe, tokenizer.vocab_size, weights, machine), tokenizer


def four(
    engine: Engine, machine: Machine, prompt: str, note: Callable[[str], None]
) -> dict[str, Any]:
    """Four samples of a prompt, as the stage ``sample`` writes them."""
    model, tokenizer = load(engine, machine)
    settings = replace(engine.recipe.sample, prompt=prompt)
    samples = four_samples(model, tokenizer, prompt, settings, lambda done, total: None, note)
    return {"prompt": prompt, "samples": samples}


def stream(
    engine: Engine,
    machine: Machine,
    prompt: str,
    tokens: int,
    sampler: SamplerConfig,
    note: Callable[[str], None],
) -> Iterator[str]:
    """The text after a prompt, piece by piece. Raises ValueError, at once, if untrained.

    ``note`` is told what keeps the GPU, if there is one, from writing as fast as it could.
    """
    model, tokenizer = load(engine, machine)
    stop = tokenizer.end_of_text
    prompt_ids = [stop, *tokenizer.encode(prompt)]
    reader, wrong = quick_reader(model, tokens)
    if wrong:
        note(wrong)
    settings = {"max_tokens": tokens, "sampler": sampler, "stop_id": stop, "reader": reader}
    return _text(tokenizer, generate(model, prompt_ids, **settings))


def _text(tokenizer: Tokenizer, new_ids: Iterator[int]) -> Iterator[str]:
    """Tokens as text; a character that spans several comes out whole."""
    characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for new_id in new_ids:
        yield characters.decode(tokenizer.decode_bytes([new_id]))
    yield characters.decode(b"", final=True)
