"""Plain memory for kernels: an address becomes a pointer, and a pointer is indexed like a list.

Why not arrays: numba counts references to an array each time that one kernel hands it to another,
which costs more than the work on a piece of five bytes. Pointers cost nothing, know no length and
check no bounds. Whoever calls a kernel keeps the memory alive and says how long it is.

All arithmetic is on int64: numba makes a float of an int64 and a uint64. It also promises LLVM
that no int64 overflows, on which LLVM builds: what may overflow is multiplied by `product`.
"""

from collections.abc import Callable

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_I64 = ir.IntType(64)
_I32 = ir.IntType(32)
_BLOCK = ir.VectorType(ir.IntType(8), 16)
_LARGE_BLOCK = ir.VectorType(ir.IntType(8), 64)

# A part of a kernel: compiled into each kernel that calls it. No exceptions: a division by zero
# would be the only one, and nothing here divides.
part = njit(error_model="numpy", forceinline=True)
# The same for what is large and seldom called.
seldom = njit(error_model="numpy")


def _pointer(element: types.Type) -> Callable:
    pointer = types.CPointer(element)

    @intrinsic
    def at(typing, address):
        def build(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(pointer))

        return pointer(types.int64), build

    return at


bytes_at = _pointer(types.uint8)
shorts_at = _pointer(types.uint16)
ints_at = _pointer(types.int32)
longs_at = _pointer(types.int64)


@part
def value(pointer, at):
    """An element as an int64: of narrower numbers numba makes other versions of each part."""
    return types.int64(pointer[at])


@intrinsic
def product(typing, a, b):
    """The lower 64 bits of a product."""

    def build(context, builder, signature, arguments):
        return builder.mul(*arguments)

    return types.int64(types.int64, types.int64), build


@intrinsic
def topmost(typing, number, shift):
    """The 64 - shift topmost bits of a number, as a number."""

    def build(context, builder, signature, arguments):
        return builder.lshr(*arguments)

    return types.int64(types.int64, types.int64), build


@intrinsic
def load8(typing, pointer, at):
    """Eight bytes as one int64, wherever they lie."""

    def build(context, builder, signature, arguments):
        place = builder.gep(arguments[0], [arguments[1]])
        return builder.load(builder.bitcast(place, _I64.as_pointer()), align=1)

    return types.int64(pointer, types.int64), build


def _half(which: int) -> Callable:
    """Makes what gives 8 of the next 16 bytes as one int64, zero from `length` on.

    It reads all 16, wherever they lie.
    """

    @intrinsic
    def half(typing, pointer, at, length):
        def build(context, builder, signature, arguments):
            place = builder.gep(arguments[0], [arguments[1]])
            block = builder.load(builder.bitcast(place, _BLOCK.as_pointer()), align=1)
            undefined = ir.Constant(_BLOCK, ir.Undefined)
            ends = builder.trunc(arguments[2], ir.IntType(8))
            ends = builder.insert_element(undefined, ends, _I32(0))
            everywhere = ir.Constant(ir.VectorType(_I32, 16), [0] * 16)
            ends = builder.shuffle_vector(ends, undefined, everywhere)
            inside = builder.icmp_unsigned("<", ir.Constant(_BLOCK, list(range(16))), ends)
            kept = builder.select(inside, block, _all(0))
            halves = builder.bitcast(kept, ir.VectorType(_I64, 2))
            return builder.extract_element(halves, _I32(which))

        return types.int64(pointer, types.int64, types.int64), build

    return half


low8 = _half(0)
high8 = _half(1)


@intrinsic
def store8(typing, pointer, at, value):
    def build(context, builder, signature, arguments):
        place = builder.gep(arguments[0], [arguments[1]])
        builder.store(arguments[2], builder.bitcast(place, _I64.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.none(pointer, types.int64, types.int64), build


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


@intrinsic
def fetch_early(typing, pointer, at):
    """Ask for memory that will be read soon."""

    def build(context, builder, signature, arguments):
        number = ir.IntType(32)
        place = builder.gep(arguments[0], [arguments[1]])
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(prefetch, [place, number(0), number(3), number(1)])  # to read; soon; data
        return context.get_dummy_value()

    return types.none(pointer, types.int64), build


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
    small = builder.or_(block, _all(0x20, block.type))
    from_a = builder.sub(small, _all(ord("a"), block.type))
    return builder.icmp_unsigned(">=", from_a, _all(26, block.type))


def _no_blank(builder: ir.IRBuilder, block: ir.Value) -> ir.Value:
    return builder.icmp_unsigned("!=", block, _all(0x20))


def _all(number: int, block: ir.VectorType = _BLOCK) -> ir.Constant:
    return ir.Constant(block, [number] * block.count)


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
def lowest(typing, number):
    """The place of the lowest bit that is 1; there must be one."""

    def build(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.int64), build
