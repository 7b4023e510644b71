"""The same shape trained by each contender: what train_cpu.py and gpu.py put side by side.

Every function returns a step: a call that trains on one batch and returns its loss, which is still
on the device. Each contender trains as its own documentation says: nanoGPT as its train.py does
(autocast, torch.compile if asked, fused AdamW where there is one), transformers' GPT-NeoX with
autocast; ours as the trainer does. Ours and nanoGPT have no biases, GPT-NeoX cannot do without.
"""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Step = Callable[[], Tensor]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """``batch`` sequences make a step, ``micro_batch`` of them at once."""

    layers: int
    width: int
    heads: int
    context: int
    vocab: int
    batch: int
    micro_batch: int

    @property
    def tokens(self) -> int:
        return self.batch * self.context


def stream(vocab: int) -> np.ndarray:
    """Tokens in which there is something to learn: each is near the one before."""
    draw = np.random.default_rng(0)
    return (np.cumsum(draw.integers(-3, 4, 1 << 20)) % vocab).astype(np.uint16)


def ours(shape: Shape, dtype: str, device: torch.device, compiled: bool = False) -> Step:
    from model.attention_fast import rotated_attention
    from model.batches import Batches
    from model.config import ModelConfig, TrainConfig
    from model.gpt import GPT
    from model.trainer import Trainer
    from pipeline.machine import allow_tf32, keep_freed_memory

    allow_tf32(device)
    config = ModelConfig(
        shape.layers, shape.width, shape.heads, 4 * shape.width, shape.context, bias=False
    )
    train = TrainConfig(steps=1000, batch=shape.batch, lr=1e-3)
    model = GPT(config, shape.vocab)
    model.compute_dtype, model.compiled = DTYPES[dtype], compiled
    if device.type == "cpu":  # as the stage train does
        keep_freed_memory()
        model.attend_in_one(rotated_attention)
    batches = Batches(stream(shape.vocab), shape.context, shape.batch, 0)
    trainer = Trainer(model, train, batches, micro_batch=shape.micro_batch, device=device)
    return lambda: trainer.run_step().loss_there


def nanogpt(
    shape: Shape, dtype: str, device: torch.device, folder: str, compiled: bool = False
) -> Step:
    sys.path.insert(0, folder)
    sys.modules.pop("model", None)
    from model import GPT, GPTConfig  # nanoGPT's model.py

    config = GPTConfig(
        shape.context, shape.vocab, shape.layers, shape.heads, shape.width, dropout=0.0, bias=False
    )
    with contextlib.redirect_stdout(sys.stderr):
        model = GPT(config).to(device)
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), device.type)
    called = torch.compile(model) if compiled else model
    return _step(shape, dtype, device, model, lambda x, y: called(x, y)[1], optimizer)


def transformers(shape: Shape, dtype: str, device: torch.device) -> Step:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=4 * shape.width,
            max_position_embeddings=shape.context,
            tie_word_embeddings=True,
            use_cache=False,
            attn_implementation="sdpa",
        )
    ).to(device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    head = torch.nn.functional.cross_entropy

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        return head(model(inputs).logits.flatten(0, 1).float(), targets.flatten())

    return _step(shape, dtype, device, model, loss_of, optimizer)


def _step(
    shape: Shape,
    dtype: str,
    device: torch.device,
    model: torch.nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
) -> Step:
    """The loop of nanoGPT's train.py: accumulate under autocast, clip at 1, step."""
    tokens, draw = stream(shape.vocab), np.random.default_rng(0)
    parts = shape.batch // shape.micro_batch
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True

    def windows() -> tuple[Tensor, Tensor]:
        starts = draw.integers(0, len(tokens) - shape.context - 1, shape.micro_batch)
        rows = np.stack([tokens[at : at + shape.context + 1] for at in starts]).astype(np.int64)
        both = [torch.from_numpy(part.copy()) for part in (rows[:, :-1], rows[:, 1:])]
        if device.type == "cuda":
            both = [part.pin_memory().to(device, non_blocking=True) for part in both]
        return both[0], both[1]

    def step() -> Tensor:
        total = torch.zeros((), device=device)
        for _ in range(parts):
            inputs, targets = windows()
            casts = None if dtype == "fp32" else torch.autocast(device.type, DTYPES[dtype])
            with casts or contextlib.nullcontext():
                loss = loss_of(inputs, targets) / parts
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return step


KINDS = {
    "attention": ("sdpa", "flash", "fmha", "cudnn"),  # before products, which it may be made of
    "products": ("nvjet", "gemm", "cutlass", "splitK"),
}


def kernels(step: Step) -> dict[str, dict[str, float]]:
    """How many kernels of which kind a step is made of, and how long they take."""
    from torch.autograd import DeviceType
    from torch.profiler import profile

    with profile(acc_events=True) as profiler:
        step().item()
    told = {kind: {"count": 0, "seconds": 0.0} for kind in (*KINDS, "all others")}
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
            kinds = (kind for kind, words in KINDS.items() if any(w in event.name for w in words))
            kind = told[next(kinds, "all others")]
            kind["count"] += 1
            kind["seconds"] += event.time_range.elapsed_us() / 1e6
    return told
