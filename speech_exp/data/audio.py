"""Reads audio files as float32 waveforms; every kind of bad file gives one clear error.

A file is read in blocks: the size that its header claims never decides how much memory is allocated.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import soundfile

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff")
_BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {b"RIFF": "little", b"FORM": "big"}  # WAV, AIFF
_UNKNOWN_RIFF_SIZES = (0, 0xFFFFFFFF)  # written by programs that stream and do not know the size in advance
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's value for a FLAC file that was streamed
_RATES_HZ = range(1000, 1_000_000)
_MOST_CHANNELS = 64
_MOST_S = 2 * 3600
_MOST_SAMPLES = 2**28  # kept in memory: 1 GiB, 93 minutes of one channel at 48 kHz
_BLOCK_SAMPLES = 2**20  # counted over all channels
_MOST_LEVEL = (
    1e9  # full scale is 1, or 32,768 for integers stored as floats; far above this limit float32 power is infinite
)


class AudioError(ValueError):
    """An audio file cannot be used; the message names the file and the reason."""


class _Bytes(io.BytesIO):
    """Bytes that ignore a seek before their start, as a broken header causes; soundfile would print a stack trace."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


class AnyAudio(NamedTuple):
    """Audio of any file, at the requested sample rate."""

    waveform_N: np.ndarray
    seconds: float
    is_silent: bool  # all samples are equal


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; AudioError for a folder, FIFO or device (which could block), OSError on failure."""
    mode = path.stat().st_mode
    if not S_ISREG(mode):
        raise AudioError(f"is a {'folder' if S_ISDIR(mode) else 'FIFO or device'}, expected a file")
    return path.open("rb", buffering=0)  # libsndfile reads from the descriptor


def decode(content: bytes, name: str) -> tuple[np.ndarray, int]:
    """Decode the content of an audio file; return samples (N, channels) float32 and the sample rate in Hz."""
    if not content:
        raise AudioError(f"{name} is empty (0 bytes): expected an audio file, replace or remove it")
    try:
        return _blocks(_Bytes(content), len(content), averaged=False)
    except AudioError as error:
        raise AudioError(f"{name} {error}: replace or remove it") from None


def decode_recording(content: bytes, name: str, sample_rate_hz: int) -> np.ndarray:
    """Return the waveform (N,) of a recording from a data set; it must be mono at `sample_rate_hz`."""
    samples, rate_hz = decode(content, name)
    if rate_hz != sample_rate_hz:
        raise AudioError(f"{name} has {rate_hz} Hz, expected {sample_rate_hz} Hz (dataset.sample_rate_hz): resample it")
    if samples.shape[1] != 1:
        raise AudioError(f"{name} has {samples.shape[1]} channels, expected 1: mix it down to mono")
    return samples[:, 0]


def read_any(path: Path, sample_rate_hz: int) -> AnyAudio:
    """Read any audio file: channels are averaged, and the waveform is resampled to `sample_rate_hz`."""
    try:
        with open_regular(path) as file:
            samples, rate_hz = _blocks(file, os.fstat(file.fileno()).st_size, averaged=True)
    except OSError as error:
        raise AudioError(f"{path} cannot be read ({error.strerror}): give another file with audio=") from None
    except AudioError as error:
        raise AudioError(f"{path} {error}: replace or remove it") from None
    return _resampled(samples[:, 0], rate_hz, sample_rate_hz)


def any_audio(samples: np.ndarray, rate_hz: int, sample_rate_hz: int) -> AnyAudio:
    """Return samples (N,) or (N, channels) as `read_any` would: int16, or float with full scale 1, at `rate_hz`."""
    if samples.dtype == np.int16:
        samples = samples / np.float32(2**15)
    if samples.ndim not in (1, 2) or not samples.size or samples.dtype.kind != "f" or rate_hz not in _RATES_HZ:
        raise AudioError(
            f"the samples have shape {samples.shape}, type {samples.dtype} and {rate_hz} Hz: expected (N,) or (N, channels), int16 "
            f"or float, at {_RATES_HZ[0]} to {_RATES_HZ[-1]} Hz"
        )
    try:
        check_samples(samples)
    except AudioError as error:
        raise AudioError(f"the waveform {error}") from None
    waveform_N = samples if samples.ndim == 1 else samples.mean(axis=1)
    return _resampled(waveform_N.astype(np.float32), rate_hz, sample_rate_hz)


def _resampled(waveform_N: np.ndarray, rate_hz: int, sample_rate_hz: int) -> AnyAudio:
    silent, seconds = bool((waveform_N == waveform_N[0]).all()), len(waveform_N) / rate_hz
    if rate_hz != sample_rate_hz:
        import soxr

        waveform_N = soxr.resample(waveform_N, rate_hz, sample_rate_hz)
    return AnyAudio(waveform_N.astype(np.float32, copy=False), seconds, silent)


def check_format(sound: soundfile.SoundFile) -> None:
    """Raise an AudioError if the header states an impossible sample rate or number of channels."""
    if sound.samplerate not in _RATES_HZ:
        raise AudioError(f"has {sound.samplerate} Hz, expected {_RATES_HZ[0]} to {_RATES_HZ[-1]} Hz")
    if sound.channels > _MOST_CHANNELS:
        raise AudioError(f"has {sound.channels} channels, expected at most {_MOST_CHANNELS}")


def check_samples(samples: np.ndarray) -> None:
    """Raise an AudioError if samples are NaN, infinite or far beyond full scale, as they can be in a float file."""
    if not np.isfinite(samples).all():
        raise AudioError("contains samples that are NaN or infinite")
    if (loudest := np.abs(samples).max(initial=0)) > _MOST_LEVEL:
        raise AudioError(
            f"reaches {loudest:g}, beyond the range of any microphone (expected at most {_MOST_LEVEL:g}, 1 is full scale)"
        )


def _blocks(file: BinaryIO, size_bytes: int, averaged: bool) -> tuple[np.ndarray, int]:
    """Return samples (N, channels), or (N, 1) if `averaged`, and the sample rate in Hz.

    The message of an AudioError starts with a verb; the caller puts the file name before it.
    """
    _check_riff(file, size_bytes)
    try:
        with soundfile.SoundFile(file if isinstance(file, _Bytes) else file.fileno(), closefd=False) as sound:
            check_format(sound)
            rate_hz, channels = sound.samplerate, sound.channels
            most = min(_MOST_S * rate_hz, _MOST_SAMPLES if averaged else _MOST_SAMPLES // channels)
            parts, found = [], 0
            while len(block := sound.read(_BLOCK_SAMPLES // channels, dtype="float32", always_2d=True)):
                check_samples(block)
                parts.append(block.mean(axis=1, keepdims=True) if averaged else block)
                found += len(block)
                if found > most:
                    raise AudioError(
                        f"lasts longer than {most / rate_hz:,.0f} s, the longest that can be read: shorten it"
                    )
            stated = sound.frames
    except soundfile.LibsndfileError as error:
        raise AudioError(f"is not readable as audio ({error.error_string})") from None
    if not found:
        raise AudioError("contains no samples")
    if found < stated < _UNKNOWN_FRAMES:
        raise AudioError(f"is truncated: its header states {stated:,} samples, the file has {found:,}")
    return np.concatenate(parts), rate_hz


def _check_riff(file: BinaryIO, size_bytes: int) -> None:
    """Raise an AudioError if a WAV or AIFF file is shorter than its header states; libsndfile would read it anyway."""
    head = file.read(8)
    file.seek(0)
    if head[:4] in _BYTE_ORDERS and len(head) == 8:
        stated_bytes = int.from_bytes(head[4:], _BYTE_ORDERS[head[:4]])
        if stated_bytes not in _UNKNOWN_RIFF_SIZES and stated_bytes + 8 > size_bytes:
            raise AudioError(f"is truncated: its header states {stated_bytes + 8} bytes, the file has {size_bytes}")
