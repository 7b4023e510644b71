"""Plain memory for kernels: an address becomes a pointer, and a pointer is indexed like a list.

Why not arrays: numba counts references to an array each time that one kernel hands it to another,
which costs more than the work on a piece of five bytes. Pointers cost nothing, know no length and
check no bounds. Whoever calls a kernel keeps the memory alive and says how long it is.

All arithmetic is on int64: numba makes a float of an int64 and a uint64.
"""

from collections.abc import Callable

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_I64 = ir.IntType(64)
_BLOCK = ir.VectorType(ir.IntType(8), 16)

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
def load8(typing, pointer, at):
    """Eight bytes as one int64, wherever they lie."""

    def build(context, builder, signature, arguments):
        place = builder.gep(arguments[0], [arguments[1]])
        return builder.load(builder.bitcast(place, _I64.as_pointer()), align=1)

    return types.int64(pointer, types.int64), build


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
def letters16(typing, text, at):
    """How many of the next 16 bytes are ASCII letters, up to the first that is none."""

    def build(context, builder, signature, arguments):
        def all_16(value: int) -> ir.Constant:
            return ir.Constant(_BLOCK, [value] * 16)

        place = builder.gep(arguments[0], [arguments[1]])
        block = builder.load(builder.bitcast(place, _BLOCK.as_pointer()), align=1)
        small = builder.or_(block, all_16(0x20))
        others = builder.icmp_unsigned(">=", builder.sub(small, all_16(ord("a"))), all_16(26))
        mask = builder.zext(builder.bitcast(others, ir.IntType(16)), _I64)
        with_end = builder.or_(mask, ir.Constant(_I64, 1 << 16))
        return builder.cttz(with_end, ir.Constant(ir.IntType(1), 1))

    return types.int64(text, types.int64), build
