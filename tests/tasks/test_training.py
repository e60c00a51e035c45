"""Every task, approach and distillation through the real training loop: weights move, loss falls, approaches act on time."""

from dataclasses import dataclass, field, replace
from functools import partial

import hydra.utils
import pytest
import torch
from composition import CONF, choices
from omegaconf import OmegaConf
from tiny import MODELS, NAMES, OBJECTIVE, fit, fit_phases, network, parts

from speech_exp.data.batches import Utterances
from speech_exp.objectives.objective import Network
from speech_exp.tasks.budget import Budget
from speech_exp.tasks.distillation import Distillation
from speech_exp.tasks.grids import nearest_power
from speech_exp.tasks.integer.calibration import calibration_batches
from speech_exp.tasks.integer.conversion import convert
from speech_exp.tasks.integer_inference import IntegerInference
from speech_exp.tasks.phases import Hooks, Phase
from speech_exp.tasks.power_of_two import PowerOfTwo
from speech_exp.tasks.task import Task
from speech_exp.tasks.unconstrained import Unconstrained

APPROACHES = choices("c_approach")
BUDGET_BYTES = 10_000
LR = 5e-3
FLOAT_EPOCHS, EPOCHS = 3, 8
STEPS_AN_EPOCH = 5  # 70 utterances in batches of 16
SNAP_EVERY = 3  # steps; the config's own number is more than this training has

Weights = dict[str, torch.Tensor]


@dataclass
class Step:
    """The weights `before` a step, as `seen` by the loss, as `moved` by the optimizer, and `after` the task has acted."""

    epoch: int
    before: Weights
    seen: Weights = field(default_factory=dict)
    moved: Weights = field(default_factory=dict)
    after: Weights = field(default_factory=dict)


class Recording:
    """The phases of a task, with hooks that record the weights at each point where the task may act."""

    def __init__(self, task: Task, epochs: int, teacher: Network | None = None) -> None:
        self.steps: list[Step] = []
        self.phase_starts: list[Weights] = []
        self.epoch_starts: dict[int, Weights] = {}  # as the task's `begin_epoch` leaves them
        self.epoch_ends: dict[int, Weights] = {}  # as the task's `after_epoch` leaves them
        self.phases = [replace(phase, start=partial(self._start, phase)) for phase in task.phases(epochs, teacher)]

    def _start(self, phase: Phase, live: Network, train: Utterances, seed: int) -> Hooks:
        self.phase_starts.append(copied(live))
        hooks = phase.start(live, train, seed)
        begin_epoch, after_epoch = hooks.begin_epoch, hooks.after_epoch
        training_form, loss, after_step = hooks.training_form, hooks.loss, hooks.after_step

        def record_epoch(epoch):
            begin_epoch(epoch)
            self.epoch_starts[epoch] = copied(live)

        def record_form():
            self.steps.append(Step(max(self.epoch_starts), copied(live)))
            return training_form()

        def record_loss(*arguments):
            self.steps[-1].seen = copied(live)
            return loss(*arguments)

        def record_step(*arguments):
            self.steps[-1].moved = copied(live)
            after_step(*arguments)
            self.steps[-1].after = copied(live)

        def record_end(epoch):
            after_epoch(epoch)
            self.epoch_ends[epoch] = copied(live)

        hooks.begin_epoch, hooks.after_epoch = record_epoch, record_end
        hooks.training_form, hooks.loss, hooks.after_step = record_form, record_loss, record_step
        return hooks

    def of_epoch(self, epoch: int) -> list[Step]:
        return [step for step in self.steps if step.epoch == epoch]


def copied(module: torch.nn.Module) -> Weights:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def assert_the_optimizer_moved(steps: list[Step]) -> None:
    """Check that the optimizer changed every parameter in every step, at least partly."""
    assert len(steps) % STEPS_AN_EPOCH == 0
    for step in steps:
        assert [name for name in step.before if torch.equal(step.moved[name], step.before[name])] == []


def losses(history, phase: Phase) -> list[float]:
    return [row["train_loss"] for row in history if row["epoch"] in phase.epochs]


def loss_of(deployed) -> float:
    return OBJECTIVE.evaluate(deployed, parts()["train"].by_length(64), NAMES).metrics["loss"]


DISTILLATION = Distillation(tau=3.0, alpha=0.6)


