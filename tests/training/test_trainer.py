"""The training loop on artificial utterances that can be learned in seconds."""

import copy
import math
from contextlib import contextmanager
from itertools import chain
from types import SimpleNamespace
from typing import ClassVar

import pytest
import tiny
import torch

from speech_exp import ranks
from speech_exp.features.augment import SpecAugment
from speech_exp.models.encoder import CompactEncoder
from speech_exp.models.recurrent import GRU
from speech_exp.objectives.classification import Classification
from speech_exp.tasks.phases import Hooks, Phase
from speech_exp.training.loop import TrainingLoop
from speech_exp.training.optimization import NonFiniteLossError
from speech_exp.training.runtime import choose_device, seed_everything, set_up
from speech_exp.training.state import StateFiles

PLAIN = {"time_masks": 0, "time_mask_share": 0.0, "feature_masks": 0, "feature_mask_width": 0}
QUIET = {"gain_std": 0.0, "shift_std": 0.0, "noise_std": 0.0}


def trainer(**changes):
    return tiny.trainer(**({"schedule": "cosine"} | changes))


def train(folder, seed=0, hooks=Hooks, phases=None, augment=None, dropout=0.2, **changes):
    """Train from scratch; return the history and the fit."""
    settings = trainer(**changes)
    seed_everything(seed)
    objective = Classification("mean", dropout, label_smoothing=0.1)
    network = objective.network(CompactEncoder(4, lambda width: GRU(width, 8), True, 1, 0.0), 3)
    history = []
    augment = augment or SpecAugment(**PLAIN, **QUIET)
    files = StateFiles(folder, 1, {}, None)
    phases = [Phase(1, settings.epochs, None, hooks)] if phases is None else phases
    arguments = (network, objective, phases, augment, tiny.parts(), tiny.NAMES, seed, files)
    return TrainingLoop(settings, *arguments, lambda rows: history.append(rows[-1])).run(), history, network


def without_times(history):
    return [
        {key: row[key] for key in row if key not in ("seconds", "utterances_per_s", "memory_gb", "data_wait_ms")}
        for row in history
    ]


