"""Tables of utterances: a lhotse manifest on disk, and beside it what batches are planned from, one array a column.

A part of a corpus may hold ten million utterances, so nothing here holds a Python object for each of them.

Shape letters: U utterances.
"""

from __future__ import annotations

import json
import mmap
import operator
import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from speech_exp.data.transcripts import LETTERS, UNKNOWN_TAG, training_text

if TYPE_CHECKING:
    from lhotse.cut import MonoCut

REFUSALS = (  # by their code in `CutTable.refusal_U`
    "",
    "a garbage tag: no speech to learn",
    "characters outside the alphabet of letters, apostrophe and space",
    "no text: nothing to learn",
    "a time behind its recording's end",
    "a word that nobody could write down (<UNK>)",
)
GARBAGE, CHARACTERS, NO_TEXT, OUTSIDE, UNKNOWN_WORD = range(1, len(REFUSALS))
_ALPHABET = frozenset((*LETTERS, " "))
_MANIFEST = "cuts.jsonl"
_COLUMNS: dict[str, type[np.generic]] = {
    "offsets_U": np.int64,
    "samples_U": np.int64,
    "characters_U": np.int32,
    "needed_U": np.int32,
    "shard_U": np.int32,
    "refusal_U": np.uint8,
}
_LINE_BYTES = 2048  # most lines are shorter
_ROUNDING_S = 1e-3  # times are given in hundredths of a second, durations in tenths of a millisecond
_BLOCK = 16384  # utterances that a writer holds before it appends them


def import_lhotse() -> None:
    """Say what is missing before lhotse is imported for the first time."""
    try:
        import lhotse  # noqa: F401
    except ImportError:
        raise ValueError(
            "dataset=gigaspeech needs lhotse, which is not installed: pip install 'speech_exp[gigaspeech]'"
        ) from None


@dataclass(frozen=True)
class _Mapped:
    """A memory-mapped array in a pickle."""

    path: Path


class PickledByFile:
    """A dataclass whose memory-mapped arrays pickle as the names of their files: workers map them, and copy nothing."""

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: _unmapped(getattr(self, each.name)) for each in fields(self)}  # type: ignore[arg-type]

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, np.load(value.path, mmap_mode="r") if isinstance(value, _Mapped) else value)


def _unmapped(value: Any) -> Any:
    whole = isinstance(value, np.memmap) and isinstance(value.base, mmap.mmap)  # a slice is a copy in the pickle
    return _Mapped(Path(value.filename)) if whole else value


@dataclass(frozen=True, eq=False)
class CutTable(PickledByFile):
    """One prepared part of a corpus: utterances in the release's order, planned from without reading audio or JSON.

    Processes may share a table, forked or spawned.
    """

    manifest: Path  # lhotse MonoCuts, one JSON a line, uncompressed; the text of a supervision is the raw text_tn
    offsets_U: np.ndarray  # int64, byte of each line
    samples_U: np.ndarray  # int64, samples at the data set's rate
    characters_U: np.ndarray  # int32, of the training text
    needed_U: np.ndarray  # int32, fewest frames that CTC needs for it: characters and a blank between equal neighbours
    shard_U: np.ndarray  # int32, shard that holds its audio where dataset.storage=shar, else all 0
    refusal_U: np.ndarray  # uint8, position in `REFUSALS` of why training cannot learn it, 0 where it can

    def __len__(self) -> int:
        return len(self.offsets_U)

    def entry(self, number: int) -> dict[str, Any]:
        """The line of an utterance as it stands in the manifest."""
        if not 0 <= number < len(self):
            raise IndexError(f"utterance {number} of {len(self)}")
        # Read to the line's own end: a table of chosen rows does not hold the offset of the next line.
        line, start = b"", int(self.offsets_U[number])
        while b"\n" not in line:
            block = os.pread(self._lines.fileno(), _LINE_BYTES, start + len(line))
            if not block:
                raise ValueError(
                    f"{self.manifest} ends within the line of utterance {number}: prepare the data set again"
                )
            line += block
        return json.loads(line.partition(b"\n")[0])

    def cut(self, number: int) -> MonoCut:
        import_lhotse()
        from lhotse.cut import MonoCut

        return MonoCut.from_dict(self.entry(number))

    def id(self, number: int) -> str:
        return self.entry(number)["id"]

    def text(self, number: int) -> str:
        """Training text without `<UNK>`, which scoring does not count; empty where a garbage tag says that there is no speech."""
        text = training_text(self.entry(number)["supervisions"][0]["text"]) or ""
        return " ".join(word for word in text.split() if word != UNKNOWN_TAG.lower())

    @cached_property
    def _lines(self) -> BinaryIO:
        """Unbuffered and read by `os.pread` alone, so that forked processes do not move each other's position."""
        return self.manifest.open("rb", buffering=0)


