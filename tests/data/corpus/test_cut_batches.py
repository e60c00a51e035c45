"""Batches read from disk: reading in workers, features on the device, and utterances that training leaves out."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from shares import check_shares

from speech_exp.data.audio import AudioError
from speech_exp.data.batches import BatchSize, Share
from speech_exp.data.corpus.batches import CutUtterances
from speech_exp.data.corpus.cuts import TableWriter, open_table
from speech_exp.data.corpus.selection import Limits, list_dropped, scored_utterances
from speech_exp.data.recordings import Dropped
from speech_exp.data.storage import StorageError
from speech_exp.features.logmel import LogMel
from speech_exp.features.normalization import Normalizer
from speech_exp.features.speed import change_speed, check_speeds, samples_after
from speech_exp.objectives.text import to_ids, to_text

RATE_HZ = 16000
TEXTS = ["ONE", "TWO <COMMA> TWO", "<MUSIC>", "THREE <PERIOD>", "SEE ALL BOOKS", "4", "FIVE", "SIX"]
SECONDS = [0.5, 1.0, 1.5, 0.7, 0.05, 0.9, 2.0, 0.3]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Write a table of eight utterances: the third is garbage, the fifth too short for its text, the sixth contains a digit."""
    from lhotse import MonoCut, Recording, SupervisionSegment
    from lhotse.audio import AudioSource

    folder = tmp_path_factory.mktemp("table")
    recording = Recording("r", [AudioSource("file", [0], "none.opus")], RATE_HZ, 100 * RATE_HZ, 100.0)
    with TableWriter(folder, "xs", RATE_HZ) as writer:
        for number, (text, seconds) in enumerate(zip(TEXTS, SECONDS, strict=True)):
            supervision = SupervisionSegment(f"u{number}", "r", 0.0, seconds, text=text)
            writer.write(MonoCut(f"u{number}", 3.0 * number, seconds, 0, [supervision], recording=recording))
    return open_table(folder, "xs")


def waveform(number: int) -> np.ndarray:
    """Return noise that differs for each utterance."""
    samples = round(SECONDS[number] * RATE_HZ)
    return np.random.default_rng(number).standard_normal(samples, dtype=np.float32) / 10


def partly_broken(number: int) -> np.ndarray:
    if number == 3:
        raise AudioError("u3 cannot be read")
    return waveform(number)


EXTRACTOR = LogMel(RATE_HZ, 0.025, 0.01, 512, 20, 20.0, None, 1e-6)


def utterances(table, chosen=(0, 1, 3, 6, 7), **changes) -> CutUtterances:
    chosen_U = np.array(chosen)
    normalizer = Normalizer("global")
    normalizer.load({"mean_F": torch.full((20,), -3.0), "std_F": torch.full((20,), 2.0)}, 20)
    frames_U = 1 + table.samples_U[chosen_U] // 160
    given = {
        "part": "train",
        "read": waveform,
        "transform": EXTRACTOR.batch_transform,
        "speeds": [1.0],
        "workers": 0,
        "max_dropped_share": 1.0,
    } | changes
    return CutUtterances(
        table=table,
        chosen_U=chosen_U,
        frames_U=frames_U,
        normalizer=normalizer,
        encode=to_ids,
        device=torch.device("cpu"),
        **given,
    )


def flat(batches) -> dict[str, tuple[torch.Tensor, str]]:
    found = {}
    for batch in batches:
        texts = batch.targets.split(batch.target_lengths_B.tolist())
        for row, (name, frames) in enumerate(zip(batch.ids, batch.lengths_B.tolist(), strict=True)):
            assert name not in found
            assert not batch.features_BTF[row, frames:].any()
            found[name] = (batch.features_BTF[row, :frames], to_text(texts[row].tolist()))
    return found


def test_a_batch_holds_the_features_of_each_utterance_alone(table):
    found = flat(utterances(table).in_order(3))
    assert {name: text for name, (_, text) in found.items()} == {
        "u0": "one", "u1": "two two", "u3": "three", "u6": "five", "u7": "six"
    }  # fmt: skip
    for name, (features_TF, _) in found.items():
        expected_TF = (torch.from_numpy(EXTRACTOR(waveform(int(name[1])))) + 3) / 2
        torch.testing.assert_close(features_TF, expected_TF, rtol=0, atol=1e-4)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_way_through_a_part_meets_each_utterance_once(table, workers):
    part = utterances(table, workers=workers)
    ways = [part.in_order(2), part.by_length(2), part.sample(2), part.shuffled(BatchSize(2), torch.Generator())]
    first, *others = [flat(way) for way in ways]
    for other in others:
        assert other.keys() == first.keys()
        for name, (features_TF, text) in other.items():
            torch.testing.assert_close(features_TF, first[name][0], rtol=0, atol=1e-4)
            assert text == first[name][1]
    assert part.lengths_WU.tolist() == [[51, 101, 71, 201, 31]]
    assert part.ids == ["u0", "u1", "u3", "u6", "u7"]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_processes_share_every_batch_and_read_no_more(table, ranks):
    check_shares(utterances(table), 2, ranks)
    read = []

    def noting(number):
        read.append(number)
        return waveform(number)

    for rank in range(ranks):
        part = utterances(table, read=noting)
        list(part.shuffled(BatchSize(2), torch.Generator(), 0, Share(rank, ranks)))
        list(part.by_length(2, Share(rank, ranks)))
    assert sorted(read) == sorted([0, 1, 3, 6, 7] * 2)


