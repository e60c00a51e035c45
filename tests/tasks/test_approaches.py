"""The effect of each approach on the weights in phase two, with real optimizers."""

import copy
import math
from contextlib import nullcontext
from pathlib import Path

import hydra.utils
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from speech_exp.tasks.approaches.approach import Approach
from speech_exp.tasks.approaches.inq import Inq
from speech_exp.tasks.approaches.row_shared import RowShared
from speech_exp.tasks.approaches.snapping import (
    Apot2,
    Ema,
    MixedPot,
    SnapEpoch,
    SnapStep,
    Stochastic,
)
from speech_exp.tasks.approaches.ste import Ste
from speech_exp.tasks.grids import Grid, is_power, is_row_shared, nearest_power, row_shared

CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "c_approach").glob("*.yaml"))
GRID = Grid(-8, 8)
STAGES = [[0.3, 4], [0.6, 4], [0.8, 6], [1.0, 0]]
OPTIMIZERS = {
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.3),
    "adamw_fused": lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.3, fused=True),
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
}


def load(path: Path) -> Approach:
    """Build the approach that a YAML file describes."""
    return hydra.utils.instantiate(OmegaConf.load(path), _convert_="all")


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.GRU(3, 5, batch_first=True)
        self.head = torch.nn.Linear(5, 6)

    def loss(self) -> torch.Tensor:
        inputs_BTF = torch.randn(6, 7, 3, generator=torch.Generator().manual_seed(1))
        return torch.nn.functional.cross_entropy(self.head(self.layer(inputs_BTF)[0][:, -1]), torch.arange(6))


def weights_of(network: Network) -> dict[str, torch.Tensor]:
    return dict(network.named_parameters())


def copied(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.detach().view(torch.int32), other.detach().view(torch.int32))


