"""Training that is interrupted after any batch or epoch and resumed equals undisturbed training, bit for bit."""

import itertools
import os

import pytest
import tiny
import torch

from speech_exp.features.augment import SpecAugment
from speech_exp.tasks.approaches.inq import Inq
from speech_exp.tasks.approaches.snapping import Ema, SnapStep, Stochastic
from speech_exp.tasks.approaches.ste import Ste
from speech_exp.tasks.distillation import Distillation
from speech_exp.tasks.integer_inference import IntegerInference
from speech_exp.tasks.power_of_two import PowerOfTwo
from speech_exp.tasks.unconstrained import Unconstrained
from speech_exp.training.loop import TrainingLoop
from speech_exp.training.runtime import seed_everything
from speech_exp.training.state import StateFiles, newest_intact, states

MASKS = {"time_masks": 1, "time_mask_share": 0.3, "feature_masks": 1, "feature_mask_width": 1}
NOISE = {"gain_std": 0.1, "shift_std": 0.1, "noise_std": 0.3}


class KilledError(Exception):
    """Simulates the end of a process: nothing after it is executed."""


class KillingFiles(StateFiles):
    """State files that end the process right after saving state number `last`."""

    def __init__(self, folder, start, last=None):
        super().__init__(folder, 1, {"seed": 0}, start)
        self.last, self.saves = last, 0

    def save(self, content, epoch, batches):
        super().save(content, epoch, batches)
        self.saves += 1
        if self.saves == self.last:
            raise KilledError


def power_of_two(approach, **changes):
    given = {"budget_bytes": 10**6, "start_epoch": 2, "every_n_steps": None, "scope": None, "k_min": -8, "k_max": 8}
    given |= {"fine_tune_lr": 1e-3, "memory_matrices": "int16", "float_checkpoint": None} | changes
    return PowerOfTwo(approach, **given)


TASKS = {
    "A": Unconstrained,
    "inq": lambda: power_of_two(Inq([[0.3, 1], [0.8, 1], [1.0, 0]])),
    "ema": lambda: power_of_two(Ema(0.85)),
    "stochastic": lambda: power_of_two(Stochastic()),
    "snap_step": lambda: power_of_two(SnapStep(3)),
    "ste with a teacher": lambda: power_of_two(Ste(), distillation=Distillation(3.0, 0.6)),
    "B2 with QAT": lambda: IntegerInference(10**6, False, 2, 1e-3, None),
}


def fit(files, make_task, model="gru", seed=0, **changes):
    """Train as a new process would with the same command."""
    settings = {"schedule": "onecycle", "warmup_share": 0.3, "checkpoint_every_s": 1e-9} | changes
    trainer = tiny.trainer(**settings)
    phases = make_task().phases(trainer.epochs, tiny.network("gru", seed=9))
    seed_everything(seed)
    network = tiny.network(model, seed)
    network.dropout.p = 0.2  # so that training draws from torch's generator
    fitting = TrainingLoop(
        trainer,
        network,
        tiny.OBJECTIVE,
        phases,
        SpecAugment(**MASKS, **NOISE),
        tiny.parts(),
        tiny.NAMES,
        seed,
        files,
        lambda _: None,
    )
    return fitting.run(), network


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def reproducible(found):
    """Return a fit's results without times and memory."""
    varying = ("seconds", "utterances_per_s", "memory_gb", "data_wait_ms")
    history = [{key: value for key, value in row.items() if key not in varying} for row in found.history]
    return found.best_epoch, found.best_metrics, found.epochs, history


def check_equal(one, other):
    assert reproducible(one[0]) == reproducible(other[0])
    for first, second in ((one[0].best, other[0].best), (one[1], other[1])):
        expected, found = weights(first), weights(second)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(value, found[name]), name


@pytest.mark.parametrize("name", TASKS)
def test_a_fit_interrupted_anywhere_ends_as_one_that_was_not(tmp_path, name):
    """A state is saved after each of five batches and after each of four to six epochs; every fifth one is tried."""
    make_task = TASKS[name]
    whole = KillingFiles(tmp_path / "whole", None)
    expected = fit(whole, make_task)
    assert whole.saves >= 4 * 6
    for number, last in enumerate(range(2, whole.saves + 1, 5)):
        folder = tmp_path / str(number)
        with pytest.raises(KilledError):
            fit(KillingFiles(folder, None, last), make_task)
        check_equal(expected, fit(KillingFiles(folder, folder), make_task))


@pytest.mark.parametrize("last", range(1, 8))
def test_epochs_of_a_few_batches_are_interrupted_after_any_of_them(tmp_path, last):
    """An epoch has three of the five batches: after the third, only its validation remains."""
    expected = fit(KillingFiles(tmp_path / "whole", None), Unconstrained, epoch_batches=3)
    with pytest.raises(KilledError):
        fit(KillingFiles(tmp_path / "b", None, last), Unconstrained, epoch_batches=3)
    check_equal(expected, fit(KillingFiles(tmp_path / "b", tmp_path / "b"), Unconstrained, epoch_batches=3))


def test_a_fit_may_be_interrupted_again_and_again(tmp_path):
    expected = fit(KillingFiles(tmp_path / "whole", None), TASKS["inq"], model="lmu")
    for attempt in itertools.count():
        try:
            found = fit(KillingFiles(tmp_path / "b", tmp_path / "b", last=3), TASKS["inq"], model="lmu")
        except KilledError:
            assert attempt < 20
            continue
        break
    assert attempt > 5
    check_equal(expected, found)


