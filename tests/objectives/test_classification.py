"""Pooling, loss and metrics of the classification objective."""

import numpy as np
import pytest
import torch

from speech_exp.features.batch import Batch
from speech_exp.models.encoder import CompactEncoder
from speech_exp.models.recurrent import GRU
from speech_exp.objectives.classification import Classification, ClassificationNetwork

NAMES = ("a", "b", "c")


def network(pooling: str, bidirectional: bool = False) -> ClassificationNetwork:
    torch.manual_seed(0)
    encoder = CompactEncoder(4, lambda width: GRU(width, 5), bidirectional, num_layers=1, dropout=0.0)
    return ClassificationNetwork(encoder, 3, pooling, dropout=0.5).double().eval()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_padding_never_changes_logits(pooling, bidirectional):
    model = network(pooling, bidirectional)
    features_BTF, lengths_B = torch.randn(3, 8, 4, dtype=torch.float64), torch.tensor([8, 2, 5])
    logits_BV = model(features_BTF, lengths_B)
    for number, length in enumerate(lengths_B.tolist()):
        alone_1V = model(features_BTF[number : number + 1, :length], lengths_B[number : number + 1])
        torch.testing.assert_close(logits_BV[number], alone_1V[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_streaming_gives_the_same_logits(pooling):
    model = network(pooling)
    features_BTF = torch.randn(2, 6, 4, dtype=torch.float64)
    whole_BV = model(features_BTF, torch.tensor([6, 6]))
    torch.testing.assert_close(model.stream(features_BTF.unbind(1)), whole_BV, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="expected at least one"):
        model.stream([])


def test_the_mean_is_over_valid_frames_alone():
    model = network("mean")
    features_BTF, lengths_B = torch.randn(1, 6, 4, dtype=torch.float64), torch.tensor([4])
    states_BTH, _ = model.encoder(features_BTF, lengths_B)
    torch.testing.assert_close(model(features_BTF, lengths_B), model.output(states_BTH[:, :4].mean(1)))


class Fixed(torch.nn.Module):
    """A network whose logits are the first frame of the features."""

    def forward(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        return features_BTF[:, 0]


def batch(logits: list[list[float]], targets: list[int], ids: list[str]) -> Batch:
    features = torch.tensor(logits).unsqueeze(1)
    return Batch(features, torch.ones(len(ids), dtype=torch.int64), torch.tensor(targets), None, ids)


def test_metrics_by_hand():
    # a: 2 spoken, 1 found; b: 1 spoken, 1 found and 1 wrong; c: 1 spoken and found
    one = batch([[2.0, 0, 0], [0, 2, 0], [0, 2, 0]], [0, 0, 1], ["x0", "x1", "x2"])
    two = batch([[0.0, 0, 2]], [2], ["x3"])
    found = Classification("last", 0.0, 0.1).evaluate(Fixed(), [one, two], NAMES)
    assert found.metrics["accuracy"] == 3 / 4
    f1 = {"a": 2 * 1 * 0.5 / 1.5, "b": 2 * 0.5 * 1 / 1.5, "c": 1.0}
    assert found.metrics["f1_macro"] == pytest.approx(np.mean(list(f1.values())))
    right, wrong = -np.log(np.e**2 / (np.e**2 + 2)), -np.log(1 / (np.e**2 + 2))
    assert found.metrics["loss"] == pytest.approx((3 * right + wrong) / 4, rel=1e-6)
    assert found.confusion_VV == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert found.per_class["a"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(f1["a"]), "support": 2}
    assert [(row["id"], row["reference"], row["prediction"]) for row in found.predictions] == [
        ("x0", "a", "a"),
        ("x1", "a", "b"),
        ("x2", "b", "b"),
        ("x3", "c", "c"),
    ]
    assert found.predictions[0]["score"] == pytest.approx(np.exp(-right), rel=1e-6)


def test_label_smoothing_is_in_the_training_loss_alone():
    one = batch([[3.0, 0, 0]], [0], ["x"])
    plain, smooth = Classification("last", 0.0, 0.0), Classification("last", 0.0, 0.3)
    logits_BV = Fixed()(one.features_BTF, one.lengths_B)
    assert smooth.loss(logits_BV, one) > plain.loss(logits_BV, one)
    losses = [objective.evaluate(Fixed(), [one], NAMES).metrics["loss"] for objective in (plain, smooth)]
    assert losses[0] == losses[1]


def test_equal_accuracy_is_decided_by_the_lower_loss():
    objective = Classification("last", 0.0, 0.0)
    good, worse, later = {"accuracy": 0.9, "loss": 0.1}, {"accuracy": 0.8, "loss": 0.0}, {"accuracy": 0.9, "loss": 0.05}
    assert objective.better(good, worse)
    assert not objective.better(worse, good)
    assert objective.better(later, good)
    assert not objective.better(good, good)


def test_selection_by_loss_passes_over_accuracy():
    objective = Classification("last", 0.0, 0.0, select_by="loss")
    assert objective.better({"accuracy": 0.8, "loss": 0.1}, {"accuracy": 0.9, "loss": 0.2})
    assert not objective.better({"accuracy": 0.9, "loss": 0.2}, {"accuracy": 0.8, "loss": 0.1})
