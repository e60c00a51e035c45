"""Common style of all figures: fonts, the Okabe-Ito palette (distinguishable for colour-blind readers), file output."""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from speech_exp.files import write_bytes

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
MODEL_COLOURS = {"gru": BLUE, "lstm": VERMILLION, "lmu": GREEN}  # the same in all figures
PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK, YELLOW)
FREE_COLOURS = tuple(colour for colour in PALETTE if colour not in MODEL_COLOURS.values())  # for all that is no model
LINE_STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
TITLE_LINE_IN = 0.19
TITLE: dict[str, Any] = {"fontsize": 10.0, "fontweight": "bold"}
GREY = "#8A8A8A"
PALE = "#F4F5F6"
TEXT = "#222222"

RC: Any = {  # Any, because only newer Matplotlib types the keys as a Literal
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


@styled
def save_with_svg(figure: Figure, path: Path) -> Path:
    """Write the PNG file `path`, and beside it the same figure as SVG, in which `group_id` names what belongs to a group."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.hashsalt": path.stem}):  # the same bytes each time
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    write_bytes(path.with_suffix(".svg"), text.getvalue().encode())
    return save(figure, path)


def group_id(label: str) -> str:
    """Return the id of the parts of a figure that show the group with this label."""
    return f"group-{hashlib.sha256(label.encode()).hexdigest()[:12]}"


def model_colours(models: Iterable[str]) -> dict[str, str]:
    """Return the colour of each model; models without a fixed colour share the rest of the palette."""
    others = [model for model in dict.fromkeys(models) if model not in MODEL_COLOURS]
    return MODEL_COLOURS | {model: FREE_COLOURS[at % len(FREE_COLOURS)] for at, model in enumerate(others)}


def setting_style(index: int) -> dict[str, Any]:
    """Return colour, line and marker of the setting `index`; the first 20 all differ, and none has the colour of a model."""
    turn = index // len(FREE_COLOURS)
    return {
        "color": FREE_COLOURS[index % len(FREE_COLOURS)],
        "linestyle": LINE_STYLES[turn % len(LINE_STYLES)],
        "marker": MARKERS[(index + turn) % len(MARKERS)],
    }


def shades(colour: str, strongest: float = 1.0) -> LinearSegmentedColormap:
    """Return a colour map from white to `colour`, or to a mix of both; up to about 0.6, dark text is readable everywhere."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    red, green, blue = (1 - strongest * (1 - part) for part in to_rgb(colour))
    return LinearSegmentedColormap.from_list(f"white_to_{colour}", [(1.0, 1.0, 1.0), (red, green, blue)])


def ink_on(rgba: Sequence[float]) -> str:
    """Return black or white, whichever reads better on the colour (relative luminance of WCAG 2.1)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgba[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return TEXT if luminance > 0.25 else "#FFFFFF"


def text_width_in(figure: Figure, text: str, **font: Any) -> float:
    """Return the width in inches of a line of text in this figure."""
    artist: Text = figure.text(0, 0, text, **font)
    width = artist.get_window_extent().width
    artist.remove()
    return float(width) / figure.dpi


def wrap(probe: Figure, text: str, room: float, **font: Any) -> list[str]:
    """Split text into lines of at most `room` inches; a word that is too long is cut."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width_in(probe, longer, **font) <= room:
            lines[-1] = longer
            continue
        while text_width_in(probe, word, **font) > room:
            cut = len(word) - 1
            while cut > 1 and text_width_in(probe, word[:cut], **font) > room:
                cut -= 1
            lines.append(word[:cut])
            word = word[cut:]
        lines.append(word)
    return lines or [""]


def set_title(figure: Figure, *lines: str) -> None:
    """Set the title of a figure, with each line wrapped to the figure's width; the figure grows by the lines after the first."""
    room_in = figure.get_figwidth() - 0.3
    wrapped = [part for line in lines for part in wrap(new_figure(1, 1), line, room_in, **TITLE)]
    figure.suptitle("\n".join(wrapped), **TITLE)
    figure.set_figheight(figure.get_figheight() + TITLE_LINE_IN * (len(wrapped) - 1))


def shorten(text: str, limit: int = 28) -> str:
    """Cut text in its middle to `limit` characters: the names in a sweep differ at both ends."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[-(limit - 1 - head) :]}"


def integer_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def logarithmic_ticks(axes: Axes) -> None:
    """Mark at most about seven round values on the logarithmic x axis; the steps are finer if its limits are close together."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = axes.get_xlim()
    inside: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(n / 10 for n in range(10, 100))):
        ticks = [step * 10.0**power for power in range(-12, 13) for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            break
    axes.xaxis.set_major_locator(FixedLocator(inside[:: -(-len(inside) // 7)] if len(inside) >= 3 else [low, high]))
    axes.xaxis.set_minor_locator(NullLocator())
