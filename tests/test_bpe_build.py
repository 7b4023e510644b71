"""The compiled kernels: kept, loaded, compiled by one process at a time, and done without."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from model import bpe_choice, bpe_fast, bpe_plain
from model.bpe import Tokenizer
from model.fast import build, kept


def test_a_later_process_needs_no_compiler() -> None:
    build.kernels()  # kept, if it was not
    code = "import sys\nfrom model.bpe import Tokenizer\n"
    code += "print(Tokenizer([]).encode('ab'), [m for m in sys.modules if m == 'numba'])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (told.stdout, told.stderr) == ("[65, 66] []\n", "")


@pytest.fixture
def alone(monkeypatch, tmp_path) -> Path:
    """A machine that keeps nothing yet, whose compiler is quick: it gives the code made before."""
    build.kernels()
    code = kept.read(build._name("tokenizer"))
    monkeypatch.setattr(build, "_compile", lambda program: code)
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path


def load() -> None:
    build.kernels.__wrapped__()


def test_code_is_kept_and_the_compiler_speaks_once(alone, capsys) -> None:
    load()
    assert "compiling the tokenizer, once on this machine" in capsys.readouterr().err
    load()
    assert capsys.readouterr().err == ""
    kept = sorted(path.parent.parent.name for path in alone.rglob("*.kernels"))
    assert kept == ["cache", f"ignite-llm-{os.getuid()}"]


@pytest.mark.parametrize("damage", ["cut", "changed", "not ours", "a link", "a linked folder"])
def test_damaged_or_foreign_code_is_not_run(alone, capsys, damage) -> None:
    load()
    for path in alone.rglob("*.kernels"):
        whole = path.read_bytes()
        if damage == "cut":
            path.write_bytes(whole[: len(whole) // 2])
        elif damage == "changed":
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        elif damage == "not ours":
            path.parent.chmod(0o777)
        elif damage == "a link":
            path.rename(path.with_suffix(".other"))
            path.symlink_to(path.with_suffix(".other"))
        else:
            path.parent.rename(path.parent.with_name("other"))
            path.parent.symlink_to("other")
    capsys.readouterr()
    load()
    assert "compiling" in capsys.readouterr().err


def test_nowhere_to_keep_code_is_no_error(alone, capsys) -> None:
    for name in ("cache", "temporary"):
        (alone / name).write_text("a file, not a folder")
    load()
    assert "no folder to keep it in: let IGNITE_CACHE name one" in capsys.readouterr().err


def test_a_link_is_not_written_through(alone, capsys) -> None:
    """In a temporary folder somebody else may have put one there."""
    victim = alone / "victim"
    victim.write_text("precious")
    own = alone / "temporary" / f"ignite-llm-{os.getuid()}"
    (own / "kernels").mkdir(parents=True, mode=0o700)
    (own / "kernels" / "lock").symlink_to(victim)
    (alone / "cache").write_text("a file, not a folder")
    load()
    assert victim.read_text() == "precious" and "compiled in" in capsys.readouterr().err


@pytest.mark.parametrize("cache", ["", "relative"])
def test_no_code_is_kept_in_the_folder_of_the_day(alone, monkeypatch, cache) -> None:
    monkeypatch.chdir(alone)
    monkeypatch.setenv("IGNITE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.setenv("HOME", str(alone / "home"))
    load()
    kept_in = {path.relative_to(alone).parts[0] for path in alone.rglob("*.kernels")}
    assert kept_in == ({"temporary"} if cache else {"temporary", "home"})


def test_of_those_that_begin_at_once_one_compiles(alone, monkeypatch, capsys) -> None:
    compiled, waiting = [], threading.Event()
    quick, wait = build._compile, kept._wait

    def compile_slowly(program: str) -> bytes:
        compiled.append(1)
        assert waiting.wait(60)
        return quick(program)

    def wait_for_turn(take) -> None:
        def attempt() -> None:
            try:
                take()
            except BlockingIOError:
                waiting.set()
                raise

        wait(attempt)

    monkeypatch.setattr(build, "_compile", compile_slowly)
    monkeypatch.setattr(kept, "_wait", wait_for_turn)
    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled == [1]
    assert capsys.readouterr().err.count("another process is compiling") == 1


def test_patience_with_another_process_ends(alone, monkeypatch, capsys) -> None:
    monkeypatch.setattr(kept, "_PATIENCE", 0.2)
    with kept.turn():
        load()
    told = capsys.readouterr().err
    assert "another process is compiling; waiting" in told and "compiled in" in told


@pytest.fixture
def uncompiled(monkeypatch) -> None:
    """A machine on which nothing is compiled yet; what is worth compiling for is 1,000 bytes."""
    monkeypatch.setattr(build, "are_kept", lambda: False)
    monkeypatch.setattr(bpe_choice, "WORTH", 1000)


def is_fast(tokenizer: Tokenizer) -> bool:
    return isinstance(tokenizer._coder, bpe_fast.Coder)


@pytest.mark.parametrize("many, fast", [(100, False), (120, True)])
def test_a_small_text_is_not_worth_compiling(uncompiled, monkeypatch, many, fast) -> None:
    learned, texts = [], [b"abab cab "] * many
    for module in (bpe_fast, bpe_plain):
        learn = module.learn
        monkeypatch.setattr(
            module, "learn", lambda *a, m=module, learn=learn: learned.append(m) or learn(*a)
        )
    found = Tokenizer.train(iter(texts), vocab_size=270)
    assert learned == [bpe_fast if fast else bpe_plain]
    assert found.merges == bpe_plain.learn(texts, found.pattern, found._byte_tokens, 13, 2)


def test_a_tokenizer_turns_to_the_compiled_one_when_there_is_much_text(uncompiled) -> None:
    tokenizer = Tokenizer([(66, 67)])
    made = (tokenizer.merges, tokenizer._byte_tokens, tokenizer.token_bytes, tokenizer.pattern)
    plain = bpe_plain.Coder(*made)
    for size, fast in ((400, False), (400, False), (400, True), (1, True)):
        text = "bc cab." * size
        text = text[:size]
        assert tokenizer.encode_array(text).tolist() == plain.encode(text)
        assert tokenizer.encode(text[:0]) == [] and tokenizer.decode([66]) == "b"
        assert is_fast(tokenizer) is fast
    assert is_fast(tokenizer) and tokenizer.encode("bc") == [257]


@pytest.mark.parametrize("asked, fast", [("fast", True), ("reference", False), ("", False)])
def test_what_is_asked_for_is_taken_at_once(uncompiled, monkeypatch, asked, fast) -> None:
    monkeypatch.setenv("IGNITE_TOKENIZER", asked)
    assert is_fast(Tokenizer([])) is fast
    if asked == "reference":
        tokenizer = Tokenizer([])
        tokenizer.encode("a" * 2000)
        assert isinstance(tokenizer._coder, bpe_plain.Coder)


def test_a_machine_that_cannot_compile_says_so_only_for_much_text(monkeypatch, capsys) -> None:
    def fail() -> None:
        raise ImportError("No module named 'llvmlite'")

    monkeypatch.setattr(build, "are_kept", fail)
    monkeypatch.setattr(bpe_fast, "kernels", fail)
    monkeypatch.setattr(bpe_choice, "WORTH", 1000)
    bpe_choice._compiled.cache_clear()
    try:
        tokenizer = Tokenizer([])
        assert tokenizer.decode(tokenizer.encode("a prompt")) == "a prompt"
        assert capsys.readouterr().err == ""
        assert len(tokenizer.encode("a" * 1000)) == len(tokenizer.encode("b" * 1000)) == 1000
        assert capsys.readouterr().err.count("cannot be compiled") == 1
    finally:
        bpe_choice._compiled.cache_clear()


def test_without_a_compiler_the_readable_program_works(monkeypatch, capsys) -> None:
    def fail() -> None:
        raise ImportError("No module named 'numba'")

    expected = Tokenizer.train(["abab abab cab"], vocab_size=260).merges
    monkeypatch.setattr(bpe_fast, "kernels", fail)
    bpe_choice._compiled.cache_clear()
    try:
        ours = Tokenizer.train(["abab abab cab"], vocab_size=260)
        assert ours.merges == expected
        assert not is_fast(ours) and ours.decode(ours.encode("cab")) == "cab"
    finally:
        bpe_choice._compiled.cache_clear()
    told = capsys.readouterr().err
    assert told.startswith(
        "the tokenizer cannot be compiled (ImportError: No module named 'numba')"
    )
    assert told.count("\n") == 1
