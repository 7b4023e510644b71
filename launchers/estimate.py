"""How long a recipe takes on a card, whether it fits, and what it sends: arithmetic, before a run.

Time is the recipe's tokens times the operations of one (cards.py), and Muon's in each step, over
the card's stated peak times the share of it that training reaches. That share was measured on one
kind of card, an H100, and is an assumption for all others; each estimate says on which of the two
it rests. The vocabulary is taken at its ceiling. docs/launch.md has the sources of every number.

Not counted: looks at the validation split (a few hundredths for tiny), the pause of a
checkpoint, clocks that fall in a hot case. Cost: no torch, no network.
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.cards import Card, find, flops_per_token
from pipeline.machine import TYPES, choose_precision
from pipeline.memory import CUDA, SPARE, choose, fixed_bytes, halves, mask_bytes, token_bytes
from pipeline.recipe import Recipe

GIB, GB, HOUR = 1 << 30, 1e9, 3600.0
EVERY = 60.0  # seconds between checkpoints, as `pipeline run` does if it is told nothing
# what a launch tells it, by size: a large checkpoint takes minutes to send, and bytes cost money
OFTEN = {"tiny": 60.0, "small": 60.0, "medium": 600.0, "large": 1800.0}

# of the stated peak, at 768 wide and more: bench/results/gpu-training.json, 407 and 414 of 989
_MEASURED = {"H100 SXM": 0.41}
_WIDTHS = (768, 1024)  # that were measured there
# assumed of the others. An H200 has the H100's chip; other trainers reach 0.39 to 0.56 on an A100
# and 0.85 on an RTX 4070; a T4 and an L4 get 70 W, which do not feed their peaks for long
_ASSUMED = {"H200": 0.41, "A100 SXM4": 0.45, "A100 PCIE": 0.45, "Tesla T4": 0.2, "L4": 0.2}
_GEFORCE, _ELSE = 0.4, 0.3
# narrower models keep a card less busy; of an H100 small reached 0.0375 (bench/results/gpu.json)
_WIDE, _NARROWING = 768, 2.13
# seconds that a step takes however little there is in it, because somebody must ask for its work:
# small's with 16,384 tokens on an H100, the shortest that was seen
_STEP = 0.0174
_TEAM = 0.9  # of several cards' speeds together; assumed: no two have been tried
_RECOMPUTING = 4 / 3  # the work of a step with activation checkpointing

# operations a second of a CPU's core at 256 wide: bench/results/train_cpu.json, an EPYC's two
_CORE = {"bf16": 146e9, "fp32": 81e9}
_CORE_WIDE, _CORE_NARROWING = 256, 0.86  # tiny reached 80.5e9 in bf16: bench/results/tiny.json

# the other stages, assumed: two cores were ten times as fast, but had compiled before, and the text
# on their disk (bench/results/stdlib.json)
_STARTS = 20.0  # seconds that six stages take to begin
_TEXT = 2e6  # bytes of text a second, through prepare, tokenizer and encode
_BYTES_A_TOKEN = 2.5

_UPLOAD = 25e6  # bytes a second from a rented machine; assumed
_INSTALLED = 3e9  # bytes of packages or image that a new machine fetches
_ROOM = 15e9  # bytes of disk for them and what they unpack to


@dataclass(frozen=True)
class Estimate:
    """What a run takes on one machine; ``training`` is None if it does not fit there."""

    fits: str  # yes, recomputing (with activation checkpointing), no, or not computed
    micro_batch: int  # sequences at once on each GPU; 0 if not computed, or none fits
    tokens_per_second: float
    training: float | None  # seconds
    others: float  # seconds of the other stages
    basis: str  # in words: what the speed rests on
    measured: bool  # was it measured on such a card with such a model, or else assumed?

    @property
    def hours(self) -> float | None:
        return None if self.training is None else (self.training + self.others) / HOUR


def hours(
    recipe: Recipe,
    gpu: str,
    gpus: int = 1,
    memory: float | None = None,
    corpus: int | None = None,
) -> float | None:
    """Hours of the whole run, without setting the machine up; None: unknown card, or no room.

    ``gpu`` is as Vast.ai or nvidia-smi name it, ``memory`` the GiB of each if told.
    """
    found = on_gpu(recipe, gpu, gpus, memory=memory, corpus=corpus)
    return found.hours if found else None


def on_gpu(
    recipe: Recipe,
    gpu: str,
    gpus: int = 1,
    *,
    memory: float | None = None,
    corpus: int | None = None,
) -> Estimate | None:
    """On so many cards of one kind; None if nothing is known of them. ``corpus``: its bytes."""
    card = find(gpu)
    if card is None:
        return None
    precision = choose_precision("auto", "cuda", card.capability)
    peak = card.peak(TYPES[precision])
    assert peak is not None, card
    micro_batch, recompute = _room(recipe, precision, memory or card.memory, gpus)
    share, measured = _share(card, recipe.model.width)
    each = share * peak.flops
    reached = each * (gpus * _TEAM if gpus > 1 else 1) / (_RECOMPUTING if recompute else 1)
    training = _of_model(recipe) / reached + _of_muon(recipe) / each  # which no GPU shares out
    measured = measured and gpus == 1 and not recompute
    basis = f"{100 * share:.2g} % of {peak.flops / 1e12:g} TFLOP/s in {precision}"
    if (least := _STEP * recipe.train.steps) > training:
        basis, measured, training = f"{1000 * _STEP:.2g} ms a step", False, least
    return _estimate(
        recipe,
        corpus,
        training,
        reached,
        fits="recomputing" if recompute else "yes" if micro_batch else "no",
        micro_batch=micro_batch,
        basis=f"{basis}, {'measured' if measured else 'assumed'}",
        measured=measured,
    )


def on_cpu(recipe: Recipe, cores: int, precision: str, corpus: int | None = None) -> Estimate:
    """On so many cores, if they are as fast as those that were measured."""
    narrow = min(1.0, recipe.model.width / _CORE_WIDE) ** _CORE_NARROWING
    core = _CORE[precision] * narrow
    return _estimate(
        recipe,
        corpus,
        operations(recipe) / (cores * core),
        cores * core,
        fits="not computed",
        micro_batch=0,
        basis=f"{core / 1e9:.0f} GFLOP/s a core in {precision}, as on an EPYC",
        measured=False,
    )


def _share(card: Card, width: int) -> tuple[float, bool]:
    """The share of its peak that a card reaches, and whether that was measured."""
    assumed = _GEFORCE if card.name.startswith("RTX") else _ELSE
    wide = _MEASURED.get(card.name) or _ASSUMED.get(card.name, assumed)
    share = wide * min(1.0, width / _WIDE) ** _NARROWING
    return share, card.name in _MEASURED and width in _WIDTHS


def _room(recipe: Recipe, precision: str, memory: float, gpus: int) -> tuple[int, bool]:
    """The micro-batch that fit.py should find in so many GiB, and whether it recomputes."""
    shape, vocab = recipe.model, recipe.tokenizer.vocab_size
    whole = memory * GIB
    mean = 4 * shape.parameters(vocab) if recipe.train.ema else 0
    wider = 2 if precision == "fp32" else 1  # no more than so much: some of it is float32 anyway

    def fits(count: int, recompute: bool) -> bool:
        token = wider * (token_bytes(shape, recompute) + mask_bytes(shape))
        fixed = fixed_bytes(shape, vocab, recompute, whole) + mean
        return fixed + count * shape.context * token <= (1 - SPARE) * whole - CUDA

    return choose(halves(-(-recipe.train.batch // gpus)), shape.context, "auto", fits)


def _estimate(
    recipe: Recipe, corpus: int | None, training: float, reached: float, **told
) -> Estimate:
    """For ``training`` seconds, where ``reached`` operations of a model a second are done."""
    others = _STARTS
    if corpus is not None:
        # three forward passes over the validation split: as much as training on it once
        validation = recipe.data.validation * corpus / _BYTES_A_TOKEN
        others += corpus / _TEXT
        others += validation * flops_per_token(recipe.model, recipe.tokenizer.vocab_size) / reached
    return Estimate(
        tokens_per_second=tokens(recipe) / training,
        training=None if told["fits"] == "no" else training,
        others=others,
        **told,
    )


def tokens(recipe: Recipe) -> int:
    """That are trained on, each as often as it is read."""
    return recipe.train.steps * recipe.train.batch * recipe.model.context


def passes(recipe: Recipe, corpus: int) -> float:
    """How often a text of so many bytes is read."""
    return tokens(recipe) * _BYTES_A_TOKEN / ((1 - recipe.data.validation) * corpus)


def operations(recipe: Recipe) -> float:
    """Of the whole training, as the MFU counts them, and those of Muon besides."""
    return _of_model(recipe) + _of_muon(recipe)


def _of_model(recipe: Recipe) -> float:
    each = flops_per_token(recipe.model, recipe.tokenizer.vocab_size)
    return float(tokens(recipe) * each)


def _of_muon(recipe: Recipe) -> float:
    """Those by which it orthogonalises: five times three products for each matrix in each step."""
    if recipe.train.optimizer != "muon":
        return 0.0
    shape, total = recipe.model, 0
    # queries, keys, values, out; up, down
    for side in (*[shape.width] * 4, *[shape.feed_forward] * 2):
        short, long = sorted((shape.width, side))
        total += 5 * (4 * short**2 * long + 2 * short**3)
    return float(recipe.train.steps * shape.layers * total)


# what is sent, and what the disk holds


def weights_bytes(recipe: Recipe) -> int:
    return 4 * recipe.model.parameters(recipe.tokenizer.vocab_size)


def state_bytes(recipe: Recipe) -> int:
    """Of a checkpoint's state: weights, optimizer, running mean; the best weights lie beside it."""
    shape = recipe.model
    matrices = shape.layers * (4 * shape.width**2 + 2 * shape.width * shape.feed_forward)
    spared = 4 * matrices if recipe.train.optimizer == "muon" else 0
    return weights_bytes(recipe) * (4 if recipe.train.ema else 3) - spared


