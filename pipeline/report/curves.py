"""The loss curves as one SVG that takes its colours and its font from the page around it.

Matplotlib draws with stand-in colours, which are then replaced by CSS variables: the same picture
serves light, dark and paper. Same history, same bytes: no date, fixed ids. Cost: about a second,
nearly all of it the import, and at most some 80 KB: of a long run only each stretch's lowest and
highest loss are drawn (1,000 points).
"""

import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STRETCHES = 500
# stand-in -> CSS variable; no other thing in the picture has these colours
_INK, _QUIET, _ACCENT, _FAINT = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {_INK: "ink", _QUIET: "quiet", _ACCENT: "accent", _FAINT: "faint"}
_STYLE = {
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _QUIET,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "font.size": 11.5,
    "grid.color": _FAINT,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text, in the reader's own font
    "svg.hashsalt": "ignite",
    "text.color": _INK,
    "xtick.color": _FAINT,
    "xtick.labelcolor": _QUIET,
    "ytick.color": _FAINT,
    "ytick.labelcolor": _QUIET,
}


def require_matplotlib() -> None:
    """Raises ValueError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(
            "the report's curves need matplotlib: pip install 'ignite-llm[report]'"
        ) from None


def curves(history: dict[str, Any], steps: int, bits_per_nat: float) -> str:
    """An ``<svg>`` element of a training history: losses per step, looks at the validation split.

    ``steps`` is where the run ends, ``bits_per_nat`` what turns nats per validation token into
    bits per byte. Call ``require_matplotlib`` first.
    """
    import matplotlib
    from matplotlib.figure import Figure

    losses = np.asarray(history["losses"], dtype=np.float64)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        _draw(axes, losses, history["validation"])
        _label(axes, steps, bits_per_nat)
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return _inline(file.getvalue())


def _draw(axes: "Axes", losses: np.ndarray, looks: list[dict[str, Any]]) -> None:
    at = outline(losses)
    axes.plot(at + 1, losses[at], color=_FAINT, linewidth=0.8, label="training, each step")
    at = np.linspace(0, len(losses) - 1, min(len(losses), 2 * _STRETCHES)).round().astype(int)
    axes.plot(at + 1, smooth(losses)[at], color=_INK, linewidth=1.3, label="training, smoothed")
    if looks:
        points = [(look["step"], look["loss"]) for look in looks]
        axes.plot(*zip(*points), "o", color=_ACCENT, markersize=3.6, label="validation")
        step, loss = min(points, key=lambda point: point[1])
        told = f"best: {loss:.3f} at step {step:,}"
        ring = {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.4}
        axes.plot([step], [loss], "o", color=_ACCENT, label=told, **ring)


def _label(axes: "Axes", steps: int, bits_per_nat: float) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, steps * 1.01)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    right = axes.secondary_yaxis(
        "right", functions=(lambda nats: nats * bits_per_nat, lambda bits: bits / bits_per_nat)
    )
    right.set_ylabel("bits per byte of validation text")
    axes.legend(loc="upper right")


def _inline(svg: str) -> str:
    svg = svg[svg.index("<svg") :].rstrip()
    for stand_in, name in _VARIABLES.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return svg.replace("<svg", '<svg role="img" aria-label="loss curves"', 1)


def smooth(losses: np.ndarray) -> np.ndarray:
    """The mean over up to 1% of the steps on either side of each step.

    At the start it reaches as far back as ahead, so the steep fall is not bent; at the end it
    reaches back only, so the last step alone does not make the curve's end.
    """
    count = len(losses)
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    at = np.arange(count)
    reach = np.minimum(max(2, count // 100), at)
    first, end = at - reach, np.minimum(at + reach + 1, count)
    return (sums[end] - sums[first]) / (end - first)


def outline(losses: np.ndarray) -> np.ndarray:
    """Indices to draw: all of a short run; of each stretch of a long one its two extremes."""
    if len(losses) <= 2 * _STRETCHES:
        return np.arange(len(losses))
    stretches = np.array_split(np.arange(len(losses)), _STRETCHES)
    extremes = [part[pick(losses[part])] for part in stretches for pick in (np.argmin, np.argmax)]
    return np.unique(extremes)
