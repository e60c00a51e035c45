"""From recordings to normalised parts: frames, labels, statistics of the training part, and bad audio."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speech_exp.data import digit_features
from speech_exp.data.digit_features import PreparedDigits
from speech_exp.data.digit_recordings import DigitRecordings
from speech_exp.data.digits import Digits
from speech_exp.data.prepared import DataRequest
from speech_exp.features.front_end import FrontEnd
from speech_exp.features.mfcc import TorchMfcc
from speech_exp.features.normalization import Normalizer
from speech_exp.objectives.text import to_ids

CPU = torch.device("cpu")
DESCRIPTION = {"window_s": 0.032, "hop_s": 0.016, "n_mfcc": 20}


def extractor() -> TorchMfcc:
    return TorchMfcc(8000, window_s=0.032, hop_s=0.016, n_fft=256, n_mels=40, n_mfcc=20)


def assembled(
    loaded: DigitRecordings,
    cache_folder: Path,
    normalizer: Normalizer | None = None,
    description: dict[str, Any] = DESCRIPTION,
    device: torch.device = CPU,
) -> PreparedDigits:
    front_end = FrontEnd(extractor(), normalizer or Normalizer("global"), description={"extractor": description})
    return PreparedDigits(loaded, 0, front_end, DataRequest(to_ids, 1, True, cache_folder, device))


def by_id(features: PreparedDigits, part: str) -> dict[str, torch.Tensor]:
    """Return the features (T, F) of each recording of a part, without padding."""
    found = {}
    for batch in features.parts[part].in_order(7):
        for row, recording_id in enumerate(batch.ids):
            found[recording_id] = batch.features_BTF[row, : int(batch.lengths_B[row])].cpu()
    return found


@pytest.fixture
def recordings(tiny_root: Path) -> Path:
    return tiny_root / "recordings"


def overwrite(path: Path, seed: int, level: float = 0.1) -> None:
    soundfile.write(path, level * np.random.default_rng(seed).standard_normal(1500), 8000)


def test_each_part_holds_its_recordings_with_their_own_labels_and_frames(
    tiny_digits: Callable[..., Digits], tmp_path: Path
) -> None:
    loaded, normalizer = tiny_digits().recorded, Normalizer("global")
    features = assembled(loaded, tmp_path / "cache", normalizer)
    assert features.dropped == []
    position = {recording.id: number for number, recording in enumerate(loaded.recordings)}
    mean_F, std_F = normalizer.statistics()["mean_F"], normalizer.statistics()["std_F"]
    extract = extractor()
    for name, part in features.parts.items():
        assert part.ids == [recording.id for recording in loaded.parts[name]]
        assert part.targets_U.tolist() == [recording.label for recording in loaded.parts[name]]
        assert part.targets_U.dtype == torch.int64
        for recording_id, own_TF in by_id(features, name).items():
            raw_TF = torch.from_numpy(extract(loaded.waveform(position[recording_id])))
            torch.testing.assert_close(own_TF, (raw_TF - mean_F) / std_F, atol=1e-5, rtol=0)


@pytest.mark.parametrize("split", ["official", "random", "speaker"])
def test_the_training_part_has_zero_mean_and_unit_variance(
    tiny_digits: Callable[..., Digits], tmp_path: Path, split: str
) -> None:
    speaker = {"test_speaker": "cleo"} if split == "speaker" else {}
    features = assembled(tiny_digits(split=split, **speaker).recorded, tmp_path / "cache")
    frames_NF = torch.cat(list(by_id(features, "train").values())).double()
    torch.testing.assert_close(frames_NF.mean(0), torch.zeros(20).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(frames_NF.std(0), torch.ones(20).double(), atol=1e-5, rtol=0)
    others_NF = torch.cat(list(by_id(features, "test").values()))
    assert (others_NF.mean(0).abs() > 1e-3).any()


def test_utterance_normalisation_is_of_each_recording(tiny_digits: Callable[..., Digits], tmp_path: Path) -> None:
    features = assembled(tiny_digits().recorded, tmp_path / "cache", Normalizer("utterance"))
    for part in features.parts:
        for own_TF in by_id(features, part).values():
            torch.testing.assert_close(own_TF.mean(0), torch.zeros(20), atol=1e-4, rtol=0)
            # The deviation is regularised by 0.1, which matters for a coefficient that varies by only a few decibels.
            torch.testing.assert_close(own_TF.std(0, correction=0), torch.ones(20), atol=1e-2, rtol=0)


@pytest.mark.parametrize(("changed", "part"), [("0_anna_0", "test"), ("2_cleo_1", "validation")])
def test_a_changed_recording_outside_training_changes_neither_statistics_nor_training(
    tiny_digits: Callable[..., Digits], recordings: Path, tmp_path: Path, changed: str, part: str
) -> None:
    first, second = Normalizer("global"), Normalizer("global")
    before = assembled(tiny_digits().recorded, tmp_path / "cache", first)
    overwrite(recordings / f"{changed}.wav", seed=1, level=0.9)
    after = assembled(tiny_digits().recorded, tmp_path / "cache", second)
    assert all(torch.equal(first.statistics()[name], second.statistics()[name]) for name in ("mean_F", "std_F"))
    old, new = by_id(before, "train"), by_id(after, "train")
    assert all(torch.equal(old[recording_id], new[recording_id]) for recording_id in old)
    assert len(by_id(after, part)[changed]) == 1 + 1500 // 128  # the new recording, not the cached one


def test_a_changed_training_recording_changes_the_statistics(
    tiny_digits: Callable[..., Digits], recordings: Path, tmp_path: Path
) -> None:
    first, second = Normalizer("global"), Normalizer("global")
    assembled(tiny_digits().recorded, tmp_path / "cache", first)
    overwrite(recordings / "0_anna_2.wav", seed=1, level=0.9)
    assembled(tiny_digits().recorded, tmp_path / "cache", second)
    assert not torch.equal(first.statistics()["mean_F"], second.statistics()["mean_F"])


def test_loaded_statistics_are_used_and_kept(tiny_digits: Callable[..., Digits], tmp_path: Path) -> None:
    own = Normalizer("global")
    expected = by_id(assembled(tiny_digits().recorded, tmp_path / "cache", own), "test")
    loaded = Normalizer("global")
    loaded.load(
        {"mean_F": own.statistics()["mean_F"] + 1, "std_F": own.statistics()["std_F"] * 2},
        len(own.statistics()["mean_F"]),
    )
    found = by_id(assembled(tiny_digits().recorded, tmp_path / "cache", loaded), "test")
    std_F = own.statistics()["std_F"]
    for recording_id, features_TF in expected.items():
        torch.testing.assert_close(found[recording_id], (features_TF - 1 / std_F) / 2, atol=1e-5, rtol=0)
    assert torch.equal(loaded.statistics()["mean_F"], own.statistics()["mean_F"] + 1)


def entries(cache_folder: Path) -> int:
    return sum(path.is_dir() for path in cache_folder.iterdir())


def test_the_cache_follows_data_config_and_code_but_not_the_split(
    tiny_digits: Callable[..., Digits], recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    assembled(tiny_digits().recorded, folder)
    assembled(tiny_digits(split="random").recorded, folder, Normalizer("utterance"))
    assert entries(folder) == 1  # splits and normalisations share it
    assembled(tiny_digits().recorded, folder, description={**DESCRIPTION, "n_mfcc": 13})
    assert entries(folder) == 2
    overwrite(recordings / "0_anna_0.wav", seed=1)
    assembled(tiny_digits().recorded, folder)
    assert entries(folder) == 3
    monkeypatch.setattr(digit_features, "code_version", lambda *_: "tomorrow's code")
    assembled(tiny_digits().recorded, folder)
    assert entries(folder) == 4


def test_bad_training_audio_is_dropped_and_named(
    tiny_digits: Callable[..., Digits], recordings: Path, tmp_path: Path
) -> None:
    (recordings / "0_anna_2.wav").write_bytes(b"")
    soundfile.write(recordings / "1_bert_3.wav", np.zeros((2000, 2)), 8000)
    (recordings / "two_bert_3.wav").write_bytes(b"x")
    for _ in range(2):  # a cold and a warm cache
        features = assembled(tiny_digits().recorded, tmp_path / "cache")
        assert [(item.id, item.reason) for item in features.dropped] == [
            ("two_bert_3.wav", "name is not {digit}_{speaker}_{index}"),
            ("0_anna_2", "0_anna_2.wav is empty (0 bytes): expected an audio file, replace or remove it"),
            ("1_bert_3", "1_bert_3.wav has 2 channels, expected 1: mix it down to mono"),
        ]
        train = features.parts["train"]
        assert len(train) == 34
        assert not {"0_anna_2", "1_bert_3"} & set(train.ids)
        assert train.targets_U.tolist() == [int(recording_id[0]) for recording_id in train.ids]
        assert [len(features.parts[name]) for name in ("validation", "test")] == [9, 9]


@pytest.mark.parametrize(("name", "part"), [("0_anna_0", "test"), ("2_cleo_1", "validation")])
def test_bad_audio_of_validation_or_test_is_an_error(
    tiny_digits: Callable[..., Digits], recordings: Path, tmp_path: Path, name: str, part: str
) -> None:
    path = recordings / f"{name}.wav"
    path.write_bytes(path.read_bytes()[:-1])
    for _ in range(2):
        with pytest.raises(
            ValueError, match=f"the {part} recording {name} cannot be used: {name}.wav is truncated: .*replace"
        ):
            assembled(tiny_digits().recorded, tmp_path / "cache")


def test_bad_audio_in_no_part_is_named_and_no_error(
    tiny_digits: Callable[..., Digits], recordings: Path, tmp_path: Path
) -> None:
    (recordings / "0_anna_50.wav").write_bytes(b"x")
    features = assembled(tiny_digits().recorded, tmp_path / "cache")
    assert [item.id for item in features.dropped] == ["0_anna_50"]
    assert sum(map(len, features.parts.values())) == 54


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_parts_are_on_the_requested_device(tiny_digits: Callable[..., Digits], tmp_path: Path) -> None:
    loaded = tiny_digits().recorded
    on_gpu = assembled(loaded, tmp_path / "cache", device=torch.device("cuda"))
    on_cpu = assembled(loaded, tmp_path / "cache")
    for name, part in on_gpu.parts.items():
        assert part.frames_NF.device.type == part.targets_U.device.type == "cuda"
        assert part.starts_WU.device.type == part.lengths_WU.device.type == "cpu"  # batches are planned here
        expected = by_id(on_cpu, name)
        assert all(torch.equal(own_TF, expected[key]) for key, own_TF in by_id(on_gpu, name).items())


def test_predictions_name_the_speaker_of_each_recording(tiny_digits: Callable[..., Digits], tmp_path: Path) -> None:
    features = assembled(tiny_digits().recorded, tmp_path / "cache")
    ids = features.parts["test"].ids
    rows = features.with_origins([{"id": name, "score": 0.5} for name in reversed(ids)], "test")
    assert rows == [{"id": name, "score": 0.5, "speaker": name.split("_")[1]} for name in reversed(ids)]
