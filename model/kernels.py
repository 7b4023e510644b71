"""The kernels that ``fused`` puts together: a product with what goes along with it, and attention.

What: at one token a layer is products of a matrix with a vector. ``product`` is one of them with
the norm before and the bias, GELU or residual sum after it; ``attend`` is one head's look at one
part of the past. Sums are float32 throughout. Why parts: a few heads alone would leave most of a
GPU idle; how the parts are put together is Dao et al. 2023, "Flash-Decoding for long-context
inference". Cost: every weight is read once; every program normalises the whole stream for itself,
which is cheaper than waiting for another kernel to do it.

The language is Triton: one function runs in many programs side by side, each with its own
``program_id``, on small arrays. Arguments in capitals are compiled in. https://triton-lang.org

Kernels that are ``EARLY`` start before the one ahead has ended, ask for their weights, and then
wait for it (``gdc_wait``; CUDA's programmatic dependent launch). All that they read of others,
and all that they write, comes after that.
"""

import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

    CAN_START_EARLY = True
except ImportError:  # before Triton 3.4
    CAN_START_EARLY = False

    @triton.jit
    def gdc_wait():
        pass

    gdc_launch_dependents = gdc_wait


@triton.jit
def _normed(x, inside, count, weight, bias, KIND: tl.constexpr):
    """``layers.Norm`` of ``count`` numbers x; the mean and spread go over those ``inside``."""
    if KIND == "layernorm":
        x = tl.where(inside, x - tl.sum(x, 0) / count, 0.0)
    return x * (1 / tl.sqrt(tl.sum(x * x, 0) / count + 1e-5)) * weight + bias


@triton.jit
def _joined(y_ptr, most_ptr, mass_ptr, columns, inside, SIZE: tl.constexpr, SPLITS: tl.constexpr):
    """What ``attend`` left in parts, each with its own largest score and its sum of weights."""
    head = columns // SIZE
    most = tl.full(columns.shape, float("-inf"), tl.float32)
    for split in tl.static_range(SPLITS):
        part = tl.load(most_ptr + head * SPLITS + split, inside, 0.0, cache_modifier=".cg")
        most = tl.maximum(most, part)
    total, mass = tl.zeros(columns.shape, tl.float32), tl.zeros(columns.shape, tl.float32)
    for split in tl.static_range(SPLITS):
        at = head * SPLITS + split
        weight = tl.exp(tl.load(most_ptr + at, inside, 0.0, cache_modifier=".cg") - most)
        mass += weight * tl.load(mass_ptr + at, inside, 1.0, cache_modifier=".cg")
        y = tl.load(y_ptr + at * SIZE + columns % SIZE, inside, 0.0, cache_modifier=".cg")
        total += weight * y
    return total / mass


@triton.jit
def product(
    x_ptr,
    most_ptr,
    mass_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    outputs,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM: tl.constexpr,  # of x: layernorm, rmsnorm or none
    NORM_BIAS: tl.constexpr,
    SPLITS: tl.constexpr,  # x is in so many parts, see _joined; 0: it is not
    SIZE: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    ADD: tl.constexpr,  # to what is in y
    EARLY: tl.constexpr,
):
    """y = W x + b for ROWS rows of W, with what goes before and after."""
    if EARLY:
        gdc_launch_dependents()
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    there, inside = rows < outputs, columns < INPUTS
    places = weight_ptr + rows[:, None] * INPUTS + columns[None, :]
    weights = tl.load(places, there[:, None] & inside[None, :], 0.0, eviction_policy="evict_first")
    y = tl.zeros([ROWS], tl.float32)
    if BIAS:
        y += tl.load(bias_ptr + rows, there, 0.0).to(tl.float32)
    if NORM != "none":
        norm_weight = tl.load(norm_weight_ptr + columns, inside, 0.0)
        norm_bias = tl.zeros([BLOCK], tl.float32)
        if NORM_BIAS:
            norm_bias = tl.load(norm_bias_ptr + columns, inside, 0.0)
    if EARLY:
        gdc_wait()  # below is what the kernels before have written
    if SPLITS > 0:
        x = _joined(x_ptr, most_ptr, mass_ptr, columns, inside, SIZE, SPLITS)
    else:
        x = tl.load(x_ptr + columns, inside, 0.0, cache_modifier=".cg").to(tl.float32)
    if NORM != "none":
        x = _normed(x, inside, INPUTS, norm_weight, norm_bias, NORM)
    # as the plain way has it, a product's input has the type of its weights
    x = x.to(weights.dtype).to(tl.float32)
    y += tl.sum(weights.to(tl.float32) * x[None, :], 1)
    for start in range(BLOCK, INPUTS, BLOCK):
        inside = start + columns < INPUTS
        weights = tl.load(places + start, there[:, None] & inside[None, :], 0.0)
        x = tl.load(x_ptr + start + columns, inside, 0.0, cache_modifier=".cg").to(tl.float32)
        y += tl.sum(weights.to(tl.float32) * x[None, :], 1)
    if GELU:
        y = 0.5 * y * (1 + tl.erf(y * 0.7071067811865476))
    if ADD:
        y += tl.load(y_ptr + rows, there, 0.0, cache_modifier=".cg")
    tl.store(y_ptr + rows, y.to(y_ptr.dtype.element_ty), there)


