"""Generate spoken digits with synthetic voices: a data set with file names like FSDD's, or single words.

The synthesiser is eSpeak NG (extra `voices`). `digits_demo`, which ships with the package, was made by
`python -m speech_exp.data.synthetic.synthesize --out speech_exp/data/digits_demo`.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speech_exp.data.synthetic.espeak import SynthesiserError, espeak_paths, language_file, speak
from speech_exp.data.synthetic.voices import ACCENTS, COLOUR_ANCHORS_HZ, DEMO_VOICES, VoiceSpec, random_voice_specs

Waveform = npt.NDArray[np.float32]

SAMPLE_RATE_HZ = 8000
TAKES = 20
MAX_SECONDS = 1.0
_MAX_PEAK = 0.98  # prevents clipping
_MARGIN_S = 0.03  # most silence kept at each end
_SPEECH_FLOOR_DB = -36.0  # relative to the loudest 10 ms; anything quieter is silence


def synthesize_voice(
    spec: VoiceSpec, digit: int, variation_rng: np.random.Generator, sample_rate_hz: int = SAMPLE_RATE_HZ
) -> Waveform:
    """Generate one recording of `digit` (0-9): float32 (samples,), at most 1 s, peak below 1.

    `variation_rng` makes each take different: in pitch, tempo and its changes, intonation, formants, level, room and
    noise. The result depends only on the arguments.
    """
    if not 0 <= digit <= 9:
        raise ValueError(f"digit {digit}: expected 0-9")
    speech = _synthesize_speech(spec, digit, variation_rng, sample_rate_hz)
    speech = _add_room(speech, spec, variation_rng, sample_rate_hz)
    speech = _trim(speech, variation_rng, sample_rate_hz)
    peak = min(10.0 ** ((spec.level_db + variation_rng.normal(0.0, 2.0)) / 20.0), 0.9)
    speech *= peak / np.abs(speech).max()
    recording = speech + _noise(speech, spec, variation_rng, sample_rate_hz)
    return (recording * min(1.0, _MAX_PEAK / np.abs(recording).max())).astype(np.float32)


def synthesize_set(
    specs: list[VoiceSpec], takes: int, seed: int, sample_rate_hz: int = SAMPLE_RATE_HZ
) -> Iterator[tuple[str, Waveform]]:
    """Yield (file name without suffix, waveform) for every voice, digit and take.

    A recording depends only on its voice, digit, take and the seed, not on which others are generated.
    """
    for spec in specs:
        voice_key = int.from_bytes(hashlib.sha256(spec.name.encode()).digest()[:4], "big")
        for digit in range(10):
            for take in range(takes):
                rng = np.random.default_rng((seed, voice_key, digit, take))
                yield f"{digit}_{spec.name}_{take}", synthesize_voice(spec, digit, rng, sample_rate_hz)


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of the names and decoded samples of a folder's FLAC files, which does not depend on the encoder."""
    import soundfile

    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.flac")):
        samples, rate_hz = soundfile.read(path, dtype="int16")
        digest.update(f"{path.name} {rate_hz} {len(samples)}\n".encode() + samples.astype("<i2").tobytes())
    return digest.hexdigest()


def _synthesize_speech(
    spec: VoiceSpec, digit: int, rng: np.random.Generator, sample_rate_hz: int
) -> npt.NDArray[np.float64]:
    """Return speech at `sample_rate_hz` without room and noise.

    The vocal tract is scaled by resampling, which also shifts the consonants (eSpeak NG plays samples of one speaker).
    Pitch and tempo are corrected for the resampling.
    """
    tract = spec.tract_scale * float(np.exp(rng.normal(0.0, 0.015)))
    pitch = float(np.exp(rng.normal(0.0, 0.06))) / tract
    rate_wpm = spec.rate_wpm * float(np.exp(rng.normal(0.0, 0.12))) / tract
    formants = np.exp(rng.normal(0.0, 0.02, 6))
    sentence_end = str(rng.choice([".", ".", ".", ",", "!", "?"]))  # falling, level, lively, rising intonation
    voice_file = spec.voice_file(pitch, formants, language_file(spec.accent))
    seed = int(rng.integers(1, 2**31 - 1))
    waveform, rate_hz = speak(ACCENTS[spec.accent][digit] + sentence_end, voice_file, rate_wpm, seed)
    if waveform.size == 0 or not np.abs(waveform).max() > 0.0:
        raise SynthesiserError(f"eSpeak NG produced no sound for digit {digit} with accent '{spec.accent}'")
    return _resample_and_colour(_warp_time(waveform, rng), rate_hz * tract, sample_rate_hz, spec, rng)


