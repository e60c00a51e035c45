"""Waveforms of a table's utterances, read from the release's long recordings or from Shar shards.

Shape letters: N samples, U utterances.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

import numpy as np
import soundfile

from speech_exp.data.audio import AudioError, decode_recording
from speech_exp.data.cuts import CutTable, PickledByFile

_OPEN_FILES = 8
_CONTEXT_S = 0.05  # read around a segment that is resampled, longer than soxr's filter, so that its edges are no edges
_SHORTFALL_S = 0.02  # that a recording may lack of its stated duration: one Opus packet


class _Closable(Protocol):
    def close(self) -> None: ...


_File = TypeVar("_File", bound=_Closable)


class OpenFiles(Generic[_File]):
    """The files used last, open. Pickles as none, and a forked process opens its own: a position in a file is shared."""

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

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenFiles, (self._opener,)


class WaveformReader(ABC):
    """Waveform (N,) float32 mono at `sample_rate_hz` of utterance `number` of a table; for one thread at a time.

    N is `table.samples_U[number]`. Audio that cannot be used is an `AudioError` that names utterance and file.
    """

    table: CutTable
    sample_rate_hz: int

    @abstractmethod
    def __call__(self, number: int) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class RecordingReader(WaveformReader):
    """Seeks in the recordings that the manifest names; resamples by the rate that each file reports.

    Opus is decoded at a rate of its own choice (official files often at 48 kHz), whatever the release states.
    """

    table: CutTable
    sample_rate_hz: int
    _files: OpenFiles[soundfile.SoundFile] = field(default_factory=lambda: OpenFiles(_open_audio), repr=False)

    def __call__(self, number: int) -> np.ndarray:
        entry = self.table.entry(number)
        path = Path(entry["recording"]["sources"][0]["source"])
        try:
            waveform_N = self._read(path, entry["start"], int(self.table.samples_U[number]))
        except soundfile.LibsndfileError as error:
            reason = f"is not readable as audio ({error.error_string})"
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        except AudioError as error:
            reason = str(error)
        else:
            return waveform_N
        raise AudioError(f"{entry['id']}: {path} {reason}, replace it or check dataset.root")

    def _read(self, path: Path, start_s: float, samples: int) -> np.ndarray:
        file = self._files[path]
        rate_hz = file.samplerate
        end_s = start_s + samples / self.sample_rate_hz
        if end_s > file.frames / rate_hz + _SHORTFALL_S:
            raise AudioError(f"ends at {file.frames / rate_hz:.2f} s, before the segment's end at {end_s:.2f} s")
        step, own_step = _common_steps(rate_hz, self.sample_rate_hz)
        context = math.ceil(_CONTEXT_S * rate_hz) if rate_hz != self.sample_rate_hz else 0
        block = max(0, round(start_s * rate_hz) - context) // step  # begins on a sample of both rates
        file.seek(block * step)
        read_NC = file.read(math.ceil(end_s * rate_hz) + context - block * step, dtype="float32", always_2d=True)
        waveform_N = read_NC.mean(axis=1)
        if rate_hz != self.sample_rate_hz:
            import soxr

            waveform_N = soxr.resample(waveform_N, rate_hz, self.sample_rate_hz)
        first = round(start_s * self.sample_rate_hz) - block * own_step
        return _checked(waveform_N[first : first + samples], samples, self.sample_rate_hz)


def _open_audio(path: Path) -> soundfile.SoundFile:
    path.stat()  # soundfile does not say why a file cannot be opened
    return soundfile.SoundFile(path)


def _common_steps(rate_hz: int, own_rate_hz: int) -> tuple[int, int]:
    """Samples at each rate between two instants that are samples of both."""
    divisor = math.gcd(rate_hz, own_rate_hz)
    return rate_hz // divisor, own_rate_hz // divisor


def _checked(waveform_N: np.ndarray, samples: int, sample_rate_hz: int) -> np.ndarray:
    """All samples finite, and as many as planned; a shortfall that a stated duration may have is silence."""
    if len(waveform_N) < samples - _SHORTFALL_S * sample_rate_hz - 1 or not samples:
        raise AudioError(f"gives {len(waveform_N)} of the segment's {samples} samples")
    if not np.isfinite(waveform_N).all():
        raise AudioError("holds samples that are NaN or infinite")
    return np.pad(waveform_N, (0, samples - len(waveform_N))).astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class ShardReader(PickledByFile, WaveformReader):
    """Reads members of Shar shards at their place in the tar files, without looking through these.

    Args:
        table: its `shard_U` tells the shard of each utterance.
        folder: holds `recording.000000.tar` and so on, FLAC at `sample_rate_hz`.
        starts_U: int64, byte where the audio of each utterance begins in its shard.
        sizes_U: int64, its bytes; 0 where the recording could not be read when the shards were made.
    """

    table: CutTable
    sample_rate_hz: int
    folder: Path
    starts_U: np.ndarray
    sizes_U: np.ndarray
    _files: OpenFiles[BinaryIO] = field(default_factory=lambda: OpenFiles(open_bytes), repr=False)

    def __call__(self, number: int) -> np.ndarray:
        path = self.folder / shard_name(int(self.table.shard_U[number]))
        name = f"{self.table.id(number)} in {path}"
        if not self.sizes_U[number]:
            raise AudioError(
                f"{name} has no audio: its recording could not be read when the shard was made, replace the recording "
                f"(bad.jsonl beside the shards says why), remove {self.folder.parent} and prepare again"
            )
        try:
            file = self._files[path]
            content = os.pread(file.fileno(), int(self.sizes_U[number]), int(self.starts_U[number]))
        except OSError as error:
            raise AudioError(f"{name} cannot be read ({error.strerror}): check dataset.prepared") from None
        waveform_N = decode_recording(content, name, self.sample_rate_hz)
        if len(waveform_N) != self.table.samples_U[number]:
            raise AudioError(f"{name} has {len(waveform_N)} samples, expected {self.table.samples_U[number]}")
        return waveform_N


def shard_name(shard: int) -> str:
    return f"recording.{shard:06d}.tar"


def open_bytes(path: Path) -> BinaryIO:
    return path.open("rb", buffering=0)
