"""Learn merges: the algorithm of `model/bpe_merges.py` on flat memory.

A word lies in `words` as its count, its length and its tokens. For each pair that occurs often
enough there is a record (key, count, where its list begins, how long it is); its list names the
words that had the pair when its younger token was made. A heap holds the promises, corrected when
they come to the top.

One step merges LEFT and RIGHT into TOKEN, in two phases. First the words on the pair's list are
rewritten; what each neighbour x gains is added up beside x in `sides`, as (x, TOKEN) gains just
what (x, LEFT) loses, and (TOKEN, x) what (RIGHT, x) loses; each word that now has the new pair is
an event. Then one pass over the neighbours touched corrects the old pairs and makes the new ones,
and one over the events makes their lists. So the hash table is asked once for each neighbour, not
for each occurrence; and a pair that is born too rare is never written down, as counts only fall.
"""

from model.fast.count import HEAD
from model.fast.desk import (
    DONE,
    ENOUGH,
    EVENTS,
    EVENTS_SIZE,
    EVENTS_USED,
    FULL_EVENTS,
    FULL_HEAP,
    FULL_LISTS,
    FULL_PAIRS,
    FULL_SIDES,
    HEAP,
    HEAP_SIZE,
    HEAP_USED,
    LAST_WORD,
    LEAST,
    LEFT,
    LISTS,
    LISTS_SIZE,
    LISTS_USED,
    MERGES,
    NEXT_WORD,
    PAIRS,
    PAIRS_LIMIT,
    PAIRS_SHIFT,
    PAIRS_USED,
    PAUSE,
    RIGHT,
    SIDES,
    SIDES_SIZE,
    TOKEN,
    TOUCHED,
    TOUCHED_USED,
    WORDS,
    WORDS_SIZE,
)
from model.fast.heap import best, drop, lower, push
from model.fast.memory import ints_at, load8, longs_at, part, value
from model.fast.pairs import find_pair, key_of_pair, new_pair

# A row of `sides`, for x on the left of the new token, then for x on its right:
_GAIN, _WORDS, _LATEST, _CURSOR = range(4)  # weight, words on the list, the last of these
_SIDE, ROW = 4, 8


def learn(desk_address, found_address, most):
    """Kernel: write up to `most` merges as pairs of int32. Fewer: it is DONE, or time to look up.

    FULL_...: give more room, call again. PAUSE: call again. The desk's MERGES says how many were
    found in this call, its LEFT is -1 where no pair is left that occurs LEAST times.
    """
    desk, found = longs_at(desk_address), ints_at(found_address)
    desk[MERGES] = 0
    work = 0
    while desk[MERGES] < most and work < desk[ENOUGH]:
        if desk[LAST_WORD] == 0:
            if desk[SIDES_SIZE] <= desk[TOKEN]:
                return FULL_SIDES
            if not _choose(desk):
                desk[LEFT] = -1
                return DONE
        work += min(desk[ENOUGH], desk[LAST_WORD] - desk[NEXT_WORD])
        full = _rewrite_words(desk)
        if full != DONE:
            return full
        full = _finish(desk)
        if full != DONE:
            return full
        found[2 * desk[MERGES]], found[2 * desk[MERGES] + 1] = desk[LEFT], desk[RIGHT]
        desk[MERGES] += 1
        desk[TOKEN] += 1
        desk[LAST_WORD] = 0
    return DONE


@part
def _choose(desk):
    """Set LEFT, RIGHT and the list of words of the most frequent pair; False if it is too rare."""
    heap, pairs = longs_at(desk[HEAP]), longs_at(desk[PAIRS])
    while desk[HEAP_USED] > 0:
        promised, key = best(heap)
        record = find_pair(pairs, desk[PAIRS_SHIFT], key)
        count = pairs[record + 1]
        if count < promised:
            lower(heap, desk[HEAP_USED], count)
            continue
        if count < desk[LEAST]:
            return False
        desk[HEAP_USED] = drop(heap, desk[HEAP_USED])
        desk[LEFT], desk[RIGHT] = (key - 1) >> 32, (key - 1) & 0xFFFFFFFF
        desk[NEXT_WORD] = pairs[record + 2]
        desk[LAST_WORD] = pairs[record + 2] + pairs[record + 3]
        pairs[record + 1] = 0
        return True
    return False


@part
def _rewrite_words(desk):
    """The first phase: FULL_EVENTS, PAUSE or DONE."""
    words, lists = ints_at(desk[WORDS]), ints_at(desk[LISTS])
    sides, touched = longs_at(desk[SIDES]), ints_at(desk[TOUCHED])
    events, used = ints_at(desk[EVENTS]), desk[EVENTS_USED]
    left, right, token = desk[LEFT], desk[RIGHT], desk[TOKEN]
    many, last = desk[TOUCHED_USED], min(desk[LAST_WORD], desk[NEXT_WORD] + desk[ENOUGH])
    for i in range(desk[NEXT_WORD], last):
        word = value(lists, i)
        length = value(words, word + 2)
        if used + length > desk[EVENTS_SIZE]:
            desk[NEXT_WORD], desk[EVENTS_USED], desk[TOUCHED_USED] = i, used, many
            return FULL_EVENTS
        count = load8(words, word)
        start = word + HEAD
        end = start + length
        read = write = start
        while read < end:
            symbol = words[read]
            if symbol != left or read + 1 == end or words[read + 1] != right:
                words[write] = symbol
                write += 1
                read += 1
                continue
            read += 2
            if write > start:
                used, many = _note(
                    sides, touched, many, events, used, words[write - 1] * 2, count, word
                )
            if read < end:
                after = words[read]
                # where the pair follows at once, it sees the new token on its left
                if after != left or read + 1 == end or words[read + 1] != right:
                    used, many = _note(
                        sides, touched, many, events, used, after * 2 + 1, count, word
                    )
            words[write] = token
            write += 1
        words[word + 2] = write - start
    desk[NEXT_WORD], desk[EVENTS_USED], desk[TOUCHED_USED] = last, used, many
    return DONE if last == desk[LAST_WORD] else PAUSE


