"""One token at a time at the speed of the memory: static shapes, captured as a CUDA graph.

What: ``Fast`` reads a token as ``Reader`` does, by a step whose shapes and addresses never change:
it takes the token's position from a tensor, writes keys and values there, and reads a fixed length
of the cache under a mask. Why: a token is some twenty small kernels a layer, and Python needs
longer to ask for one than a GPU needs to run it. A CUDA graph is recorded once and then started
as a whole. What then remains is to read all weights once, plus the gaps between kernels, so the
fewer kernels the better: see ``fused`` and ``bench/decode.py``.

Four ways, from the plain to the fast:

* ``plain``: ``Reader``, any device. Right for a few tokens.
* ``graph``: the step as it stands, captured; a fraction of a second to start.
* ``compiled``: every block compiled by torch's inductor, then captured; tens of seconds to start.
* ``fused``: five Triton kernels a layer, captured; a few seconds to start, the fastest.

Cost: one graph for each length of the cache (256, 512, ... up to the context; ``fused`` reads only
what is there, and needs one), and in memory what the step computes, once.
"""

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from model.block import Block
from model.embeddings import rotate
from model.generate import Reader
from model.gpt import GPT
from model.layers import Linear

WAYS = ("plain", "graph", "compiled", "fused")
_WORTH_IT = 64  # tokens; fewer are written before a graph is ready
_SHORTEST = 256  # places of the cache that a step reads at least
# a step reads ids [B, 1], their position [1] and the cache up to a length: logits [B, V]
Step = Callable[[Tensor, Tensor, int], Tensor]


