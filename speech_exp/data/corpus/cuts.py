"""Tables of utterances: a lhotse manifest on disk, and one array for each column that the planning of batches needs.

A part of a corpus may contain ten million utterances, so no Python object is kept for each of them.

Shape letters: U utterances.
"""

from __future__ import annotations

import json
import mmap
import operator
import os
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from speech_exp.data.gigaspeech.transcripts import LETTERS, UNKNOWN_TAG, training_text
from speech_exp.data.recordings import Origin
from speech_exp.data.storage import StorageError, with_retries
from speech_exp.files import atomic_folder, folder_mismatch

if TYPE_CHECKING:
    from lhotse.cut import MonoCut

REJECTIONS = (  # indexed by the code in `CutTable.refusal_U`
    "",
    "a garbage tag, which marks a lack of speech",
    "characters outside the alphabet of letters, apostrophe and space",
    "no text",
    "an end time after the end of its recording",
    "a word that the transcriber could not understand (<UNK>)",
)
GARBAGE, CHARACTERS, NO_TEXT, OUTSIDE, UNKNOWN_WORD = range(1, len(REJECTIONS))
_ALPHABET = frozenset((*LETTERS, " "))
_MANIFEST = "cuts.jsonl"
_COLUMNS: dict[str, type[np.generic]] = {
    "offsets_U": np.int64,
    "samples_U": np.int64,
    "needed_U": np.int32,
    "shard_U": np.int32,
    "refusal_U": np.uint8,
}
_LINE_BYTES = 2048  # most lines are shorter
_ROUNDING_S = 1e-3  # the release gives times in hundredths of a second, durations in tenths of a millisecond
_BLOCK = 16384  # utterances that a writer collects before it appends them to the file


def import_lhotse() -> None:
    """Raise a ValueError that says how to install lhotse if it is missing; call this before importing lhotse."""
    try:
        import lhotse  # noqa: F401
    except ImportError:
        raise ValueError(
            "dataset=gigaspeech needs lhotse, which is not installed: pip install 'speech_exp[gigaspeech]'"
        ) from None


@dataclass(frozen=True)
class _Mapped:
    """The pickled form of a memory-mapped array: the path of its file."""

    path: Path


class PickledByFile:
    """A base class of dataclasses that pickles memory-mapped arrays as file names; worker processes map the files again."""

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: _unmapped(getattr(self, each.name)) for each in fields(self)}  # type: ignore[arg-type]

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, np.load(value.path, mmap_mode="r") if isinstance(value, _Mapped) else value)


def _unmapped(value: Any) -> Any:
    whole = isinstance(value, np.memmap) and isinstance(value.base, mmap.mmap)  # a slice is pickled as a copy
    return _Mapped(Path(value.filename)) if whole else value