def power_of_two(name: str, **changes) -> PowerOfTwo:
    """Build task C with the approach that conf/c_approach/NAME.yaml describes."""
    approach = hydra.utils.instantiate(OmegaConf.load(CONF / "c_approach" / f"{name}.yaml"), _convert_="all")
    if approach.every_n_steps:
        approach.every_n_steps = SNAP_EVERY
    settings = {"start_epoch": FLOAT_EPOCHS + 1, "every_n_steps": None, "scope": None, "k_min": -8, "k_max": 8}
    settings |= {"fine_tune_lr": LR, "memory_matrices": "int16", "float_checkpoint": None}
    return PowerOfTwo(approach, BUDGET_BYTES, **(settings | changes))


def integers(qat_epochs: int, distillation: Distillation | None = None) -> IntegerInference:
    return IntegerInference(BUDGET_BYTES, False, qat_epochs, LR, None, distillation)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "make", [Unconstrained, lambda: Budget(BUDGET_BYTES), lambda: integers(0)], ids=["A", "B1", "B2"]
)
def test_a_task_of_one_phase_trains(tmp_path, make, model):
    task = make()
    recording = Recording(task, EPOCHS)
    found, history, live = fit_phases(tmp_path, recording.phases, model, epochs=EPOCHS)
    assert_the_optimizer_moved(recording.steps)
    assert len(recording.steps) == EPOCHS * STEPS_AN_EPOCH
    trained = losses(history, Phase(1, EPOCHS))
    assert trained[-1] < trained[0]
    assert same(copied(live), recording.epoch_ends[EPOCHS])
    assert same(copied(found.best), recording.epoch_ends[found.best_epoch])
    deployed, untrained = (task.deploy(one, None, parts()["train"]).network for one in (found.best, network(model)))
    assert loss_of(deployed) < loss_of(untrained)


@pytest.mark.parametrize("kd", [False, True], ids=["alone", "taught"])
@pytest.mark.parametrize("model", MODELS)
def test_quantisation_aware_epochs_train_the_float_weights(tmp_path, model, kd):
    teacher = network(model, seed=7)
    before = copied(teacher)
    task = integers(EPOCHS, DISTILLATION if kd else None)
    recording = Recording(task, FLOAT_EPOCHS, teacher)
    found, history, live = fit_phases(tmp_path, recording.phases, model, epochs=FLOAT_EPOCHS)
    assert_the_optimizer_moved(recording.steps)
    assert {step.epoch for step in recording.steps} == set(range(1, FLOAT_EPOCHS + EPOCHS + 1))
    for phase in (Phase(1, FLOAT_EPOCHS), Phase(FLOAT_EPOCHS + 1, FLOAT_EPOCHS + EPOCHS)):
        trained = losses(history, phase)
        assert trained[-1] < trained[0]
    assert same(copied(found.reference), recording.phase_starts[1])
    converted_after_training = convert(found.reference, calibration_batches(parts()["train"]))
    assert found.best_epoch > FLOAT_EPOCHS
    assert loss_of(found.best) < loss_of(converted_after_training)
    assert same(copied(live), recording.epoch_ends[FLOAT_EPOCHS + EPOCHS])
    assert same(copied(teacher), before)


@pytest.mark.parametrize("approach", APPROACHES)
@pytest.mark.parametrize(
    ("model", "kd"), [("gru", False), ("gru", True), ("lmu", False)], ids=["gru", "gru, taught", "lmu"]
)
def test_every_approach_trains_in_both_phases(tmp_path, model, approach, kd):
    teacher = network(model, seed=7)
    before = copied(teacher)
    task = power_of_two(approach, distillation=DISTILLATION if kd else None)
    recording = Recording(task, EPOCHS, teacher)
    found, history, _ = fit_phases(tmp_path, recording.phases, model, epochs=EPOCHS)
    assert_the_optimizer_moved(recording.steps)
    assert len(recording.steps) == EPOCHS * STEPS_AN_EPOCH
    for phase in (Phase(1, FLOAT_EPOCHS), Phase(FLOAT_EPOCHS + 1, EPOCHS)):
        trained = losses(history, phase)
        assert trained[-1] < trained[0]
    # The deployed network is not merely the float network rounded: it was trained further.
    rounded = task.deployment.project(found.reference)
    assert found.best_epoch > FLOAT_EPOCHS
    for name, weight in task.deployment.weights(found.best).items():
        assert weight.ndim == 1 or not torch.equal(weight, task.deployment.weights(rounded)[name]), name
    assert loss_of(found.best) < loss_of(rounded)
    assert same(copied(teacher), before)


