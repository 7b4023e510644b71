"""One page about one run, to show or to keep: what was trained, how well, from what, and by whom.

The page is a single file that needs no network, no script and no font. It holds nothing that is
not in the store, no time of writing either: the same results make the same bytes. Of a run that is
not finished it shows what there is and says what is missing.
"""

import os
from pathlib import Path

from pipeline.engine.engine import Engine
from pipeline.report.curves import require_matplotlib
from pipeline.report.facts import gather
from pipeline.report.page import page


def write_report(engine: Engine, output: Path) -> None:
    """Write the page about the engine's recipe to ``output``, whole or not at all.

    Raises ValueError if there is nothing to tell yet, matplotlib is missing or ``output`` cannot
    be written, StoreError if the bytes of a result are damaged.
    """
    if not output.parent.is_dir():
        raise ValueError(
            f"cannot write {output}: there is no directory {output.parent}. Make it, or name "
            "another file with --output"
        )
    require_matplotlib()
    text = page(gather(engine))
    temporary = output.parent / f".{output.name}.{os.getpid()}"
    try:
        try:
            # a file name may hold bytes that are no characters, which UTF-8 cannot write
            temporary.write_bytes(text.encode("utf-8", errors="replace"))
            os.replace(temporary, output)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot write {output}: {error.strerror}. Name another file with --output"
        ) from error