def _warp_time(waveform: Waveform, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Vary the tempo within the word by up to about 10 %, which also shifts the pitch slightly."""
    sample = np.arange(waveform.size)
    log_tempo = np.interp(sample, np.linspace(0, waveform.size - 1, 6), rng.normal(0.0, 0.06, 6))
    positions = np.cumsum(np.exp(log_tempo))
    positions *= (waveform.size - 1) / positions[-1]
    return np.interp(positions, sample, waveform)


def _resample_and_colour(
    waveform: npt.NDArray[np.float64], rate_hz: float, target_hz: int, spec: VoiceSpec, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Resample with a band limit and apply the frequency response of mouth and microphone, in one Fourier transform."""
    padded = np.pad(waveform, int(0.1 * rate_hz))  # the transform is circular
    size = round(padded.size * target_hz / rate_hz)
    spectrum = np.fft.rfft(padded)[: size // 2 + 1]
    spectrum = np.pad(spectrum, (0, size // 2 + 1 - spectrum.size))
    frequencies_hz = np.fft.rfftfreq(size, 1.0 / target_hz)
    colour_db = np.asarray(spec.colour_db) + rng.normal(0.0, 1.0, len(COLOUR_ANCHORS_HZ))
    gain = 10.0 ** (np.interp(frequencies_hz, COLOUR_ANCHORS_HZ, colour_db) / 20.0)
    return np.fft.irfft(spectrum * gain, size) * size / padded.size


def _add_room(
    speech: npt.NDArray[np.float64], spec: VoiceSpec, rng: np.random.Generator, sample_rate_hz: int
) -> npt.NDArray[np.float64]:
    """Add reverberation: an exponentially decaying noise tail, the simplest model of a diffuse room."""
    seconds = spec.room_s * float(np.exp(rng.normal(0.0, 0.1)))
    time_s = np.arange(1, round(seconds * sample_rate_hz) + 1) / sample_rate_hz
    tail = rng.normal(size=time_s.size) * 10.0 ** (-3.0 * time_s / seconds)  # -60 dB at `seconds`
    tail *= 10.0 ** ((spec.room_db + rng.normal(0.0, 1.5)) / 20.0) / np.linalg.norm(tail)
    size = speech.size + tail.size + 1
    response = np.fft.rfft(np.concatenate([[1.0], tail]), size)
    return np.fft.irfft(np.fft.rfft(speech, size) * response, size)


def _trim(speech: npt.NDArray[np.float64], rng: np.random.Generator, sample_rate_hz: int) -> npt.NDArray[np.float64]:
    hop = sample_rate_hz // 100
    energy = np.square(speech[: speech.size // hop * hop].reshape(-1, hop)).mean(axis=1)
    loud = np.flatnonzero(energy > energy.max() * 10.0 ** (_SPEECH_FLOOR_DB / 10.0))
    before, after = rng.uniform(0.0, _MARGIN_S, 2) * sample_rate_hz
    start = max(0, int(loud[0] * hop - before))
    end = min(speech.size, int((loud[-1] + 1) * hop + after), start + int(MAX_SECONDS * sample_rate_hz))
    return speech[start:end]


def _noise(
    speech: npt.NDArray[np.float64], spec: VoiceSpec, rng: np.random.Generator, sample_rate_hz: int
) -> npt.NDArray[np.float64]:
    frequencies_hz = np.maximum(np.fft.rfftfreq(speech.size, 1.0 / sample_rate_hz), 100.0)
    shape = 10.0 ** (spec.noise_tilt_db * np.log2(frequencies_hz / 100.0) / 20.0)
    noise = np.fft.irfft(np.fft.rfft(rng.normal(size=speech.size)) * shape, speech.size)
    level = np.linalg.norm(speech) * 10.0 ** (-(spec.snr_db + rng.normal(0.0, 2.5)) / 20.0)
    return noise * level / np.linalg.norm(noise)


def write_set(folder: Path, specs: list[VoiceSpec], takes: int, seed: int) -> int:
    """Write the files `{digit}_{voice}_{take}.flac` (8 kHz, mono, 16 bit) and return their number."""
    import soundfile
    from rich.progress import track

    if takes < 1:
        raise ValueError(f"--takes is {takes}: expected 1 or more recordings of each digit and voice")
    if any(folder.glob("*.flac")):
        raise ValueError(f"{folder} already contains FLAC files: expected an empty folder in --out, or remove them")
    espeak_paths()  # fail before the folder is created
    folder.mkdir(parents=True, exist_ok=True)
    total = len(specs) * 10 * takes
    for name, waveform in track(synthesize_set(specs, takes, seed), "Speaking", total):
        samples = np.round(waveform * 32767.0).astype(np.int16)
        soundfile.write(folder / f"{name}.flac", samples, SAMPLE_RATE_HZ, compression_level=1.0)
    return total


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speech_exp.data.synthetic.synthesize", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the FLAC files")
    parser.add_argument(
        "--voices", type=int, default=0, help="number of random voices; 0 (default): the six of digits_demo"
    )
    parser.add_argument(
        "--takes", type=int, default=TAKES, help=f"recordings of each digit and voice (default {TAKES})"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    specs = random_voice_specs(options.voices, options.seed) if options.voices else list(DEMO_VOICES)
    try:
        count = write_set(options.out, specs, options.takes, options.seed)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{count} recordings in {options.out}, sha256 {fingerprint(options.out)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
