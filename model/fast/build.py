"""Make the kernels ready to be called: load their machine code, or compile it once and keep it.

numba turns the kernels into LLVM's language, LLVM into machine code for this processor. That takes
seconds and 70 MB, so the code is kept in this machine's cache; later processes load it by llvmlite
alone in some 50 ms. Nothing else is kept, least of all a pickle (numba's own cache is one): a kept
file is a line of JSON, with the sha256 of the code behind it.

The file's name is a digest of all that the code depends on: the kernels' sources, numba, LLVM, the
processor. Of processes that begin at once one compiles, and the others wait for it. A cache that
cannot be written costs the compilation in each process, and no error.
"""

import contextlib
import ctypes
import functools
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

_FORMAT = 1
_CODE = "kernels"
# each kernel's module and the number of its arguments, all int64, as is what it returns
KERNELS = {
    "count": ("count", 4),
    "absorb": ("count", 3),
    "move_index": ("count", 3),
    "move": ("table", 3),
    "move_pairs": ("pairs", 3),
    "begin": ("learn", 2),
    "learn": ("learn", 3),
    "know_merges": ("encode", 4),
    "encode": ("encode", 4),
    "measure": ("decode", 4),
    "decode": ("decode", 5),
    "encode_short": ("lists", 2),
    "fill_list": ("lists", 5),
    "read_list": ("lists", 4),
}
# what kernels call of the interpreter's stable interface
_OF_PYTHON = ("PyLong_AsLongLong", "PyUnicode_GetLength", "PyUnicode_AsUTF8AndSize")
_OF_PYTHON += ("PyErr_Clear", "PyList_New", "PyList_SetItem", "PyList_GetItem")
_OF_PYTHON += ("Py_IncRef", "Py_DecRef")
_PATIENCE = 120  # seconds
_METH_O = 8  # a function of one argument


class _Method(ctypes.Structure):
    """The interpreter's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


class Kernels:
    """The kernels as functions: `kernels.absorb(desk, words, only)`. A call lets other threads run,
    but for those of `lists`.

    To `encode` a bytes object may stand for its address.
    """

    def __init__(self, engine: object, addresses: dict[str, int]) -> None:
        self._engine = engine  # owns the code
        for name, address in addresses.items():
            module, many = KERNELS[name]
            arguments = [ctypes.c_int64] * many
            if name == "encode":
                arguments[1] = ctypes.c_char_p
            elif module == "lists":
                arguments[1] = ctypes.py_object
            kind = ctypes.PYFUNCTYPE if module == "lists" else ctypes.CFUNCTYPE
            setattr(self, name, kind(ctypes.c_int64, *arguments)(address))
        self._short = _Method(b"encode_short", addresses["encode_short"], _METH_O, None)

    def encoder(self, desk_address: int) -> Callable[[object], list[int]]:
        """`encode_short` of a desk, as a function of Python, which is called ten times as fast.

        It counts on the interpreter's lock; where there is none it encodes nothing.
        """
        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            return lambda text: []
        arguments = [ctypes.POINTER(_Method), ctypes.py_object, ctypes.py_object]
        make = ctypes.PYFUNCTYPE(ctypes.py_object, *arguments)
        return make(("PyCFunction_NewEx", ctypes.pythonapi))(self._short, desk_address, None)


@functools.cache
def kernels() -> Kernels:
    """The kernels of this process. Raises whatever numba and LLVM raise where they do not work."""
    name = f"{_digest()}.kernels"
    code = _kept(name)
    if code is None:
        with _turn():
            code = _kept(name) or _made(name)
    return _load(code)


def _kept(name: str) -> bytes | None:
    """The code kept in this machine's cache."""
    return next(filter(None, (_read(folder / name) for folder in _caches())), None)


def _made(name: str) -> bytes:
    """The code, compiled now, and kept where it can be."""
    print("compiling the tokenizer, once on this machine ...", file=sys.stderr, flush=True)
    started = time.monotonic()
    code = _compile()
    kept = [_write(folder, name, code) for folder in _caches()]
    where = "" if any(kept) else "; no folder to keep it in: let IGNITE_CACHE name one"
    print(f"compiled in {time.monotonic() - started:.1f} s{where}", file=sys.stderr, flush=True)
    return code


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """Let one process compile at a time. One that has waited for _PATIENCE compiles all the same,
    as does any where no file can be locked.
    """
    with contextlib.ExitStack() as held:
        for folder in _caches():
            with contextlib.suppress(OSError, ImportError):
                import fcntl

                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = held.enter_context((folder / "lock").open("w"))
                _wait(lambda lock=lock: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB))
                break
        yield


