"""Read small files of run folders as plain data of bounded size; malformed or hostile content raises a ValueError."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_BYTES = {".json": 16 << 20, ".csv": 256 << 20, ".png": 16 << 20}
_MAX_DEPTH, _MAX_DIGITS = 32, 20


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file (not a pipe or device); raise ValueError if it is too large for its type."""
    if not path.is_file():
        raise ValueError(f"{path.name} is not a regular file")
    most = MAX_BYTES[path.suffix]
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path.name} is larger than {most:,} bytes")
    return content


def read_text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is not UTF-8") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raise a ValueError for any other content."""
    try:
        value = json.loads(read_text(path), parse_int=_bounded_integer)
        _check_depth(value)
    except (json.JSONDecodeError, RecursionError, _ContentError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path.name} is not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} contains a {type(value).__name__}, expected a dict")
    return value


def read_csv(path: Path) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise ValueError(f"{path.name} is not CSV: {error}") from None


class _ContentError(ValueError):
    pass


def _bounded_integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise _ContentError(f"a number has {len(digits):,} digits")
    return int(digits)


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise _ContentError(f"its values are nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, int) and value.bit_length() > 64:
        raise _ContentError("a number is larger than 64 bits")
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        _check_depth(item, depth + 1)
