"""What a stage's result depends on, as one hash that can be explained.

The key of a stage is the sha256 of a *record*: canonical JSON of the stage's name and version, the
digests of the code it depends on, the recipe's fields that it reads, and the digests of the bytes
it takes in. Same record, same key, same result: nothing to do. The record itself is kept beside the
result, so that two keys can be compared and the difference named (``differences``).

Code is digested definition by definition from its syntax tree, without comments, docstrings and
layout, for the modules that a stage declares and every module of ours that they import. Two
limits, both on purpose: what libraries do is not part of it, and neither is the engine itself,
because it carries bytes and never changes them.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.memo import Memo

FORMAT = 1  # of records: a change here re-runs everything, everywhere
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("model", "pipeline", "launchers")
# carries or shows results and has no say in them
_ENGINE = (
    "beat cli courier disk engine errors gc keys locks log machine memo places recipe redact "
    "remote remote_errors report stage storage store transfer ui work"
)
ENGINE = frozenset(f"pipeline.{name}" for name in _ENGINE.split())


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(value: Any) -> bytes:
    """One byte string per value: sorted keys, no spaces, ASCII; NaN and infinity are refused."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record(
    stage: str, version: int, code: dict[str, str], recipe: dict[str, Any], inputs: dict[str, str]
) -> dict[str, Any]:
    """All that decides a stage's result. Every record says what it is and in which format."""
    return {
        "type": "ignite stage",
        "format": FORMAT,
        "stage": stage,
        "version": version,
        "code": code,
        "recipe": recipe,
        "inputs": inputs,
    }


def key(record: dict[str, Any]) -> str:
    return digest(canonical(record))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each thing in which two records of a stage differ, settings first."""
    lines = []
    for part, word in (("recipe", ""), ("inputs", "input "), ("code", "code ")):
        before, after = old.get(part, {}), new.get(part, {})
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) == after.get(name):
                continue
            was, now = (_shown(part, side.get(name)) for side in (before, after))
            lines.append(f"{word}{name} {was} -> {now}" if part != "code" else f"{word}{name}")
    lines += [
        f"{name} {old.get(name)} -> {new.get(name)}"
        for name in ("format", "version")
        if old.get(name) != new.get(name)
    ]
    return lines


def _shown(part: str, value: Any) -> str:
    if value is None:
        return "(none)"
    return value[:8] if part == "inputs" else json.dumps(value)


def code_digests(modules: Iterable[str], memo: Memo) -> dict[str, str]:
    """Digest of every definition that the modules and what they import of ours consist of.

    Names are ``model/attention.py Attention.forward``; ``(top level)`` is what stands outside
    functions and classes, imports included: they decide what names mean.
    """
    found: dict[str, str] = {}
    waiting, seen = list(modules), set()
    while waiting:
        name = waiting.pop()
        if name in seen or name in ENGINE:
            continue
        seen.add(name)
        path = _source(name)
        described = memo.get(f"code {FORMAT}", path, _describe)
        shown = path.relative_to(ROOT).as_posix()
        found |= {f"{shown} {unit}": value for unit, value in described["units"].items()}
        waiting += described["imports"]
    return found


def _source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    package = path / "__init__.py"
    return package if package.exists() else path.with_suffix(".py")


def _describe(path: Path) -> dict[str, Any]:
    tree = ast.parse(path.read_bytes(), filename=str(path))
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