def _wait(take: Callable[[], object]) -> None:
    """Try to take a lock until it is had, or patience ends."""
    end = time.monotonic() + _PATIENCE
    told = False
    while time.monotonic() < end:
        try:
            take()
            return
        except BlockingIOError:
            if not told:
                print("another process compiles the tokenizer; waiting for it", file=sys.stderr)
            told = True
            time.sleep(0.05)


def _digest() -> str:
    """Of all that the machine code depends on."""
    import llvmlite
    import llvmlite.binding as llvm

    parts = [str(_FORMAT), llvmlite.__version__, llvm.get_process_triple()]
    parts += [llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
    digest = hashlib.sha256("\n".join(parts).encode())
    sources = sorted(Path(__file__).parent.glob("*.py"))
    compiler = find_spec("numba")  # to import it, or the list of what is installed, takes longer
    if compiler is not None:
        sources.append(Path(compiler.origin).with_name("_version.py"))
    for source in sources:
        digest.update(source.read_bytes() if source.is_file() else b"")
    return digest.hexdigest()[:32]


def _caches() -> Iterator[Path]:
    """Where code is kept: in the machine's cache, and in a temporary folder of nobody else's.

    In both, as one may be closed to us, and a rented machine's or a test's cache is its own.
    """
    home = os.environ.get("IGNITE_CACHE")
    if home is None:
        home = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
        home = Path(home) / "ignite-llm"
    yield Path(home) / _CODE
    import tempfile  # seldom needed, and slow to import

    who = os.getuid() if hasattr(os, "getuid") else "me"
    yield Path(tempfile.gettempdir()) / f"ignite-llm-{who}" / _CODE


def _read(path: Path) -> bytes | None:
    """Kept code, if it is whole, and ours: nobody else can have written what is run here."""
    try:
        mine = not hasattr(os, "getuid") or path.parent.stat().st_uid in (os.getuid(), 0)
        if not mine or path.parent.stat().st_mode & 0o022:
            return None
        head, _, code = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    return code if head == _head(code) else None


def _write(folder: Path, name: str, code: bytes) -> bool:
    """Keep code, whole or not at all. False: it cannot be kept here."""
    aside = folder / f"{name}.{os.getpid()}.{threading.get_ident()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside.write_bytes(_head(code) + b"\n" + code)
        os.replace(aside, folder / name)
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
    return _read(folder / name) == code


def _head(code: bytes) -> bytes:
    return json.dumps({"format": _FORMAT, "sha256": hashlib.sha256(code).hexdigest()}).encode()


def _compile() -> bytes:
    """Machine code of all kernels, each under its own name."""
    import llvmlite.binding as llvm

    from model.fast import count, decode, encode, learn, lists, pairs, table

    modules = {"count": count, "decode": decode, "encode": encode}
    modules |= {"learn": learn, "lists": lists, "pairs": pairs, "table": table}
    whole = llvm.parse_assembly("")
    llvm.add_symbol("encode", 1)  # numba insists on an address, before the two kernels are linked
    for name, (module, arguments) in KERNELS.items():
        whole.link_in(_translate(getattr(modules[module], name), arguments))
    machine = _machine()
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    passes = llvm.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(whole, passes)  # now that parts are known to be ours alone
    return machine.emit_object(whole)


def _translate(function: Callable, arguments: int) -> object:
    """One kernel in LLVM's language, as a module that exports nothing but the kernel."""
    import llvmlite.binding as llvm
    from numba import cfunc, types

    compiled = cfunc(types.int64(*[types.int64] * arguments), error_model="numpy")(function)
    module = llvm.parse_assembly(compiled.inspect_llvm())
    for other in module.functions:
        if other.name == compiled.native_name:
            other.name = function.__name__
        elif not other.is_declaration:
            other.linkage = "internal"
    return module


def _machine() -> object:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="default",
        codemodel="jitdefault",
        jit=True,
    )


def _load(code: bytes) -> Kernels:
    """Put machine code into memory."""
    import llvmlite.binding as llvm

    for name in _OF_PYTHON:
        address = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
        llvm.add_symbol(name, address)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return Kernels(engine, {name: engine.get_function_address(name) for name in KERNELS})