@pytest.mark.parametrize("approach", APPROACHES)
def test_without_fine_tuning_the_best_float_epoch_is_rounded(tmp_path, approach):
    task = power_of_two(approach, fine_tune=False, start_epoch=None)
    recording = Recording(task, EPOCHS)
    found, history, _ = fit_phases(tmp_path / "rounded", recording.phases, "gru", epochs=EPOCHS)
    alone = fit(tmp_path / "float", None, "gru", epochs=EPOCHS)
    assert [row["train_loss"] for row in history] == [row["train_loss"] for row in alone[1]]
    assert found.best_epoch == alone[0].best_epoch
    for step in recording.steps:
        assert same(step.seen, step.before) and same(step.after, step.moved)
    deployed = task.deploy(found.best, found.reference, parts()["train"])
    assert same(copied(deployed.reference), copied(alone[0].best))
    assert same(projected(task, copied(alone[0].best)), copied(deployed.network))
    assert task.deployment.certify(deployed.network, network("gru")).passed
    # When it starts from a float run, nothing is trained at all.
    task = power_of_two(approach, fine_tune=False, start_epoch=None, float_checkpoint="RUN")
    found, history, live = fit(tmp_path / "from", task, "gru", epochs=EPOCHS)
    assert (len(history), found.best_epoch, found.epochs) == (1, 0, 0)
    deployed = task.deploy(found.best, found.reference, parts()["train"]).network
    assert same(projected(task, copied(network("gru"))), copied(deployed))
    assert same(copied(live), copied(network("gru")))


def phase_two(folder, approach: str) -> tuple[PowerOfTwo, Recording]:
    task = power_of_two(approach)
    recording = Recording(task, EPOCHS)
    fit_phases(folder, recording.phases, "gru", epochs=EPOCHS)
    return task, recording


def in_scope(task: PowerOfTwo, weights: Weights) -> Weights:
    return {name: weights[name] for name in task.deployment.weights(network("gru"))}


def projected(task: PowerOfTwo, weights: Weights) -> Weights:
    return {
        name: task.deployment.approach.project(weight, task.deployment.grid)
        for name, weight in in_scope(task, weights).items()
    }


def acts_after_each_epoch(task: PowerOfTwo, recording: Recording, acted) -> None:
    """Check that only the end of an epoch acts, and that `acted(weights before it, epoch of phase two)` predicts the result."""
    for epoch in range(FLOAT_EPOCHS + 1, EPOCHS + 1):
        steps = recording.of_epoch(epoch)
        for step in steps:
            assert same(step.seen, step.before) and same(step.after, step.moved)
        before = in_scope(task, steps[-1].after)
        expected = acted(before, epoch - FLOAT_EPOCHS)
        assert same(expected, recording.epoch_ends[epoch]) and not same(expected, before)


def projects_after_each_epoch(task, recording):
    acts_after_each_epoch(task, recording, lambda weights, _: projected(task, weights))


def keeps_a_share_that_falls_to_nothing(task, recording):
    epochs = EPOCHS - FLOAT_EPOCHS

    def acted(weights, epoch):
        share = task.deployment.approach.start * (1 - epoch / epochs) / (1 - 1 / epochs)
        assert epoch > 1 or share == task.deployment.approach.start
        assert epoch < epochs or share == 0
        grid = projected(task, weights)
        return {name: torch.lerp(grid[name], weight, share) for name, weight in weights.items()}

    acts_after_each_epoch(task, recording, acted)


def projects_every_few_steps(task, recording):
    steps = [step for step in recording.steps if step.epoch > FLOAT_EPOCHS]
    for number, step in enumerate(steps, 1):
        acts = number % SNAP_EVERY == 0 and number < len(steps)
        expected = projected(task, step.moved) if acts else in_scope(task, step.moved)
        assert same(step.seen, step.before) and same(expected, step.after)
        assert acts != same(in_scope(task, step.moved), step.after)
    for epoch in range(FLOAT_EPOCHS + 1, EPOCHS):
        assert same(recording.epoch_ends[epoch], recording.of_epoch(epoch)[-1].after)
    assert same(projected(task, steps[-1].after), recording.epoch_ends[EPOCHS])


def rounds_at_random_and_at_last_to_the_nearest(task, recording):
    def acted(weights, epoch):
        ended = in_scope(task, recording.epoch_ends[epoch + FLOAT_EPOCHS])
        nearest = projected(task, weights)
        assert same(ended, nearest) == (epoch == EPOCHS - FLOAT_EPOCHS)
        for name, weight in weights.items():  # a neighbouring level: no level lies between it and the weight
            assert task.deployment.approach.on_grid(ended[name], task.deployment.grid).all()
            between = (ended[name] + weight) / 2
            near = nearest_power(between, task.deployment.grid)
            low, high = torch.minimum(ended[name], weight), torch.maximum(ended[name], weight)
            assert not ((low < near) & (near < high)).any()
        return ended

    acts_after_each_epoch(task, recording, acted)


