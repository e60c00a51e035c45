"""GigaSpeech in its release's layout: preparing it and reading it back, for every storage."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from lhotse import CutSet
from system import needs_fork

from speech_exp.data import root as data_root
from speech_exp.data.audio import AudioError
from speech_exp.data.corpus.prepared import CorpusTables
from speech_exp.data.gigaspeech.data_set import GigaSpeech
from speech_exp.data.storage import StorageError

RATE_HZ = 16000
PART_NAMES = {"train": "xs", "validation": "dev", "test": "test"}
Make = Callable[..., GigaSpeech]


def entries(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_parts_and_what_training_cannot_learn_of_them(gigaspeech_root: Path, loaded_cuts: CorpusTables) -> None:
    assert {name: len(table) for name, table in loaded_cuts.tables.items()} == {
        "train": 114,
        "validation": 37,
        "test": 37,
    }
    audios = json.loads((gigaspeech_root / "GigaSpeech.json").read_text())["audios"]
    for name, tag in (("train", "{XS}"), ("validation", "{DEV}"), ("test", "{TEST}")):
        segments = [segment for audio in audios for segment in audio["segments"] if tag in segment["subsets"]]
        table = loaded_cuts.tables[name]
        assert [table.id(number) for number in range(len(table))] == [segment["sid"] for segment in segments]
        garbage = [segment["text_tn"] in ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>") for segment in segments]
        assert (table.refusal_U == 1).tolist() == garbage
        assert set(table.refusal_U) <= {0, 1}
        for number in (0, 5, 36):
            cut, segment = table.cut(number), segments[number]
            assert (cut.start, cut.supervisions[0].text) == (segment["begin_time"], segment["text_tn"])
            assert cut.end == pytest.approx(segment["end_time"])
    assert (loaded_cuts.sample_rate_hz, loaded_cuts.storage) == (RATE_HZ, "audio")


def test_each_subset_lies_inside_the_next(gigaspeech: Make) -> None:
    found = []
    for subset, count in (("xs", 114), ("s", 189), ("m", 227), ("l", 264), ("xl", 301)):
        table = gigaspeech(subset=subset).corpus.tables["train"]
        assert len(table) == count
        found.append({table.id(number) for number in range(count)})
    assert all(smaller < larger for smaller, larger in itertools.pairwise(found))


def test_a_waveform_is_its_time_of_the_whole_recording(gigaspeech_root: Path, loaded_cuts: CorpusTables) -> None:
    for part in ("train", "validation"):
        table, reader = loaded_cuts.tables[part], loaded_cuts.readers[part]
        for number in (10, 3, 9):
            whole_N, rate_hz = soundfile.read(table.cut(number).recording.sources[0].source, dtype="float32")
            assert rate_hz == RATE_HZ
            waveform_N, first = reader(number), round(table.cut(number).start * RATE_HZ)
            assert waveform_N.dtype == np.float32
            assert waveform_N.shape == (table.samples_U[number],)
            # an Opus decoder that starts in the middle converges within its pre-roll of 80 ms
            np.testing.assert_allclose(waveform_N, whole_N[first : first + len(waveform_N)], atol=1e-3)


def test_shards_hold_the_same_audio_and_lhotse_reads_them(gigaspeech: Make, loaded_cuts: CorpusTables) -> None:
    shar = gigaspeech(storage="shar", workers=2).corpus
    assert shar.fingerprint == loaded_cuts.fingerprint
    for part, table in shar.tables.items():
        shard_folder = next(shar.folder.glob(f"{ {'train': 'xs', 'validation': 'dev'}.get(part, part) }-shar/shards"))
        cuts = list(CutSet.from_shar(in_dir=shard_folder))
        assert [cut.id for cut in cuts] == [table.id(number) for number in range(len(table))]
        for number in range(0, len(table), 5):
            waveform_N = shar.readers[part](number)
            np.testing.assert_allclose(waveform_N, loaded_cuts.readers[part](number), atol=1 / 2**15)
            np.testing.assert_array_equal(waveform_N, cuts[number].load_audio()[0])
            assert cuts[number].supervisions[0].text == table.cut(number).supervisions[0].text


def test_lhotse_reads_the_manifests(loaded_cuts: CorpusTables) -> None:
    for part, table in loaded_cuts.tables.items():
        cuts = CutSet.from_jsonl_lazy(table.manifest)
        cut = next(iter(cuts))
        np.testing.assert_allclose(cut.load_audio()[0], loaded_cuts.readers[part](0), atol=1e-3)


def test_a_recording_is_resampled_from_the_rate_in_its_file(
    small_release: Path, tmp_path: Path, gigaspeech: Make
) -> None:
    root = tmp_path / "fast"
    shutil.copytree(small_release, root)
    path = root / "audio/audiobook/A0001/AUD0000000001.opus"
    samples, _ = soundfile.read(path, dtype="float32")
    fast_N = soxr.resample(samples, RATE_HZ, 48000)
    soundfile.write(path, fast_N, 48000, format="OGG", subtype="OPUS")
    loaded = gigaspeech(root=str(root), prepared=str(tmp_path / "prepared")).corpus
    decoded_N, rate_hz = soundfile.read(path, dtype="float32")
    assert rate_hz == 48000
    whole_N = soxr.resample(decoded_N, 48000, RATE_HZ)
    table = loaded.tables["train"]
    for number in range(len(table)):
        waveform_N, first = loaded.readers["train"](number), round(table.cut(number).start * RATE_HZ)
        assert len(waveform_N) == table.samples_U[number]
        np.testing.assert_allclose(waveform_N, whole_N[first : first + len(waveform_N)], atol=2e-3)
    assert (
        np.corrcoef(loaded.readers["train"](1), gigaspeech(root=str(small_release)).corpus.readers["train"](1))[0, 1]
        > 0.99
    )


def test_another_rate_of_the_data_set(loaded_cuts: CorpusTables, gigaspeech: Make) -> None:
    slow = gigaspeech(sample_rate_hz=8000).corpus
    table = slow.tables["train"]
    assert table.samples_U.tolist() == [round(table.cut(number).duration * 8000) for number in range(len(table))]
    whole_N = soxr.resample(loaded_cuts.readers["train"](2), RATE_HZ, 8000)
    np.testing.assert_allclose(slow.readers["train"](2)[100:-100], whole_N[100 : len(whole_N) - 100], atol=2e-3)
    assert slow.fingerprint == loaded_cuts.fingerprint
    assert slow.folder != loaded_cuts.folder


def test_the_fingerprint_follows_content_not_place(small_release: Path, tmp_path: Path, gigaspeech: Make) -> None:
    found = []
    for name, old, new in (
        ("a", "", ""),
        ("b", "PRINTING", "PAINTING"),
        ("c", '"end_time": 9.91', '"end_time": 9.9'),
        ("d", '"md5": "03', '"md5": "04'),
    ):
        shutil.copytree(small_release, tmp_path / name)
        path = tmp_path / name / "GigaSpeech.json"
        path.write_text(path.read_text().replace(old, new) if old else path.read_text())
        found.append(gigaspeech(root=str(tmp_path / name)).corpus.fingerprint)
    assert found[0] == gigaspeech(root=str(small_release)).corpus.fingerprint
    assert len(set(found)) == 4


def test_a_changed_release_is_prepared_anew_and_the_release_is_not_written(
    small_release: Path, tmp_path: Path, gigaspeech: Make
) -> None:
    root = tmp_path / "release"
    shutil.copytree(small_release, root)
    before = entries(root)
    first = gigaspeech(root=str(root)).corpus
    path = root / "GigaSpeech.json"
    path.write_text(path.read_text().replace("PRINTING", "PAINTING"))
    second = gigaspeech(root=str(root)).corpus
    assert first.tables["train"].text(0).startswith("printing")
    assert second.tables["train"].text(0).startswith("painting")
    assert entries(root) == before


def test_what_is_prepared_is_opened_where_nothing_can_be_written(
    gigaspeech: Make, loaded_cuts: CorpusTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr("speech_exp.files.FileLock", refuse)
    assert len(gigaspeech().corpus.tables["train"]) == 114
    with pytest.raises(
        ValueError, match=r"cannot be prepared \(.*Permission denied\): set dataset.prepared to a folder"
    ):
        _ = gigaspeech(prepared="/elsewhere").corpus


def test_the_users_cache_folder_is_used_where_no_folder_is_given(
    small_release: Path, tmp_path: Path, gigaspeech: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speech_exp.data.gigaspeech.data_set.user_cache", lambda: tmp_path)
    folder = gigaspeech(root=str(small_release), prepared=None).corpus.folder
    assert folder.parent == tmp_path / "prepared"
    assert folder.name.startswith("gigaspeech-mini-")


def test_a_missing_release_is_reported_in_one_sentence_with_the_remedies(
    tmp_path: Path, gigaspeech: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_root, "user_cache", lambda: tmp_path)
    with pytest.raises(
        ValueError,
        match=r"was not found at .*GigaSpeech.json: set dataset.root=FOLDER.*GIGASPEECH_PASSWORD.*https://github.com/SpeechColab/GigaSpeech$",
    ):
        _ = gigaspeech(root=str(tmp_path)).corpus


def broken(small_release: Path, root: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(small_release, root)
    change(root / "audio/audiobook/A0001/AUD0000000001.opus")
    return root


BAD_FILES = [
    (
        lambda path: path.write_bytes(path.read_bytes()[:60_000]),
        r"ends at [\d.]+ s, before the segment's end at 89\.37 s",
    ),
    (lambda path: path.write_bytes(b""), "is not readable as audio"),
    (lambda path: path.write_bytes(b"no audio" * 100), "is not readable as audio"),
    (
        lambda path: soundfile.write(path, np.full(120 * RATE_HZ, np.nan), RATE_HZ, format="WAV", subtype="FLOAT"),
        "NaN or infinite",
    ),
    (
        lambda path: soundfile.write(path, np.full(120 * RATE_HZ, 1e30), RATE_HZ, format="WAV", subtype="FLOAT"),
        "reaches 1e\\+30, beyond the range of any microphone",
    ),
    (lambda path: soundfile.write(path, np.zeros(1000), 1, format="WAV"), "has 1 Hz, expected 1000 to 999999 Hz"),
]


@pytest.mark.parametrize(("change", "reason"), BAD_FILES)
def test_bad_audio_is_named(
    small_release: Path, tmp_path: Path, gigaspeech: Make, change: Callable[[Path], object], reason: str
) -> None:
    loaded = gigaspeech(
        root=str(broken(small_release, tmp_path / "bad", change)), prepared=str(tmp_path / "prepared")
    ).corpus
    last = len(loaded.tables["train"]) - 1
    name = loaded.tables["train"].id(last)
    with pytest.raises(
        AudioError, match=rf"^{name}: /.*AUD0000000001\.opus .*{reason}.*, replace it or check dataset.root$"
    ):
        loaded.readers["train"](last)
    assert len(loaded.readers["validation"](0))


def test_a_fifo_in_place_of_a_recording_is_named_and_not_waited_for(
    small_release: Path, tmp_path: Path, gigaspeech: Make
) -> None:
    root = broken(small_release, tmp_path / "bad", lambda path: path)
    loaded = gigaspeech(root=str(root), prepared=str(tmp_path / "prepared")).corpus
    path = root / "audio/audiobook/A0001/AUD0000000001.opus"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(AudioError, match=r"AUD0000000001\.opus is a FIFO or device, expected a file, replace it"):
        loaded.readers["train"](0)


def test_shards_name_the_audio_that_could_not_be_read(small_release: Path, tmp_path: Path, gigaspeech: Make) -> None:
    root = broken(small_release, tmp_path / "bad", BAD_FILES[0][0])
    loaded = gigaspeech(root=str(root), storage="shar", prepared=str(tmp_path / "prepared")).corpus
    bad = [json.loads(line) for line in (loaded.folder / "xs-shar/bad.jsonl").read_text().splitlines()]
    table, ids = loaded.tables["train"], {each["id"] for each in bad}
    assert 0 < len(bad) < len(table)
    for number in range(len(table)):
        if table.id(number) in ids:
            with pytest.raises(AudioError, match=rf"^{table.id(number)} in .*000000\.tar has no audio"):
                loaded.readers["train"](number)
        else:
            assert len(loaded.readers["train"](number)) == table.samples_U[number]
    cuts = list(CutSet.from_shar(in_dir=loaded.folder / "xs-shar/shards"))
    assert [cut.id for cut in cuts if not cut.has_recording] == [each["id"] for each in bad]


def test_a_damaged_shard_is_named(small_release: Path, tmp_path: Path, gigaspeech: Make) -> None:
    loaded = gigaspeech(root=str(small_release), storage="shar", prepared=str(tmp_path)).corpus
    shard = loaded.folder / "xs-shar/shards/recording.000000.tar"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2 :] = b""
    shard.write_bytes(content)
    last = len(loaded.tables["train"]) - 1
    with pytest.raises(
        StorageError, match=rf"^{loaded.tables['train'].id(last)} in .*recording\.000000\.tar was damaged after"
    ):
        loaded.readers["train"](last)


def test_a_pickled_reader_is_small_and_reads_the_same(gigaspeech: Make, loaded_cuts: CorpusTables) -> None:
    for storage in ("audio", "shar"):
        reader = gigaspeech(storage=storage).corpus.readers["train"]
        waveform_N = reader(5)
        content = pickle.dumps(reader)
        assert len(content) < 4000
        np.testing.assert_array_equal(pickle.loads(content)(5), waveform_N)


def read_some(reader: Any, numbers: list[int], results: Any) -> None:
    results.put([float(np.abs(reader(number)).sum()) for number in numbers])


@needs_fork
def test_forked_processes_do_not_move_each_others_position(loaded_cuts: CorpusTables) -> None:
    reader, numbers = loaded_cuts.readers["train"], [4, 2, 7, 1, 5] * 4
    expected = [float(np.abs(reader(number)).sum()) for number in numbers]  # the file is open before the fork
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    jobs = [context.Process(target=read_some, args=(reader, numbers, results)) for _ in range(3)]
    for job in jobs:
        job.start()
    found = [results.get() for _ in jobs]
    for job in jobs:
        job.join(timeout=60)
    assert found == [expected] * 3


@pytest.mark.parametrize("package", ["lhotse", "ijson", "speechcolab.datasets"])
def test_a_missing_package_is_named_with_its_extra(
    small_release: Path, tmp_path: Path, gigaspeech: Make, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    root = small_release if package in ("lhotse", "ijson") else tmp_path
    with pytest.raises(
        ValueError,
        match=rf"needs {package.split('.')[0]}, which is not installed: pip install 'speech_exp\[gigaspeech\]'$",
    ):
        gigaspeech(root=str(root), prepared=str(tmp_path / "prepared"), password="x", host="http://127.0.0.1:9").fetch()
