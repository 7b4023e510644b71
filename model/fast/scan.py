"""Where does a piece of text end? `model/split.py` as a scanner over UTF-8 bytes.

The alternatives of the pattern, in the pattern's order, written as branches. What makes it fast is
its first step: most pieces are ASCII letters, perhaps after a space, and of those one vector
instruction looks at sixteen. A byte that belongs to no valid character is OTHER, as there.
"""

from model.fast.desk import CL100K_CLASSIC, GPT2, LETTER, LINE_END, NUMBER, OTHER, SPACE
from model.fast.memory import byte, letters16, part, seldom

_KIND = 7  # char_at gives (length << 3 | kind): the mask of the kind
_BLANK, _APOSTROPHE = 0x20, 0x27


@part
def piece_end(text, at, size, classes, mode):
    """The end of the piece that begins `at`."""
    word = at + (1 if byte(text, at) == _BLANK else 0)
    if word + 17 <= size:
        letters = letters16(text, word)
        if 0 < letters < 16 and byte(text, word + letters) < 0x80:
            return word + letters
    return _any_end(text, at, size, classes, mode)


@seldom
def _any_end(text, at, size, classes, mode):
    first = byte(text, at)
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
    first = byte(text, at)
    if first < 0x80:
        return types_of(classes, first) | 1 << 3
    if 0xC2 <= first < 0xE0 and at + 1 < size:
        second = byte(text, at + 1)
        if second & 0xC0 == 0x80:
            return types_of(classes, (first & 0x1F) << 6 | second & 0x3F) | 2 << 3
    elif 0xE0 <= first < 0xF0 and at + 2 < size:
        second, third = byte(text, at + 1), byte(text, at + 2)
        point = (first & 0xF) << 12 | (second & 0x3F) << 6 | third & 0x3F
        surrogate = 0xD800 <= point < 0xE000
        if second & 0xC0 == 0x80 and third & 0xC0 == 0x80 and point >= 0x800 and not surrogate:
            return types_of(classes, point) | 3 << 3
    elif 0xF0 <= first < 0xF5 and at + 3 < size:
        second, third, fourth = byte(text, at + 1), byte(text, at + 2), byte(text, at + 3)
        point = (first & 7) << 18 | (second & 0x3F) << 12 | (third & 0x3F) << 6 | fourth & 0x3F
        follow = second & 0xC0 == 0x80 and third & 0xC0 == 0x80 and fourth & 0xC0 == 0x80
        if follow and 0x10000 <= point < 0x110000:
            return types_of(classes, point) | 4 << 3
    return OTHER | 1 << 3


@part
def types_of(classes, point):
    return byte(classes, point)


@part
def _letters_end(text, at, size, classes):
    while at < size:
        if byte(text, at) < 0x80 and at + 16 <= size:
            letters = letters16(text, at)
            at += letters
            if letters == 16:
                continue
            if byte(text, at) < 0x80:
                return at
        char = char_at(text, at, size, classes)
        if char & _KIND != LETTER:
            return at
        at += char >> 3
    return at


@part
def _numbers_end(text, at, size, classes, most):
    while at < size and most > 0:
        char = char_at(text, at, size, classes)
        if char & _KIND != NUMBER:
            return at
        at += char >> 3
        most -= 1
    return at


@part
def _others_end(text, at, size, classes, mode):
    while at < size:
        char = char_at(text, at, size, classes)
        if char & _KIND != OTHER:
            break
        at += char >> 3
    while mode != GPT2 and at < size and (byte(text, at) == 10 or byte(text, at) == 13):
        at += 1
    return at


@part
def _spaces_end(text, at, size, classes, mode):
    """White space: up to its last line end, or all that ends the text, or all but the last."""
    end, last, line_end = at, at, at
    while end < size:
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


@part
def _contraction_end(text, at, size, mode):
    """The end of 's, 't, 'm, 'd, 're, 've or 'll, in either case but for GPT-2; else `at`."""
    if at + 1 >= size:
        return at
    small = 0 if mode == GPT2 else 0x20  # the bit that makes a letter small
    first = byte(text, at + 1) | small
    if first == ord("s") or first == ord("t") or first == ord("m") or first == ord("d"):
        return at + 2
    if at + 2 >= size:
        return at
    second = byte(text, at + 2)
    if byte(text, at + 1) == 0xC5 and second == 0xBF and mode != GPT2:  # the long s, U+017F
        return at + 3
    second |= small
    if (first == ord("r") or first == ord("v")) and second == ord("e"):
        return at + 3
    return at + 3 if first == ord("l") and second == ord("l") else at