def step(network: Network, approach: Approach, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    with approach.training_form(weights_of(network)):
        network.loss().backward()
    optimizer.step()
    approach.after_step(weights_of(network))


def phase_two(approach: Approach, optimizer_name: str = "adamw", epochs: int = 4, seed: int = 0) -> Network:
    """Run phase two as the task does, with two steps per epoch; return the network."""
    network = Network()
    optimizer = OPTIMIZERS[optimizer_name](network.parameters())
    approach.begin(weights_of(network), GRID, epochs, seed)
    for epoch in range(1, epochs + 1):
        approach.begin_epoch(weights_of(network), epoch)
        for _ in range(2):
            step(network, approach, optimizer)
        approach.act(weights_of(network), epoch / epochs)
    return network


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_approach_ends_on_its_grid_exactly_and_trains_before(path):
    approach = load(path)
    assert approach.name == path.stem
    start, network = weights_of(Network()), phase_two(approach)
    for weight in network.parameters():
        assert approach.on_grid(weight, GRID).all()
        assert same_bits(approach.project(weight, GRID), weight)
    moved = [
        not torch.equal(weight, approach.project(start[name], GRID)) for name, weight in weights_of(network).items()
    ]
    assert any(moved), "what is deployed was trained"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_approach_restarted_repeats_itself_bit_for_bit(path):
    approach = load(path)
    first, second = phase_two(approach), phase_two(approach)
    assert all(same_bits(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_weights_off_the_grid_by_one_ulp_are_reported(path):
    approach = load(path)
    weight = approach.project(torch.randn(6, 5, generator=torch.Generator().manual_seed(2)), GRID)
    assert approach.on_grid(weight, GRID).all()
    moved = weight.clone()
    moved[2, 3] = torch.nextafter(moved[2, 3], torch.tensor(100.0))
    assert not approach.on_grid(moved, GRID)[2, 3]


def test_what_the_approaches_tell_the_task():
    approaches = {path.stem: load(path) for path in CONFIGS}
    assert {name for name, one in approaches.items() if not one.takes_every_n_steps} == {"inq", "row_shared", "ste"}
    assert {name for name, one in approaches.items() if one.has_schedule} == {"ema", "inq"}
    assert {name: one.every_n_steps for name, one in approaches.items() if one.every_n_steps} == {"snap_step": 50}
    assert {name: one.scope for name, one in approaches.items() if one.scope} == {"mixed_pot": "recurrent_matrices"}
    assert approaches["ema"].stage(3) == "ema"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_parameters_outside_the_scope_are_left_alone(path):
    approach, network = load(path), Network()
    scope = weights_of(network.layer)
    before = copied(weights_of(network))
    approach.begin(scope, GRID, 4, 0)
    approach.begin_epoch(scope, 1)
    with approach.training_form(scope):
        assert same_bits(network.head.weight, before["head.weight"])
    approach.after_step(scope)
    for progress in (0.25, 1.0):
        approach.act(scope, progress)
    assert same_bits(network.head.weight, before["head.weight"])
    assert not torch.equal(network.layer.weight_hh_l0, before["layer.weight_hh_l0"])


def test_ema_keeps_a_share_that_falls_linearly_from_its_start_to_nothing():
    approach = Ema(start=0.85)
    weight = torch.randn(40, generator=torch.Generator().manual_seed(0))
    approach.begin({"w": weight.clone()}, GRID, 2, 0)
    approach.act({"w": weight.clone()}, 0.5)
    approach.begin({"w": weight}, GRID, 5, 0)  # begins again: the first act is the one at progress 0.2
    for progress, share in ((0.2, 0.85), (0.4, 0.6375), (0.6, 0.425), (0.8, 0.2125)):
        before = weight.double()
        approach.act({"w": weight}, progress)
        expected = share * before + (1 - share) * nearest_power(before, GRID)
        # The sum of two float32 products is rounded a few times, each by at most half an ulp.
        torch.testing.assert_close(weight.double(), expected, rtol=4 * 2**-24, atol=0)
        assert not is_power(weight, GRID).all()
    expected = nearest_power(weight, GRID)
    approach.act({"w": weight}, 1.0)
    assert same_bits(weight, expected)


def test_ema_of_one_epoch_is_the_projection():
    weight = torch.tensor([0.3, -0.0, -3.0])
    approach = Ema(start=0.85)
    approach.begin({"w": weight}, GRID, 1, 0)
    approach.act({"w": weight}, 1.0)
    assert weight.tolist() == [0.25, 0.0, -4.0]


@pytest.mark.parametrize("approach", [SnapEpoch(), SnapStep(50), MixedPot(), Apot2()], ids=lambda one: one.name)
def test_snapping_projects_at_every_act(approach):
    network = Network()
    before = copied(weights_of(network))
    approach.begin(weights_of(network), GRID, 4, 0)
    approach.act(weights_of(network), 0.1)
    for name, weight in weights_of(network).items():
        assert same_bits(weight, approach.project(before[name], GRID))


def test_stochastic_rounds_by_its_own_seeded_generator_and_to_the_nearest_at_the_end():
    weight = torch.full((1000,), 0.7)  # rounds to 0.5 or 1, nearest 0.5

    def acted(seed: int, progress: float) -> torch.Tensor:
        approach, own = Stochastic(), {"w": weight.clone()}
        approach.begin(own, GRID, 4, seed)
        approach.act(own, progress)
        return own["w"]

    state = torch.get_rng_state()
    first = acted(1, 0.5)
    assert set(first.tolist()) == {0.5, 1.0}
    assert torch.equal(first, acted(1, 0.5)) and not torch.equal(first, acted(2, 0.5))
    assert torch.equal(torch.get_rng_state(), state)
    assert set(acted(1, 1.0).tolist()) == {0.5}


def joins(weight: torch.Tensor, frozen: torch.Tensor, share: tuple[int, int]) -> torch.Tensor:
    """Return the frozen weights once `share` (a fraction) of the tensor, rounded up, is frozen, chosen one at a time."""
    frozen = frozen.clone()
    free = sorted((float(w.abs()), i) for i, w in enumerate(weight.flatten()) if not frozen.view(-1)[i])
    while int(frozen.sum()) * share[1] < weight.numel() * share[0]:
        frozen.view(-1)[free.pop()[1]] = True
    return frozen


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_inq_freezes_the_largest_for_good_whatever_the_optimizer_does(optimizer_name):
    """A float phase builds up momentum, so the optimizer pushes frozen weights from the first step on."""
    network = Network()
    weights, optimizer = weights_of(network), OPTIMIZERS[optimizer_name](network.parameters())
    for _ in range(5):
        step(network, SnapEpoch(), optimizer)
    approach = Inq(STAGES)
    approach.begin(weights, GRID, 6, 0)
    frozen = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    values = copied(weights)
    for epoch, share in enumerate([(3, 10), (3, 10), (6, 10), (8, 10), (8, 10), (8, 10)], start=1):
        assert approach.stage(epoch) == f"inq {100 * share[0] // share[1]} %"
        before = copied(weights)
        approach.begin_epoch(weights, epoch)
        for name, weight in weights.items():
            grown = joins(before[name], frozen[name], share)
            newly = grown & ~frozen[name]
            values[name][newly] = nearest_power(before[name][newly], GRID)
            frozen[name] = grown
            assert torch.equal(weight[~grown], before[name][~grown]), "the free weights wait for the optimizer"
        for _ in range(3):
            free = {name: weight[~frozen[name]].detach().clone() for name, weight in weights.items()}
            step(network, approach, optimizer)
            for name, weight in weights.items():
                assert same_bits(weight[frozen[name]], values[name][frozen[name]])
                assert not torch.equal(weight[~frozen[name]], free[name]), f"the rest of {name} trains on"
        approach.act(weights, epoch / 6)
        for name, weight in weights.items():
            assert same_bits(weight[frozen[name]], values[name][frozen[name]])
            assert epoch == 6 or not is_power(weight, GRID).all()
    assert all(is_power(weight, GRID).all() for weight in weights.values())


def test_inq_keeps_a_frozen_zero_at_zero_exactly():
    """The smallest weights are frozen last, at 0; no optimizer may move them or turn them into -0."""
    weights = {"w": torch.tensor([0.5, 1e-4, -1e-4, -0.25])}
    approach = Inq([[0.5, 1], [1.0, 1]])
    approach.begin(weights, GRID, 2, 0)
    approach.begin_epoch(weights, 1)
    approach.begin_epoch(weights, 2)
    for push in (0.1, -0.3, 0.0):
        weights["w"] += push
        approach.after_step(weights)
        assert same_bits(weights["w"], torch.tensor([0.5, 0.0, 0.0, -0.25]))


def test_rows_of_zeros_are_shared_and_on_the_grid():
    """A matrix of zeros has no level; nor does a row of zeros beside rows that have one."""
    approach, zeros, other = RowShared(), torch.zeros(3, 4), torch.tensor([[0.0, 0.0], [0.3, -0.01]])
    vector = torch.tensor([0.0, -0.5])
    approach.begin({}, GRID, 1, 0)
    for matrices in ([zeros], [zeros, other, vector], [-zeros, other, vector]):
        for found, weight in zip(approach.projected(matrices), matrices, strict=True):
            assert same_bits(found, approach.project(weight, GRID))
            assert approach.on_grid(found, GRID).all()
    assert same_bits(approach.project(-zeros, GRID), zeros)
    assert same_bits(approach.project(other, GRID), torch.tensor([[0.0, 0.0], [0.25, 0.0]]))
    assert approach.on_grid(zeros, GRID).all()


@pytest.mark.parametrize(
    ("epochs", "starts"),
    [(3, [1, 2, 3]), (4, [1, 2, 3]), (7, [1, 3, 5]), (14, [1, 5, 9]), (28, [1, 9, 17]), (30, [1, 10, 18])],
)
def test_inq_scales_its_stages(epochs, starts):
    """The first stages end after 4/14 and 8/14 of the epochs, rounded, with at least one epoch per stage."""
    approach = Inq(STAGES)
    approach.begin({}, GRID, epochs, 0)
    names = [approach.stage(epoch) for epoch in range(1, epochs + 1)]
    assert names == sorted(names)
    assert [names.index(f"inq {share} %") + 1 for share in (30, 60, 80)] == starts


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.floats(0.01, 100), min_size=1, max_size=6), extra=st.integers(0, 60), trained=st.booleans())
def test_every_stage_of_inq_that_trains_has_an_epoch(lengths, extra, trained):
    stages = [[(number + 1) / (len(lengths) + 1), length] for number, length in enumerate(lengths)]
    approach = Inq([*stages, [1.0, float(trained)]])
    epochs = len(lengths) + trained + extra
    approach.begin({}, GRID, epochs, 0)
    names = [approach.stage(epoch) for epoch in range(1, epochs + 1)]
    expected = [f"inq {100 * share:g} %" for share, _ in stages] + ["inq 100 %"] * trained
    assert list(dict.fromkeys(names)) == expected


@pytest.mark.parametrize(
    ("share", "numel", "count"), [(0.3, 10, 3), (0.07, 100, 7), (0.3, 1, 1), (0.3, 11, 4), (0.01, 3, 1)]
)
def test_inq_rounds_the_share_of_a_tensor_up(share, numel, count):
    weight = 0.3 * 1.01 ** torch.arange(numel)
    before = weight.clone()
    approach = Inq([[share, 1], [1.0, 0]])
    approach.begin({"w": weight}, GRID, 1, 0)
    approach.begin_epoch({"w": weight}, 1)
    assert torch.equal(weight != before, torch.arange(numel) >= numel - count)


def test_inq_with_epochs_at_its_last_stage_is_frozen_in_all_through_them():
    network = Network()
    weights, optimizer = weights_of(network), OPTIMIZERS["adamw"](network.parameters())
    approach = Inq([[0.5, 1], [1.0, 1]])
    approach.begin(weights, GRID, 2, 0)
    approach.begin_epoch(weights, 2)
    before = copied(weights)
    step(network, approach, optimizer)
    assert all(is_power(weight, GRID).all() and same_bits(weight, before[name]) for name, weight in weights.items())


def test_inq_refuses_fewer_epochs_than_stages():
    message = r"phase two has 2 epochs with c_approach=inq: expected at least 3.*raise trainer\.epochs, lower task\.start_epoch"
    for refuses in (lambda: Inq(STAGES).check(GRID, 2), lambda: Inq(STAGES).begin({}, GRID, 2, 0)):
        with pytest.raises(ValueError, match=message):
            refuses()


@pytest.mark.parametrize(
    "stages",
    [
        [],
        [[0.5, 4]],
        [[0.5, 4], [0.5, 4], [1.0, 0]],
        [[0.6, 4], [0.3, 4], [1.0, 0]],
        [[0.0, 4], [1.0, 0]],
        [[-0.2, 4], [1.0, 0]],
        [[0.5, 4], [1.2, 0]],
        [[0.5, 0], [1.0, 0]],
        [[0.5, 4], [1.0, -1]],
        [[0.5, 4, 1], [1.0, 0]],
    ],
    ids=str,
)
def test_inq_refuses_stages_without_meaning(stages):
    with pytest.raises(ValueError, match=r"c_approach\.stages=.*expected pairs .*change c_approach\.stages"):
        Inq(stages)


def test_ste_takes_the_gradient_at_the_projection_and_moves_the_master():
    network, rate = Network(), 2.0**-6
    weights, optimizer = weights_of(network), torch.optim.SGD(network.parameters(), lr=rate)
    approach = Ste()
    approach.begin(weights, GRID, 3, 0)
    for progress in (0.3, 0.6):
        master = copied(weights)
        projected = copy.deepcopy(network)
        with torch.no_grad():
            for weight in projected.parameters():
                weight.copy_(nearest_power(weight, GRID))
        projected.zero_grad()
        projected.loss().backward()
        step(network, approach, optimizer)
        approach.act(weights, progress)
        for name, weight in weights.items():
            gradient = weights_of(projected)[name].grad
            assert torch.equal(weight.grad, gradient) and gradient.any()
            assert same_bits(weight, master[name].add(gradient, alpha=-rate))
            assert not is_power(weight, GRID).all(), "the master copy stays float"


@pytest.mark.parametrize("fails", [False, True])
def test_ste_gives_the_master_back_bit_for_bit_in_the_same_parameters(fails):
    network = Network()
    with torch.no_grad():
        network.head.bias[:3] = torch.tensor([-0.0, 1e-42, 1e30])
    weights, before = weights_of(network), copied(weights_of(network))
    places = {name: weight.data_ptr() for name, weight in weights.items()}
    approach = Ste()
    approach.begin(weights, GRID, 3, 0)
    with pytest.raises(RuntimeError, match="in between") if fails else nullcontext(), approach.training_form(weights):
        assert all(same_bits(weight, nearest_power(before[name], GRID)) for name, weight in weights.items())
        if fails:
            raise RuntimeError("in between")
    for name, weight in weights_of(network).items():
        assert weight is weights[name] and weight.data_ptr() == places[name] and weight.requires_grad
        assert same_bits(weight, before[name])


def test_row_shared_computes_with_its_own_grid_and_keeps_a_float_master():
    network, approach = Network(), RowShared()
    weights, before = weights_of(network), copied(weights_of(network))
    approach.begin(weights, GRID, 3, 0)
    with approach.training_form(weights):
        assert all(same_bits(weight, row_shared(before[name], GRID)) for name, weight in weights.items())
    approach.act(weights, 0.9)
    assert all(same_bits(weight, before[name]) for name, weight in weights.items())
    approach.act(weights, 1.0)
    assert all(is_row_shared(weight, GRID).all() for weight in weights.values())


def test_row_shared_projects_all_rows_at_once_as_it_does_one_by_one():
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 3), (4,), (5, 7), (2, 3, 2), (1, 1), (6,)]
    weights = [torch.randn(shape, generator=generator) * 2.0**k for k, shape in enumerate(shapes, start=-3)]
    approach = RowShared()
    for tensors in (weights, weights[1:2]):
        approach.begin({str(number): one for number, one in enumerate(tensors)}, GRID, 3, 0)
        for one, other in zip(approach.projected(tensors), tensors, strict=True):
            assert same_bits(one, row_shared(other, GRID))


