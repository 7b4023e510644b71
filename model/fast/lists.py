"""Lists of tokens for Python, and texts from it: what a short call spends its time on.

These kernels hold the interpreter's lock and speak to it through functions of its stable interface,
of which `build` tells the addresses. `encode_short` is made a function of Python itself, for ctypes
alone takes longer than encoding ten words.
"""

from numba import types

from model.fast.desk import BUSY, CALLS, NUMBERS, OUT, TEXT_SIZE, TOKENS, WIDE
from model.fast.memory import ints_at, longs_at, part, shorts_at, value

MOST = 4096  # characters of a short text: a longer one should let other threads run
_I64 = types.int64


def _function(name, arguments):
    return types.ExternalFunction(name, _I64(*[_I64] * arguments))


_encode = _function("encode", 4)  # the kernel
_number = _function("PyLong_AsLongLong", 1)
_characters = _function("PyUnicode_GetLength", 1)
_utf8 = _function("PyUnicode_AsUTF8AndSize", 2)
_forget_error = _function("PyErr_Clear", 0)
_new_list = _function("PyList_New", 1)
_put = _function("PyList_SetItem", 3)
_item = _function("PyList_GetItem", 2)
_keep = _function("Py_IncRef", 1)
_drop = _function("Py_DecRef", 1)


def encode_short(desk_number, text):
    """Kernel, a function of Python: the tokens of a short str as a list.

    It is empty if this is not the way to encode the text: it is long, no Unicode or no str, the
    desk is in use, or something is full.
    """
    desk_address = _number(desk_number)
    desk = longs_at(desk_address)
    size_at = desk_address + 8 * TEXT_SIZE
    if desk[BUSY] != 0 or desk[NUMBERS] == 0 or _characters(text) > MOST:
        return _new_list(0)
    data = _utf8(text, size_at)
    if data == 0:
        _forget_error()
        return _new_list(0)
    many = _encode(desk_address, data, desk[TEXT_SIZE], 0)
    call = desk[CALLS]
    tokens = _new_list(max(0, many))
    # a finaliser ran meanwhile, and it encoded, or let another thread begin to
    if tokens != 0 and (desk[CALLS] != call or desk[BUSY] != 0):
        _drop(tokens)
        return _new_list(0)
    if tokens != 0 and many > 0:
        _fill(tokens, 0, desk[OUT], many, desk[WIDE], longs_at(desk[NUMBERS]))
    return tokens


def fill_list(desk_address, tokens, at, ids_address, many):
    """Kernel: put ids into a list from `at` on; there must be room."""
    desk = longs_at(desk_address)
    _fill(tokens, at, ids_address, many, desk[WIDE], longs_at(desk[NUMBERS]))
    return 0


def read_list(desk_address, tokens, ids_address, many):
    """Kernel: copy the numbers of a list to an array of uint32. 0 if one of them is no token."""
    ids, known = ints_at(ids_address), longs_at(desk_address)[TOKENS]
    for i in range(many):
        item = _item(tokens, i)  # 0 if the list has become shorter
        number = _number(item) if item != 0 else -1
        if number < 0 or number >= known:
            _forget_error()
            return 0
        ids[i] = number
    return 1


@part
def _fill(tokens, at, ids_address, many, wide, numbers):
    for i in range(many):
        if wide:
            number = numbers[value(ints_at(ids_address), i)]
        else:
            number = numbers[value(shorts_at(ids_address), i)]
        _keep(number)
        _put(tokens, at + i, number)
