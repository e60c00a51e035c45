"""Task B1: the largest hidden size within the budget, by hand calculation, and nothing above it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_exp.models.encoder import CompactEncoder
from speech_exp.models.lmu import LMU
from speech_exp.models.recurrent import GRU, LSTM
from speech_exp.objectives.classification import Classification
from speech_exp.tasks.budget import Budget
from speech_exp.tasks.integer_inference import IntegerInference
from speech_exp.tasks.task import CertificateError, Task

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
    assert Budget(exactly).hidden_size(layers(model, width), None) == hidden
    assert Budget(exactly + 1).hidden_size(layers(model, width), None) == hidden
    if hidden > 1:
        assert Budget(exactly - 1).hidden_size(layers(model, width), None) == hidden - 1
    else:
        with pytest.raises(ValueError, match=f"task.budget_bytes={exactly - 1} cannot be met"):
            Budget(exactly - 1).hidden_size(layers(model, width), None)


def test_every_layer_and_all_directions_count():
    # The second layer reads both directions of the first: 2 * 3H(2H + H + 2).
    task = Budget(4 * 2 * 3 * 6 * (12 + 6 + 2))
    assert task.hidden_size(layers("gru", 5, num_layers=2, bidirectional=True), None) == 6


def test_int8_storage_counts_a_byte_a_weight_and_four_a_bias():
    expanded = IntegerInference(100, True, 0, 1e-3, None)
    # GRU: 3H(D + H) + 4 * 6H at D = 5: 3 * 2 * 7 + 48 = 90 for H = 2, 3 * 3 * 8 + 72 = 144 for H = 3
    assert expanded.hidden_size(layers("gru"), None) == 2
    # LMU: weights 3*5 + H(12 + 5), biases 4 * (3 + H), A and B 2 * 20: 15 + 34 + 20 + 40 = 109 for H = 2
    assert expanded.hidden_size(layers("lmu"), None) == 1
    assert IntegerInference(109, True, 0, 1e-3, None).hidden_size(layers("lmu"), None) == 2


def test_the_message_itemises_this_size_and_the_next():
    task = Budget(36_864)
    assert task.hidden_size(layers("gru", 20), None) == 45
    assert task.sizing == (
        "45, the largest within 36,864 bytes a recurrent layer: 36,180 bytes (8,775 weights, 270 biases); 46 would take 37,536"
    )
    task.hidden_size(layers("lmu", 20), None)
    assert "16 + 4" not in task.sizing
    assert "20 of A and B" in task.sizing


def test_what_the_user_asks_for_is_kept_if_it_fits_and_refused_if_not():
    task = Budget(36_864)
    assert task.hidden_size(layers("gru", 20), 45) == 45
    assert task.hidden_size(layers("gru", 20), 7) == 7
    assert "7 as asked for" in task.sizing
    with pytest.raises(
        ValueError, match=r"model.hidden_size=46 takes 37,536 bytes .* set model.hidden_size to at most 45"
    ):
        task.hidden_size(layers("gru", 20), 46)


def test_the_certificate_counts_the_stored_layers():
    def network(hidden):
        return Classification("mean", 0.0, 0.0).network(CompactEncoder(20, CELLS["gru"](hidden), False, 1, 0.0), 10)

    found = Budget(36_864).certify(network(45))
    assert (found.kind, found.passed, found.checked) == ("budget", True, 1)
    assert found.details == {"budget_bytes": 36_864, "recurrent_layer_bytes": [36_180]}
    with pytest.raises(CertificateError, match=r"layer 1 takes 37,536 bytes, but task.budget_bytes=36864"):
        Budget(36_864).certify(network(46))


def test_task_a_constrains_nothing():
    assert Task().hidden_size(layers("gru"), 999) == 999
    with pytest.raises(ValueError, match="task A solves for no size"):
        Task().hidden_size(layers("gru"), None)
