"""Which code does a result depend on? Digests of it, definition by definition.

Code is digested from its syntax tree, without comments, docstrings and layout, for the modules that
a stage declares and every module of ours that they import. Two limits, both on purpose: what
libraries do is not part of it, and neither is what carries or shows results and has no say in them.
"""

import ast
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.hashing import canonical, digest
from pipeline.memo import Memo

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("model", "pipeline", "launchers")
# what carries or shows results and has no say in them
ROOMS = ("pipeline.cli", "pipeline.engine", "pipeline.report", "pipeline.store")
BESIDE = (
    *("cards", "compiling", "errors", "fit", "hardware", "hashing", "journal", "machine", "memo"),
    *("memory", "metrics", "opening", "peaks", "preflight", "recipe", "redact", "stage", "team"),
    *("ui", "workers"),
)
_FORMAT = 1  # of what is remembered of a file
# some Pythons 3.11 count how deep they are in a tree once for all threads, and raise SystemError
# when two parse at the same time (python/cpython#106905)
_PARSING = threading.Lock()


def carries(module: str) -> bool:
    """Is the module one of those that carry or show results?"""
    outside = {f"pipeline.{name}" for name in BESIDE}
    return module in outside or any(f"{module}.".startswith(f"{room}.") for room in ROOMS)


def code_digests(modules: Iterable[str], memo: Memo) -> dict[str, str]:
    """Digest of every definition that the modules and what they import of ours consist of.

    Names are ``model/attention.py Attention.forward``; ``(top level)`` is what stands outside
    functions and classes, imports included: they decide what names mean.
    """
    found: dict[str, str] = {}
    waiting, seen = list(modules), set()
    while waiting:
        name = waiting.pop()
        if name in seen or carries(name):
            continue
        seen.add(name)
        path = _source(name)
        described = memo.get(f"code {_FORMAT}", path, _describe)
        shown = path.relative_to(ROOT).as_posix()
        found |= {f"{shown} {unit}": value for unit, value in described["units"].items()}
        waiting += described["imports"]
    return found


def _source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    package = path / "__init__.py"
    return package if package.exists() else path.with_suffix(".py")


def _describe(path: Path) -> dict[str, Any]:
    source = path.read_bytes()
    with _PARSING:
        tree = ast.parse(source, filename=str(path))
    return {"units": units(tree), "imports": sorted(_imports(tree))}


def units(tree: ast.Module) -> dict[str, str]:
    """The digest of each definition in a module by its name."""
    texts: dict[str, list[str]] = {}  # a property and its setter have one name and one digest
    for unit, nodes in _units(tree):
        texts.setdefault(unit, []).append(_dump(nodes))
    return {unit: digest(canonical(dumped)) for unit, dumped in texts.items()}


def _units(tree: ast.Module) -> Iterator[tuple[str, list[Any]]]:
    """(name, nodes) of each function, method, class frame, and the rest of the module."""
    imports, rest = [], []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, [node]
        elif isinstance(node, ast.ClassDef):
            fields = []
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{node.name}.{member.name}", [member]
                else:
                    fields.append(member)
            yield node.name, [node.bases, node.keywords, node.decorator_list, fields]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
        else:
            rest.append(node)
    yield "(top level)", [sorted(imports, key=_dump), rest]


def _dump(node: Any) -> str:
    """A syntax tree as text: no positions, no docstrings, the same on every Python version.

    ``ast.dump`` is not: later versions add fields and leave out empty ones.
    """
    if isinstance(node, list):
        return "[" + ",".join(_dump(item) for item in node if not _is_docstring(item)) + "]"
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields if name != "kind")
        kept = (f"{name}={_dump(value)}" for name, value in fields if value not in (None, []))
        return f"{type(node).__name__}({','.join(kept)})"
    return repr(node)


def _is_docstring(node: Any) -> bool:
    """A bare string does nothing, wherever it stands; comments are not in the tree at all."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _imports(tree: ast.Module) -> set[str]:
    """Our own modules that this one imports, but for those under ``if TYPE_CHECKING``."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "import ours by full name: others go unseen here"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        waiting += ast.iter_child_nodes(node)
    ours = {name for name in found if name.split(".")[0] in PACKAGES}
    return {name for name in ours if _source(name).exists()}
