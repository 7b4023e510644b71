"""Many bytes or numbers at once: LLVM makes of its vectors what the processor has."""

from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I64, _I32 = ir.IntType(64), ir.IntType(32)
_BLOCK, _LARGE_BLOCK = ir.VectorType(ir.IntType(8), 16), ir.VectorType(ir.IntType(8), 64)
_INTS, _LONGS = ir.VectorType(_I32, 64), ir.VectorType(_I64, 8)


def all_of(number: float, kind: ir.VectorType = _BLOCK) -> ir.Constant:
    """A vector of the same number everywhere."""
    return ir.Constant(kind, [number] * kind.count)


def repeated(builder: ir.IRBuilder, number: ir.Value, kind: ir.VectorType) -> ir.Value:
    """The same of a number that is known when the kernel runs."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, number, _I32(0))
    return builder.shuffle_vector(first, undefined, all_of(0, ir.VectorType(_I32, kind.count)))


def _half(which: int) -> Callable:
    """Makes what gives 8 of the next 16 bytes as one int64, zero from `length` on.

    It reads all 16, wherever they lie.
    """

    @intrinsic
    def half(typing, pointer, at, length):
        def build(context, builder, signature, arguments):
            place = builder.gep(arguments[0], [arguments[1]])
            block = builder.load(builder.bitcast(place, _BLOCK.as_pointer()), align=1)
            ends = repeated(builder, builder.trunc(arguments[2], ir.IntType(8)), _BLOCK)
            inside = builder.icmp_unsigned("<", ir.Constant(_BLOCK, list(range(16))), ends)
            kept = builder.select(inside, block, all_of(0))
            halves = builder.bitcast(kept, ir.VectorType(_I64, 2))
            return builder.extract_element(halves, _I32(which))

        return types.int64(pointer, types.int64, types.int64), build

    return half


low8 = _half(0)
high8 = _half(1)


@intrinsic
def copy16(typing, target, at, source, start):
    """Copy 16 bytes."""

    def build(context, builder, signature, arguments):
        place = builder.gep(arguments[0], [arguments[1]])
        origin = builder.gep(arguments[2], [arguments[3]])
        block = builder.load(builder.bitcast(origin, _BLOCK.as_pointer()), align=1)
        builder.store(block, builder.bitcast(place, _BLOCK.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.none(target, types.int64, source, types.int64), build


def _run16(is_other: Callable) -> Callable:
    """Makes what tells how many of the next 16 bytes come before the first other one."""

    @intrinsic
    def run16(typing, text, at):
        def build(context, builder, signature, arguments):
            place = builder.gep(arguments[0], [arguments[1]])
            block = builder.load(builder.bitcast(place, _BLOCK.as_pointer()), align=1)
            mask = builder.bitcast(is_other(builder, block), ir.IntType(16))
            with_end = builder.or_(builder.zext(mask, _I64), _I64(1 << 16))
            return builder.cttz(with_end, ir.IntType(1)(1))

        return types.int64(text, types.int64), build

    return run16


def _no_letter(builder: ir.IRBuilder, block: ir.Value) -> ir.Value:
    small = builder.or_(block, all_of(0x20, block.type))
    from_a = builder.sub(small, all_of(ord("a"), block.type))
    return builder.icmp_unsigned(">=", from_a, all_of(26, block.type))


def _no_blank(builder: ir.IRBuilder, block: ir.Value) -> ir.Value:
    return builder.icmp_unsigned("!=", block, all_of(0x20))


letters16 = _run16(_no_letter)  # ASCII letters
blanks16 = _run16(_no_blank)


@intrinsic
def others64(typing, text, at):
    """A bit for each of the next 64 bytes, from the lowest on: 1 if it is no ASCII letter."""

    def build(context, builder, signature, arguments):
        place = builder.gep(arguments[0], [arguments[1]])
        block = builder.load(builder.bitcast(place, _LARGE_BLOCK.as_pointer()), align=1)
        return builder.bitcast(_no_letter(builder, block), _I64)

    return types.int64(text, types.int64), build


@intrinsic
def least64(typing, numbers):
    """The least of 64 int32."""

    def build(context, builder, signature, arguments):
        block = builder.load(builder.bitcast(arguments[0], _INTS.as_pointer()), align=4)
        kind = ir.FunctionType(_I32, [_INTS])
        name = "llvm.vector.reduce.smin.v64i32"
        least = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.sext(builder.call(least, [block]), _I64)

    return types.int64(numbers), build


@intrinsic
def among8(typing, pointer, at, bits, key):
    """The lowest `bits` of that one of eight int64 whose other bits are the key.

    If there is none: 0 if one of the eight is 0, else -1.
    """

    def build(context, builder, signature, arguments):
        place = builder.gep(arguments[0], [arguments[1]])
        block = builder.load(builder.bitcast(place, _LONGS.as_pointer()), align=8)
        bits, key = (repeated(builder, number, _LONGS) for number in arguments[2:])
        zero, one = all_of(0, _LONGS), all_of(1, _LONGS)
        same = builder.icmp_unsigned("==", builder.lshr(block, bits), key)
        low = builder.sub(builder.shl(one, bits), one)
        kept = builder.select(same, builder.and_(block, low), zero)
        kind = ir.FunctionType(_I64, [_LONGS])
        either = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.or.v8i64")
        found = builder.call(either, [kept])
        free = builder.bitcast(builder.icmp_unsigned("==", block, zero), ir.IntType(8))
        nothing = builder.and_(
            builder.icmp_unsigned("==", found, _I64(0)),
            builder.icmp_unsigned("==", free, ir.IntType(8)(0)),
        )
        return builder.select(nothing, _I64(-1), found)

    return types.int64(pointer, types.int64, types.int64, types.int64), build