def test_early_stopping_is_remembered(tmp_path):
    expected = fit(KillingFiles(tmp_path / "whole", None), Unconstrained, patience=1, epochs=30)
    assert expected[0].epochs < 30
    found = fit(KillingFiles(tmp_path / "whole", tmp_path / "whole"), Unconstrained, patience=1, epochs=30)
    check_equal(expected, found)


def test_states_are_pruned_and_the_newest_is_found(tmp_path):
    kept = StateFiles(tmp_path, 3, {}, None)
    for epoch, batches in ((0, 5), (1, 0), (1, 7), (1, 20), (2, 0), (10, 0), (10, 3)):
        kept.save({"state": {}}, epoch, batches)
    names = [path.name for path in states(tmp_path)]
    assert names == ["checkpoint_epoch_2.pt", "checkpoint_epoch_10.pt", "checkpoint_epoch_10_batch_3.pt"]
    (tmp_path / "checkpoint_epoch_12_best.pt").touch()  # the deployable model is not a training state
    assert newest_intact(tmp_path)[0] == tmp_path / names[-1]


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def same(one, other):
    """Return whether two contents are bit-identical."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and repr(one) == repr(other)


def test_a_state_with_a_flipped_bit_is_never_used(tmp_path):
    """Bits that zip and pickle ignore may flip, but a state that loads must equal the saved one."""
    fit(KillingFiles(tmp_path, None), Unconstrained, epochs=1, checkpoint_every_s=None)
    (path,) = states(tmp_path)
    whole, content = path.read_bytes(), newest_intact(tmp_path)[1]
    generator, refused = torch.Generator().manual_seed(0), 0
    for bit in torch.randint(8 * len(whole), (300,), generator=generator).tolist():
        path.write_bytes(flipped(whole, bit))
        try:
            _, found = newest_intact(tmp_path)
        except ValueError:
            refused += 1
        else:
            assert same(found, content), bit
    assert refused > 150


def test_a_damaged_state_is_named_and_the_one_before_it_is_used(tmp_path, capsys):
    expected = fit(StateFiles(tmp_path / "whole", 2, {}, None), Unconstrained)
    files = KillingFiles(tmp_path / "b", None, last=13)
    files.keep = 2
    with pytest.raises(KilledError):
        fit(files, Unconstrained)
    older, newest = states(tmp_path / "b")
    whole = newest.read_bytes()
    newest.write_bytes(flipped(whole, 4 * len(whole)))  # in the middle of the weights
    capsys.readouterr()
    found = fit(StateFiles(tmp_path / "b", 2, {"seed": 0}, tmp_path / "b"), Unconstrained)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [f"skipped: {newest} is damaged (its digest does not match)", f"resuming from {older}"]
    check_equal(expected, found)


def test_a_new_state_replaces_the_damaged_one_that_is_further(tmp_path):
    files = StateFiles(tmp_path, 1, {}, tmp_path)
    files.save({"state": {}}, 1, 0)
    (tmp_path / "checkpoint_epoch_2.pt").write_bytes(b"damaged")
    assert files.load() is not None
    files.save({"state": {}}, 1, 5)
    assert [path.name for path in states(tmp_path)] == ["checkpoint_epoch_1_batch_5.pt"]


def test_without_a_whole_state_nothing_starts_from_zero(tmp_path):
    (tmp_path / "checkpoint_epoch_2.pt").write_bytes(b"damaged")
    message = r"contains no intact training state \(.*checkpoint_epoch_2.pt is not a readable checkpoint.*resume=false"
    with pytest.raises(ValueError, match=message):
        StateFiles(tmp_path, 1, {}, tmp_path).load()


def test_a_state_of_another_run_is_refused_with_the_keys_that_differ(tmp_path):
    StateFiles(tmp_path, 1, {"trainer.lr": 0.1, "seed": 0}, None).save({"state": {}}, 1, 0)
    with pytest.raises(
        ValueError, match=r"belongs to a different run \(trainer\.lr=0\.1 in the state and 0\.2 now\).*resume=false"
    ):
        StateFiles(tmp_path, 1, {"trainer.lr": 0.2, "seed": 0}, tmp_path).load()


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({}, None),
        ({"threads": 2}, "was saved with 1 CPU threads and is resumed with 2: "),
        ({"commit": "b" * 40}, "was saved by commit aaaaaaaaaa, and this is commit bbbbbbbbbb: "),
        ({"dirty": True}, "was saved by commit aaaaaaaaaa, and this is commit aaaaaaaaaa with changes: "),
    ],
)
def test_other_threads_or_code_are_reported_and_every_process_is_listed(tmp_path, capsys, change, warning):
    first = {"threads": 1, "commit": "a" * 40, "dirty": False}
    StateFiles(tmp_path, 1, {}, None, first).save({"state": {}}, 1, 0)
    second = StateFiles(tmp_path, 1, {}, tmp_path, first | change)
    second.load()
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert [warning in line for line in warnings] == ([True] if warning else [])
    second.save({"state": {}}, 2, 0)
    third = StateFiles(tmp_path, 1, {}, tmp_path, first)
    third.load()
    assert third.sessions == [first, first | change, first]


def test_a_full_disk_leaves_the_state_before(tmp_path, monkeypatch):
    files = StateFiles(tmp_path, 1, {}, tmp_path)
    files.save({"state": {"epoch": 1}}, 1, 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*checkpoint_epoch_2\.pt"):
        files.save({"state": {"epoch": 2}}, 2, 0)
    monkeypatch.undo()
    assert files.load()["state"]["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_epoch_1.pt"]