def test_it_learns_and_reports_each_epoch(tmp_path):
    fit, history, _ = train(tmp_path, epochs=12)
    assert [row["epoch"] for row in history] == list(range(1, 13))
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert fit.best_metrics["accuracy"] > 0.9
    assert fit.best_metrics["accuracy"] == max(row["val_accuracy"] for row in history)
    assert fit.epochs == 12


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path):
    augment = {**PLAIN, **QUIET, "time_masks": 1, "time_mask_share": 0.3, "noise_std": 0.3}
    runs = [train(tmp_path, seed, augment=SpecAugment(**augment)) for seed in (3, 3, 4)]
    histories = [without_times(history) for _, history, _ in runs]
    assert histories[0] == histories[1]
    assert histories[0] != histories[2]
    for one, other in zip(runs[0][0].best.parameters(), runs[1][0].best.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_best_network_is_that_of_the_best_epoch_not_the_last(tmp_path):
    class Spoiled(Hooks):
        def candidate(self, epoch):
            """From epoch 3 on, the candidate's weights are zero."""
            candidate = copy.deepcopy(self.network)
            if epoch >= 3:
                for parameter in candidate.parameters():
                    parameter.data.zero_()
            return candidate

    fit, history, network = train(tmp_path, hooks=Spoiled, epochs=4)
    assert fit.best_epoch < 3
    assert history[3]["val_accuracy"] == pytest.approx(1 / 3)
    assert any(parameter.abs().sum() > 0 for parameter in fit.best.parameters())
    assert fit.best is not network


def test_epochs_that_do_not_compete_are_never_best(tmp_path):
    class Late(Hooks):
        def candidate(self, epoch):
            return self.network if epoch == 2 else None

    assert train(tmp_path, hooks=Late, epochs=4)[0].best_epoch == 2


class Recording(Hooks):
    """Hooks that record every call of the trainer."""

    calls: ClassVar[list[tuple]] = []

    def __init__(self, network, train, seed):
        super().__init__(network, train, seed)
        self.calls.append(("phase", len(train), seed))

    def begin_epoch(self, epoch):
        self.calls.append(("epoch", epoch))

    @contextmanager
    def training_form(self):
        self.calls.append(("form in",))
        yield
        assert all(parameter.grad is not None for parameter in self.network.parameters())
        self.calls.append(("form out",))

    def loss(self, objective, network, batch):
        self.calls.append(("loss",))
        return super().loss(objective, network, batch)

    def after_step(self, step, steps):
        self.calls.append(("step", step, steps))

    def after_epoch(self, epoch):
        self.calls.append(("epoch over", epoch))

    def candidate(self, epoch):
        self.calls.append(("candidate", epoch))
        return self.network if epoch > 2 else None

    def stage(self, epoch):
        return "one" if epoch < 3 else "two"


def test_the_hooks_are_called_at_every_point_in_order(tmp_path):
    phases = [Phase(1, 2, None, Recording), Phase(3, 4, 1e-3, Recording)]
    fit, history, _ = train(tmp_path, phases=phases, epochs=99, lr=1e-2)
    batches = math.ceil(70 / 16)

    def epoch(number, done):
        steps = [
            [("form in",), ("loss",), ("form out",), ("step", done + i, 2 * batches)] for i in range(1, batches + 1)
        ]
        return [("epoch", number), *chain(*steps), ("epoch over", number), ("candidate", number)]

    first = [("phase", 70, 0), *epoch(1, 0), *epoch(2, batches)]
    assert Recording.calls == [*first, ("phase", 70, 0), *epoch(3, 0), *epoch(4, batches)]
    assert [row["phase"] for row in history] == ["one", "one", "two", "two"]
    assert fit.best_epoch >= 3  # earlier epochs never compete
    assert fit.epochs == 4
    # Each phase has a separate schedule that rises to its rate and falls to 0.
    rates = [row["lr"] for row in history]
    assert 0 < rates[1] < 1e-2
    assert 0 < rates[3] < 1e-3


def test_without_phases_the_network_is_validated_as_it_is(tmp_path):
    fit, history, network = train(tmp_path, phases=[])
    assert (fit.best_epoch, fit.epochs, fit.utterances_per_s) == (0, 0, 0.0)
    assert [(row["epoch"], row["lr"]) for row in history] == [(0, 0.0)]
    assert history[0]["val_accuracy"] == fit.best_metrics["accuracy"]
    for one, other in zip(fit.best.parameters(), network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_early_stopping_waits_for_patience_and_for_the_hooks(tmp_path):
    class Spoiled(Hooks):
        """Hooks with which no epoch after the first is better; stopping is allowed from epoch `allowed` on."""

        allowed = 1

        def candidate(self, epoch):
            candidate = copy.deepcopy(self.network)
            if epoch > 1:
                for parameter in candidate.parameters():
                    parameter.data.fill_(float(epoch))
            return candidate

        def may_stop_early(self, epoch):
            return epoch >= self.allowed

    class Patient(Spoiled):
        allowed = 6

    assert train(tmp_path, hooks=Spoiled, epochs=9, patience=2)[0].epochs == 3
    assert train(tmp_path, hooks=Patient, epochs=9, patience=2)[0].epochs == 6
    assert train(tmp_path, hooks=Spoiled, epochs=5)[0].epochs == 5


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(tmp_path):
    parts = tiny.parts()
    parts["train"].frames_NF[parts["train"].starts_WU[0, 5]] = float("nan")
    objective = Classification("mean", 0.0, 0.0)
    network = objective.network(CompactEncoder(4, lambda width: GRU(width, 8), False, 1, 0.0), 3)
    settings = trainer(batch_size=70)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(
        NonFiniteLossError, match=r"the loss became nan at step 1 of 4 in a batch of 70 utterances .*trainer\.lr"
    ):
        files = StateFiles(tmp_path, 1, {}, None)
        quiet = SpecAugment(**PLAIN, **QUIET)
        TrainingLoop(
            settings, network, objective, [Phase(1, 4)], quiet, parts, tiny.NAMES, 0, files, lambda _: None
        ).run()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_gradient_that_is_not_finite_under_a_finite_loss_stops_before_the_weights_are_touched(tmp_path):
    class Root(Hooks):
        """Hooks with a finite loss whose gradient is 0 times infinity, like the square root of a norm of zeros."""

        def loss(self, objective, network, batch):
            logits = network(batch.features_BTF, batch.lengths_B)
            return objective.loss(logits, batch) + (0 * logits).sum().sqrt()

    objective = Classification("mean", 0.0, 0.0)
    network = objective.network(CompactEncoder(4, lambda width: GRU(width, 8), False, 1, 0.0), 3)
    before = copy.deepcopy(network.state_dict())
    files, quiet = StateFiles(tmp_path, 1, {}, None), SpecAugment(**PLAIN, **QUIET)
    phases = [Phase(1, 4, None, Root)]
    fitting = TrainingLoop(
        trainer(), network, objective, phases, quiet, tiny.parts(), tiny.NAMES, 0, files, lambda _: None
    )
    with pytest.raises(
        NonFiniteLossError, match=r"the gradient became nan at step 1 of 20 in a batch of \d+ .*trainer\.lr"
    ):
        fitting.run()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_reported_training_loss_is_the_mean_over_utterances_not_over_batches(tmp_path):
    """70 utterances in batches of 16 leave a last batch of 6, which must weigh less."""

    class Counting(Hooks):
        """Hooks with the size of a batch as its loss, so that the two means differ."""

        def loss(self, objective, network, batch):
            return 0 * super().loss(objective, network, batch) + len(batch.ids)

    _, history, _ = train(tmp_path, hooks=Counting, epochs=1)
    assert history[0]["train_loss"] == pytest.approx((4 * 16 * 16 + 6 * 6) / 70)


def test_the_learning_rate_reaches_its_end_in_shortened_epochs(tmp_path):
    """trainer.epoch_batches shortens the schedule too: the last step is at the end of the cosine."""

    taken = []

    class Rates(Hooks):
        def after_step(self, step, steps):
            taken.append((step, steps))

    _, history, _ = train(tmp_path, hooks=Rates, epochs=4, epoch_batches=2, lr=1e-2)
    assert taken == [(step, 8) for step in range(1, 9)]
    # The rate of an epoch's first step: after 6 of 8 steps, one of them warm-up, half a cosine is at 5/7 of its way.
    assert history[-1]["lr"] == pytest.approx(1e-2 * 0.5 * (1 + math.cos(math.pi * 5 / 7)))


def test_the_training_state_of_the_last_epoch_alone_is_kept(tmp_path):
    _, _, network = train(tmp_path, epochs=3)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_epoch_3.pt"]
    state = torch.load(tmp_path / "checkpoint_epoch_3.pt", weights_only=True)
    assert state["state"]["epoch"] == 3
    assert set(state["optimization"]["optimizer"]["state"]) == set(range(len(list(network.parameters()))))
    for name, value in network.state_dict().items():
        assert torch.equal(state["network"][name], value)


def test_bf16_trains_on_the_cpu(tmp_path):
    fit, _, _ = train(tmp_path, precision="bf16", epochs=8)
    assert fit.best_metrics["accuracy"] > 0.8


def test_wrong_devices_and_precisions_are_refused():
    with pytest.raises(ValueError, match=r"trainer\.precision=fp16 needs a GPU, the device is cpu"):
        set_up("cpu", "fp16", deterministic=True)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"trainer\.device=cuda, but torch finds no GPU here"):
            choose_device("cuda")
        assert choose_device("auto").type == "cpu"


@pytest.mark.parametrize(
    ("visible", "others", "expected"),
    [
        (4, ["GPU-0", "GPU-2", "GPU-3"], "cuda:1"),
        (1, ["GPU-8"], "cuda:0"),  # each task of a SLURM job sees its own GPU only
        (1, ["GPU-0"], None),
        (1, [""], None),  # the other process finds no GPU
        (0, [""], "cpu"),
    ],
)
def test_each_rank_has_a_separate_gpu(monkeypatch, visible, others, expected):
    """This process acts as local rank 1."""
    monkeypatch.setenv("WORLD_SIZE", str(len(others) + 1))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(ranks, "all_gather", lambda own: [*others, own])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"GPU-{device.index}"))
    if expected is None:
        with pytest.raises(ValueError, match="start one for each GPU"):
            choose_device("auto")
    else:
        assert choose_device("auto") == torch.device(expected)


def test_determinism_is_switched_on_and_off():
    set_up("cpu", "fp32", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    set_up("cpu", "fp32", deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
    assert torch.backends.cuda.matmul.allow_tf32
    set_up("cpu", "fp32", deterministic=True)
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.slow
def test_a_compiled_network_trains_to_the_same_losses(tmp_path):
    plain = train(tmp_path, epochs=2, seed=1, dropout=0.0)[1]
    compiled = train(tmp_path, epochs=2, seed=1, dropout=0.0, compile=True)[1]
    # Without dropout, whose random numbers the compiler draws in a different order. Compiled kernels round differently; a few dozen steps keep the losses within float32 rounding times steps.
    for one, other in zip(plain, compiled, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