def open_table(folder: Path, part: str) -> CutTable:
    """The table that a `TableWriter` left; its columns are memory-mapped."""
    columns = {name: np.load(folder / part / f"{name}.npy", mmap_mode="r") for name in _COLUMNS}
    return CutTable(folder / part / _MANIFEST, **columns)


class TableWriter:
    """Streams cuts to a table in `folder/part`, where nothing is seen before all of it is written without an error.

    Memory does not grow with the number of cuts. A process that is killed leaves `folder/part.aside-*` behind.
    """

    def __init__(self, folder: Path, part: str, sample_rate_hz: int) -> None:
        self.folder, self.part, self.sample_rate_hz = folder, part, sample_rate_hz

    def __enter__(self) -> TableWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.aside = Path(tempfile.mkdtemp(dir=self.folder, prefix=f"{self.part}.aside-"))
        self._files = ExitStack()
        self._manifest = self._files.enter_context((self.aside / _MANIFEST).open("wb"))
        self._columns = {
            name: self._files.enter_context(_Column(self.aside / f"{name}.npy", dtype))
            for name, dtype in _COLUMNS.items()
        }
        return self

    def __len__(self) -> int:
        """Cuts written so far."""
        return len(self._columns["offsets_U"])

    def write(self, cut: MonoCut) -> None:
        """Append a cut with one supervision, whose text is the raw text_tn."""
        text = training_text(cut.supervisions[0].text)
        row = {
            "offsets_U": self._manifest.tell(),
            "samples_U": round(cut.duration * self.sample_rate_hz),
            "characters_U": len(text or ""),
            "needed_U": needed_frames(text or ""),
            "shard_U": 0,
            "refusal_U": OUTSIDE if cut.end > cut.recording.duration + _ROUNDING_S else refusal(text),
        }
        for name, value in row.items():
            self._columns[name].append(value)
        self._manifest.write(json.dumps(cut.to_dict(), ensure_ascii=False).encode() + b"\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._files.close()
            if kind is None:
                os.replace(self.aside, self.folder / self.part)
        finally:
            shutil.rmtree(self.aside, ignore_errors=True)


class _Column:
    """A one-dimensional .npy file that is written a block at a time."""

    def __init__(self, path: Path, dtype: type[np.generic]) -> None:
        self._path, self._dtype, self._block, self._written = path, dtype, list[int](), 0

    def __enter__(self) -> _Column:
        self._file = self._path.open("wb")
        self._write_header()
        return self

    def __len__(self) -> int:
        return self._written + len(self._block)

    def append(self, value: int) -> None:
        self._block.append(value)
        if len(self._block) == _BLOCK:
            self._write_block()

    def __exit__(self, *error: object) -> None:
        with self._file:
            self._write_block()
            self._file.seek(0)
            self._write_header()

    def _write_block(self) -> None:
        self._file.write(np.array(self._block, dtype=self._dtype).tobytes())
        self._written += len(self._block)
        self._block.clear()

    def _write_header(self) -> None:
        """NumPy keeps room in the header for a first axis that grows, so that it has the same size at any length."""
        header = {"descr": np.dtype(self._dtype).str, "fortran_order": False, "shape": (self._written,)}
        np.lib.format.write_array_header_1_0(self._file, header)


def needed_frames(text: str) -> int:
    """Fewest frames of a CTC alignment: one a character, and a blank between two that are equal."""
    return len(text) + sum(map(operator.eq, text, text[1:]))


def refusal(text: str | None) -> int:
    """Position in `REFUSALS` of why training cannot learn this training text, 0 where it can."""
    if text is None:
        return GARBAGE
    if UNKNOWN_TAG.lower() in text.split():
        return UNKNOWN_WORD
    if not _ALPHABET.issuperset(text):
        return CHARACTERS
    return 0 if text else NO_TEXT