@dataclass(frozen=True)
class Traffic:
    """Bytes between the machines of a run and its store. ``gap``: seconds between checkpoints."""

    up: float
    down: float
    gap: float


def traffic(
    recipe: Recipe, training: float, sessions: int = 1, every: float = EVERY, corpus: int = 0
) -> Traffic:
    """What ``training`` seconds send and fetch, packages and text included.

    A network that is slower than checkpoints are written lets fewer of them arrive.
    """
    state, best = state_bytes(recipe), weights_bytes(recipe)
    gap = max(every, state / _UPLOAD)
    arriving = training / gap + sessions - 1
    looks = recipe.train.steps / recipe.train.eval_every
    text = corpus * (1 + 2 / _BYTES_A_TOKEN)  # and its tokens
    up = arriving * state + (min(looks, arriving) + 2) * best + text
    return Traffic(up, sessions * (_INSTALLED + corpus) + (sessions - 1) * (state + best), gap)


def disk(recipe: Recipe, corpus: int = 0) -> float:
    """Bytes that a run wants of a machine's disk: two checkpoints kept, and two on their way."""
    return _ROOM + 4 * (state_bytes(recipe) + weights_bytes(recipe)) + 3 * corpus


def corpus_bytes(source: str) -> int | None:
    """Of the text that ``--data`` names, as it lies on the disk; None where only a visit tells."""
    known = {"tinyshakespeare": 1_115_394, "python-stdlib": 12_000_000}
    if source in known:
        return known[source]
    path = Path(source.removeprefix("file://")).expanduser()
    if path.is_file():
        return path.stat().st_size
    if path.is_dir():
        return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    return None
