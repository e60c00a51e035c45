"""Task C in the trainer: the validated, selected and deployed weights are on the grid, for every approach and model."""

import copy

import pytest
import torch
from approaches_by_name import APPROACHES
from tiny import MODELS, fit, network, parts

from speech_exp.tasks.deployment import CertificateError
from speech_exp.tasks.distillation import Distillation
from speech_exp.tasks.phases import Phase
from speech_exp.tasks.power_of_two import PowerOfTwo
from speech_exp.tasks.state_space import is_stored, memories, spectral_radius


def task(approach="ema", **changes):
    settings = {
        "budget_bytes": 10_000,
        "start_epoch": None,
        "every_n_steps": None,
        "scope": None,
        "k_min": -8,
        "k_max": 8,
    }
    settings |= {"fine_tune_lr": 1e-3, "memory_matrices": "int16", "float_checkpoint": None}
    return PowerOfTwo(APPROACHES[approach](), **(settings | changes))


def powers(k_min=-8, k_max=8):
    return torch.tensor([0.0, *(sign * 2.0**k for k in range(k_min, k_max + 1) for sign in (1, -1))])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("approach", APPROACHES)
def test_what_deploys_is_on_the_grid_and_certified(tmp_path, approach, model):
    constraint = task(approach)
    found, history, live = fit(tmp_path, constraint, model, epochs=8)
    assert found.best_epoch >= 2  # a quarter of 8: phase two
    certificate = constraint.deployment.certify(found.best, network(model))
    weights = constraint.deployment.weights(found.best)
    assert certificate.kind == "power_of_two"
    assert certificate.checked == sum(weight.numel() for weight in weights.values()) > 0
    if approach not in ("apot2",):
        for weight in weights.values():
            assert torch.isin(weight, powers()).all()  # compared with every level, independent of the code under test
    for name, memory in memories(found.best):
        assert bool(is_stored(memory.A, "int16", constraint.deployment.grid).all())
        assert spectral_radius(memory.A) < 1
        assert certificate.details["exempt"][f"{name}.B"] == "int16, zero-order hold of order 4 and theta 6"
    assert history[0]["phase"] == "float"
    assert all(row["phase"].startswith(approach) for row in history[1:])
    # The run ends with exact projection: the trained weights are on the grid too (ste projects its master copy).
    for weight in constraint.deployment.weights(live).values():
        assert bool(constraint.deployment.approach.on_grid(weight, constraint.deployment.grid).all())


@pytest.mark.parametrize("approach", APPROACHES)
def test_a_weight_moved_by_one_ulp_fails_the_certificate(tmp_path, approach):
    constraint = task(approach)
    best = fit(tmp_path, constraint, "gru", epochs=4 if approach == "inq" else 2)[0].best
    with torch.no_grad():
        weight = constraint.deployment.weights(best)["encoder.layers.0.cell.weight_hh_l0"].view(-1)
        first = int(weight.nonzero()[0])
        weight[first] = torch.nextafter(weight[first], torch.tensor(torch.inf))
    with pytest.raises(
        CertificateError, match=r"off the grid of c_approach=.*: 1 of encoder.layers.0.cell.weight_hh_l0|: \d+ of"
    ):
        constraint.deployment.certify(best, network("gru"))


def test_a_changed_state_matrix_fails_the_certificate(tmp_path):
    constraint = task("snap_epoch")
    best = fit(tmp_path, constraint, "lmu", epochs=2)[0].best
    memory = best.encoder.layers[0].memory
    A_MM = memory.A.clone()
    memory.set_state_space(A_MM * 1.0001, memory.B)
    with pytest.raises(CertificateError, match=r"memory\.A is not stored as task.memory_matrices=int16"):
        constraint.deployment.certify(best, network("lmu"))
    memory.set_state_space(A_MM.sign() * 0.5, memory.B)
    with pytest.raises(CertificateError, match="spectral radius"):
        constraint.deployment.certify(best, network("lmu"))


def test_each_epoch_validates_the_projection_and_trains_on_from_its_own_weights(tmp_path):
    """With ema the trained weights stay off the grid until the end, while every candidate is on it."""
    constraint = task("ema", start_epoch=1)
    live_off, candidates_off = [], []
    plain = constraint.deployment.project

    def watched(live):
        candidate = plain(live)
        for off, one in ((live_off, live), (candidates_off, candidate)):
            weights = constraint.deployment.weights(one).values()
            off.append(sum(int((~torch.isin(weight, powers())).sum()) for weight in weights))
        return candidate

    constraint.deployment.project = watched
    fit(tmp_path, constraint, "gru", epochs=4)
    assert candidates_off == [0, 0, 0, 0]
    assert all(count > 0 for count in live_off[:-1])
    assert live_off[-1] == 0


def test_float_phase_and_reference(tmp_path):
    """The reference is the network at the end of phase one: that of a float run with as many epochs."""
    constraint = task("snap_epoch", start_epoch=4)
    found, history, _ = fit(tmp_path, constraint, "gru", epochs=6)
    assert [row["phase"] for row in history] == ["float"] * 3 + ["snap_epoch"] * 3
    alone = fit(tmp_path, None, "gru", epochs=3)[2]
    for one, other in zip(found.reference.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)