@part
def _note(sides, touched, many, events, used, side, count, word):
    """A neighbour (side: 2 x token, + 1 if it stands on the right) of one new token in a word."""
    row = side * _SIDE
    if sides[row + _GAIN] == 0:
        touched[many] = side
        many += 1
        sides[row + _WORDS], sides[row + _LATEST] = 0, -1
    sides[row + _GAIN] += count
    if sides[row + _LATEST] != word:
        sides[row + _LATEST] = word
        sides[row + _WORDS] += 1
        events[2 * used], events[2 * used + 1] = side, word
        used += 1
    return used, many


@part
def _finish(desk):
    """The second phase: FULL_..., or DONE."""
    sides, touched = longs_at(desk[SIDES]), ints_at(desk[TOUCHED])
    many = desk[TOUCHED_USED]
    if desk[PAIRS_USED] + many > desk[PAIRS_LIMIT]:
        return FULL_PAIRS
    if desk[HEAP_USED] + many > desk[HEAP_SIZE]:
        return FULL_HEAP
    if desk[LISTS_USED] + desk[EVENTS_USED] > desk[LISTS_SIZE]:
        return FULL_LISTS
    pairs, shift, heap = longs_at(desk[PAIRS]), desk[PAIRS_SHIFT], longs_at(desk[HEAP])
    left, right, token = desk[LEFT], desk[RIGHT], desk[TOKEN]
    for i in range(many):
        side = value(touched, i)
        row, x = side * _SIDE, side >> 1
        gain = sides[row + _GAIN]
        if side & 1:
            old, new = key_of_pair(right, x), key_of_pair(token, x)
        elif x == token:  # two new tokens side by side: where RIGHT met LEFT
            old, new = key_of_pair(right, left), key_of_pair(token, token)
        else:
            old, new = key_of_pair(x, left), key_of_pair(x, token)
        record = find_pair(pairs, shift, old)
        if pairs[record] != 0 and pairs[record + 1] > 0:
            pairs[record + 1] -= gain
        sides[row + _CURSOR] = -1
        if gain >= desk[LEAST]:
            sides[row + _CURSOR] = desk[LISTS_USED]
            new_pair(desk, pairs, new, gain, desk[LISTS_USED], sides[row + _WORDS])
            desk[LISTS_USED] += sides[row + _WORDS]
            desk[HEAP_USED] = push(heap, desk[HEAP_USED], gain, new)
    _fill_lists(desk)
    for i in range(many):
        sides[value(touched, i) * _SIDE + _GAIN] = 0
    desk[TOUCHED_USED] = desk[EVENTS_USED] = 0
    return DONE


@part
def _fill_lists(desk):
    """Give each event's word to the list of its pair, in order."""
    sides, lists, events = longs_at(desk[SIDES]), ints_at(desk[LISTS]), ints_at(desk[EVENTS])
    for i in range(desk[EVENTS_USED]):
        cursor = value(events, 2 * i) * _SIDE + _CURSOR
        if sides[cursor] >= 0:
            lists[sides[cursor]] = events[2 * i + 1]
            sides[cursor] += 1


def begin(desk_address, counts_address):
    """Kernel: the pairs of bytes. `counts`: a row of _SIDE zeros for each of the 65,536 pairs.

    There is room for all of them: the first tables are that large.
    """
    desk, counts = longs_at(desk_address), longs_at(counts_address)
    pairs, heap, lists = longs_at(desk[PAIRS]), longs_at(desk[HEAP]), ints_at(desk[LISTS])
    first = desk[TOKEN] - 256
    _walk_pairs(desk, counts, lists, first, 0)
    for pair in range(1 << 16):
        row = pair * _SIDE
        counts[row + _LATEST], counts[row + _CURSOR] = -1, -1
        if counts[row + _GAIN] >= desk[LEAST]:
            key = key_of_pair(first + (pair >> 8), first + (pair & 255))
            counts[row + _CURSOR] = desk[LISTS_USED]
            new_pair(desk, pairs, key, counts[row + _GAIN], desk[LISTS_USED], counts[row + _WORDS])
            desk[LISTS_USED] += counts[row + _WORDS]
            desk[HEAP_USED] = push(heap, desk[HEAP_USED], counts[row + _GAIN], key)
    _walk_pairs(desk, counts, lists, first, 1)
    return DONE


@part
def _walk_pairs(desk, counts, lists, first, again):
    """Go through all words: add up what each pair occurs; or, again, write the lists."""
    words = ints_at(desk[WORDS])
    word = 0
    while word < desk[WORDS_SIZE]:
        length = value(words, word + 2)
        weight = load8(words, word)
        for i in range(word + HEAD, word + HEAD + length - 1):
            row = ((words[i] - first) << 8 | (words[i + 1] - first)) * _SIDE
            met = counts[row + _LATEST] == word + 1  # 0 is nobody's
            counts[row + _LATEST] = word + 1
            if not again:
                counts[row + _GAIN] += weight
                counts[row + _WORDS] += 0 if met else 1
            elif not met and counts[row + _CURSOR] >= 0:
                lists[counts[row + _CURSOR]] = word
                counts[row + _CURSOR] += 1
        word += HEAD + length