class Fast(Reader):
    """A ``Reader`` that reads single tokens by a step of static shapes, on CUDA by a graph of it.

    Several tokens at once (a prompt, or half a context again) are read the plain way.
    """

    def __init__(self, model: GPT, way: str = "graph") -> None:
        super().__init__(model)
        self.ids_B1 = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        self.position_1 = torch.zeros(1, dtype=torch.long, device=self.device)
        self.step, self.one_length = _step(way, self), way == "fused"
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, ids_BT: Tensor) -> Tensor:
        if ids_BT.shape[1] > 1:
            return super().__call__(ids_BT)
        assert self.cache.length < self.model.config.context
        self.ids_B1.copy_(ids_BT)
        self.position_1.fill_(self.cache.length)
        self.cache.length += 1
        length = self._length()
        if self.device.type != "cuda":
            return self.step(self.ids_B1, self.position_1, length)
        if length not in self.graphs:
            self.graphs[length] = self._capture(length)
        graph, logits_BV = self.graphs[length]
        graph.replay()
        return logits_BV

    def _length(self) -> int:
        """The places that a step reads: a power of two that holds all tokens, or the context."""
        length, context = _SHORTEST, self.model.config.context
        while length < self.cache.length:
            length *= 2
        return context if self.one_length else min(length, context)

    def _capture(self, length: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A graph of the step and the tensor that it leaves the logits in.

        First the step runs outside of it, where kernels are compiled and workspaces allocated;
        running it again does no harm, because it writes the same to the same place of the cache.
        """
        with torch.cuda.device(self.device):
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(2):
                    self.step(self.ids_B1, self.position_1, length)
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits_BV = self.step(self.ids_B1, self.position_1, length)
        return graph, logits_BV


def make_reader(model: GPT, way: str) -> Reader:
    """A reader that goes this way, whether it works here or not."""
    assert way in WAYS
    return Reader(model) if way == "plain" else Fast(model, way)


def quick_reader(model: GPT, tokens: int) -> tuple[Reader, str]:
    """The quickest reader for so many tokens, and what is wrong if one should have been quicker.

    On a CPU that is the plain one: there the products take the time, not the asking for them.
    ``compiled`` is never chosen: where it works, ``fused`` does, without so much compiling.
    """
    if model.embedding.weight.device.type != "cuda" or tokens < _WORTH_IT:
        return Reader(model), ""
    # nobody can do anything about a GPU that is too old for Triton, so nobody hears of it
    old = torch.cuda.get_device_capability(model.embedding.weight.device) < (7, 5)
    wrong = []
    for way in ("graph",) if old else ("fused", "graph"):
        try:
            return _started(model, way), "; ".join(wrong)
        except Exception as error:  # whatever it is, a slower way is better than no text
            first_line = str(error).strip().partition("\n")[0]
            wrong.append(f"no {way} decoding: {type(error).__name__}: {first_line}")
    return Reader(model), "; ".join(wrong)


def _started(model: GPT, way: str) -> Reader:
    """A reader that has read one token. Raises whatever keeps it from that."""
    device = model.embedding.weight.device
    if way == "fused" and importlib.util.find_spec("triton") is None:
        raise RuntimeError("Triton is not installed")
    reader = Fast(model, way)
    reader(torch.zeros(1, 1, dtype=torch.long, device=device))
    torch.cuda.synchronize(device)  # a kernel's failure is told late
    return reader


def _step(way: str, reader: Reader) -> Step:
    model, cache = reader.model, reader.cache
    if way == "fused":
        from model.fused import fused_step  # it needs Triton

        return fused_step(model, cache)
    block_step = _block_step
    if way == "compiled":
        # one block at a time: all blocks share what is compiled.
        # Without the tuning inductor calls a matrix product that is made for matrices.
        block_step = torch.compile(
            _block_step,
            fullgraph=True,
            dynamic=False,
            options={"coordinate_descent_tuning": reader.device.type == "cuda"},
        )

    def step(ids_B1: Tensor, position_1: Tensor, length: int) -> Tensor:
        """``GPT.next_logits`` of one token a text at a position that only the device knows."""
        dtype = model.compute_dtype
        rotary = model.cos_TK[position_1].to(dtype), model.sin_TK[position_1].to(dtype)
        places_S = torch.arange(length, device=position_1.device)
        mask_S = torch.zeros(length, dtype=dtype, device=position_1.device)
        mask_S = mask_S.masked_fill(places_S > position_1, -torch.inf)
        x_B1D = model.embedding(ids_B1)
        for block, k_BHTK, v_BHTK in zip(model.blocks, cache.keys, cache.values):
            x_B1D = block_step(block, x_B1D, rotary, k_BHTK, v_BHTK, position_1, mask_S)
        return F.linear(model.final_norm(x_B1D[:, -1], dtype), model.head_weight.to(dtype)).float()

    return step


def _block_step(
    block: Block,
    x_B1D: Tensor,
    rotary: tuple[Tensor, Tensor],
    keys_BHTK: Tensor,
    values_BHTK: Tensor,
    position_1: Tensor,
    mask_S: Tensor,
) -> Tensor:
    """``Block.forward`` of one token, as products and pointwise operations that compile well."""
    dtype, attention, feed_forward = mask_S.dtype, block.attention, block.feed_forward
    heads, length = attention.heads, len(mask_S)
    qkv_B1D = _linear(attention.qkv, block.attention_norm(x_B1D, dtype))
    qkv_BN1K = qkv_B1D.unflatten(-1, (3 * heads, -1)).transpose(1, 2)
    q_BH1K, k_BH1K, v_BH1K = qkv_BN1K.split(heads, dim=1)
    if attention.q_norm is not None and attention.k_norm is not None:
        q_BH1K, k_BH1K = attention.q_norm(q_BH1K, dtype), attention.k_norm(k_BH1K, dtype)
    keys_BHTK.index_copy_(2, position_1, rotate(k_BH1K, *rotary))
    values_BHTK.index_copy_(2, position_1, v_BH1K)
    q_N1K = rotate(q_BH1K, *rotary).flatten(0, 1)
    k_NSK, v_NSK = (x[:, :, :length].flatten(0, 1) for x in (keys_BHTK, values_BHTK))
    scores_N1S = torch.baddbmm(mask_S, q_N1K, k_NSK.mT, alpha=q_N1K.shape[-1] ** -0.5)
    y_B1D = (scores_N1S.softmax(dim=-1) @ v_NSK).view_as(x_B1D)
    x_B1D = x_B1D + _linear(attention.out, y_B1D)
    hidden_B1F = _linear(feed_forward.up, block.feed_forward_norm(x_B1D, dtype))
    return x_B1D + _linear(feed_forward.down, F.gelu(hidden_B1F))


def _linear(layer: Linear, x_B1D: Tensor) -> Tensor:
    if layer.bias is None or not torch.compiler.is_compiling():
        return layer(x_B1D)
    # apart, inductor puts product, bias and what follows into one kernel
    return F.linear(x_B1D, layer.weight.to(x_B1D.dtype)) + layer.bias