def freezes_for_good_what_is_largest(task, recording):
    values = in_scope(task, recording.phase_starts[1])
    frozen = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in values.items()}
    for epoch in range(FLOAT_EPOCHS + 1, EPOCHS + 1):
        now, before = task.deployment.approach._frozen, recording.epoch_ends[epoch - 1]
        share = task.deployment.approach._share(epoch - FLOAT_EPOCHS)
        for name in frozen:
            begun = recording.epoch_starts[epoch][name]
            joined = ~frozen[name] & (begun != before[name])
            frozen[name] |= joined
            values[name] = torch.where(joined, nearest_power(before[name], task.deployment.grid), values[name])
            assert now[name][frozen[name]].all(), "masks only grow"
            # Weights already on the grid may be frozen unnoticed, so the share is a lower bound.
            assert frozen[name].float().mean() <= share + 1 / frozen[name].numel()
            assert torch.equal(begun[frozen[name]], values[name][frozen[name]])
            for step in recording.of_epoch(epoch):
                assert torch.equal(step.seen[name][frozen[name]], values[name][frozen[name]])
                assert torch.equal(step.after[name][frozen[name]], values[name][frozen[name]])
                assert torch.equal(step.after[name][~now[name]], step.moved[name][~now[name]]), "the rest trains on"
    assert all(mask.float().mean() > 0.75 for mask in frozen.values() if mask.numel() > 20)
    assert same(projected(task, recording.of_epoch(EPOCHS)[-1].after), recording.epoch_ends[EPOCHS])


def computes_with_the_projection_of_a_float_master(task, recording):
    for step in recording.steps:
        if step.epoch <= FLOAT_EPOCHS:
            continue
        assert same(projected(task, step.before), step.seen)
        assert same(step.after, step.moved)
        for name, weight in in_scope(task, step.after).items():
            assert not task.deployment.approach.on_grid(weight, task.deployment.grid).all(), (
                f"the master of {name} stays off the grid"
            )
    for epoch in range(FLOAT_EPOCHS + 1, EPOCHS):
        assert same(recording.epoch_ends[epoch], recording.of_epoch(epoch)[-1].after)
    assert same(projected(task, recording.of_epoch(EPOCHS)[-1].after), recording.epoch_ends[EPOCHS])


DEFINITIONS = {
    "apot2": projects_after_each_epoch,
    "ema": keeps_a_share_that_falls_to_nothing,
    "inq": freezes_for_good_what_is_largest,
    "mixed_pot": projects_after_each_epoch,
    "row_shared": computes_with_the_projection_of_a_float_master,
    "snap_epoch": projects_after_each_epoch,
    "snap_step": projects_every_few_steps,
    "ste": computes_with_the_projection_of_a_float_master,
    "stochastic": rounds_at_random_and_at_last_to_the_nearest,
}


@pytest.mark.parametrize("approach", DEFINITIONS)
def test_an_approach_acts_when_its_definition_says(tmp_path, approach):
    task, recording = phase_two(tmp_path, approach)
    for step in recording.steps:
        if step.epoch <= FLOAT_EPOCHS:
            assert same(step.seen, step.before) and same(step.after, step.moved), "phase one is left alone"
    DEFINITIONS[approach](task, recording)
    outside = recording.phase_starts[1].keys() - task.deployment.weights(network("gru")).keys()
    last = recording.of_epoch(EPOCHS)[-1].moved
    assert all(torch.equal(recording.epoch_ends[EPOCHS][name], last[name]) for name in outside)


def test_distillation_changes_what_phase_two_learns_and_nothing_before(tmp_path):
    ends = []
    for number, distillation in enumerate((None, DISTILLATION)):
        recording = Recording(power_of_two("ste", distillation=distillation), EPOCHS, network("gru", seed=7))
        fit_phases(tmp_path / str(number), recording.phases, "gru", epochs=EPOCHS)
        ends.append(recording.epoch_ends)
    assert same(ends[0][FLOAT_EPOCHS], ends[1][FLOAT_EPOCHS])
    assert not same(ends[0][FLOAT_EPOCHS + 1], ends[1][FLOAT_EPOCHS + 1])
