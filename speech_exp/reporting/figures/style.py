"""One look for all figures: fonts, the Okabe-Ito palette (told apart by colour-blind readers), writing of files."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from speech_exp.reporting.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.text import Text

P = ParamSpec("P")
R = TypeVar("R")

DPI = 160
# Okabe & Ito 2008, "Color universal design"; yellow comes last because lines in it are weak on white.
BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE, BLACK, YELLOW = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#56B4E9",
    "#CC79A7",
    "#222222",
    "#D4C400",
)
PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK, YELLOW)
LINE_STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#8A8A8A"
PALE = "#F4F5F6"
TEXT = "#222222"

RC: Any = {  # Any: its keys are a Literal type in newer Matplotlib alone
    "font.family": "DejaVu Sans",  # ships with Matplotlib: the same figure on every system
    "font.size": 9.0,
    "text.color": TEXT,
    "text.parse_math": False,  # a class may be named "$"
    "axes.labelcolor": TEXT,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E3E5E8",
    "grid.linewidth": 0.7,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "figure.titlesize": 11.0,
    "figure.titleweight": "bold",
    "savefig.facecolor": "white",
}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function under this module's settings and restore Matplotlib's own afterwards."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        from matplotlib import rc_context

        with rc_context(RC):
            return draw(*args, **kwargs)

    return wrapper


def new_figure(width_in: float, height_in: float, constrained: bool = True) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    return figure


@styled
def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return write_bytes(Path(path), buffer.getvalue())


def series_style(index: int) -> dict[str, Any]:
    """Colour, line and marker of the series `index`; no two of the first 32 are the same."""
    turn = index // len(PALETTE)
    return {
        "color": PALETTE[index % len(PALETTE)],
        "linestyle": LINE_STYLES[turn % len(LINE_STYLES)],
        "marker": MARKERS[(index + turn) % len(MARKERS)],
    }


def shades(colour: str, strongest: float = 1.0) -> LinearSegmentedColormap:
    """Colour map from white to `colour`, or to a mix of both; up to about 0.6 dark text reads well on all of it."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    red, green, blue = (1 - strongest * (1 - part) for part in to_rgb(colour))
    return LinearSegmentedColormap.from_list(f"white_to_{colour}", [(1.0, 1.0, 1.0), (red, green, blue)])


def ink_on(rgba: Sequence[float]) -> str:
    """Black or white, whichever reads better on the colour (relative luminance of WCAG 2.1)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgba[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return TEXT if luminance > 0.25 else "#FFFFFF"


def text_width_in(figure: Figure, text: str, **font: Any) -> float:
    """Width in inches that a line of text takes in this figure."""
    artist: Text = figure.text(0, 0, text, **font)
    width = artist.get_window_extent().width
    artist.remove()
    return float(width) / figure.dpi


def shorten(text: str, limit: int = 28) -> str:
    """Text cut in its middle to `limit` characters: names of a sweep differ at both ends."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[-(limit - 1 - head) :]}"


def integer_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
