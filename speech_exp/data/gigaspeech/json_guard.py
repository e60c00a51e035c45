"""Limits on untrusted JSON: ijson's memory grows with the square of the nesting depth and with the size of each entry."""

from __future__ import annotations

import re
from typing import BinaryIO

import numpy as np

_MOST_DEPTH = 64
_MOST_ENTRY_BYTES = 2**28
_MOST_STRING_BYTES = 2**20
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_STEPS = np.zeros(256, dtype=np.int64)
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1


class GuardedJson:
    """A JSON file for ijson; reading raises a ValueError if nesting, an entry or a string exceeds any realistic size."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._depth, self._entry_bytes, self._rest = 0, 0, b""

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        self._entry_bytes += len(block)
        if self._entry_bytes > _MOST_ENTRY_BYTES:
            raise ValueError(
                f"{self._name} contains an entry of more than {_MOST_ENTRY_BYTES:,} bytes: replace the file"
            )
        self._rest += block
        outside = _STRING.sub(b"", self._rest)
        quote = outside.find(b'"')  # start of a string that ends in a later block
        self._rest = b"" if quote < 0 else outside[quote:]
        if len(self._rest) > _MOST_STRING_BYTES:
            raise ValueError(
                f"{self._name} contains a text of more than {_MOST_STRING_BYTES:,} bytes: replace the file"
            )
        depths = self._depth + np.cumsum(
            _STEPS[np.frombuffer(outside[: quote if quote >= 0 else None], dtype=np.uint8)]
        )
        if len(depths):
            if depths.max() > _MOST_DEPTH:
                raise ValueError(f"{self._name} is nested deeper than {_MOST_DEPTH} levels: replace the file")
            self._depth = int(depths[-1])
        return block

    def entry_ends(self) -> None:
        """Mark the end of an entry, which resets the count of its bytes."""
        self._entry_bytes = 0
