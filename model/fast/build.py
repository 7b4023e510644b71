"""Make the kernels ready to be called: load their machine code, or compile it once and keep it.

numba turns the kernels into LLVM's language, LLVM into machine code for this processor. That takes
seconds and 70 MB, so the code is kept in this machine's cache; later processes load it by llvmlite
alone in some 50 ms. Nothing else is kept, least of all a pickle (numba's own cache is one): a kept
file is a line of JSON, with the sha256 of the code behind it.

There are two programs, each compiled as a whole: the tokenizer, and attention for training on a
CPU. A file's name is a digest of all that its code depends on: the kernels' sources, numba, LLVM,
the processor. Of processes that begin at once one compiles, and the others wait for it. A cache
that cannot be written costs the compilation in each process, and no error.
"""

import ctypes
import functools
import hashlib
import importlib
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from model.fast import kept

# of each program its kernels: the module of each, and the number of its arguments, all int64, as is
# what it returns
PROGRAMS = {
    "tokenizer": {
        "count": ("count", 4),
        "absorb": ("count", 3),
        "move_index": ("count", 3),
        "move": ("table", 3),
        "move_pairs": ("pairs", 3),
        "begin": ("learn", 2),
        "learn": ("learn", 3),
        "know_merges": ("rules", 4),
        "encode": ("encode", 4),
        "measure": ("decode", 4),
        "decode": ("decode", 5),
        "encode_short": ("lists", 2),
        "fill_list": ("lists", 5),
        "read_list": ("lists", 4),
    },
    "attention": {
        "room": ("attend", 2),
        "attend": ("attend", 11),
        "attend_back": ("attend", 13),
    },
}
# what kernels call of the interpreter's stable interface
_OF_PYTHON = ("PyLong_AsLongLong", "PyUnicode_GetLength", "PyUnicode_AsUTF8AndSize")
_OF_PYTHON += ("PyErr_Clear", "PyList_New", "PyList_SetItem", "PyList_GetItem")
_OF_PYTHON += ("Py_IncRef", "Py_DecRef")
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

    def __init__(self, engine: object, program: str, addresses: dict[str, int]) -> None:
        self._engine = engine  # owns the code
        for name, address in addresses.items():
            module, many = PROGRAMS[program][name]
            arguments = [ctypes.c_int64] * many
            if name == "encode":
                arguments[1] = ctypes.c_void_p
            elif module == "lists":
                arguments[1] = ctypes.py_object
            kind = ctypes.PYFUNCTYPE if module == "lists" else ctypes.CFUNCTYPE
            function = kind(ctypes.c_int64, *arguments)(address)
            function.engine = engine  # whoever has but the function keeps its code as well
            setattr(self, name, function)
        if program == "tokenizer":
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
    """The tokenizer's. Raises whatever numba and LLVM raise where they do not work."""
    return _of("tokenizer")


@functools.cache
def attention_kernels() -> Kernels:
    """Those for attention; the same is true of them."""
    return _of("attention")


def _of(program: str) -> Kernels:
    name = _name(program)
    code = kept.read(name)
    if code is None:
        with kept.turn():
            code = kept.read(name) or _made(program, name)
    return _load(program, code)


def are_kept() -> bool:
    """Is the tokenizer's program compiled already?"""
    return kernels.cache_info().currsize > 0 or kept.read(_name("tokenizer")) is not None


def _made(program: str, name: str) -> bytes:
    """The code, compiled now, and kept where it can be."""
    what = {"tokenizer": "the tokenizer", "attention": "attention for this CPU"}[program]
    print(f"compiling {what}, once on this machine ...", file=sys.stderr, flush=True)
    started = time.monotonic()
    code = _compile(program)
    where = "; no folder to keep it in: let IGNITE_CACHE name one"
    where = "" if kept.write(name, code) else where
    print(f"compiled in {time.monotonic() - started:.1f} s{where}", file=sys.stderr, flush=True)
    return code


@functools.cache
def _name(program: str) -> str:
    """A digest of all that the machine code depends on."""
    import llvmlite
    import llvmlite.binding as llvm

    parts = [program, llvmlite.__version__, llvm.get_process_triple()]
    parts += [llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
    digest = hashlib.sha256("\n".join(parts).encode())
    sources = sorted(Path(__file__).parent.glob("*.py"))
    compiler = find_spec("numba")  # to import it, or the list of what is installed, takes longer
    if compiler is not None:
        sources.append(Path(compiler.origin).with_name("_version.py"))
    for source in sources:
        digest.update(source.read_bytes() if source.is_file() else b"")
    return f"{digest.hexdigest()[:32]}.kernels"


def _compile(program: str) -> bytes:
    """Machine code of all its kernels, each under its own name."""
    import llvmlite.binding as llvm

    whole = llvm.parse_assembly("")
    llvm.add_symbol("encode", 1)  # numba insists on an address, before the two kernels are linked
    for name, (module, arguments) in PROGRAMS[program].items():
        function = getattr(importlib.import_module(f"model.fast.{module}"), name)
        whole.link_in(_translate(function, arguments))
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


def _load(program: str, code: bytes) -> Kernels:
    """Put machine code into memory."""
    import llvmlite.binding as llvm

    for name in _OF_PYTHON:
        address = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
        llvm.add_symbol(name, address)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    addresses = {name: engine.get_function_address(name) for name in PROGRAMS[program]}
    return Kernels(engine, program, addresses)