@dataclass(frozen=True, eq=False)
class CutTable(PickledByFile):
    """One prepared part of a corpus: utterances in the release's order, with the columns that planning batches needs.

    Audio and JSON are not read for planning. Forked and spawned processes may share a table.
    """

    manifest: Path  # lhotse MonoCuts, one JSON object per line, uncompressed; a supervision's text is the raw text_tn
    offsets_U: np.ndarray  # int64, byte offset of each line in the manifest
    samples_U: np.ndarray  # int64, samples at the data set's rate
    needed_U: np.ndarray  # int32, fewest frames for CTC: one per character, and a blank between equal neighbours
    shard_U: np.ndarray  # int32, shard of the audio with dataset.storage=shar, else all 0
    refusal_U: np.ndarray  # uint8, index in `REJECTIONS` of the reason why it cannot be learned; 0 if it can

    def __len__(self) -> int:
        return len(self.offsets_U)

    def entry(self, number: int) -> dict[str, Any]:
        """Return the manifest entry of an utterance."""
        if not 0 <= number < len(self):
            raise IndexError(f"utterance {number} of {len(self)}")
        # Read until the newline: a table of selected rows does not know the offset of the next line.
        line, start = b"", int(self.offsets_U[number])
        while b"\n" not in line:
            block = with_retries(partial(self._block, start + len(line)), str(self.manifest), "check dataset.prepared")
            if not block:
                raise StorageError(
                    f"{self.manifest} ends within the line of utterance {number}: prepare the data set again"
                )
            line += block
        try:
            return json.loads(line.partition(b"\n")[0])
        except ValueError:
            raise StorageError(
                f"the line of utterance {number} in {self.manifest} was damaged after it was written: remove "
                f"{self.manifest.parent} and prepare the data set again"
            ) from None

    def cut(self, number: int) -> MonoCut:
        import_lhotse()
        from lhotse.cut import MonoCut

        return MonoCut.from_dict(self.entry(number))

    def id(self, number: int) -> str:
        return self.entry(number)["id"]

    def origin(self, number: int) -> Origin:
        """Return the speaker of an utterance; if the release names none ("N/A"), the recording's id is used instead."""
        entry = self.entry(number)
        speaker = entry["supervisions"][0].get("speaker")
        return Origin(speaker if speaker not in (None, "", "N/A") else entry["recording"]["id"])

    def text(self, number: int) -> str:
        """Return the training text without `<UNK>`, which scoring ignores; empty if a garbage tag marks a lack of speech."""
        text = training_text(self.entry(number)["supervisions"][0]["text"]) or ""
        return " ".join(word for word in text.split() if word != UNKNOWN_TAG.lower())

    def _block(self, start: int) -> bytes:
        try:
            return os.pread(self._lines.fileno(), _LINE_BYTES, start)
        except OSError:
            self.__dict__.pop("_lines", None)  # a stale handle would keep failing
            raise

    @cached_property
    def _lines(self) -> BinaryIO:
        """The manifest, unbuffered and read only with `os.pread`: forked processes then do not move a shared position."""
        return self.manifest.open("rb", buffering=0)


def open_table(folder: Path, part: str) -> CutTable:
    """Open a table written by `TableWriter`, with memory-mapped columns."""
    if fault := folder_mismatch(folder / part):
        raise StorageError(f"{folder / part} does not match what was prepared ({fault}): remove it and run again")
    columns = {name: np.load(folder / part / f"{name}.npy", mmap_mode="r") for name in _COLUMNS}
    return CutTable(folder / part / _MANIFEST, **columns)


class TableWriter:
    """A context manager that streams cuts to a table; `folder/part` appears only when it is complete and without errors.

    Memory does not grow with the number of cuts. A killed process leaves `folder/part.part-*` behind.
    """

    def __init__(self, folder: Path, part: str, sample_rate_hz: int) -> None:
        self.folder, self.part, self.sample_rate_hz = folder, part, sample_rate_hz

    def __enter__(self) -> TableWriter:
        self._files = ExitStack()
        self.aside = self._files.enter_context(atomic_folder(self.folder / self.part))
        self._manifest = self._files.enter_context((self.aside / _MANIFEST).open("wb"))
        self._columns = {
            name: self._files.enter_context(_Column(self.aside / f"{name}.npy", dtype))
            for name, dtype in _COLUMNS.items()
        }
        return self

    def __len__(self) -> int:
        """Return the number of cuts written so far."""
        return len(self._columns["offsets_U"])

    def write(self, cut: MonoCut) -> None:
        """Append a cut with one supervision, whose text is the raw text_tn."""
        text = training_text(cut.supervisions[0].text)
        row = {
            "offsets_U": self._manifest.tell(),
            "samples_U": round(cut.duration * self.sample_rate_hz),
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
        self._files.__exit__(kind, error, trace)  # closes the files, then renames their folder


class _Column:
    """A one-dimensional .npy file that is written in blocks."""

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
        """Write the header with the current length; NumPy pads it, so its size stays the same as the array grows."""
        header = {"descr": np.dtype(self._dtype).str, "fortran_order": False, "shape": (self._written,)}
        np.lib.format.write_array_header_1_0(self._file, header)


def needed_frames(text: str) -> int:
    """Return the fewest frames of a CTC alignment: one per character, and a blank between two equal neighbours."""
    return len(text) + sum(map(operator.eq, text, text[1:]))


def refusal(text: str | None) -> int:
    """Return the index in `REJECTIONS` of the reason why this training text cannot be learned; 0 if it can."""
    if text is None:
        return GARBAGE
    if UNKNOWN_TAG.lower() in text.split():
        return UNKNOWN_WORD
    if not _ALPHABET.issuperset(text):
        return CHARACTERS
    return 0 if text else NO_TEXT
