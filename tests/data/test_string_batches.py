"""Strings on the device: exact to the sample, independent of padding, normalised by training statistics, bad audio is named."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from shares import check_shares

from speech_exp.data.batches import BatchSize
from speech_exp.data.digit_recordings import DigitRecordings
from speech_exp.data.digits import Digits
from speech_exp.data.prepared import DataRequest
from speech_exp.data.string_batches import PreparedStrings, StringUtterances, read_waveforms
from speech_exp.data.string_rules import WORDS, DigitString, StringRules
from speech_exp.features.batch import Batch
from speech_exp.features.front_end import FrontEnd
from speech_exp.features.logmel import LogMel
from speech_exp.features.normalization import Normalizer

CPU = torch.device("cpu")
RULES = StringRules([3, 7], [0.01, 0.1], [0.0, 0.1], noise_db=0.0, evaluation_passes=2, seed=0)


def logmel() -> LogMel:
    return LogMel(8000, 0.025, 0.01, n_fft=256, n_mels=40, f_min_hz=20.0, f_max_hz=None, floor=1e-6)


def encode(text: str) -> list[int]:
    return [1 if letter == " " else ord(letter) - ord("a") + 2 for letter in text]


def decode(codes: list[int]) -> str:
    return "".join(" " if code == 1 else chr(code - 2 + ord("a")) for code in codes)


def assembled(
    loaded: DigitRecordings,
    normalizer: Normalizer | None = None,
    rules: StringRules = RULES,
    device: torch.device = CPU,
) -> PreparedStrings:
    front_end = FrontEnd(logmel(), normalizer or Normalizer("global"))
    return PreparedStrings(loaded, rules, front_end, DataRequest(encode, 2, True, Path("unused"), device))


@pytest.fixture
def loaded(tiny_digits: Callable[..., Digits]) -> DigitRecordings:
    return tiny_digits().recorded


@pytest.fixture
def recordings(tiny_root: Path) -> Path:
    return tiny_root / "recordings"


def texts(batch: Batch) -> list[str]:
    assert batch.target_lengths_B is not None
    assert (batch.targets.dtype, batch.target_lengths_B.dtype) == (torch.int64, torch.int64)
    assert len(batch.targets) == int(batch.target_lengths_B.sum())
    return [decode(codes.tolist()) for codes in batch.targets.split(batch.target_lengths_B.tolist())]


def by_id(batches: Iterable[Batch]) -> dict[str, torch.Tensor]:
    """Return the features (T, F) of each string, without padding."""
    found = {}
    for batch in batches:
        assert batch.features_BTF.dtype == torch.float32 and batch.lengths_B.dtype == torch.int64
        assert batch.features_BTF.shape == (len(batch.ids), int(batch.lengths_B.max()), 40)
        for row, string_id in enumerate(batch.ids):
            length = int(batch.lengths_B[row])
            assert not batch.features_BTF[row, length:].any()
            found[string_id] = batch.features_BTF[row, :length].cpu()
    return found


def put_together(loaded: DigitRecordings, part: StringUtterances, string: DigitString) -> np.ndarray:
    """Return the waveform of a string, joined piece by piece."""
    noise = part.waveforms.samples_N.numpy()[part.waveforms.noise_start :]
    level = np.float32(np.median([part.waveforms.levels_R[position] for position in string.recordings]))
    pieces, first = [], string.noise_start
    for pause, position in zip(string.pauses, [*string.recordings, None], strict=True):
        pieces.append(level * noise[first : first + pause])
        first += pause
        if position is not None:
            pieces.append(loaded.waveform(position))
    return np.concatenate(pieces)


def test_a_string_is_its_recordings_and_pauses_to_the_sample(loaded: DigitRecordings) -> None:
    part = assembled(loaded).parts["train"]
    waveform_BN, lengths_B = part.waveforms.gather(part.strings)
    assert waveform_BN.shape == (len(part.strings), int(lengths_B.max()))
    for row, string in enumerate(part.strings):
        expected_N = put_together(loaded, part, string)
        length = int(lengths_B[row])
        assert length == len(expected_N) == part.waveforms.samples(string)
        assert np.array_equal(waveform_BN[row, :length].numpy(), expected_N)
        assert not waveform_BN[row, length:].any()
        assert np.array_equal(part.waveform(row), expected_N)


def test_no_pause_at_all_is_possible(loaded: DigitRecordings) -> None:
    part = assembled(loaded, rules=replace(RULES, pause_s=[0.0, 0.0], edge_s=[0.0, 0.0])).parts["test"]
    string = part.strings[0]
    expected_N = np.concatenate([loaded.waveform(position) for position in string.recordings])
    assert np.array_equal(part.waveform(0), expected_N)


def test_pauses_are_as_loud_as_the_background_and_no_digital_silence(recordings: Path, loaded: DigitRecordings) -> None:
    quiet, _ = read_waveforms(loaded, RULES)
    louder, _ = read_waveforms(loaded, replace(RULES, noise_db=-20.0))
    np.testing.assert_allclose(louder.levels_R, np.array(quiet.levels_R) / 10)
    silence = np.concatenate([0.01 * np.random.default_rng(0).standard_normal(800), 0.3 * np.ones(1600)])
    soundfile.write(recordings / "0_anna_2.wav", silence, 8000)
    changed = replace(loaded, contents=[recording.path.read_bytes() for recording in loaded.recordings])
    number = next(number for number, recording in enumerate(loaded.recordings) if recording.id == "0_anna_2")
    assert 0.007 < read_waveforms(changed, RULES)[0].levels_R[number] < 0.0105
    assert abs(float(quiet.samples_N[quiet.noise_start :].std()) - 1) < 0.01


@pytest.mark.parametrize("mode", ["global", "utterance"])
def test_a_padded_batch_is_its_strings_one_by_one(loaded: DigitRecordings, mode: str) -> None:
    normalizer = Normalizer(mode)  # type: ignore[arg-type]
    for part in assembled(loaded, normalizer).parts.values():
        alone, together = by_id(part.in_order(1)), by_id(part.in_order(100))
        assert list(alone) == list(together) == part.ids
        for number, (string_id, alone_TF) in enumerate(alone.items()):
            torch.testing.assert_close(together[string_id], alone_TF, atol=1e-5, rtol=0)
            # as in prediction, which has only the waveform
            frames_TF = torch.from_numpy(logmel()(part.waveform(number)))
            assert len(frames_TF) == 1 + len(part.waveform(number)) // 80 == int(part.lengths_WU[0, number])
            expected_TF = part.normalizer(frames_TF, torch.tensor([len(frames_TF)]))
            torch.testing.assert_close(alone_TF, expected_TF, atol=1e-5, rtol=0)


@pytest.mark.parametrize("split", ["official", "random", "speaker"])
def test_parts_share_no_recording_and_texts_are_the_recordings(tiny_digits: Callable[..., Digits], split: str) -> None:
    speaker = {"test_speaker": "cleo"} if split == "speaker" else {}
    loaded = tiny_digits(split=split, **speaker).recorded
    features = assembled(loaded)
    assert features.dropped == []
    words = ("zero", "one", "two")
    seen: dict[str, set[str]] = {}
    for name, part in features.parts.items():
        of_id = {string.id: [loaded.recordings[position] for position in string.recordings] for string in part.strings}
        for batch in part.by_length(4):
            for string_id, text in zip(batch.ids, texts(batch), strict=True):
                assert text == " ".join(words[recording.label] for recording in of_id[string_id])
        seen[name] = {recording.id for own in of_id.values() for recording in own}
        assert seen[name] == {recording.id for recording in loaded.parts[name]}
    assert not seen["train"] & seen["validation"]
    assert not (seen["train"] | seen["validation"]) & seen["test"]


def drawn(part: StringUtterances, generator: torch.Generator, batch_size: int = 4) -> tuple[list[str], list[Batch]]:
    batches = list(part.shuffled(BatchSize(batch_size), generator))
    return [text for batch in batches for text in texts(batch)], batches


def test_an_epoch_uses_each_training_recording_once_in_new_strings(loaded: DigitRecordings) -> None:
    part = assembled(loaded).parts["train"]
    generator = torch.Generator().manual_seed(0)
    epochs = [drawn(part, generator) for _ in range(4)]
    assert len({str(sorted(spoken)) for spoken, _ in epochs}) == 4
    expected = Counter(("zero", "one", "two")[recording.label] for recording in loaded.parts["train"])
    for spoken, batches in epochs:
        assert len(spoken) == len(part) == sum(len(batch.ids) for batch in batches)
        assert Counter(" ".join(spoken).split()) == expected
        assert sorted(len(batch.ids) for batch in batches)[1:] == [4] * (len(batches) - 1)
    # the strings themselves, each recording once
    assert part.redraw is not None
    for seed in range(3):
        strings = part.redraw(random.Random(seed))
        times = Counter(position for string in strings for position in string.recordings)
        assert set(times.values()) == {1} and len(times) == len(loaded.parts["train"])
        assert all(len({loaded.recordings[p].speaker for p in string.recordings}) == 1 for string in strings)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(loaded: DigitRecordings) -> None:
    first, again = (assembled(loaded).parts["train"] for _ in range(2))
    one, two = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for _ in range(2):
        for batch, other in zip(first.shuffled(BatchSize(4), one), again.shuffled(BatchSize(4), two), strict=True):
            assert batch.ids == other.ids
            assert torch.equal(batch.features_BTF, other.features_BTF) and torch.equal(batch.targets, other.targets)
    assert drawn(first, torch.Generator().manual_seed(4))[0] != drawn(first, torch.Generator().manual_seed(3))[0]


def test_an_epoch_follows_from_the_generators_state_alone(loaded: DigitRecordings) -> None:
    # a resumed run restores that state and nothing else
    part, generator = assembled(loaded).parts["train"], torch.Generator().manual_seed(0)
    drawn(part, generator)
    state = generator.get_state()
    expected = drawn(part, generator)[0]
    resumed = torch.Generator()
    resumed.set_state(state)
    assert drawn(assembled(loaded).parts["train"], resumed)[0] == expected


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_processes_share_every_batch_and_evaluation(loaded: DigitRecordings, ranks: int) -> None:
    for part in assembled(loaded).parts.values():
        check_shares(part, 4, ranks)


def test_validation_and_test_are_fixed(loaded: DigitRecordings) -> None:
    features, other = assembled(loaded), assembled(loaded)
    for name in ("validation", "test"):
        part = features.parts[name]
        assert part.strings == other.parts[name].strings
        spoken = [sorted(drawn(part, torch.Generator().manual_seed(seed))[0]) for seed in range(3)]
        assert spoken[0] == spoken[1] == spoken[2] == sorted(string.text for string in part.strings)
        times = Counter(position for string in part.strings for position in string.recordings)
        assert set(times.values()) == {RULES.evaluation_passes}
        assert len(part.ids) == len(set(part.ids)) == len(part)


def test_by_length_gives_the_shortest_first(loaded: DigitRecordings) -> None:
    part = assembled(loaded).parts["test"]
    lengths = [length for batch in part.by_length(3) for length in batch.lengths_B.tolist()]
    assert lengths == sorted(part.lengths_WU[0].tolist())
    assert sorted(by_id(part.by_length(3))) == sorted(part.ids)


def test_batches_of_training_are_of_similar_lengths(loaded: DigitRecordings) -> None:
    rules = replace(RULES, digits=[1, 3])
    part = assembled(loaded, rules=rules).parts["train"]
    batches = [batch for _ in range(5) for batch in part.shuffled(BatchSize(4), torch.Generator().manual_seed(0))]
    padded = sum(batch.features_BTF.shape[0] * batch.features_BTF.shape[1] for batch in batches)
    assert sum(int(batch.lengths_B.sum()) for batch in batches) / padded > 0.75


def test_training_has_zero_mean_and_unit_variance(loaded: DigitRecordings) -> None:
    normalizer = Normalizer("global")
    parts = assembled(loaded, normalizer).parts
    frames_NF = torch.cat(list(by_id(parts["train"].in_order(5)).values())).double()
    torch.testing.assert_close(frames_NF.mean(0), torch.zeros(40).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(frames_NF.std(0), torch.ones(40).double(), atol=1e-4, rtol=0)
    assert set(normalizer.statistics()) == {"mean_F", "std_F"}


@pytest.mark.parametrize(("changed", "same"), [("0_anna_0", True), ("2_cleo_1", True), ("0_anna_2", False)])
def test_statistics_are_of_training_alone(
    tiny_digits: Callable[..., Digits], recordings: Path, changed: str, same: bool
) -> None:
    first, second = Normalizer("global"), Normalizer("global")
    before = assembled(tiny_digits().recorded, first)
    soundfile.write(recordings / f"{changed}.wav", 0.9 * np.random.default_rng(1).standard_normal(1500), 8000)
    after = assembled(tiny_digits().recorded, second)
    assert torch.equal(first.statistics()["mean_F"], second.statistics()["mean_F"]) == same
    old, new = by_id(before.parts["train"].in_order(4)), by_id(after.parts["train"].in_order(4))
    assert all(torch.equal(old[string_id], new[string_id]) for string_id in old) == same


def test_loaded_statistics_are_used_and_kept(loaded: DigitRecordings) -> None:
    own, other = Normalizer("global"), Normalizer("global")
    expected = by_id(assembled(loaded, own).parts["test"].in_order(4))
    mean_F, std_F = own.statistics()["mean_F"], own.statistics()["std_F"]
    other.load({"mean_F": mean_F + 1, "std_F": 2 * std_F}, len(mean_F))
    for string_id, found_TF in by_id(assembled(loaded, other).parts["test"].in_order(4)).items():
        torch.testing.assert_close(found_TF, (expected[string_id] - 1 / std_F) / 2, atol=1e-5, rtol=0)
    assert torch.equal(other.statistics()["mean_F"], mean_F + 1)


def test_bad_training_audio_is_dropped_and_named(tiny_digits: Callable[..., Digits], recordings: Path) -> None:
    (recordings / "0_anna_2.wav").write_bytes(b"")
    soundfile.write(recordings / "1_bert_3.wav", np.zeros((2000, 2)), 8000)
    soundfile.write(recordings / "2_bert_3.wav", np.full(2000, 1e12), 8000, subtype="FLOAT")
    (recordings / "two_bert_3.wav").write_bytes(b"x")
    loaded = tiny_digits().recorded
    features = assembled(loaded)
    assert [(item.id, item.reason.split(":")[0]) for item in features.dropped] == [
        ("two_bert_3.wav", "name is not {digit}_{speaker}_{index}"),
        ("0_anna_2", "0_anna_2.wav is empty (0 bytes)"),
        ("1_bert_3", "1_bert_3.wav has 2 channels, expected 1"),
        (
            "2_bert_3",
            "2_bert_3.wav reaches 1e+12, beyond the range of any microphone (expected at most 1e+09, 1 is full scale)",
        ),
    ]
    train = features.parts["train"]
    used = {loaded.recordings[position].id for string in train.strings for position in string.recordings}
    assert used == {recording.id for recording in loaded.parts["train"]} - {"0_anna_2", "1_bert_3", "2_bert_3"}
    for string in train.strings:
        assert np.array_equal(train.waveforms.gather([string])[0][0].numpy(), put_together(loaded, train, string))


@pytest.mark.parametrize(("name", "part"), [("0_anna_0", "test"), ("2_cleo_1", "validation")])
def test_bad_audio_of_validation_or_test_is_an_error(
    tiny_digits: Callable[..., Digits], recordings: Path, name: str, part: str
) -> None:
    path = recordings / f"{name}.wav"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"the {part} recording {name} cannot be used: {name}.wav is truncated"):
        assembled(tiny_digits().recorded)


def test_training_without_any_good_recording_is_an_error(tiny_digits: Callable[..., Digits], recordings: Path) -> None:
    for path in recordings.glob("*_[2345].wav"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no training recording can be used, the first because .* is empty"):
        assembled(tiny_digits(max_dropped_share=1.0).recorded)
    with pytest.raises(
        ValueError, match=r"^36 of 54 recordings cannot be used, more than the share dataset\.max_dropped_share"
    ):
        assembled(tiny_digits().recorded)


def test_strings_of_real_digits_can_be_aligned_after_4x_downsampling(fsdd_root: Path) -> None:
    digits = Digits(
        "fsdd", False, str(fsdd_root), "recordings", 8000, "official",
        {"test": [0, 4], "validation": [5, 9], "train": [10, 49]}, {}, 0, None, None, 0, 0.0, None,
    )  # fmt: skip
    part = assembled(digits.recorded, rules=replace(RULES, pause_s=[0.05, 0.3], edge_s=[0.0, 0.3])).parts["test"]
    for string, length in zip(part.strings, part.lengths_WU[0].tolist(), strict=True):
        repeated = sum(one == other for one, other in zip(string.text, string.text[1:], strict=False))
        assert length // 4 >= len(string.text) + repeated  # what CTC needs


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["global", "utterance"])
def test_batches_are_on_the_requested_device(loaded: DigitRecordings, mode: str) -> None:
    on_gpu = assembled(loaded, Normalizer(mode), device=torch.device("cuda"))  # type: ignore[arg-type]
    on_cpu = assembled(loaded, Normalizer(mode))  # type: ignore[arg-type]
    for name, part in on_gpu.parts.items():
        moved = on_cpu.parts[name].to(torch.device("cuda"))
        expected = by_id(on_cpu.parts[name].in_order(4))
        for own in (part, moved):
            batch = next(iter(own.in_order(4)))
            assert batch.target_lengths_B is not None
            tensors = (batch.features_BTF, batch.lengths_B, batch.targets, batch.target_lengths_B)
            assert {tensor.device.type for tensor in tensors} == {"cuda"}
            for string_id, found_TF in by_id(own.in_order(4)).items():
                torch.testing.assert_close(found_TF, expected[string_id], atol=1e-3, rtol=0)


def test_predictions_name_the_recordings_that_a_string_joins(loaded: DigitRecordings) -> None:
    """The recordings are in the order of the words, so that each error can be assigned to a recording."""
    features = assembled(loaded)
    rows = features.with_origins([{"id": name} for name in features.parts["test"].ids], "test")
    test_ids = {recording.id for recording in loaded.parts["test"]}
    for row, string in zip(rows, features.parts["test"].strings, strict=True):
        recordings = row["recordings"].split()
        assert test_ids.issuperset(recordings)
        assert {one.split("_")[1] for one in recordings} == {row["speaker"]} == {string.speaker}
        assert [WORDS[int(one[0])] for one in recordings] == string.text.split()