def test_phases():
    assert task().phases(40) == [Phase(1, 9), Phase(10, 40, 1e-3)]
    assert task(start_epoch=3).phases(8) == [Phase(1, 2), Phase(3, 8, 1e-3)]
    assert task(start_epoch=1).phases(8) == [Phase(1, 8, 1e-3)]
    assert task(float_checkpoint="run").phases(40) == [Phase(10, 40, 1e-3)]
    with pytest.raises(ValueError, match=r"task.start_epoch=9, but trainer.epochs=8: .* lower task.start_epoch"):
        task(start_epoch=9).phases(8)
    with pytest.raises(ValueError, match="expected at least 3"):
        task("inq", start_epoch=8).phases(8)


def test_early_stopping_waits_for_the_schedule(tmp_path):
    for approach, stops in (("ema", False), ("inq", False), ("snap_epoch", True), ("ste", True)):
        phase = task(approach, start_epoch=1).phases(6)[0]
        hooks = phase.start(network("gru"), parts()["train"], 0)
        assert hooks.may_stop_early(5) is stops
        assert hooks.may_stop_early(6)


def test_scopes():
    net = network("gru")
    recurrent = [name for name, _ in net.named_parameters() if name.startswith("encoder.layers")]
    assert sorted(task().deployment.weights(net)) == sorted(name for name, _ in net.named_parameters())
    assert sorted(task(scope="rnn_only").deployment.weights(net)) == sorted(recurrent)
    matrices = [name for name in recurrent if "weight" in name]
    assert sorted(task("mixed_pot").deployment.weights(net)) == sorted(matrices)
    front = network("lstm", front_channels=6)
    names = task().deployment.weights(front)
    assert "encoder.front.convolution.weight" in names
    assert not [name for name in names if "normalization" in name]


def test_every_n_steps_acts_between_epochs_and_at_the_end(tmp_path):
    constraint = task("snap_epoch", start_epoch=1, every_n_steps=3)
    acts = []
    constraint.deployment.approach.act = lambda _, progress: acts.append(progress)
    fit(tmp_path, constraint, "gru", epochs=2)
    steps = 2 * 5  # 70 utterances in batches of 16
    assert acts == [step / steps for step in (3, 6, 9)] + [1.0]


def test_packed_bytes_by_hand():
    """GRU 4 -> 8: 3*8*(4+8) = 288 weights, 48 biases; linear 8 -> 3: 24 + 3. All in {0, ±1, ±2}: 5 levels, 3 bits.

    The file has a header of 12 bytes, and each code begins with its lowest exponent and the number of exponents, a byte each.
    """
    net = network("gru")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0).view(-1)[0] = 2.0
    found = task().deployment.stored(net)
    assert found.recurrent_layer_bytes == [4 * 336]
    assert found.packed_layer_bytes == [2 + 3 * 336 // 8]
    assert found.packed_bytes == 12 + 2 + 3 * 336 // 8 + 2 + -(-3 * 27 // 8)
    assert found.bits_per_weight == 8 * (found.packed_bytes - 12) / (336 + 27)
    assert found.recurrent_state_bytes == [4 * 8]
    assert found.model_bytes == 4 * (336 + 27)
    # Only the recurrent matrices are coded; biases and the output layer are float.
    found = task("mixed_pot").deployment.stored(net)
    assert found.packed_layer_bytes == [2 + 3 * 288 // 8 + 4 * 48]
    assert found.packed_bytes == 12 + 2 + 3 * 288 // 8 + 4 * (48 + 27)


def test_the_lmu_stores_a_and_b_in_two_bytes():
    net = network("lmu")
    layer = net.encoder.layers[0]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(0.5)
    # One level beside 0 and its negative: 2 bits. A and B have an exponent of a byte each.
    expected = 2 + -(-2 * layer.size().parameters // 8) + 2 + 2 * layer.size().fixed
    assert task().deployment.stored(net).packed_layer_bytes == [expected]
    assert task().deployment.stored(net).recurrent_state_bytes == [4 * 2 * 4]  # the memory: 2 channels of order 4


def test_distillation_acts_in_phase_two_alone(tmp_path):
    distillation = Distillation(3.0, 0.6)
    constraint = task("ste", start_epoch=3, distillation=distillation)
    calls = []
    plain = distillation.loss
    distillation.loss = lambda *args: calls.append(1) or plain(*args)
    fit(tmp_path, constraint, "gru", teacher=network("gru"), epochs=4)
    assert len(calls) == 2 * 5


def test_state_matrices_of_two_powers_are_refused_where_they_are_unstable():
    fine, coarse = task(memory_matrices="apot2"), task(memory_matrices="apot2", k_min=-1)
    net = network("lmu")
    certificate = fine.deployment.certify(fine.deployment.project(net), net)
    assert certificate.details["exempt"]["encoder.layers.0.memory.A"].startswith(
        "apot2, zero-order hold of order 4 and theta 6, spectral radius 0."
    )
    with pytest.raises(
        ValueError, match=r"gives encoder.layers.0.memory.A a spectral radius of .* set task.memory_matrices=int16"
    ):
        coarse.deployment.project(net)


def test_the_network_that_is_validated_is_not_an_alias_of_the_one_that_trains(tmp_path):
    net = network("gru")
    hooks = task("snap_epoch", start_epoch=1).phases(2)[0].start(net, parts()["train"], 0)
    before = copy.deepcopy(net.state_dict())
    candidate = hooks.candidate(1)
    assert candidate is not net
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
