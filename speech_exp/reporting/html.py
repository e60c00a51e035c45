"""Pieces of HTML, all text escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_WIDTH_PX = 1200
COLOURS = 128  # plots have few: a palette takes a third of the bytes


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | None = None  # sorts the cell where the text alone does not
    link: str | None = None  # id of a place in the page


@dataclass(frozen=True)
class Row:
    cells: Sequence[Cell]
    keys: Sequence[str] | None  # values that the filters choose by; None: no filter acts on it


def escaped(text: str) -> str:
    """Text for an element's content or a double-quoted attribute, on one line."""
    return html.escape(" ".join(text.split()), quote=True)


def element(name: str, text: str) -> str:
    return f"<{name}>{escaped(text)}</{name}>"


def row_attributes(keys: Sequence[str], words: Sequence[str]) -> str:
    """What the page's script filters by: data-key0, data-key1, … and the words of the row."""
    values = "".join(f' data-key{at}="{escaped(value)}"' for at, value in enumerate(keys))
    return f'data-row data-words="{escaped(" ".join(words).lower())}"{values}'


def sortable_table(name: str, head: Sequence[str], rows: Sequence[Row], words: int) -> str:
    """The first cell of a row is its header; the first `words` columns are aligned left."""
    titles = "".join(f'<th scope="col"{_class(at < words)}>{escaped(title)}</th>' for at, title in enumerate(head))
    body = "\n".join(_line(row, words) for row in rows)
    table = f'<table id="{name}" class="sortable"><thead><tr>{titles}</tr></thead>\n<tbody>\n{body}\n</tbody></table>'
    return f'<div class="scroll" tabindex="0" role="region" aria-label="table of {name}">{table}</div>'


def _line(row: Row, words: int) -> str:
    attributes = "" if row.keys is None else " " + row_attributes(row.keys, [cell.text for cell in row.cells])
    cells = []
    for at, cell in enumerate(row.cells):
        text = escaped(cell.text)
        text = text if cell.link is None else f'<a href="#{cell.link}">{text}</a>'
        value = "" if cell.value is None else f' data-value="{cell.value!r}"'
        start, end = ('<th scope="row"', "th") if at == 0 else ("<td", "td")
        cells.append(f"{start}{_class(at < words)}{value}>{text}</{end}>")
    return f"<tr{attributes}>{''.join(cells)}</tr>"


def _class(words: bool) -> str:
    return ' class="words"' if words else ""


def embedded_figure(path: Path, alt: str) -> str:
    """The picture within the page; of one that cannot be read, words that say so."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
    except OSError as error:
        return element("p", f"{path.name} cannot be shown: {error}")
    if small.width > MOST_WIDTH_PX:
        small = small.resize(
            (MOST_WIDTH_PX, round(small.height * MOST_WIDTH_PX / small.width)), Image.Resampling.LANCZOS
        )
    buffer = io.BytesIO()
    small.quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    content = base64.b64encode(buffer.getvalue()).decode("ascii")
    size = f'width="{small.width}" height="{small.height}"'
    return f'<figure><img src="data:image/png;base64,{content}" {size} alt="{escaped(alt)}"></figure>'
