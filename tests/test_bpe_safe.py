"""The compiled tokenizer under interrupts, in threads, in children, and told what is wrong."""

import copy
import os
import pickle
import random
import signal
import sys
import threading

import numpy as np
import pytest

from model import bpe_coder, bpe_fast, bpe_plain
from model.bpe import Tokenizer
from model.fast import desk

# long pieces need larger rooms, many different ones larger tables
_RNG = random.Random(12)
_WORDS = " ".join("".join(_RNG.choices("abcdefgh", k=_RNG.choice([3, 9, 30]))) for _ in range(6000))
_TEXT = (_WORDS + "x" * 5000 + " " + "yz" * 40_000).encode()


def merges() -> list[tuple[int, int]]:
    return Tokenizer.train([_WORDS], vocab_size=600).merges


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer(merges())


@pytest.fixture
def expected(trained) -> list[int]:
    made = (trained.merges, trained._byte_tokens, trained.token_bytes, trained.pattern)
    return bpe_plain.Coder(*made).encode(_TEXT)


def calls_of(work) -> int:
    """How many calls into C and of functions there are in the module's code while it works."""
    return _interrupted(work, -1)


def _interrupted(work, at: int) -> int:
    """Raise KeyboardInterrupt at the call of that number; how many calls there were."""
    count = 0

    def watch(frame, event, _):
        nonlocal count
        inside = frame.f_code.co_filename.endswith(("bpe_coder.py", "desk.py"))
        if inside and event in ("call", "c_call", "c_return", "return"):
            count += 1
            if count == at:
                raise KeyboardInterrupt

    sys.setprofile(watch)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return count


def is_sound(coder: bpe_fast.Coder) -> bool:
    """Does every field of a desk that may be used hold the address of an array of its size?"""
    work = coder._desk
    if work[desk.BUSY]:
        return True  # it is set up anew before it is used
    sizes = {desk.OUT: desk.OUT_SIZE, desk.SCRATCH: desk.SCRATCH_SIZE, desk.POOL: desk.POOL_SIZE}
    slots = 1 << (64 - work[desk.SHIFT])
    return (
        all(work[field] == array.ctypes.data for field, array in work.arrays.items())
        and all(len(work.arrays[field]) >= work[size] for field, size in sizes.items())
        and len(work.arrays[desk.TABLE]) == 4 * slots
    )


def test_an_interrupt_anywhere_leaves_a_sound_tokenizer(trained, expected, monkeypatch) -> None:
    monkeypatch.setattr(bpe_coder, "_MOST_ENTRIES", 1 << 11)  # so it forgets, too
    fresh = Tokenizer(trained.merges)
    total = calls_of(lambda: fresh.encode_array(_TEXT))
    assert total > 100
    for at in sorted({*range(1, total, 7), *range(max(1, total - 40), total + 1)}):
        tokenizer = Tokenizer(trained.merges)
        tokenizer.encode("a")
        _interrupted(lambda tokenizer=tokenizer: tokenizer.encode_array(_TEXT), at)
        assert is_sound(tokenizer._coder), at
        if at % 5 == 0:
            assert tokenizer.encode_array(_TEXT).tolist() == expected, at
        assert is_sound(tokenizer._coder)


