"""Task B1 picks the largest hidden size within the budget, as calculated by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_exp.models.encoder import CompactEncoder
from speech_exp.models.lmu import FRAMES_PER_POLYNOMIAL, HIDDEN_PER_CHANNEL, LMU
from speech_exp.models.recurrent import GRU, LSTM
from speech_exp.objectives.classification import Classification
from speech_exp.tasks.budget import Budget
from speech_exp.tasks.deployment import CertificateError
from speech_exp.tasks.integer_inference import IntegerInference
from speech_exp.tasks.unconstrained import Unconstrained

CELLS = {
    "gru": lambda hidden: lambda width: GRU(width, hidden),
    "lstm": lambda hidden: lambda width: LSTM(width, hidden),
    "lmu": lambda hidden: lambda width: LMU(width, hidden, order=4, theta=8.0, memory_channels=3),
}
NUMBERS = {
    "gru": lambda d, h: 3 * h * (d + h + 2),
    "lstm": lambda d, h: 4 * h * (d + h + 2),
    "lmu": lambda d, h: 3 * (d + 1) + 16 + 4 + h * (12 + d + 1),  # c(D+1) + M² + M + H(cM + D + 1)
}


def layers(model, width=5, num_layers=1, bidirectional=False):
    return lambda hidden: CompactEncoder(width, CELLS[model](hidden), bidirectional, num_layers, 0.0).recurrent_layers


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(list(CELLS)), st.integers(2, 12), st.integers(1, 40))
def test_at_below_and_one_over_the_budget(model, width, hidden):
    exactly = 4 * NUMBERS[model](width, hidden)
    assert Budget(exactly).sizing.choose(layers(model, width), None).hidden_size == hidden
    assert Budget(exactly + 1).sizing.choose(layers(model, width), None).hidden_size == hidden
    if hidden > 1:
        assert Budget(exactly - 1).sizing.choose(layers(model, width), None).hidden_size == hidden - 1
    else:
        with pytest.raises(ValueError, match=f"task.budget_bytes={exactly - 1} cannot be met"):
            Budget(exactly - 1).sizing.choose(layers(model, width), None)


def test_every_layer_and_all_directions_count():
    # The second layer reads both directions of the first: 2 * 3H(2H + H + 2).
    task = Budget(4 * 2 * 3 * 6 * (12 + 6 + 2))
    assert task.sizing.choose(layers("gru", 5, num_layers=2, bidirectional=True), None).hidden_size == 6


def test_integer_storage_counts_weights_biases_and_requantisation():
    # GRU at D = 5, of each of 6H rows a bias of 4 bytes, a multiplier of 4 and a shift of 1: 3H(D + H) + 9 * 6H,
    # which is 3 * 2 * 7 + 108 = 150 for H = 2.
    expanded = IntegerInference(150, True, 0, 1e-3, None)
    assert expanded.sizing.choose(layers("gru"), None).reason == (
        "hidden size 2: the largest within 150 bytes per recurrent layer, 150 bytes (42 weights, 12 biases, 12 multipliers and "
        "as many shifts); hidden size 3 would take 234"
    )
    assert IntegerInference(149, True, 0, 1e-3, None).sizing.choose(layers("gru"), None).hidden_size == 1
    # LMU: weights 3*5 + H(12 + 5), biases 4 * (3 + H), A and B 2 * 20 and their bits 1, requantisation 5 * (3 + 2H):
    # 15 + 34 + 20 + 41 + 35 = 145 for H = 2.
    assert IntegerInference(145, True, 0, 1e-3, None).sizing.choose(layers("lmu"), None).hidden_size == 2
    assert IntegerInference(144, True, 0, 1e-3, None).sizing.choose(layers("lmu"), None).hidden_size == 1


def test_the_message_itemises_this_size_and_the_next():
    task = Budget(36_864)
    assert task.sizing.choose(layers("gru", 20), None).reason == (
        "hidden size 45: the largest within 36,864 bytes per recurrent layer, 36,180 bytes (8,775 weights, 270 biases); "
        "hidden size 46 would take 37,536"
    )
    assert "20 of A and B" in task.sizing.choose(layers("lmu", 20), None).reason


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([13, 20, 39, 40, 128]), st.sampled_from([16, 40.0, 200]), st.integers(1_100, 200_000))
def test_an_lmu_without_sizes_keeps_its_proportions_at_every_budget(width, theta, budget_bytes):
    def layers_of(hidden):
        return [LMU(width, hidden, order=None, theta=theta, memory_channels=None)]

    task = Budget(budget_bytes)
    hidden = task.sizing.choose(layers_of, None).hidden_size
    (layer,), (larger,) = layers_of(hidden), layers_of(hidden + 1)
    assert layer.size().bytes() <= budget_bytes < larger.size().bytes()
    assert layer.sizes() == {
        "hidden_size": hidden,
        "memory_channels": -(-hidden // HIDDEN_PER_CHANNEL),
        "order": min(hidden, -(-int(theta) // FRAMES_PER_POLYNOMIAL)),
    }


def test_the_message_explains_derived_sizes_but_not_typed_ones():
    sizing = Budget(2_304).sizing
    by_rule = sizing.choose(lambda hidden: [LMU(20, hidden, order=None, theta=16, memory_channels=None)], None)
    assert by_rule.reason.startswith(
        "hidden size 12, 4 memory channels (one for every 3 of it), order 4 (one for every 4 frames of theta): the largest"
    )
    typed = sizing.choose(lambda hidden: [LMU(20, hidden, order=8, theta=16, memory_channels=4)], None)
    assert typed.reason.startswith("hidden size 7, 4 memory channels, order 8: the largest")


def test_a_requested_size_is_kept_if_it_fits_and_refused_if_not():
    task = Budget(36_864)
    assert task.sizing.choose(layers("gru", 20), 45).hidden_size == 45
    assert task.sizing.choose(layers("gru", 20), 7).reason.startswith("hidden size 7 as requested")
    with pytest.raises(
        ValueError, match=r"model.hidden_size=46 takes 37,536 bytes .* set model.hidden_size to at most 45"
    ):
        task.sizing.choose(layers("gru", 20), 46)


def test_the_certificate_counts_the_stored_layers():
    def network(hidden):
        return Classification("mean", 0.0, 0.0).network(CompactEncoder(20, CELLS["gru"](hidden), False, 1, 0.0), 10)

    found = Budget(36_864).deployment.certify(network(45), network(45))
    assert (found.kind, found.passed, found.checked) == ("budget", True, 1)
    assert found.details == {"budget_bytes": 36_864, "recurrent_layer_bytes": [36_180]}
    with pytest.raises(CertificateError, match=r"layer 1 takes 37,536 bytes, but task.budget_bytes=36864"):
        Budget(36_864).deployment.certify(network(46), network(46))


def test_task_a_constrains_nothing():
    assert Unconstrained().sizing.choose(layers("gru"), 999).hidden_size == 999
    with pytest.raises(ValueError, match="task A does not solve for the size"):
        Unconstrained().sizing.choose(layers("gru"), None)
