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

# A part of a kernel: compiled into each kernel that calls it. No exceptions: a division by zero
# would be the only one, and nothing here divides.
part = njit(error_model="numpy", forceinline=True)
# The same for what is large and seldom called: LLVM decides whether it is a part. (numba passes a
# caller's forceinline on to all that it calls, unless that says False.)
seldom = njit(error_model="numpy", forceinline=False)


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
floats_at = _pointer(types.float32)


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


@intrinsic
def store8(typing, pointer, at, value):
    def build(context, builder, signature, arguments):
        place = builder.gep(arguments[0], [arguments[1]])
        builder.store(arguments[2], builder.bitcast(place, _I64.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.none(pointer, types.int64, types.int64), build


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


@intrinsic
def lowest(typing, number):
    """The place of the lowest bit that is 1, or 64."""

    def build(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(0))

    return types.int64(types.int64), build


@intrinsic
def without_lowest(typing, number):
    """The number without its lowest bit that is 1; 0 stays 0."""

    def build(context, builder, signature, arguments):
        return builder.and_(arguments[0], builder.sub(arguments[0], _I64(1)))

    return types.int64(types.int64), build


@intrinsic
def highest(typing, number):
    """The place of the highest bit that is 1, or -1."""

    def build(context, builder, signature, arguments):
        return builder.sub(_I64(63), builder.ctlz(arguments[0], ir.IntType(1)(0)))

    return types.int64(types.int64), build


@intrinsic
def stay_apart(typing):
    """Let the function in which this stands never be a part of those that call it.

    What is seldom done should not take registers away from a loop in a hurry.
    """

    def build(context, builder, signature, arguments):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.none(), build
