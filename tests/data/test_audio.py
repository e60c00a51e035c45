"""Every kind of bad audio file is refused in one sentence; a good one keeps its level and pitch."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech_exp.data import audio
from speech_exp.data.audio import AudioError, decode, decode_recording, read_any

RATE_HZ = 8000


def sine(frequency_hz: float, rate_hz: int, seconds: float = 1.0, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz)


def encoded(samples: np.ndarray, rate_hz: int = RATE_HZ, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", None)])
def test_lossless_formats_give_the_samples_that_were_written(kind: str, subtype: str | None) -> None:
    written = sine(440, RATE_HZ).astype(np.float32)
    waveform = decode_recording(encoded(written, kind=kind, subtype=subtype), "x", RATE_HZ)
    assert waveform.dtype == np.float32
    assert waveform.shape == written.shape
    # one step of 16 bits; FLAC's default here is 16 bits too
    np.testing.assert_allclose(waveform, written, atol=1 / 2**15)


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(
        AudioError, match=r"^x\.wav is empty \(0 bytes\): expected an audio file, replace or remove it$"
    ):
        decode(b"", "x.wav")


@pytest.mark.parametrize("kept", [44, 45, 100, 0.25, 0.5, 0.99, -1])
def test_a_wav_file_cut_anywhere_behind_its_header_is_refused(kept: float) -> None:
    whole = encoded(sine(440, RATE_HZ))
    cut = whole[: int(kept * len(whole)) if 0 < kept < 1 else int(kept)]
    with pytest.raises(
        AudioError, match=f"x.wav is truncated: its header states {len(whole)} bytes, the file has {len(cut)}"
    ):
        decode(cut, "x.wav")


@pytest.mark.parametrize("share", [0.02, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["FLAC", "AIFF", "OGG"])
def test_a_cut_file_of_another_format_is_refused(kind: str, share: float) -> None:
    whole = encoded(sine(440, RATE_HZ), kind=kind)
    with pytest.raises(AudioError, match=r"^x is (not readable as audio|truncated)|^x contains no samples"):
        decode(whole[: int(share * len(whole))], "x")


@pytest.mark.parametrize("samples", [1, 2, 3, 101])
@pytest.mark.parametrize(
    ("kind", "subtype"), [("WAV", "PCM_U8"), ("WAV", "PCM_24"), ("AIFF", "PCM_S8"), ("AIFF", "PCM_24")]
)
def test_an_odd_number_of_bytes_is_not_mistaken_for_a_truncated_file(kind: str, subtype: str, samples: int) -> None:
    found = decode(encoded(sine(440, RATE_HZ)[:samples], kind=kind, subtype=subtype), "x")[0]
    assert len(found) in (samples, samples + 1)  # libsndfile counts the padding byte of an 8-bit AIFF as a sample


def test_bytes_behind_the_end_of_a_wav_file_do_not_matter() -> None:
    whole = encoded(sine(440, RATE_HZ))
    np.testing.assert_array_equal(decode(whole + b"\0" * 100, "x.wav")[0], decode(whole, "x.wav")[0])


@pytest.mark.parametrize("riff_bytes", [b"\xff\xff\xff\xff", b"\0\0\0\0"])
def test_a_streamed_wav_file_that_does_not_know_its_size_is_read(riff_bytes: bytes) -> None:
    whole = encoded(sine(440, RATE_HZ))
    data_at = whole.index(b"data")
    streamed = b"RIFF" + riff_bytes + whole[8 : data_at + 4] + b"\xff\xff\xff\xff" + whole[data_at + 8 :]
    np.testing.assert_array_equal(decode(streamed, "x.wav")[0], decode(whole, "x.wav")[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_nan_sample_is_refused(value: float) -> None:
    samples = sine(440, RATE_HZ)
    samples[-1] = value
    with pytest.raises(AudioError, match=r"x\.wav contains samples that are NaN or infinite: replace or remove it"):
        decode(encoded(samples, subtype="FLOAT"), "x.wav")


def test_a_file_without_samples_is_refused() -> None:
    with pytest.raises(AudioError, match=r"x\.wav contains no samples: replace or remove it"):
        decode(encoded(np.zeros(0)), "x.wav")


@pytest.mark.parametrize("content", [b"Dear reader,\n" * 50, b"RIFF", b"RIFF\0\0\0\0WAVE", bytes(1000)])
def test_a_file_that_is_not_audio_is_refused(content: bytes) -> None:
    with pytest.raises(AudioError, match=r"x\.wav is not readable as audio \(.+\): replace or remove it"):
        decode(content, "x.wav")


def test_a_data_set_takes_no_other_rate() -> None:
    with pytest.raises(
        AudioError, match=r"x\.wav has 16000 Hz, expected 8000 Hz \(dataset\.sample_rate_hz\): resample it"
    ):
        decode_recording(encoded(sine(440, 16000), 16000), "x.wav", RATE_HZ)


def test_a_data_set_takes_no_stereo() -> None:
    with pytest.raises(AudioError, match=r"x\.wav has 2 channels, expected 1: mix it down to mono"):
        decode_recording(encoded(np.stack([sine(440, RATE_HZ)] * 2, axis=1)), "x.wav", RATE_HZ)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 16000, 44100, 48000, 6000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_file_keeps_its_pitch_and_level_at_the_rate_of_the_model(
    tmp_path: Path, rate_hz: int, channels: int
) -> None:
    path = tmp_path / "tone.wav"
    soundfile.write(path, np.stack([sine(1000, rate_hz)] * channels, axis=1), rate_hz, subtype="FLOAT")
    waveform = read_any(path, RATE_HZ).waveform_N
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert abs(len(waveform) - RATE_HZ) <= 1  # one second
    middle = waveform[RATE_HZ // 4 : 3 * RATE_HZ // 4]  # without the filter's edges: 4000 samples, bins of 2 Hz
    assert np.abs(np.fft.rfft(middle)).argmax() * 2 == 1000
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.005)


def test_what_the_lower_rate_cannot_hold_is_filtered_out(tmp_path: Path) -> None:
    path = tmp_path / "high.wav"
    soundfile.write(path, sine(6000, 16000), 16000)
    assert np.abs(read_any(path, RATE_HZ).waveform_N[500:-500]).max() < 0.001  # not folded to 2 kHz


def test_channels_are_averaged(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    left, right = sine(440, RATE_HZ), sine(300, RATE_HZ, level=0.25)
    soundfile.write(path, np.stack([left, right], axis=1), RATE_HZ, subtype="FLOAT")
    np.testing.assert_allclose(read_any(path, RATE_HZ).waveform_N, (left + right) / 2, atol=1e-6)


def test_a_missing_file_is_reported_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"none\.wav cannot be read \(No such file or directory\): give another file"):
        read_any(tmp_path / "none.wav", RATE_HZ)


def of_total(content: bytes, samples: int) -> bytes:
    """Return a FLAC file whose header states this many samples: 36 bits of STREAMINFO, which begins at byte 8."""
    changed = bytearray(content)
    changed[21] = changed[21] & 0xF0 | samples >> 32
    changed[22:26] = struct.pack(">I", samples & 0xFFFFFFFF)
    return bytes(changed)


def of_field(content: bytes, offset: int, form: str, value: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into(form, changed, offset, value)
    return bytes(changed)


WAV, FLAC = encoded(sine(440, RATE_HZ)), encoded(sine(440, RATE_HZ), kind="FLAC")
LIES = {
    "2^36 samples": (of_total(FLAC, 2**36 - 1), "is not readable as audio|is truncated: its header states 68,719,476,735"),
    "unknown length": (of_total(FLAC, 0), "is not readable as audio"),
    "1 Hz": (of_field(WAV, 24, "<I", 1), "has 1 Hz, expected 1000 to 999999 Hz"),
    "0 Hz": (of_field(WAV, 24, "<I", 0), "is not readable as audio"),
    "4 GHz": (of_field(WAV, 24, "<I", 2**32 - 1), "is not readable as audio|has"),
    "0 channels": (of_field(WAV, 22, "<H", 0), "is not readable as audio"),
    "1024 channels": (of_field(of_field(WAV, 22, "<H", 1024), 32, "<H", 2048), "has 1024 channels, expected at most 64"),
    "1e30": (encoded(1e30 * sine(440, RATE_HZ), subtype="FLOAT"), "reaches 5e[+]29, beyond the range of any microphone"),
    "-1e30": (encoded(-1e30 * np.eye(1, 9)[0], subtype="FLOAT"), "reaches 1e[+]30, beyond the range of any microphone"),
    "NaN": (encoded(np.full(9, np.nan), subtype="FLOAT"), "contains samples that are NaN or infinite"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_reported_in_one_sentence_and_allocates_nothing(tmp_path: Path, lie: str) -> None:
    content, message = LIES[lie]
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    reads = (lambda: decode(content, str(path)), lambda: read_any(path, RATE_HZ))
    for read in reads:
        tracemalloc.start()
        with pytest.raises(AudioError, match=rf"^{path} ({message})") as caught:
            read()
        assert tracemalloc.get_traced_memory()[1] < 50e6
        tracemalloc.stop()
        assert str(caught.value).isprintable()


def test_a_header_that_states_too_much_data_reads_what_is_there() -> None:
    """Some programs write such headers, although the size of the file is right."""
    assert len(decode(of_field(WAV, 40, "<I", 0xFFFFFFF0), "x")[0]) == RATE_HZ


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_not_a_file_is_refused_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.wav"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(
        AudioError, match=rf"^{path} is a (folder|FIFO or device), expected a file: replace or remove it$"
    ):
        read_any(path, RATE_HZ)


@pytest.mark.parametrize("averaged", [True, False])
def test_a_file_of_many_hours_is_refused_before_it_is_all_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, averaged: bool
) -> None:
    monkeypatch.setattr(audio, "_BLOCK_SAMPLES", 1000)
    path, content = tmp_path / "x.flac", encoded(np.zeros((2 * RATE_HZ, 2)), kind="FLAC")
    path.write_bytes(content)

    def read() -> object:
        return read_any(path, RATE_HZ) if averaged else decode(content, str(path))

    read()
    monkeypatch.setattr(audio, "_MOST_S", 1)
    with pytest.raises(
        AudioError, match=rf"^{path} lasts longer than 1 s, the longest that can be read: shorten it: replace"
    ):
        read()
    monkeypatch.setattr(audio, "_MOST_S", 100)
    monkeypatch.setattr(audio, "_MOST_SAMPLES", RATE_HZ)
    with pytest.raises(AudioError, match=rf"^{path} lasts longer than {'1' if averaged else '0'} s"):
        read()


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "PCM_16"), ("FLAC", None), ("OGG", "VORBIS"), ("AIFF", None)])
def test_blocks_give_the_samples_of_the_whole(
    tmp_path: Path, kind: str, subtype: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encoded(np.stack([sine(440, RATE_HZ), sine(300, RATE_HZ)], axis=1), kind=kind, subtype=subtype)
    expected = soundfile.read(io.BytesIO(content), dtype="float32")[0]
    monkeypatch.setattr(audio, "_BLOCK_SAMPLES", 1000)
    np.testing.assert_array_equal(decode(content, "x")[0], expected)
    (tmp_path / "x").write_bytes(content)
    np.testing.assert_array_equal(read_any(tmp_path / "x", RATE_HZ).waveform_N, expected.mean(axis=1))


@pytest.mark.parametrize(
    ("samples", "silent"), [(np.zeros(100), True), (np.full(100, 0.25), True), (np.eye(1, 100)[0], False)]
)
@pytest.mark.parametrize("rate_hz", [8000, 16000])
def test_silence_is_reported_at_any_rate(tmp_path: Path, samples: np.ndarray, silent: bool, rate_hz: int) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, samples, rate_hz)
    found = read_any(path, RATE_HZ)
    assert (found.is_silent, found.seconds) == (silent, 100 / rate_hz)
