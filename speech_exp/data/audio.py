"""Reading of audio files as mono float32 waveforms; every way a file can be bad is one clear error."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff")
_BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {b"RIFF": "little", b"FORM": "big"}  # WAV, AIFF
_UNKNOWN_RIFF_SIZES = (0, 0xFFFFFFFF)  # written by programs that stream and cannot know the size beforehand


class AudioError(ValueError):
    """An audio file that cannot be used; the message names file and reason."""


def decode(content: bytes, name: str) -> tuple[np.ndarray, int]:
    """Samples (N, channels) float32 in -1..1 and the sample rate in Hz of an audio file's content."""
    if not content:
        raise AudioError(f"{name} is empty (0 bytes): expected an audio file, replace or remove it")
    if content[:4] in _BYTE_ORDERS and len(content) >= 8:
        stated_bytes = int.from_bytes(content[4:8], _BYTE_ORDERS[content[:4]])
        if stated_bytes not in _UNKNOWN_RIFF_SIZES and stated_bytes + 8 > len(content):
            raise AudioError(
                f"{name} is truncated: its header states {stated_bytes + 8} bytes, the file has {len(content)}, replace or remove it"
            )
    try:
        samples, sample_rate_hz = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{name} is not readable as audio ({error.error_string}): replace or remove it") from None
    if len(samples) == 0:
        raise AudioError(f"{name} holds no samples: replace or remove it")
    if not np.isfinite(samples).all():
        raise AudioError(f"{name} holds samples that are NaN or infinite: replace or remove it")
    return samples, sample_rate_hz


def decode_recording(content: bytes, name: str, sample_rate_hz: int) -> np.ndarray:
    """Waveform (N,) of a data set's recording, which must be mono at `sample_rate_hz`."""
    samples, rate_hz = decode(content, name)
    if rate_hz != sample_rate_hz:
        raise AudioError(f"{name} has {rate_hz} Hz, expected {sample_rate_hz} Hz (dataset.sample_rate_hz): resample it")
    if samples.shape[1] != 1:
        raise AudioError(f"{name} has {samples.shape[1]} channels, expected 1: mix it down to mono")
    return samples[:, 0]


def read_any(path: Path, sample_rate_hz: int) -> np.ndarray:
    """Waveform (N,) of any audio file: channels averaged, resampled to `sample_rate_hz`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AudioError(f"{path} cannot be read ({error.strerror}): give another file with audio=") from None
    samples, rate_hz = decode(content, str(path))
    waveform = samples.mean(axis=1)
    if rate_hz != sample_rate_hz:
        import soxr

        waveform = soxr.resample(waveform, rate_hz, sample_rate_hz)
    return waveform.astype(np.float32)
