"""Sums of products and exponentials of float32, a vector at a time.

How wide a vector is depends on the processor, and with it how many sums fit into its registers: a
tile of ROWS x COLUMNS. LLVM is given whole vectors, because what it makes of plain loops over a row
of attention ends in up to 63 numbers one by one.

Rows are read and written to the end of their last vector: whoever calls leaves room there.
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from model.fast.memory import seldom, stay_apart
from model.fast.vectors import all_of, repeated

_WIDE = llvm.get_host_cpu_features().get("avx512f", False)
LANES = 16 if _WIDE else 8
ROWS, _VECTORS = (8 if _WIDE else 6), 2  # with what is multiplied, 18 of 32 registers or 15 of 16
COLUMNS = _VECTORS * LANES

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_FLOATS, _INTS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_ONE_ROUNDING = ("contract",)  # a product and a sum may be one operation
_LOG2_E = 1.4426950408889634
# 2^r for r in [-1/2, 1/2], by its Taylor series: off by no more than float32 is
_POWERS = (1.5403530e-4, 1.3333558e-3, 9.6181291e-3, 5.5504109e-2, 2.4022651e-1, 6.9314718e-1, 1.0)
LOWEST = -3.4e38


def _place(builder: ir.IRBuilder, pointer: ir.Value, at: ir.Value) -> ir.Value:
    return builder.bitcast(builder.gep(pointer, [at]), _FLOATS.as_pointer())


def _load(builder: ir.IRBuilder, pointer: ir.Value, at: ir.Value) -> ir.Value:
    return builder.load(_place(builder, pointer, at), align=4)


def _store(builder: ir.IRBuilder, pointer: ir.Value, at: ir.Value, vector: ir.Value) -> None:
    builder.store(vector, _place(builder, pointer, at), align=4)


def _plus_product(builder: ir.IRBuilder, c: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.fadd(c, builder.fmul(a, b, flags=_ONE_ROUNDING), flags=_ONE_ROUNDING)


def _vectors(builder: ir.IRBuilder, many: ir.Value):
    """Loop over the vectors of a row of so many numbers; gives where each begins."""
    count = builder.sdiv(builder.add(many, _I64(LANES - 1)), _I64(LANES))
    return cgutils.for_range_slice(builder, _I64(0), builder.mul(count, _I64(LANES)), _I64(LANES))


def _exponential(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """e^x for x not above 0: 2 to the nearest whole number, times 2 to what is left."""
    power = builder.fmul(x, all_of(_LOG2_E, _FLOATS))
    power = builder.select(
        builder.fcmp_ordered("<", power, all_of(-126.0, _FLOATS)), all_of(-126.0, _FLOATS), power
    )
    whole = builder.fptosi(builder.fsub(power, all_of(0.5, _FLOATS)), _INTS)  # cut off towards zero
    rest = builder.fsub(power, builder.sitofp(whole, _FLOATS))
    result = all_of(_POWERS[0], _FLOATS)
    for factor in _POWERS[1:]:
        result = _plus_product(builder, all_of(factor, _FLOATS), result, rest)
    exponent = builder.shl(builder.add(whole, all_of(127, _INTS)), all_of(23, _INTS))
    return builder.fmul(result, builder.bitcast(exponent, _FLOATS))


def _tile(add: bool):
    @intrinsic
    def tile(typing, a, a_row, a_step, b, b_step, c, c_row, length):
        def build(context, builder, signature, arguments):
            a, a_row, a_step, b, b_step, c, c_row, length = arguments
            places = [(row, vector) for row in range(ROWS) for vector in range(_VECTORS)]
            at = {
                (row, vector): builder.add(builder.mul(c_row, _I64(row)), _I64(vector * LANES))
                for row, vector in places
            }
            sums = {
                place: cgutils.alloca_once_value(builder, all_of(0.0, _FLOATS)) for place in places
            }
            rows = [builder.gep(a, [builder.mul(a_row, _I64(row))]) for row in range(ROWS)]
            with cgutils.for_range(builder, length, intp=_I64) as loop:
                begin = builder.mul(loop.index, b_step)
                across = builder.mul(loop.index, a_step)
                of_b = [
                    _load(builder, b, builder.add(begin, _I64(vector * LANES)))
                    for vector in range(_VECTORS)
                ]
                for row, pointer in enumerate(rows):
                    number = builder.load(builder.gep(pointer, [across]), align=4)
                    of_a = repeated(builder, number, _FLOATS)
                    for vector in range(_VECTORS):
                        place = sums[row, vector]
                        total = _plus_product(builder, builder.load(place), of_a, of_b[vector])
                        builder.store(total, place)
            for place in places:
                total = builder.load(sums[place])
                if add:
                    total = builder.fadd(total, _load(builder, c, at[place]))
                _store(builder, c, at[place], total)
            return context.get_dummy_value()

        return types.none(a, a_row, a_step, b, b_step, c, c_row, length), build

    return tile


_set_tile, _add_tile = _tile(add=False), _tile(add=True)


@seldom
def multiply(a, a_row, a_step, b, b_step, c, c_row, length):
    """c[i, n] = the sum over t < length of a[i, t] b[t, n], for a tile of c.

    a[i, t] is at i a_row + t a_step, b[t, n] at t b_step + n, c[i, n] at i c_row + n.
    """
    stay_apart()
    _set_tile(a, a_row, a_step, b, b_step, c, c_row, length)


@seldom
def multiply_add(a, a_row, a_step, b, b_step, c, c_row, length):
    """The same, added to what c holds."""
    stay_apart()
    _add_tile(a, a_row, a_step, b, b_step, c, c_row, length)


def _reduced(builder: ir.IRBuilder, vector: ir.Value, join) -> ir.Value:
    numbers = [builder.extract_element(vector, _I32(lane)) for lane in range(LANES)]
    while len(numbers) > 1:
        numbers = [join(one, other) for one, other in zip(numbers[::2], numbers[1::2])]
    return numbers[0]


@intrinsic
def largest(typing, row, many):
    """The largest of the first numbers of a row; what its last vector holds beyond counts, too."""

    def build(context, builder, signature, arguments):
        row, many = arguments

        def larger(one: ir.Value, other: ir.Value) -> ir.Value:
            return builder.select(builder.fcmp_ordered(">", one, other), one, other)

        best = cgutils.alloca_once_value(builder, all_of(LOWEST, _FLOATS))
        with _vectors(builder, many) as (at, _):
            builder.store(larger(_load(builder, row, at), builder.load(best)), best)
        return _reduced(builder, builder.load(best), larger)

    return types.float32(row, types.int64), build


@intrinsic
def exponentials(typing, row, many, shift):
    """row = e^(row - shift), and their sum; with what is beyond in its last vector."""

    def build(context, builder, signature, arguments):
        row, many, shift = arguments
        total = cgutils.alloca_once_value(builder, all_of(0.0, _FLOATS))
        shift = repeated(builder, shift, _FLOATS)
        with _vectors(builder, many) as (at, _):
            result = _exponential(builder, builder.fsub(_load(builder, row, at), shift))
            _store(builder, row, at, result)
            builder.store(builder.fadd(result, builder.load(total)), total)
        return _reduced(builder, builder.load(total), builder.fadd)

    return types.float32(row, types.int64, types.float32), build


@intrinsic
def weigh(typing, scores, changes, many, shift, mean):
    """scores = e^(scores - shift); changes = scores (changes - mean)."""

    def build(context, builder, signature, arguments):
        scores, changes, many, shift, mean = arguments
        shift, mean = repeated(builder, shift, _FLOATS), repeated(builder, mean, _FLOATS)
        with _vectors(builder, many) as (at, _):
            weight = _exponential(builder, builder.fsub(_load(builder, scores, at), shift))
            _store(builder, scores, at, weight)
            change = builder.fsub(_load(builder, changes, at), mean)
            _store(builder, changes, at, builder.fmul(weight, change))
        return context.get_dummy_value()

    return types.none(scores, changes, types.int64, types.float32, types.float32), build
