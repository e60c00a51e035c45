"""Speak one word with eSpeak NG in this process, as a pure function of the arguments.

The synthesiser comes from the package espeakng-loader (extra `voices`), which contains the library and its data for
Linux, macOS and Windows. The library keeps hidden state between words (phase of the pitch flutter, filters, noise
generator), so it is loaded afresh for every word. This takes about 1.5 ms and makes a word independent of those before.
"""

from __future__ import annotations

import _ctypes
import ctypes
import functools
import os
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt

# From speak_lib.h of eSpeak NG 1.52.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_POSITION_IN_CHARACTERS = 1
_TEXT_IS_UTF8 = 1
_RATE_PARAMETER = 1
_MIN_RATE_WPM, _MAX_RATE_WPM = 80, 450

_one_at_a_time = threading.Lock()


class SynthesiserError(ValueError):
    """eSpeak NG is missing or refused a voice; the message names the remedy."""


def espeak_paths() -> tuple[Path, Path]:
    """Return the paths of eSpeak NG's shared library and of its data folder; SynthesiserError if it is not installed."""
    try:
        import espeakng_loader

        library, data = Path(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())
    except (ImportError, RuntimeError) as missing:
        raise SynthesiserError(
            f"the speech synthesiser eSpeak NG, which dataset.synthetic_voices needs, was not found ({missing}): install it "
            "with pip install -e '.[voices]'"
        ) from missing
    return library, data


@functools.cache
def language_file(language: str) -> str:
    """Return eSpeak NG's definition of a language (phonemes, dictionary rules, stress); a voice file appends to it."""
    _, data = espeak_paths()
    files = sorted((data / "lang").glob(f"*/{language}"))
    if not files:
        raise SynthesiserError(
            f"eSpeak NG has no language '{language}': expected the name of a file in {data / 'lang'}"
        )
    return files[0].read_text(encoding="utf-8")


def speak(text: str, voice_file: str, rate_wpm: float, seed: int) -> tuple[npt.NDArray[np.float32], int]:
    """Return the waveform of one word, in -1..1, and its sample rate in Hz (22050).

    `voice_file` is the text of an eSpeak NG voice file; `seed` determines the noise in breath and consonants.
    """
    library_path, data_path = espeak_paths()
    chunks: list[bytes] = []

    def collect(samples: int, count: int, _events: int) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(collect)
    encoded = text.encode() + b"\0"
    rate = int(min(max(rate_wpm, _MIN_RATE_WPM), _MAX_RATE_WPM))
    with _one_at_a_time:
        library = _load(library_path)
        handle, voice_name = tempfile.mkstemp()
        os.close(handle)
        voice_path = Path(voice_name)
        voice_path.write_text(voice_file, encoding="utf-8")
        try:
            sample_rate_hz = library.espeak_Initialize(
                _AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data_path), _INITIALIZE_DONT_EXIT
            )
            if sample_rate_hz <= 0:
                raise SynthesiserError(
                    f"eSpeak NG could not read its data in {data_path} (it takes paths of at most 160 characters): "
                    "install espeakng-loader in a shorter path"
                )
            library.espeak_SetSynthCallback(callback)
            if library.espeak_ng_SetVoiceByFile(os.fsencode(voice_path)):
                raise SynthesiserError(f"eSpeak NG refused the voice file:\n{voice_file}")
            library.espeak_SetParameter(_RATE_PARAMETER, rate, 0)
            _seed_noise(library, seed)
            size = ctypes.c_size_t(len(encoded))
            status = library.espeak_Synth(encoded, size, 0, _POSITION_IN_CHARACTERS, 0, _TEXT_IS_UTF8, None, None)
            if status:
                raise SynthesiserError(f"eSpeak NG could not speak {text!r} (status {status})")
            library.espeak_Terminate()
        finally:
            voice_path.unlink()
            _unload(library)
    waveform = np.frombuffer(b"".join(chunks), dtype=np.int16).astype(np.float32) / 32768.0
    return waveform, int(sample_rate_hz)


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as broken:
        raise SynthesiserError(
            f"the speech synthesiser {path} cannot be loaded on this machine ({broken}): reinstall espeakng-loader"
        ) from broken


def _unload(library: ctypes.CDLL) -> None:
    """Unload the library, and with it the state of its static variables."""
    if sys.platform == "win32":
        _ctypes.FreeLibrary(library._handle)
    else:
        _ctypes.dlclose(library._handle)


def _seed_noise(library: ctypes.CDLL, seed: int) -> None:
    # eSpeak NG 1.52 has its own generator for breath; the Klatt voices use the C library's generator.
    library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
    if sys.platform != "win32":
        ctypes.CDLL(None).srand(ctypes.c_uint(seed))
