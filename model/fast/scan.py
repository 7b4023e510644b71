"""Where does a piece of text end? `model/split.py` as a scanner over UTF-8 bytes.

The alternatives of the pattern, in the pattern's order, written as branches. What makes it fast is
its first step: most pieces end where a table says, behind ASCII letters, and of those one vector
instruction looks at 64. A byte that belongs to no valid character is OTHER, as there.
"""

from model.fast.desk import CL100K_CLASSIC, GPT2, LETTER, LINE_END, NUMBER, OTHER, SPACE
from model.fast.memory import lowest, part, seldom, value
from model.fast.plainly import BEHIND, SINGLES, WORDS
from model.fast.vectors import blanks16, letters16

_KIND = 7  # char_at gives (length << 3 | kind): the mask of the kind
_BLANK, _APOSTROPHE = 0x20, 0x27
_S, _T, _M, _D, _R, _V, _E, _L = b"stmdrvel"


@part
def piece_end(text, at, size, classes, mode, endings, others):
    """The end of the piece that begins `at`.

    others: `others64` of the text from `at` on, of which 16 bits are asked, or 0.
    """
    length = lowest(others >> 1 | 1 << 15) + 1
    if length < 16:
        both = value(endings, value(text, at)) + value(endings, BEHIND + value(text, at + length))
        if endings[both + (WORDS if length > 1 else SINGLES)] != 0:
            return at + length
    return _any_end(text, at, size, classes, mode)


@seldom
def _any_end(text, at, size, classes, mode):
    first = value(text, at)
    if first == _APOSTROPHE:
        end = _contraction_end(text, at, size, mode)
        if end > at:
            return end
    char = char_at(text, at, size, classes)
    kind, after = char & _KIND, at + (char >> 3)
    if kind == LETTER:
        return _letters_end(text, after, size, classes)
    if kind == NUMBER:
        return _numbers_end(text, after, size, classes, 2 if mode != GPT2 else size)
    second = char_at(text, after, size, classes) if after < size else -1
    if second >= 0:
        follows, later = second & _KIND, after + (second >> 3)
        if follows == LETTER and (first == _BLANK or (mode != GPT2 and kind != LINE_END)):
            return _letters_end(text, later, size, classes)
        if follows == NUMBER and first == _BLANK and mode == GPT2:
            return _numbers_end(text, later, size, classes, size)
        if follows == OTHER and first == _BLANK:
            return _others_end(text, later, size, classes, mode)
    if kind == OTHER:
        return _others_end(text, after, size, classes, mode)
    return _spaces_end(text, at, size, classes, mode)


@part
def char_at(text, at, size, classes):
    """(length << 3 | kind) of the character at `at`; a byte that is not UTF-8 is one OTHER."""
    first = value(text, at)
    if first < 0x80:
        return value(classes, first) | 1 << 3
    return _long_char_at(text, at, size, classes)


@seldom
def _long_char_at(text, at, size, classes):
    first = value(text, at)
    if 0xC2 <= first < 0xE0 and at + 1 < size:
        second = value(text, at + 1)
        if second & 0xC0 == 0x80:
            return value(classes, (first & 0x1F) << 6 | second & 0x3F) | 2 << 3
    elif 0xE0 <= first < 0xF0 and at + 2 < size:
        second, third = value(text, at + 1), value(text, at + 2)
        point = (first & 0xF) << 12 | (second & 0x3F) << 6 | third & 0x3F
        surrogate = 0xD800 <= point < 0xE000
        if second & 0xC0 == 0x80 and third & 0xC0 == 0x80 and point >= 0x800 and not surrogate:
            return value(classes, point) | 3 << 3
    elif 0xF0 <= first < 0xF5 and at + 3 < size:
        second, third, fourth = value(text, at + 1), value(text, at + 2), value(text, at + 3)
        point = (first & 7) << 18 | (second & 0x3F) << 12 | (third & 0x3F) << 6 | fourth & 0x3F
        follow = second & 0xC0 == 0x80 and third & 0xC0 == 0x80 and fourth & 0xC0 == 0x80
        if follow and 0x10000 <= point < 0x110000:
            return value(classes, point) | 4 << 3
    return OTHER | 1 << 3


@seldom
def _letters_end(text, at, size, classes):
    while at + 16 <= size:
        first = value(text, at)
        if first < 0x80:
            letters = letters16(text, at)
            at += letters
            if letters < 16 and value(text, at) < 0x80:
                return at
        elif 0xC2 <= first < 0xE0 and value(text, at + 1) & 0xC0 == 0x80:
            if value(classes, (first & 0x1F) << 6 | value(text, at + 1) & 0x3F) != LETTER:
                return at
            at += 2
        else:
            char = _long_char_at(text, at, size, classes)
            if char & _KIND != LETTER:
                return at
            at += char >> 3
    while at < size:
        char = char_at(text, at, size, classes)
        if char & _KIND != LETTER:
            return at
        at += char >> 3
    return at


@seldom
def _numbers_end(text, at, size, classes, most):
    while at < size and most > 0:
        char = char_at(text, at, size, classes)
        if char & _KIND != NUMBER:
            return at
        at += char >> 3
        most -= 1
    return at


@seldom
def _others_end(text, at, size, classes, mode):
    while at < size:
        char = char_at(text, at, size, classes)
        if char & _KIND != OTHER:
            break
        at += char >> 3
    while mode != GPT2 and at < size and (value(text, at) == 10 or value(text, at) == 13):
        at += 1
    return at


@seldom
def _spaces_end(text, at, size, classes, mode):
    """White space: up to its last line end, or all that ends the text, or all but the last."""
    end, last, line_end = at, at, at
    while end < size:
        if end + 16 <= size:
            blanks = blanks16(text, end)
            if blanks > 0:
                end += blanks
                last = end - 1
                continue
        char = char_at(text, end, size, classes)
        kind = char & _KIND
        if kind != SPACE and kind != LINE_END:
            break
        last = end
        end += char >> 3
        if kind == LINE_END:
            line_end = end
    if end == size and mode != CL100K_CLASSIC:
        return end
    if line_end > at and mode != GPT2:
        return line_end
    return end if end == size or last == at else last


@seldom
def _contraction_end(text, at, size, mode):
    """The end of 's, 't, 'm, 'd, 're, 've or 'll, in either case but for GPT-2; else `at`."""
    if at + 1 >= size:
        return at
    small = 0 if mode == GPT2 else 0x20  # the bit that makes a letter small
    first = value(text, at + 1) | small
    if first in (_S, _T, _M, _D):
        return at + 2
    if at + 2 >= size:
        return at
    second = value(text, at + 2)
    if value(text, at + 1) == 0xC5 and second == 0xBF and mode != GPT2:  # the long s, U+017F
        return at + 3
    second |= small
    if first in (_R, _V) and second == _E:
        return at + 3
    return at + 3 if first == _L and second == _L else at
