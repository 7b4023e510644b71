"""Where most pieces end: after ASCII letters and the byte before them, or after one byte.

Of 100 pieces of English 95 are such, and so many need no walk through the rules of `scan`: what is
to be known of them is the kind of their first byte, the kind of the byte behind them, and whether
there are letters between. This module needs no compiler.
"""

import functools

import numpy as np

from model.fast.desk import GPT2, LETTER, LINE_END, NUMBER, OTHER, SPACE, kinds

_FOREIGN, _LETTER, _NUMBER, _MARK, _APOSTROPHE, _BLANK, _SPACE, _LINE_END = range(8)
_KINDS = {LETTER: _LETTER, NUMBER: _NUMBER, OTHER: _MARK, SPACE: _SPACE, LINE_END: _LINE_END}
_AFTER_LETTERS = range(_NUMBER, _LINE_END + 1)

# where the parts of `endings` begin
BEHIND, WORDS, SINGLES = 256, 512, 576


@functools.cache
def endings(mode: int) -> np.ndarray:
    """Three tables of uint8, one after the other.

    [byte]: its kind as the first of a piece, times 8. [BEHIND + byte]: its kind as the one behind.
    [WORDS + both], [SINGLES + both]: 1 if the piece ends there, when there are letters behind its
    first byte, and when there are none. 0: the rules must be asked.
    """
    of_byte = np.full(256, _FOREIGN, np.uint8)
    of_byte[:128] = [_KINDS[kind] for kind in kinds()[:128].tolist()]
    of_byte[ord("'")], of_byte[ord(" ")] = _APOSTROPHE, _BLANK
    words, singles = np.zeros((2, 8, 8), np.uint8)
    for first in (_LETTER, _BLANK) if mode == GPT2 else (_LETTER, _BLANK, _MARK, _SPACE):
        words[first, _AFTER_LETTERS] = 1
    singles[_LETTER, _AFTER_LETTERS] = 1
    singles[_NUMBER, [_LETTER, _MARK, _APOSTROPHE, _BLANK, _SPACE, _LINE_END]] = 1
    for first in (_MARK, _APOSTROPHE):
        singles[first, [_NUMBER, _BLANK, _SPACE]] = 1
    for first in (_SPACE, _LINE_END):
        singles[first, [_NUMBER, _MARK, _APOSTROPHE]] = 1
    if mode != GPT2:
        singles[_BLANK, _NUMBER] = 1
    return np.concatenate([8 * of_byte, of_byte, words.ravel(), singles.ravel()])