def test_workers_change_nothing_and_a_seed_decides(table):
    def epoch(workers: int, seed: int):
        part = utterances(table, workers=workers, speeds=[0.9, 1.0, 1.1])
        generator = torch.Generator().manual_seed(seed)
        return [batch for _ in range(6) for batch in part.shuffled(BatchSize(2), generator)]

    one, other = epoch(0, 1), epoch(2, 1)
    for batch, same in zip(one, other, strict=True):
        assert batch.ids == same.ids
        assert torch.equal(batch.features_BTF, same.features_BTF)
    assert [batch.ids for batch in one] != [batch.ids for batch in epoch(0, 2)]
    frames = {
        int(frames) for batch in one for name, frames in zip(batch.ids, batch.lengths_B, strict=True) if name == "u6"
    }
    assert frames <= {1 + -(-32000 * 100 // speed) // 160 for speed in (90, 100, 110)}
    assert len(frames) > 1


@pytest.mark.parametrize("workers", [0, 1])
def test_no_pass_draws_from_the_generator_of_dropout(table, workers):
    part = utterances(table, workers=workers, speeds=[0.9, 1.1])
    before = torch.get_rng_state()
    for way in (part.in_order(2), part.by_length(2), part.sample(2), part.shuffled(BatchSize(2), torch.Generator())):
        assert list(way)
        assert torch.equal(torch.get_rng_state(), before)


def test_training_names_what_cannot_be_read_and_continues(table):
    part = utterances(table, read=partly_broken)
    for _ in range(2):
        assert flat(part.shuffled(BatchSize(1), torch.Generator())).keys() == {"u0", "u1", "u6", "u7"}
    assert [(item.id, item.reason) for item in part.bad] == [("u3", "u3 cannot be read")]


@pytest.mark.parametrize(("share", "fails"), [(0.19, True), (0.2, False), (0.0, True)])
def test_more_bad_audio_than_the_stated_share_is_an_error(table, share, fails):
    part = utterances(table, read=partly_broken, max_dropped_share=share)
    expected = pytest.raises(
        ValueError,
        match=rf"^1 of 5 train utterances cannot be used, more than the share dataset\.max_dropped_share={share:g} "
        r"\(u3: u3 cannot be read\): restore them, or raise dataset\.max_dropped_share$",
    )
    with expected if fails else nullcontext():
        list(part.shuffled(BatchSize(2), torch.Generator()))


def test_what_training_leaves_out_by_rule_does_not_count_as_bad_audio(table):
    part = utterances(table, max_dropped_share=0.0, left_out={"too long": np.array([2])})
    part.refuse_too_many([Dropped("u2", "too long")])
    with pytest.raises(ValueError, match=r"^1 of 5 train utterances"):
        part.refuse_too_many([Dropped("u2", "too long"), Dropped("u3", "bad")])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", ["train", "validation"])
def test_an_outage_of_the_storage_ends_training_with_one_sentence_from_a_worker_too(table, workers, name):
    def gone(number: int) -> np.ndarray:
        if number == 3:
            raise StorageError("u3: /lost cannot be read")
        return waveform(number)

    part = utterances(table, read=gone, workers=workers, part=name)
    with pytest.raises(StorageError) as caught:
        list(part.shuffled(BatchSize(2), torch.Generator()))
    assert str(caught.value) == "u3: /lost cannot be read"
    assert part.bad == []


def test_the_first_batch_to_look_at_can_be_read(table):
    part = utterances(table, read=partly_broken)
    batches = [part.first_batch(BatchSize(1), torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert {batch.ids[0] for batch in batches} == {"u0", "u1", "u6", "u7"}
    with pytest.raises(ValueError, match="no audio of the training part could be read"):
        utterances(table, chosen=(3,), read=partly_broken).first_batch(BatchSize(1), torch.Generator())


@pytest.mark.parametrize("workers", [0, 1])
def test_in_validation_it_is_an_error(table, workers):
    part = utterances(table, read=partly_broken, part="validation", workers=workers)
    with pytest.raises(ValueError, match="the validation utterance u3 cannot be used: u3 cannot be read"):
        list(part.by_length(2))


def test_stored_features_are_returned_unchanged(table):
    def features(number: int) -> np.ndarray:
        return EXTRACTOR(waveform(number))

    stored, computed = (
        flat(utterances(table, **given).in_order(3)) for given in ({"read": features, "transform": None}, {})
    )
    for name, (features_TF, text) in stored.items():
        torch.testing.assert_close(features_TF, computed[name][0], rtol=0, atol=1e-4)
        assert text == computed[name][1]


def test_limits_leave_out_and_name(table):
    frames_U = 1 + table.samples_U // 160
    chosen_U, left_out = Limits(0.0, 1.4, None).choose(table, RATE_HZ, frames_U, frames_U, 2)
    assert chosen_U.tolist() == [0, 1, 3, 7]
    reasons = {item.id: item.reason for item in list_dropped(table, left_out)}
    assert reasons.keys() == {"u2", "u4", "u5", "u6"}
    assert "garbage" in reasons["u2"]
    assert "more characters than frames after the encoder's downsampling allow" in reasons["u4"]
    assert "alphabet" in reasons["u5"]
    assert reasons["u6"] == "longer than dataset.limits.max_s=1.4"
    few_U, _ = Limits(0.4, 9.0, 110).choose(table, RATE_HZ, frames_U, frames_U * 10 // 9, 2)
    assert few_U.tolist() == [0, 3]  # u1 has 112 frames at speed 0.9


def test_frames_that_just_carry_a_text_are_enough(table):
    """ "see all books" needs 13 characters and 3 blanks between equal ones: 16 frames after the encoder's downsampling."""
    assert table.needed_U[4] == 16
    for frames, taken in ((31, True), (30, False)):
        frames_U = np.full(len(table), frames)
        chosen_U, _ = Limits(0.0, 9.0, None).choose(table, RATE_HZ, frames_U, frames_U, 2)
        assert (4 in chosen_U) == taken


def test_evaluation_leaves_out_garbage_alone_and_refuses_unknown_characters(table):
    with pytest.raises(
        ValueError, match=r"test utterance u5 has characters outside .*: correct it in GigaSpeech\.json"
    ):
        scored_utterances(table, "test")
    refusal_U = table.refusal_U.copy()
    refusal_U[5] = 0
    chosen_U, dropped = scored_utterances(replace(table, refusal_U=refusal_U), "test")
    assert chosen_U.tolist() == [0, 1, 3, 4, 5, 6, 7]
    assert [item.id for item in list_dropped(table, dropped)] == ["u2"]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [((2.0, 1.0, None), "expected min_s < max_s"), ((1.0, 1.0, 5), "expected min_s < max_s")],
)
def test_wrong_limits_are_reported(limits, expected):
    with pytest.raises(ValueError, match=expected):
        Limits(*limits)


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1])
def test_another_speed_moves_a_tone_and_scales_the_length(speed):
    time_N = torch.arange(16000) / 16000
    tone_BN = torch.stack([torch.sin(2 * torch.pi * 500 * time_N), torch.zeros(16000)])
    changed_BN, lengths_B = change_speed(tone_BN, torch.tensor([16000, 8001]), speed)
    assert lengths_B.tolist() == [-(-16000 * 100 // round(100 * speed)), -(-8001 * 100 // round(100 * speed))]
    assert changed_BN.shape[1] == lengths_B[0]
    assert samples_after(torch.tensor(16000), speed) == lengths_B[0]
    spectrum = torch.fft.rfft(changed_BN[0, :14000]).abs()
    assert spectrum.argmax() * 16000 / 14000 == pytest.approx(500 * speed, abs=1.5)


def test_speeds_are_checked():
    assert check_speeds([]) == (1.0,)
    assert check_speeds([0.9, 1.0]) == (0.9, 1.0)
    for wrong in ([0.1], [3.0], [0.955]):
        with pytest.raises(ValueError, match=r"augment\.speeds=.*expected null or a list of numbers from 0\.5 to 2"):
            check_speeds(wrong)


def test_a_table_travels_to_spawned_workers(table):
    import pickle

    copied = pickle.loads(pickle.dumps(utterances(table)))
    assert flat(copied.in_order(5)).keys() == flat(utterances(table).in_order(5)).keys()
    assert Path(copied.table.manifest) == table.manifest