def test_threads_that_begin_at_once_lend_their_numbers_once(trained) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(200):
            tokenizer = Tokenizer(trained.merges)
            tokenizer.encode_array("a")
            threads = [threading.Thread(target=tokenizer.encode, args=("ab",)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert is_sound(tokenizer._coder)
    finally:
        sys.setswitchinterval(before)


def test_a_handler_may_encode_in_the_midst_of_a_call(trained, expected, monkeypatch) -> None:
    tokenizer, found = Tokenizer(trained.merges), []
    give = bpe_fast.Coder._give

    def handle(*_) -> None:
        found.append((tokenizer.encode("some text"), tokenizer.encode_array(_TEXT).tolist()))

    def give_and_signal(self, lacking: int) -> None:
        give(self, lacking)
        if self is tokenizer._coder and not found:
            signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(bpe_fast.Coder, "_give", give_and_signal)
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        assert tokenizer.encode_array(_TEXT).tolist() == expected
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert found == [(trained.encode("some text"), expected)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_forked_in_the_midst_of_a_call_encodes(trained, expected, monkeypatch) -> None:
    tokenizer, inside, go_on = Tokenizer(trained.merges), threading.Event(), threading.Event()
    give = bpe_fast.Coder._give

    def give_and_wait(self, lacking: int) -> None:
        give(self, lacking)
        inside.set()
        assert go_on.wait(60)

    with monkeypatch.context() as patch:
        patch.setattr(bpe_fast.Coder, "_give", give_and_wait)
        thread = threading.Thread(target=tokenizer.encode_array, args=(_TEXT,))
        thread.start()
        assert inside.wait(60)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if tokenizer.encode_array(_TEXT).tolist() == expected else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    go_on.set()
    thread.join()
    assert code == 0
    assert tokenizer.encode_array(_TEXT).tolist() == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_goes_on_with_the_call_in_which_it_was_forked(
    trained, expected, monkeypatch
) -> None:
    tokenizer, give, children = Tokenizer(trained.merges), bpe_fast.Coder._give, []

    def give_and_fork(self, lacking: int) -> None:
        give(self, lacking)
        if self is tokenizer._coder and not children:
            children.append(os.fork())
            if children == [0]:
                signal.alarm(60)
            assert tokenizer.encode("some text") == trained.encode("some text")

    monkeypatch.setattr(bpe_fast.Coder, "_give", give_and_fork)
    found = tokenizer.encode_array(_TEXT).tolist()
    if children == [0]:
        os._exit(0 if found == expected == tokenizer.encode_array(_TEXT).tolist() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    assert found == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_remembers_what_its_parent_knew(trained) -> None:
    trained.encode("some words that are known by now")
    known = trained._coder._desk[desk.USED]
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        trained.encode_array("some")
        os._exit(0 if trained._coder._desk[desk.USED] >= known else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class _Longer(bytes):
    def __len__(self) -> int:
        return 10**8


class _Other(str):
    def encode(self, *_) -> bytes:
        return b"other"


@pytest.mark.parametrize("text", [_Longer(b"some text"), _Other("some text")])
def test_what_claims_to_be_another_text_is_the_text_that_it_is(trained, text) -> None:
    plain = bpe_plain.Coder(*trained._coder._made_of)
    for encode in (trained.encode, trained.encode_array, plain.encode):
        assert [*encode(text)] == trained.encode("some text")
    learned = [Tokenizer.train([one] * 3, vocab_size=300).merges for one in (text, "some text")]
    assert learned[0] == learned[1]


def test_a_used_tokenizer_is_copied_and_sent_to_other_processes(trained) -> None:
    trained.encode("used")
    for other in (pickle.loads(pickle.dumps(trained)), copy.deepcopy(trained)):
        assert other.encode("some text") == trained.encode("some text")


def test_any_kind_of_bytes_is_encoded(trained) -> None:
    for kind in (bytes, bytearray, memoryview):
        assert trained.encode(kind(b"some text")) == trained.encode("some text")


def test_an_array_may_change_while_it_is_decoded(trained) -> None:
    """What has been measured is what is copied."""
    ids = np.array([70, 71], np.uint16)
    tokens = trained._coder._as_tokens(ids)
    ids[:] = 60_000
    assert tokens.tolist() == [70, 71]


def test_an_interrupt_while_a_number_is_asked_for_passes_through(trained) -> None:
    class Number:
        def __index__(self) -> int:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained.decode([5, Number()])


def test_a_number_that_is_one_only_later_is_decoded(trained) -> None:
    class Number:
        asked = 0

        def __index__(self) -> int:
            self.asked += 1
            return 300_000 if self.asked == 1 else 70

    assert trained.decode_bytes([Number()]) == trained.decode_bytes([70])


def test_what_is_remembered_is_bounded() -> None:
    """2**20 pieces, in a table that is half full."""
    at = desk.Desk()
    at.new_table()
    while at[desk.LIMIT] < bpe_coder._MOST_ENTRIES:
        at[desk.USED] = at[desk.LIMIT]
        bpe_coder._make_room(at)
    at[desk.USED] = at[desk.LIMIT]
    bpe_coder._make_room(at)
    assert (at[desk.LIMIT], at[desk.USED]) == (1 << 11, 0)
