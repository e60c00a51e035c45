"""Readers of the waveforms of a table's utterances, from the release's long recordings or from Shar shards.

Shape letters: N samples, U utterances.
"""

from __future__ import annotations

import math
import os
import zlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

import numpy as np
import soundfile

from speech_exp.data.audio import AudioError, check_format, check_samples, decode_recording, open_regular
from speech_exp.data.corpus.cuts import CutTable, PickledByFile
from speech_exp.data.storage import StorageError, read_through, with_retries

_OPEN_FILES = 8
_CONTEXT_S = 0.05  # read on both sides of a segment to be resampled: longer than soxr's filter, to avoid edge effects
_SHORTFALL_S = 0.02  # a recording may be this much shorter than stated: one Opus packet


class _Closable(Protocol):
    def close(self) -> None: ...


_File = TypeVar("_File", bound=_Closable)


class OpenFiles(Generic[_File]):
    """A cache of open files, least recently used closed first.

    A pickle contains no open file, and a forked process opens files again, because processes would share their positions.
    """

    def __init__(self, opener: Callable[[Path], _File]) -> None:
        self._opener, self._files, self._process = opener, OrderedDict[Path, _File](), os.getpid()

    def __getitem__(self, path: Path) -> _File:
        if self._process != os.getpid():
            self._files, self._process = OrderedDict(), os.getpid()
        if path not in self._files:
            opened = self._opener(path)
            if len(self._files) == _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[path] = opened
        self._files.move_to_end(path)
        return self._files[path]

    def close(self, path: Path) -> None:
        """Close a file; it is opened again at its next use."""
        if path in self._files:
            self._files.pop(path).close()

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenFiles, (self._opener,)


class WaveformReader(ABC):
    """A callable that returns the waveform (N,) of utterance `number`: float32, mono, at `sample_rate_hz`.

    N is `table.samples_U[number]`. Audio that cannot be used raises an `AudioError` that names utterance and file; storage
    that fails raises a `StorageError`. Not thread-safe.
    """

    table: CutTable
    sample_rate_hz: int

    @abstractmethod
    def __call__(self, number: int) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class RecordingReader(WaveformReader):
    """A reader that seeks in the recordings of the manifest and resamples from the rate that each file reports.

    The decoder chooses the rate of an Opus file (often 48 kHz for official files), whatever the release states.
    """

    table: CutTable
    sample_rate_hz: int
    _files: OpenFiles[soundfile.SoundFile] = field(default_factory=lambda: OpenFiles(_open_audio), repr=False)

    def __call__(self, number: int) -> np.ndarray:
        entry = self.table.entry(number)
        path, samples = Path(entry["recording"]["sources"][0]["source"]), int(self.table.samples_U[number])
        name, remedy = f"{entry['id']}: {path}", "check dataset.root"
        try:
            return with_retries(lambda: self._try(path, entry["start"], samples), name, remedy)
        except soundfile.LibsndfileError as error:
            reason = f"is not readable as audio ({error.error_string})"
        except AudioError as error:
            reason = str(error)
        raise AudioError(f"{name} {reason}, replace it or {remedy}")

    def _try(self, path: Path, start_s: float, samples: int) -> np.ndarray:
        """Read a segment; raise an OSError if the storage fails, and blame the audio only if the whole file is readable."""
        try:
            return self._read(path, start_s, samples)
        except OSError:
            self._files.close(path)  # a stale handle would keep failing
            raise
        except (soundfile.LibsndfileError, AudioError):
            self._files.close(path)
            if path.is_file():  # a FIFO would block
                read_through(path)
            return self._read(path, start_s, samples)

    def _read(self, path: Path, start_s: float, samples: int) -> np.ndarray:
        file = self._files[path]
        rate_hz = file.samplerate
        end_s = start_s + samples / self.sample_rate_hz
        if end_s > file.frames / rate_hz + _SHORTFALL_S:
            raise AudioError(f"ends at {file.frames / rate_hz:.2f} s, before the segment's end at {end_s:.2f} s")
        step, own_step = _common_steps(rate_hz, self.sample_rate_hz)
        context = math.ceil(_CONTEXT_S * rate_hz) if rate_hz != self.sample_rate_hz else 0
        block = max(0, round(start_s * rate_hz) - context) // step  # start at an instant that is a sample at both rates
        file.seek(block * step)
        read_NC = file.read(math.ceil(end_s * rate_hz) + context - block * step, dtype="float32", always_2d=True)
        waveform_N = read_NC.mean(axis=1)
        if rate_hz != self.sample_rate_hz:
            import soxr

            waveform_N = soxr.resample(waveform_N, rate_hz, self.sample_rate_hz)
        first = round(start_s * self.sample_rate_hz) - block * own_step
        return _checked(waveform_N[first : first + samples], samples, self.sample_rate_hz)


