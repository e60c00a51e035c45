"""Learning-rate schedules and gradient accumulation."""

import copy
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from torch import nn

from speech_exp.features.batch import Batch
from speech_exp.models.encoder import CompactEncoder
from speech_exp.models.recurrent import GRU
from speech_exp.objectives.classification import Classification
from speech_exp.objectives.ctc import Ctc
from speech_exp.training.optimization import Optimization
from speech_exp.training.runtime import Runtime, set_up


def optimization(network: nn.Module, steps: int = 40, **changes) -> Optimization:
    settings = {"lr": 0.1, "weight_decay": 0.01, "schedule": "cosine", "warmup_share": 0.25, "clip_norm": 1.0} | changes
    return Optimization(network, set_up("cpu", "fp32", True), steps, **settings)


def rates(**changes) -> list[float]:
    """Return the learning rate of each of 40 steps, and the one after them."""
    network = nn.Linear(2, 2)
    one = optimization(network, **changes)
    batch = Batch(torch.ones(1, 1, 2), torch.ones(1, dtype=torch.int64), torch.zeros(1), None, ["u"])
    found = []
    for _ in range(40):
        found.append(one.lr)
        one.step([(batch, 1.0)], lambda part: network(part.features_BTF).square().sum(), nullcontext())
    return [*found, one.lr]


def test_onecycle_without_warm_up_starts_near_the_top():
    found = rates(schedule="onecycle", warmup_share=0)  # an integer, as typed on the command line
    assert found == sorted(found, reverse=True)
    assert 0.09 < found[0] <= 0.1


@pytest.mark.parametrize(("schedule", "first", "last"), [("cosine", 0.01, 0.0), ("onecycle", 0.004, 4e-7)])
def test_the_learning_rate_rises_then_falls(schedule, first, last):
    found = rates(schedule=schedule)
    top = found.index(max(found))
    assert 9 <= top <= 10
    assert max(found) == pytest.approx(0.1, rel=0.01)  # the peak of a cycle lies between two steps
    assert all(one < other for one, other in pairwise(found[: top + 1]))
    assert all(one > other for one, other in pairwise(found[top + 1 :]))
    assert found[0] == pytest.approx(first)
    assert found[40] == pytest.approx(last, rel=1e-3, abs=1e-9)


def test_a_constant_rate_stays():
    assert set(rates(schedule="constant")) == {0.1}


def batch_of(targets_per_utterance: list[int], classes: bool) -> Batch:
    generator = torch.Generator().manual_seed(0)
    size = len(targets_per_utterance)
    lengths_B = torch.randint(30, 40, (size,), generator=generator)
    valid_BT1 = (torch.arange(40) < lengths_B.unsqueeze(1)).unsqueeze(-1)
    features_BTF = torch.randn(size, 40, 3, dtype=torch.float64, generator=generator) * valid_BT1
    target_lengths_B = None if classes else torch.tensor(targets_per_utterance)
    count = size if classes else sum(targets_per_utterance)
    targets = torch.randint(1, 4, (count,), generator=generator)
    return Batch(features_BTF, lengths_B, targets, target_lengths_B, [f"u{number}" for number in range(size)])


@pytest.mark.parametrize("parts", [2, 3, 7, 50])
@pytest.mark.parametrize(
    "objective", [Classification("mean", 0.0, 0.0), Ctc(0.0, 0.0, 0.0, "wer")], ids=["classes", "text"]
)
def test_the_parts_of_a_batch_make_the_step_of_the_whole(objective, parts):
    """Only the order of sums differs: they are in float64, except the loss of class logits, which is in float32."""
    torch.manual_seed(0)
    network = objective.network(CompactEncoder(3, lambda width: GRU(width, 5), False, 1, 0.0), 5).double()
    batch = batch_of([3, 1, 9, 4, 2, 7, 5], isinstance(objective, Classification))
    found = []
    for count in (1, parts):
        model = copy.deepcopy(network)
        split = batch.split(count)
        assert sum(len(part.ids) for part in split) == 7
        weights = [objective.weight(part) for part in split]
        shares = [weight / sum(weights) for weight in weights]
        one = optimization(model, clip_norm=1e9)

        def loss_of(part, model=model):
            return objective.loss(model(part.features_BTF, part.lengths_B), part)

        value = one.step(list(zip(split, shares, strict=True)), loss_of, nullcontext())
        found.append((value, [parameter.grad for parameter in model.parameters()]))
    tolerance = 1e-5 if batch.target_lengths_B is None else 1e-12
    assert found[0][0] == pytest.approx(found[1][0], rel=tolerance)
    for whole, summed in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(whole, summed, rtol=0.0, atol=tolerance)


def stepped(precision: str, factor: float) -> tuple[Optimization, nn.Linear]:
    """Take one step; fp16 training needs a GPU, but its computations also run on a CPU."""
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    settings = {"lr": 0.1, "weight_decay": 0.0, "schedule": "constant", "warmup_share": 0.0, "clip_norm": 1e9}
    one = Optimization(network, Runtime(torch.device("cpu"), precision), 5, **settings)
    batch = Batch(torch.ones(2, 1, 4), torch.ones(2, dtype=torch.int64), torch.zeros(2), None, ["u", "v"])
    one.step([(batch, 1.0)], lambda part: factor * network(part.features_BTF).float().square().mean(), nullcontext())
    return one, network


def test_half_precision_losses_are_scaled_and_gradients_are_not():
    (plain, network), (half, other) = stepped("fp32", 1.0), stepped("fp16", 1.0)
    assert not plain.scaler.is_enabled()
    assert half.scaler.get_scale() == 2.0**16
    assert half.gradient_norm.item() == pytest.approx(plain.gradient_norm.item(), rel=2**-8)  # rounded to 11 bits
    torch.testing.assert_close(other.weight.grad, network.weight.grad, rtol=2**-8, atol=2**-10)
    torch.testing.assert_close(other.weight, network.weight, rtol=0, atol=1e-3)


def test_a_scaled_gradient_that_overflows_leaves_the_weights_and_halves_the_scale():
    torch.manual_seed(0)
    before = nn.Linear(4, 3).weight
    half, network = stepped("fp16", 1e35)  # times 2^16 is too large for float32
    assert not half.gradient_norm.isfinite()
    assert torch.equal(network.weight, before)
    assert half.scaler.get_scale() == 2.0**15
    assert half.steps_done == 1


def test_half_precision_is_refused_on_a_cpu():
    with pytest.raises(ValueError, match=r"trainer\.precision=fp16 needs a GPU"):
        set_up("cpu", "fp16", True)