def test_ste_leaves_the_weights_alone_where_they_cannot_be_projected():
    weight = torch.nn.Parameter(torch.tensor([1.3, math.nan]))
    approach = Ste()
    approach.begin({"w": weight}, GRID, 3, 0)
    with pytest.raises(ValueError, match="1 of 2 weights are NaN"), approach.training_form({"w": weight}):
        pass
    assert weight[0].item() == torch.tensor(1.3).item()


def test_other_approaches_train_with_the_weights_as_they_are():
    network = Network()
    before = copied(weights_of(network))
    for approach in (SnapEpoch(), Ema(0.85), Inq(STAGES)):
        approach.begin(weights_of(network), GRID, 3, 0)
        with approach.training_form(weights_of(network)):
            assert all(same_bits(weight, before[name]) for name, weight in weights_of(network).items())


@pytest.mark.parametrize(
    ("approach", "tensors", "table_bytes", "word_bits", "exponents"),
    [
        # Exponents -1 to 2: 9 levels, 4 bits for each of 4 weights; the lowest exponent and how many there are.
        (SnapEpoch(), [[0.5, -4.0, 0.0], [2.0]], 2, 16, (-1, 2)),
        # 0 and ±1: 3 levels, 2 bits.
        (SnapEpoch(), [[1.0, 0.0]], 2, 4, (0, 0)),
        # Exponents 0 to 6: 15 levels, 4 bits; 0 to 7: 17 levels, 5 bits.
        (SnapEpoch(), [[1.0, 64.0]], 2, 8, (0, 6)),
        (SnapEpoch(), [[1.0, 128.0]], 2, 10, (0, 7)),
        # One level needs no bits.
        (SnapEpoch(), [[0.0, 0.0]], 2, 0, None),
        (SnapEpoch(), [], 2, 0, None),
        # A 2 x 3 matrix: 6 weights of 2 bits, 2 rows of 3 bits (exponents -1 to 3); 2 weights of a vector: 11 levels, 4 bits.
        (RowShared(), [[[1.0, -1.0, 0.0], [8.0, 0.0, 8.0]], [0.5, 0.0]], 2, 12 + 6 + 8, (-1, 3)),
        # One exponent in all: rows need no code.
        (RowShared(), [[[1.0, -1.0], [0.0, 1.0]]], 2, 8, (0, 0)),
        # A kernel of 2 x 1 x 2: 4 weights of 2 bits, 2 rows of 1 bit.
        (RowShared(), [[[[1.0, 0.0]], [[2.0, 2.0]]]], 2, 8 + 2, (0, 1)),
        # 3 = 2 + 1; 0, ±1, ±3: 5 levels, 3 bits; the table has its length and two levels of two bytes.
        (Apot2(), [[3.0, 0.0, -1.0]], 2 + 4, 9, (0, 1)),
        # 7 = 8 - 1; 0, ±1, ±7.
        (Apot2(), [[7.0], [-1.0]], 2 + 4, 6, (0, 3)),
        (Apot2(), [[0.0]], 2, 0, None),
    ],
)
def test_coding_by_hand_count(approach, tensors, table_bytes, word_bits, exponents):
    weights = [torch.tensor(values) for values in tensors]
    assert all(approach.on_grid(weight, GRID).all() for weight in weights)
    assert len(approach.coding.pack(weights)) == table_bytes + -(-word_bits // 8)
    assert approach.exponents({str(number): weight for number, weight in enumerate(weights)}) == exponents


def test_apot2_refuses_a_wide_grid_before_any_work():
    with pytest.raises(ValueError, match=r"c_approach=apot2: expected k_max - k_min of at most 22"):
        Apot2().check(Grid(-12, 12), 4)
    Apot2().check(Grid(-11, 11), 4)
