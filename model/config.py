"""The two configurations that decide the mathematics, and the four sizes.

``ModelConfig`` fixes the shape of the network, ``TrainConfig`` how it is trained. Both are frozen:
a run that changes either is another run. They import no torch, so that a command line can read
and check them in milliseconds. Parameter counts here are closed formulas; a test holds them
against the assembled model.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder-only transformer.

    With LayerNorm the fields stay within what existing ``transformers`` classes express exactly, so
    that weights can run elsewhere: GPT-NeoX without QK-norm, Persimmon with it.
    """

    layers: int
    width: int  # D: the residual stream
    heads: int
    feed_forward: int  # F: the hidden layer of each block's two-layer network
    context: int  # T: tokens that attention can see
    dropout: float = 0.0  # of embeddings and of what each branch adds to the stream
    attention_dropout: float = 0.0  # of attention weights; needs them all in memory, so it is slow
    norm: str = "layernorm"  # or "rmsnorm"
    bias: bool = True  # in linear layers and LayerNorm
    qk_norm: bool = False  # normalise queries and keys per head before they meet
    zero_init: bool = False  # residual projections start at zero: every block starts as identity
    tied: bool = True  # the output head is the transposed embedding
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "feed_forward", "context"):
            _require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        _require(
            self.width % self.heads == 0,
            "model.heads",
            self.heads,
            f"a divisor of model.width = {self.width}",
        )
        _require(
            self.head_size % 2 == 0,
            "model.heads",
            self.heads,
            "such that width / heads is even: rotary positions turn pairs of channels",
        )
        for name in ("dropout", "attention_dropout"):
            rate = getattr(self, name)
            _require(0 <= rate < 1, f"model.{name}", rate, "in [0, 1)")
        _require(
            self.norm in ("layernorm", "rmsnorm"), "model.norm", self.norm, "layernorm or rmsnorm"
        )
        _require(self.rope_base > 1, "model.rope_base", self.rope_base, "above 1")

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    def trunk_parameters(self) -> int:
        """Parameters of the blocks and the final norm: all but embedding and untied head."""
        d, f = self.width, self.feed_forward
        biased = self.bias and self.norm == "layernorm"
        norm = d * (2 if biased else 1)
        block = 2 * norm + 4 * d * d + 2 * d * f
        if self.bias:
            block += 3 * d + d + f + d
        if self.qk_norm:
            block += 2 * self.head_size * (2 if biased else 1)
        return self.layers * block + norm

    def parameters(self, vocab_size: int) -> int:
        """All trained parameters with a vocabulary of ``vocab_size`` tokens."""
        return self.trunk_parameters() + vocab_size * self.width * (1 if self.tied else 2)


@dataclass(frozen=True)
class TrainConfig:
    """How the weights are found: steps, effective batch, optimizer, schedule, seed."""

    steps: int
    batch: int  # sequences of `context` tokens that make one step, however they are sliced
    lr: float  # peak learning rate of AdamW
    optimizer: str = "adamw"  # or "muon": Muon for the blocks' matrices, AdamW for the rest
    muon_lr: float = 0.02
    weight_decay: float = 0.1  # on matrices only
    beta1: float = 0.9
    beta2: float = 0.95
    warmup: int = 100  # steps of linear warm-up
    schedule: str = "cosine"  # or "linear": constant, then straight down over `decay` of the steps
    decay: float = 0.6  # share of the steps that the linear schedule falls over
    final_lr: float = 0.1  # where the rate would be a step behind the last, as a share of the peak
    ema: float = 0.0  # decay of the running mean of the weights, which is then the result; 0: none
    clip: float = 1.0  # largest global gradient norm; 0 switches clipping off
    eval_every: int = 250  # steps between looks at the validation split
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "eval_every"):
            _require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        for name in ("lr", "muon_lr"):
            rate = getattr(self, name)
            _require(0 < rate <= 1000, f"train.{name}", rate, "above 0 and at most 1000")
        for name in ("weight_decay", "warmup", "clip", "seed"):
            _require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "at least 0")
        for name in ("beta1", "beta2", "ema"):
            _require(
                0 <= getattr(self, name) < 1, f"train.{name}", getattr(self, name), "in [0, 1)"
            )
        for name in ("decay", "final_lr"):
            _require(
                0 <= getattr(self, name) <= 1, f"train.{name}", getattr(self, name), "in [0, 1]"
            )
        _require(
            self.optimizer in ("adamw", "muon"), "train.optimizer", self.optimizer, "adamw or muon"
        )
        _require(
            self.schedule in ("cosine", "linear"),
            "train.schedule",
            self.schedule,
            "cosine or linear",
        )


def _require(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{key} = {value!r} is out of range: it must be {allowed}")


SIZES = {
    "tiny": ModelConfig(layers=4, width=128, heads=4, feed_forward=512, context=256),
    "small": ModelConfig(layers=6, width=256, heads=8, feed_forward=1024, context=512),
    # without biases: on a GPU each is one more pass over all gradients
    "medium": ModelConfig(
        layers=12, width=768, heads=12, feed_forward=3072, context=1024, bias=False
    ),
    "large": ModelConfig(
        layers=24, width=1024, heads=16, feed_forward=4096, context=1024, bias=False
    ),
}
