"""Whole files, written so that a reader finds the old one or the new one and never a part of either."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_bytes(path: Path, content: bytes) -> Path:
    """Write aside, fsync, rename; on any failure the old file stays and the new one leaves nothing behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return path


def write_text(path: Path, content: str) -> Path:
    """`write_bytes` of UTF-8 with newlines as they stand, the same bytes on every system."""
    return write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> Path:
    return write_text(path, json.dumps(plain(value, path.name), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool = True) -> str:
    """Rows as CSV text; floats keep all their digits, None is an empty cell, other columns than `columns` raise."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(columns), lineterminator="\n", extrasaction="raise")
    if header:
        writer.writeheader()
    for row in rows:
        writer.writerow({key: _scalar(value) for key, value in row.items()})
    return buffer.getvalue()


def plain(value: Any, where: str) -> Any:
    """`value` in JSON's own types, NumPy's converted; `where` names the place in error texts.

    NaN and infinities are refused and not turned into null: JSON has neither, and a null would let a diverged run
    slip out of every mean without a word. A value that is not known is None, which is written as null.
    """
    value = _scalar(value)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(
                f"{where} is {value}, expected a finite number: the run diverged (lower trainer.lr or set "
                "trainer.precision=fp32), or write None for what is not known"
            )
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r} of type {type(key).__name__}, expected text as key")
        return {
            key: plain(item, f"{where}: {key}" if ":" not in where else f"{where}.{key}") for key, item in value.items()
        }
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), where)
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise ValueError(
        f"{where} is a {type(value).__name__}, expected text, a number, true, false, null, a list or a dict"
    )


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
