"""Make the texts that bench/tokenizer.py learns from, out of public repositories.

    python bench/corpora.py --clones FOLDER --to FOLDER

`english.txt`: proposals, a manual and classic books, 100 MB. `multilingual.txt`: bibles in a
hundred languages, 100 MB or what there is. `stdlib.txt`: the sources of the running Python's
standard library. Each is UTF-8; what there is of a repository depends on the day it was cloned, so
the script says of each text its size and sha256, and of each repository its commit.
"""

import argparse
import hashlib
import html
import io
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LARGEST = 100_000_000  # bytes of a text
# (owner, name, suffix of its files)
ENGLISH = [
    ("python", "peps", ".rst"),
    ("rust-lang", "rfcs", ".md"),
    ("rust-lang", "book", ".md"),
    ("ethereum", "EIPs", ".md"),
    ("mlschmitt", "classic-books-markdown", ".md"),
]
BIBLES = [("christos-c", "bible-corpus", ".xml"), ("seven1m", "open-bibles", ".xml")]
_TAG, _BLANK_LINES = re.compile(r"<[^>]*>"), re.compile(r"\s*\n\s*")


def missing(clones: Path) -> list[str]:
    """The commands that bring the repositories that are not in the folder."""
    return [
        f"git clone --depth 1 https://github.com/{owner}/{name} {clones / name}"
        for owner, name, _ in ENGLISH + BIBLES
        if not (clones / name).is_dir()
    ]


def git(clone: Path, *words: str, given: bytes = b"") -> bytes:
    command = ["git", "-C", str(clone), *words]
    return subprocess.run(command, input=given, capture_output=True, check=True).stdout


def files(clone: Path, suffix: str) -> Iterator[str]:
    """The texts of a repository's files, in the order of their paths; a bare one will do.

    What is no UTF-8 is left out, and what a partial clone lacks.
    """
    entries = git(clone, "ls-tree", "-r", "-z", "HEAD").decode().split("\0")
    found = [entry.split()[2] for entry in entries if entry.endswith(suffix)]
    told = io.BytesIO(git(clone, "cat-file", "--batch", given="\n".join(found).encode()))
    while head := told.readline().split():
        if head[-1] == b"missing":
            continue
        text = told.read(int(head[2]) + 1)[:-1]
        try:
            yield text.decode()
        except UnicodeDecodeError:
            continue


def without_tags(text: str) -> str:
    """What an XML file says, a line for each line that says something."""
    body = text.partition("</cesHeader>")[2] or text
    return _BLANK_LINES.sub("\n", html.unescape(_TAG.sub("\n", body))).strip() + "\n"


def sources() -> Iterator[str]:
    """The standard library's modules; not what is installed beside it, nor what tests read."""
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*.py")):
        if not {"site-packages", "data"} & {*path.relative_to(folder).parts}:
            try:
                yield path.read_bytes().decode()
            except UnicodeDecodeError:
                continue


def write(path: Path, texts: Iterator[str]) -> None:
    """Join the texts, up to the end of the last line that fits."""
    whole = bytearray()
    for text in texts:
        whole += text.encode()
        if len(whole) > LARGEST:
            del whole[whole.rindex(b"\n", 0, LARGEST) + 1 :]
            break
    path.write_bytes(whole)
    print(f"{path.name}: {len(whole):,} bytes, sha256 {hashlib.sha256(whole).hexdigest()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clones", type=Path, required=True, help="where the repositories are")
    parser.add_argument("--to", type=Path, required=True, help="where the texts go")
    options = parser.parse_args()
    if commands := missing(options.clones):
        sys.exit("repositories are missing; bring them with\n" + "\n".join(commands))
    options.to.mkdir(parents=True, exist_ok=True)
    for owner, name, _ in ENGLISH + BIBLES:
        commit = git(options.clones / name, "rev-parse", "HEAD").decode().strip()
        print(f"{owner}/{name}: commit {commit}")
    english = (text for _, name, end in ENGLISH for text in files(options.clones / name, end))
    bibles = (text for _, name, end in BIBLES for text in files(options.clones / name, end))
    write(options.to / "english.txt", english)
    write(options.to / "multilingual.txt", map(without_tags, bibles))
    write(options.to / "stdlib.txt", sources())


if __name__ == "__main__":
    main()
