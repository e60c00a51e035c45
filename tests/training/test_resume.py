"""A fit that is broken off after any batch or epoch and taken up ends bit for bit as one that was never broken off."""

import itertools

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
from speech_exp.tasks.task import Task
from speech_exp.training.fitting import Fitting
from speech_exp.training.runtime import seed_everything
from speech_exp.training.state import StateFiles, newest, states

MASKS = {"time_masks": 1, "time_mask_share": 0.3, "feature_masks": 1, "feature_mask_width": 1}
NOISE = {"gain_std": 0.1, "shift_std": 0.1, "noise_std": 0.3}


class KilledError(Exception):
    """Stands for the end of a process: nothing after it is done."""


class KillingFiles(StateFiles):
    """Ends the process right after the state number `last` is saved."""

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


def distilled():
    kd = Distillation(3.0, 0.6)
    kd.teacher = tiny.network("gru", seed=9)
    return power_of_two(Ste(), distillation=kd)


TASKS = {
    "A": Task,
    "inq": lambda: power_of_two(Inq([[0.3, 1], [0.8, 1], [1.0, 0]])),
    "ema": lambda: power_of_two(Ema(0.85)),
    "stochastic": lambda: power_of_two(Stochastic()),
    "snap_step": lambda: power_of_two(SnapStep(3)),
    "ste with a teacher": distilled,
    "B2 with QAT": lambda: IntegerInference(10**6, False, 2, 1e-3, None),
}


def fit(files, make_task, model="gru", seed=0, **changes):
    """A fit as a new process would make it, from the same command."""
    settings = {"schedule": "onecycle", "warmup_share": 0.3, "checkpoint_every_s": 1e-9} | changes
    seed_everything(seed)
    network = tiny.network(model, seed)
    network.dropout.p = 0.2  # torch's generator takes part
    fitting = Fitting(
        tiny.trainer(**settings),
        network,
        tiny.OBJECTIVE,
        make_task(),
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


def told(found):
    """All but times and memory."""
    varying = ("seconds", "utterances_per_s", "memory_gb", "data_wait_ms")
    history = [{key: value for key, value in row.items() if key not in varying} for row in found.history]
    return found.best_epoch, found.best_metrics, found.epochs, history


def check_equal(one, other):
    assert told(one[0]) == told(other[0])
    for first, second in ((one[0].best, other[0].best), (one[1], other[1])):
        expected, found = weights(first), weights(second)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(value, found[name]), name


@pytest.mark.parametrize("name", TASKS)
def test_a_fit_broken_off_anywhere_ends_as_one_that_was_not(tmp_path, name):
    """Four to six epochs of five batches: a state after each batch and each epoch; some of all moments are tried."""
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
def test_epochs_of_a_few_batches_are_broken_off_after_any_of_them(tmp_path, last):
    """Three of the five batches: after the third nothing is left of the epoch but its validation."""
    expected = fit(KillingFiles(tmp_path / "whole", None), Task, epoch_batches=3)
    with pytest.raises(KilledError):
        fit(KillingFiles(tmp_path / "b", None, last), Task, epoch_batches=3)
    check_equal(expected, fit(KillingFiles(tmp_path / "b", tmp_path / "b"), Task, epoch_batches=3))


def test_a_fit_may_be_broken_off_again_and_again(tmp_path):
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
    expected = fit(KillingFiles(tmp_path / "whole", None), Task, patience=1, epochs=30)
    assert expected[0].epochs < 30
    found = fit(KillingFiles(tmp_path / "whole", tmp_path / "whole"), Task, patience=1, epochs=30)
    check_equal(expected, found)


def test_states_are_pruned_and_the_newest_is_found(tmp_path):
    kept = StateFiles(tmp_path, 3, {}, None)
    for epoch, batches in ((0, 5), (1, 0), (1, 7), (1, 20), (2, 0), (10, 0), (10, 3)):
        kept.save({"state": {}}, epoch, batches)
    names = [path.name for path in states(tmp_path)]
    assert names == ["checkpoint_epoch_2.pt", "checkpoint_epoch_10.pt", "checkpoint_epoch_10_batch_3.pt"]
    assert newest(tmp_path) == tmp_path / names[-1]
    (tmp_path / "checkpoint_epoch_12_best.pt").touch()  # the deployable model is no state
    assert newest(tmp_path) == tmp_path / names[-1]


def test_a_state_of_another_run_is_refused_with_the_keys_that_differ(tmp_path):
    StateFiles(tmp_path, 1, {"trainer.lr": 0.1, "seed": 0}, None).save({"state": {}}, 1, 0)
    with pytest.raises(ValueError, match=r"is of another run \(trainer\.lr=0\.1 there and 0\.2 here\).*resume=false"):
        StateFiles(tmp_path, 1, {"trainer.lr": 0.2, "seed": 0}, tmp_path).load()


def test_a_full_disk_leaves_the_state_before(tmp_path, monkeypatch):
    files = StateFiles(tmp_path, 1, {}, tmp_path)
    files.save({"state": {"epoch": 1}}, 1, 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match=r"could not be written \(No space left on device\)"):
        files.save({"state": {"epoch": 2}}, 2, 0)
    monkeypatch.undo()
    assert files.load()["state"]["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_epoch_1.pt"]