def _open_audio(path: Path) -> soundfile.SoundFile:
    with open_regular(path):  # soundfile does not report why it cannot open a file, and blocks on a FIFO
        sound = soundfile.SoundFile(path)
    check_format(sound)
    return sound


def _common_steps(rate_hz: int, file_rate_hz: int) -> tuple[int, int]:
    """Return the smallest numbers of samples at the two rates that last equally long."""
    divisor = math.gcd(rate_hz, file_rate_hz)
    return rate_hz // divisor, file_rate_hz // divisor


def _checked(waveform_N: np.ndarray, samples: int, sample_rate_hz: int) -> np.ndarray:
    """Check that the samples are finite and as many as planned; pad a shortfall of up to `_SHORTFALL_S` with silence."""
    if len(waveform_N) < samples - _SHORTFALL_S * sample_rate_hz - 1 or not samples:
        raise AudioError(f"contains only {len(waveform_N)} of the segment's {samples} samples")
    check_samples(waveform_N)
    return np.pad(waveform_N, (0, samples - len(waveform_N))).astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class ShardReader(PickledByFile, WaveformReader):
    """A reader of Shar shards that seeks to each utterance in the tar files instead of scanning them.

    Args:
        table: its `shard_U` is the shard of each utterance.
        folder: contains `recording.000000.tar` and so on, FLAC at `sample_rate_hz`.
        starts_U: int64, byte offset of each utterance's audio in its shard.
        sizes_U: int64, size of that audio in bytes; 0 if the recording could not be read when the shards were made.
        checks_U: uint32, CRC-32 of these bytes.
    """

    table: CutTable
    sample_rate_hz: int
    folder: Path
    starts_U: np.ndarray
    sizes_U: np.ndarray
    checks_U: np.ndarray
    _files: OpenFiles[BinaryIO] = field(default_factory=lambda: OpenFiles(open_bytes), repr=False)

    def __call__(self, number: int) -> np.ndarray:
        path = self.folder / shard_name(int(self.table.shard_U[number]))
        name = f"{self.table.id(number)} in {path}"
        if not self.sizes_U[number]:
            raise AudioError(
                f"{name} has no audio: its recording could not be read when the shard was made, replace the recording "
                f"(bad.jsonl beside the shards says why), remove {self.folder.parent} and prepare again"
            )
        content = with_retries(lambda: self._bytes(path, number), name, "check dataset.prepared")
        if len(content) != self.sizes_U[number] or zlib.crc32(content) != self.checks_U[number]:
            raise StorageError(
                f"{name} was damaged after it was written: remove {self.folder.parent} and prepare the data set again"
            )
        waveform_N = decode_recording(content, name, self.sample_rate_hz)
        if len(waveform_N) != self.table.samples_U[number]:
            raise AudioError(f"{name} has {len(waveform_N)} samples, expected {self.table.samples_U[number]}")
        return waveform_N

    def _bytes(self, path: Path, number: int) -> bytes:
        try:
            return os.pread(self._files[path].fileno(), int(self.sizes_U[number]), int(self.starts_U[number]))
        except OSError:
            self._files.close(path)
            raise


def shard_name(shard: int) -> str:
    return f"recording.{shard:06d}.tar"


def open_bytes(path: Path) -> BinaryIO:
    return path.open("rb", buffering=0)
