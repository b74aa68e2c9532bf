"""One look for all pictures: colours, type, frames, and how a figure becomes a file.

Figures are made from `matplotlib.figure.Figure` and drawn by the Agg canvas. pyplot, rcParams and the backend that a
program has chosen are left alone, so that a picture can be written from any thread or notebook.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sinkscope.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WIDTH_PIXELS = 1600
DPI = 160

INK, MUTED, FAINT, PAPER = "#1f2933", "#616e7c", "#d5dbe1", "#ffffff"
ORDINARY = "#8a97a5"
BAND = "#eef2f6"
SAFE = "#dcefe8"
# Okabe and Ito's colours, which people with any common colour blindness can tell apart; black and yellow left out.
SINK_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
POPULATION_COLOURS = {
    "first token": "#d55e00",
    "special": "#cc79a7",
    "visual": "#0072b2",
    "text": ORDINARY,
}
TITLE_SIZE, SUBTITLE_SIZE, LABEL_SIZE, TICK_SIZE, NOTE_SIZE = 15.0, 10.5, 10.5, 9.5, 9.0


def require_matplotlib() -> None:
    """Stop with the remedy where matplotlib is missing.

    Raises
    ------
    InputError
        If matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise InputError("pictures need matplotlib; install it with pip install 'sinkscope[plots]'") from error


def new_figure(height: float) -> "Figure":
    """An empty figure, 1600 pixels wide and `height` inches (of 160 pixels) high.

    Raises
    ------
    InputError
        If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_PIXELS / DPI, height), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def add_heading(figure: "Figure", finding: str, detail: str) -> None:
    """The finding as the title, and one quieter line on what is shown; both left-aligned above the axes."""
    left, height = 0.02, figure.get_figheight()
    finding, room = shorten(finding, 110), 78
    figure.text(
        left,
        1 - 0.16 / height,
        finding,
        ha="left",
        va="top",
        fontsize=TITLE_SIZE * min(1.0, room / max(len(finding), 1)),
        fontweight="bold",
        color=INK,
        parse_math=False,
    )
    figure.text(
        left,
        1 - 0.52 / height,
        shorten(detail, 135),
        ha="left",
        va="top",
        fontsize=SUBTITLE_SIZE,
        color=MUTED,
        parse_math=False,
    )


def style_axes(axes: "Axes", *, grid: Literal["x", "y"] | None = "y") -> None:
    """Two quiet spines, small ticks, and at most one direction of grid lines."""
    axes.set_facecolor(PAPER)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
        axes.spines[side].set_linewidth(0.8)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=TICK_SIZE, width=0.8, length=3.5)
    axes.tick_params(which="minor", length=0)
    axes.xaxis.label.set(size=LABEL_SIZE, color=INK)
    axes.yaxis.label.set(size=LABEL_SIZE, color=INK)
    if grid is not None:
        axes.grid(axis=grid, color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)


def add_legend(axes: "Axes", **settings: Any) -> None:
    """A legend without a frame, in the size of the notes."""
    axes.legend(**{"frameon": False, "fontsize": NOTE_SIZE, "labelcolor": INK, "handlelength": 1.8, **settings})


def sink_colour(rank: int) -> str:
    """The colour of the `rank`-th sink dimension, the same in every picture."""
    return SINK_COLOURS[rank % len(SINK_COLOURS)]


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart: the given positions, each at least `gap` from the next, within [low, high].

    The order is kept; where there is no room for all, they are spaced evenly.
    """
    if not positions:
        return []
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    gap = min(gap, (high - low) / max(len(positions) - 1, 1))
    placed: list[float] = []
    for index in order:
        floor = placed[-1] + gap if placed else low
        placed.append(max(min(max(positions[index], low), high), floor))
    for index in range(len(placed) - 1, -1, -1):
        ceiling = placed[index + 1] - gap if index + 1 < len(placed) else high
        placed[index] = min(placed[index], ceiling)
    result = [0.0] * len(positions)
    for place, index in enumerate(order):
        result[index] = placed[place]
    return result


def shorten(text: str, length: int) -> str:
    """The text on one line without control characters, cut to `length` characters with an ellipsis."""
    text = clean(text)
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def clean(text: str) -> str:
    """The text on one line, its control characters replaced, so that it cannot steer a terminal."""
    return "".join(character if character.isprintable() else "�" for character in " ".join(text.split()))


def name_dimensions(dims: Sequence[int], limit: int = 4) -> str:
    """ "Dimension 507", "Dimensions 1415 and 2533", or with a count where there are many."""
    if len(dims) == 1:
        return f"Dimension {dims[0]}"
    shown = [str(dim) for dim in dims[:limit]]
    if len(dims) > limit:
        return f"Dimensions {', '.join(shown)} and {len(dims) - limit} more"
    return f"Dimensions {', '.join(shown[:-1])} and {shown[-1]}"


def format_number(value: float, _position: object = None) -> str:
    """A number without exponents, in three digits: 0.01, 5, 300, 24.9k, 3M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def layer_ticks(axes: "Axes", depth: int) -> None:
    """Whole numbers below an axis of layers 0 to `depth`."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(-0.5, depth + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    axes.set_xlabel("layer (the hidden state entering it)")


def log_ticks(axis: "Axis") -> None:
    """Plain numbers on a logarithmic axis whose limits are set: one a decade or fewer, more where it is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    short = low > 0 and high / low < 300
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if short else (1.0,), numticks=8))
    axis.set_major_formatter(FuncFormatter(format_number))
    axis.set_minor_formatter(NullFormatter())


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> Path:
    """Draw the figure into a PNG file, whole or not at all, and return its path.

    Raises
    ------
    InputError
        If the folder does not exist or cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        # The date is left out so that the same numbers give the same file.
        with warnings.catch_warnings():
            # An answer may be in a script that the font lacks; its boxes need no line on stderr as well.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(partial, format="png", dpi=DPI, facecolor=PAPER, metadata={"Software": "sinkscope"})
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"cannot write the picture {path}: {error.strerror or error}; choose another place") from error
    return path