@triton.jit
def _turned(
    x_ptr,
    weight_ptr,
    bias_ptr,
    cos,
    sin,
    channels,
    inside,
    SIZE: tl.constexpr,
    NORM: tl.constexpr,
    NORM_BIAS: tl.constexpr,
):
    """The halves of one head's query or key, normalised if it has to be, and rotated."""
    dtype = x_ptr.dtype.element_ty
    one = tl.load(x_ptr + channels, inside, 0.0, cache_modifier=".cg").to(tl.float32)
    two = tl.load(x_ptr + SIZE // 2 + channels, inside, 0.0, cache_modifier=".cg").to(tl.float32)
    if NORM != "none":
        if NORM == "layernorm":
            mean = (tl.sum(one, 0) + tl.sum(two, 0)) / SIZE
            one, two = tl.where(inside, one - mean, 0.0), tl.where(inside, two - mean, 0.0)
        scale = 1 / tl.sqrt((tl.sum(one * one, 0) + tl.sum(two * two, 0)) / SIZE + 1e-5)
        one *= scale * tl.load(weight_ptr + channels, inside, 0.0)
        two *= scale * tl.load(weight_ptr + SIZE // 2 + channels, inside, 0.0)
        if NORM_BIAS:
            one += tl.load(bias_ptr + channels, inside, 0.0)
            two += tl.load(bias_ptr + SIZE // 2 + channels, inside, 0.0)
        one, two = one.to(dtype).to(tl.float32), two.to(dtype).to(tl.float32)
    return one * cos - two * sin, two * cos + one * sin


@triton.jit
def attend(
    qkv_ptr,
    q_weight_ptr,
    q_bias_ptr,
    k_weight_ptr,
    k_bias_ptr,
    cos_ptr,
    sin_ptr,
    keys_ptr,
    values_ptr,
    position_ptr,
    y_ptr,
    most_ptr,
    mass_ptr,
    context,
    scale,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,  # SIZE / 2, or the next power of two
    SPLITS: tl.constexpr,
    PLACES: tl.constexpr,
    NORM: tl.constexpr,
    NORM_BIAS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One head's look at one part of the past; the first part has the new token as well."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    head, split = tl.program_id(0), tl.program_id(1)
    dtype = keys_ptr.dtype.element_ty
    half, whole = tl.arange(0, HALF), tl.arange(0, 2 * HALF)
    in_half, in_whole = half < SIZE // 2, whole < SIZE
    position = tl.load(position_ptr).to(tl.int32)
    cos = tl.load(cos_ptr + position * SIZE + half, in_half, 0.0).to(dtype).to(tl.float32)
    sin = tl.load(sin_ptr + position * SIZE + half, in_half, 0.0).to(dtype).to(tl.float32)
    q_ptr, k_ptr = qkv_ptr + head * SIZE, qkv_ptr + (HEADS + head) * SIZE
    q1, q2 = _turned(
        q_ptr, q_weight_ptr, q_bias_ptr, cos, sin, half, in_half, SIZE, NORM, NORM_BIAS
    )
    new_k1, new_k2 = _turned(
        k_ptr, k_weight_ptr, k_bias_ptr, cos, sin, half, in_half, SIZE, NORM, NORM_BIAS
    )
    v_ptr = qkv_ptr + (2 * HEADS + head) * SIZE
    new_v = tl.load(v_ptr + whole, in_whole, 0.0, cache_modifier=".cg").to(tl.float32)
    q1, q2 = q1.to(dtype).to(tl.float32) * scale, q2.to(dtype).to(tl.float32) * scale
    keys_ptr += head * context * SIZE
    values_ptr += head * context * SIZE
    if split == 0:
        # no program reads this place: each has the new key and value from where they came
        tl.store(keys_ptr + position * SIZE + half, new_k1.to(dtype), in_half)
        tl.store(keys_ptr + position * SIZE + SIZE // 2 + half, new_k2.to(dtype), in_half)
        tl.store(values_ptr + position * SIZE + whole, new_v.to(dtype), in_whole)
    score = tl.sum(q1 * new_k1.to(dtype).to(tl.float32) + q2 * new_k2.to(dtype).to(tl.float32), 0)
    most = tl.where(split == 0, score, float("-inf"))
    mass = tl.where(split == 0, 1.0, 0.0)
    y = tl.where(split == 0, new_v, 0.0)
    part = tl.cdiv(tl.cdiv(position, SPLITS), PLACES) * PLACES
    end = tl.minimum(split * part + part, position)
    for start in range(split * part, end, PLACES):
        places = start + tl.arange(0, PLACES)
        there = places < end
        at = places[:, None] * SIZE + half[None, :]
        mask = there[:, None] & in_half[None, :]
        k1 = tl.load(keys_ptr + at, mask, 0.0).to(tl.float32)
        k2 = tl.load(keys_ptr + at + SIZE // 2, mask, 0.0).to(tl.float32)
        at, mask = places[:, None] * SIZE + whole[None, :], there[:, None] & in_whole[None, :]
        v = tl.load(values_ptr + at, mask, 0.0).to(tl.float32)
        scores = tl.sum(k1 * q1[None, :] + k2 * q2[None, :], 1)
        scores = tl.where(there, scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 0))
        weights, fade = tl.exp(scores - higher), tl.exp(most - higher)
        y = y * fade + tl.sum(weights[:, None] * v, 0)
        mass = mass * fade + tl.sum(weights, 0)
        most = higher
    at = head * SPLITS + split
    tl.store(y_ptr + at * SIZE + whole, y, in_whole)
    tl.store(most_ptr + at, most)
    tl.store(mass_ptr + at, mass)
