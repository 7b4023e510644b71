"""An option that is a time: 90s, 5m, 1h30m."""

import math
import re
from typing import Any

import click

_FORM = r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?"


class Duration(click.ParamType):
    """Seconds of what ``duration`` reads; ``above`` is what they must be more than."""

    name = "duration"

    def __init__(self, above: float = -math.inf) -> None:
        self.above = above

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            seconds = value if isinstance(value, float) else duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if seconds <= self.above:
            self.fail("it must be longer than nothing", param, ctx)
        return seconds


def duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``5m``, ``1h30m``. Raises ValueError for anything else."""
    match = re.fullmatch(_FORM, text)
    if not text or match is None:
        raise ValueError(f"{text!r} is not a duration: write it as 90s, 5m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def spelled(seconds: float) -> str:
    """A duration as an option takes it: 5400 is 1h30m."""
    minutes, seconds = divmod(round(seconds, 3), 60)
    hours, minutes = divmod(int(minutes), 60)
    parts = [f"{hours}h"] * bool(hours) + [f"{minutes}m"] * bool(minutes)
    rest = f"{seconds:.3f}".rstrip("0").rstrip(".")
    return "".join(parts) + (f"{rest}s" if rest != "0" or not parts else "")
