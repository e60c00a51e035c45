"""HTML fragments with all text escaped."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speech_exp.figures.style import DPI
from speech_exp.runs.bounded_files import read_bytes

MAX_WIDTH_PX = 1200
WIDE_PX = 900  # a wider figure takes a whole row of the page
MAX_PIXELS = 20_000_000


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | None = None  # to sort by, if the text alone does not sort correctly
    link: str | None = None  # id of an element in the page


@dataclass(frozen=True)
class Row:
    cells: Sequence[Cell]
    keys: Sequence[str]  # values that the filters select by
    group: str | None = None  # id of the parts of figures that are faded while the row is filtered out


def escaped(text: str) -> str:
    """Escape text for an element's content or a double-quoted attribute, on one line."""
    return html.escape(" ".join(text.split()), quote=True)


def element(name: str, text: str) -> str:
    return f"<{name}>{escaped(text)}</{name}>"


def row_attributes(keys: Sequence[str], words: Sequence[str]) -> str:
    """Return the attributes that the page's script filters by: data-key0, data-key1, … and the words of the row."""
    values = "".join(f' data-key{at}="{escaped(value)}"' for at, value in enumerate(keys))
    return f'data-row data-words="{escaped(" ".join(words).lower())}"{values}'


def sortable_table(name: str, head: Sequence[str], rows: Sequence[Row], words: int) -> str:
    """Return a sortable table; the first cell of a row is its header, the first `words` columns are left-aligned."""
    titles = "".join(f'<th scope="col"{_class(at < words)}>{escaped(title)}</th>' for at, title in enumerate(head))
    body = "\n".join(_line(row, words) for row in rows)
    table = f'<table id="{name}" class="sortable"><thead><tr>{titles}</tr></thead>\n<tbody>\n{body}\n</tbody></table>'
    return f'<div class="scroll" tabindex="0" role="region" aria-label="table of {name}">{table}</div>'


def _line(row: Row, words: int) -> str:
    attributes = " " + row_attributes(row.keys, [cell.text for cell in row.cells])
    attributes += "" if row.group is None else f' data-group="{row.group}"'
    cells = []
    for at, cell in enumerate(row.cells):
        text = escaped(cell.text)
        if cell.link is not None:  # a run's name, which is broken between its settings if it is long
            text = f'<a href="#{cell.link}">{text.replace(",", ",<wbr>")}</a>'
        value = "" if cell.value is None else f' data-value="{cell.value!r}"'
        start, end = ('<th scope="row"', "th") if at == 0 else ("<td", "td")
        cells.append(f"{start}{_class(at < words)}{value}>{text}</{end}>")
    return f"<tr{attributes}>{''.join(cells)}</tr>"


def _class(words: bool) -> str:
    return ' class="words"' if words else ""


def embedded_drawing(path: Path, alt: str) -> str:
    """Return an SVG file that this process has written, with ids of groups as data-group: they occur in several drawings."""
    svg = path.read_text(encoding="utf-8")
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL).replace(
        ' id="group-', ' data-group="group-'
    )
    width = re.search(r'width="([\d.]+)pt"', svg)
    return _figure(
        f'<svg role="img" aria-label="{escaped(alt)}"{svg.removeprefix("<svg")}',
        float(width[1]) / 0.75 if width else MAX_WIDTH_PX,
    )


def _figure(content: str, width_px: float) -> str:
    """Return a figure; from its width on paper, the page's style knows below which width its text is too small to read."""
    wide = ' class="wide"' if width_px > WIDE_PX else ""
    return f'<figure{wide} style="--width: {width_px:.0f}px">{content}</figure>'


def embedded_figure(path: Path, alt: str) -> str:
    """Return the picture embedded as data, or a message if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(read_bytes(path)), formats=["PNG"]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"it has {picture.width} times {picture.height} pixels")
            small = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return element("p", f"{path.name} cannot be shown: {error}")
    if small.width > MAX_WIDTH_PX:
        small = small.resize(
            (MAX_WIDTH_PX, max(1, round(small.height * MAX_WIDTH_PX / small.width))), Image.Resampling.LANCZOS
        )
    buffer = io.BytesIO()
    small.save(buffer, format="png", optimize=True)  # a reduced palette would merge hues that tell groups apart
    content = base64.b64encode(buffer.getvalue()).decode("ascii")
    size = f'width="{small.width}" height="{small.height}"'
    return _figure(f'<img src="data:image/png;base64,{content}" {size} alt="{escaped(alt)}">', 96 / DPI * picture.width)
