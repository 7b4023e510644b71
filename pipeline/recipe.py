"""The one configuration: everything that decides the mathematics, and nothing about the machine.

A recipe is a tree of frozen dataclasses. It starts from a size's TOML file in ``recipes/``, may be
laid over by a file of one's own (``--recipe``) and by single settings (``--set train.lr=3e-4``).
Every key and value is checked here; an unknown key is answered with the nearest known one.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.config import SIZES, ModelConfig, TrainConfig
from pipeline.machine import Machine

RECIPES = Path(__file__).parent / "recipes"
NAMED = ("classic",)  # those in it that are no size's
MANY = 50  # passes over a text, from where they are worth a word


@dataclass(frozen=True)
class DataConfig:
    """Which text, and how it is split."""

    # where the text lies; not part of any key, because the digest of its content is
    source: str = field(default="python-stdlib", metadata={"keyed": False})
    text_field: str = "text"  # the field or column of jsonl and parquet that holds the text
    validation: float = 0.1  # share of the bytes (one text) or documents (many) held out
    on_invalid: str = "error"  # invalid UTF-8: error, replace (by U+FFFD), or skip the document

    def __post_init__(self) -> None:
        if not 0 < self.validation < 1:
            raise ValueError(
                f"data.validation = {self.validation} is out of range: it must be between 0 and 1"
            )
        if self.on_invalid not in ("error", "replace", "skip"):
            raise ValueError(
                f"data.on_invalid = {self.on_invalid!r}: it must be error, replace or skip"
            )


@dataclass(frozen=True)
class TokenizerConfig:
    """How many tokens to learn, and from how much evidence."""

    vocab_size: int = 32_000
    min_pair_count: int = 2  # a pair that occurs less often is not merged

    def __post_init__(self) -> None:
        if not 258 <= self.vocab_size <= 1 << 20:
            raise ValueError(
                f"tokenizer.vocab_size = {self.vocab_size} is out of range: it must be at least "
                "258 (256 bytes, end-of-text and one merge) and at most 1,048,576"
            )
        if self.min_pair_count < 1:
            raise ValueError(
                f"tokenizer.min_pair_count = {self.min_pair_count}: it must be at least 1"
            )


@dataclass(frozen=True)
class EvaluateConfig:
    """Which weights are measured. The protocol itself is fixed: see model/evaluate.py."""

    weights: str = "last"

    def __post_init__(self) -> None:
        if self.weights not in ("last", "best"):
            raise ValueError(f"evaluate.weights = {self.weights!r}: it must be last or best")


@dataclass(frozen=True)
class SampleConfig:
    """The four samples at the end of a run."""

    prompt: str = ""  # empty: the first words of the validation split
    tokens: int = 120
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("tokens", 1, 1_000_000),
            ("temperature", 0, 100),
            ("top_k", 1, 1 << 20),
            ("top_p", 1e-6, 1),
            ("seed", 0, 1 << 62),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"sample.{name} = {getattr(self, name)} is out of range: "
                    f"it must be between {low} and {high}"
                )


@dataclass(frozen=True)
class Recipe:
    """All sections. ``size`` is a name for people; what it stands for is in ``model``."""

    size: str
    data: DataConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    sample: SampleConfig

    def settings(self, sections: Iterable[str]) -> dict[str, Any]:
        """``section.field`` -> value of what belongs into the key of who reads these sections."""
        return {
            f"{section}.{item.name}": getattr(getattr(self, section), item.name)
            for section in sections
            for item in dataclasses.fields(getattr(self, section))
            if item.metadata.get("keyed", True)
        }

    def tree(self) -> dict[str, Any]:
        """The whole recipe as plain JSON values; ``from_tree`` reads it back."""
        return dataclasses.asdict(self)


# options of the command line that people look for in the recipe
_OF_THE_MACHINE = {item.name for item in dataclasses.fields(Machine)} - {"checkpoint_seconds"}
_OF_THE_MACHINE |= {"checkpoint_every", "stop_after"}

_SECTIONS = {
    "data": DataConfig,
    "tokenizer": TokenizerConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "sample": SampleConfig,
}


def load(
    size: str | None = None,
    file: Path | None = None,
    data: str | None = None,
    settings: Iterable[str] = (),
) -> Recipe:
    """The recipe of a size, laid over by a TOML file, a data source and ``key=value`` settings.

    ``file`` may also be the name of one of ours, ``classic``.

    Raises ValueError that names the file, the key, the value and what is allowed.
    """
    laid_over = _read(_named(file)) if file else {}
    size = size or laid_over.pop("size", None) or "tiny"
    laid_over.pop("size", None)
    if not isinstance(size, str) or size not in SIZES:
        raise ValueError(f"unknown size {size!r}: choose one of {', '.join(SIZES)}")
    tree: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
    tree["model"] = dataclasses.asdict(SIZES[size])
    _merge(tree, _read(RECIPES / f"{size}.toml"), f"recipes/{size}.toml")
    _merge(tree, laid_over, str(file))
    if data is not None:
        tree["data"]["source"] = data
    for setting in settings:
        _set(tree, setting)
    try:
        return from_tree({"size": size, **tree})
    except ValueError as error:
        key = str(error).split(" ")[0]
        section, _, name = key.partition(".")
        values, typed = laid_over.get(section), {each.partition("=")[0] for each in settings}
        if isinstance(values, dict) and name in values and key not in typed:
            raise ValueError(f"{file}: {error}") from None
        raise


def changed(base: Recipe, settings: Iterable[str]) -> Recipe:
    """``base`` with ``key=value`` settings laid over it. Raises ValueError as ``load`` does."""
    tree = base.tree()
    for setting in settings:
        _set(tree, setting)
    return from_tree(tree)


def from_tree(tree: dict[str, Any]) -> Recipe:
    """A recipe from what ``Recipe.tree`` gave."""
    sections = {name: kind(**tree[name]) for name, kind in _SECTIONS.items()}
    return Recipe(size=tree["size"], **sections)


def _named(file: Path) -> Path:
    """The file itself, or ours of that name if there is none."""
    ours = RECIPES / f"{file}.toml"
    return ours if str(file) in NAMED and not file.exists() else file


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"there is no recipe file {path}: give the path of one, or {' or '.join(NAMED)}"
        ) from None
    except OSError as error:
        raise ValueError(f"cannot read the recipe file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error


def _merge(tree: dict[str, dict[str, Any]], given: dict[str, Any], origin: str) -> None:
    for section, values in given.items():
        if not isinstance(values, dict):
            if section in _OF_THE_MACHINE:
                raise ValueError(f"{origin}: {_of_the_machine(section, section)}")
            near = None if section in _SECTIONS else _nearest("", section, _keys())
            if near is None:
                raise ValueError(f"{origin}: {section} must be a section, such as [train]")
            raise ValueError(f"{origin}: {section} must stand in a section: did you mean {near}?")
        for name, value in values.items():
            try:
                tree_section, item = _field(f"{section}.{name}")
                tree[tree_section][item.name] = _checked(f"{section}.{name}", item, value)
            except ValueError as error:
                raise ValueError(f"{origin}: {error}") from None


def _set(tree: dict[str, dict[str, Any]], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals:
        raise ValueError(f"--set {setting}: write it as section.key=value, such as train.lr=3e-4")
    key = key.strip()
    section, item = _field(key)
    value = _parsed(text.strip())
    if item.type is str and not isinstance(value, str):
        value = text.strip()  # a prompt of 1.50 is neither 1.5 nor a number
    tree[section][item.name] = _checked(key, item, value)


def _keys() -> dict[str, tuple[str, dataclasses.Field]]:
    return {
        f"{section}.{item.name}": (section, item)
        for section, kind in _SECTIONS.items()
        for item in dataclasses.fields(kind)
    }


def _field(key: str) -> tuple[str, dataclasses.Field]:
    known = _keys()
    if key in known:
        return known[key]
    section, _, name = key.rpartition(".")
    if name in _OF_THE_MACHINE:
        raise ValueError(_of_the_machine(key, name))
    if near := _nearest(section, name, known):
        hint = f"did you mean {near}?"
    elif section in _SECTIONS:
        names = (item.name for item in dataclasses.fields(_SECTIONS[section]))
        hint = f"{section} has {', '.join(names)}"
    else:
        hint = f"sections are {', '.join(_SECTIONS)}"
    raise ValueError(f"unknown setting {key!r}: {hint}")


def _of_the_machine(key: str, name: str) -> str:
    option = f"--{name.replace('_', '-')}"
    return f"unknown setting {key!r}: it is no matter of the recipe but of the machine: {option}"


def _nearest(section: str, name: str, known: Iterable[str]) -> str | None:
    """The key that may have been meant: the name in another section, or one like it in this."""
    inside = [full for full in known if full.startswith(f"{section}.")] or list(known)
    names = [full.partition(".")[2] for full in inside]
    like = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    found = [full for full in known if full.endswith(f".{name}")] or [
        full for full in inside for near in like if full.endswith(f".{near}")
    ]
    closest = difflib.get_close_matches(f"{section}.{name}", found, n=1, cutoff=0)
    return closest[0] if closest else None


def _parsed(text: str) -> Any:
    """A value as TOML reads it; what TOML does not know is a string, so quotes are optional."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _checked(key: str, item: dataclasses.Field, value: Any) -> Any:
    kind = item.type
    if kind is float and type(value) is int:
        value = float(value)
    if kind is int and type(value) is float and value.is_integer():
        value = int(value)  # 1e4
    if type(value) is not kind:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise ValueError(f"{key} = {value!r}: it must be {words[kind]}")
    if (kind is float and value != value) or value in (float("inf"), float("-inf")):
        raise ValueError(f"{key} = {value!r}: it must be a finite number")
    if kind is int and abs(value) >= 1 << 63:
        raise ValueError(f"{key} = {value!r} is out of range: it must be below 2^63")
    return value
