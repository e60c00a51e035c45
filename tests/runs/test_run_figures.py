"""Figures of a run show its sizes, its phases, and where its constraint acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from speech_exp.features.batch import Batch
from speech_exp.figures.flow import Box, Constraint
from speech_exp.models.encoder import CompactEncoder
from speech_exp.models.recurrent import GRU
from speech_exp.objectives.classification import ClassEvaluation, ClassificationNetwork
from speech_exp.runs import figures as run_figures

FACTS: dict[str, Any] = {
    "dataset": "fsdd",
    "split": "official",
    "features": "mfcc20",
    "augment": "light",
    "normalization": "global",
    "task": "B1",
    "best_epoch": 3,
    "epochs": 4,
    "result": "test accuracy 99.33%",
    "constraint": ["at most 36,864 bytes a layer"],
    "constrained": ("recurrent",),
}
EVALUATION = ClassEvaluation(
    metrics={"accuracy": 1.0, "f1_macro": 1.0, "loss": 0.0},
    per_class={"yes": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 3}},
    confusion_VV=[[3]],
    predictions=[],
)


def chart(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> tuple[list[Box], Constraint]:
    """Return the boxes and the constraint that draw_flowchart draws for a network with every part."""
    found: list[Any] = []
    monkeypatch.setattr(run_figures, "flowchart", lambda boxes, constraint, *_: found.extend([boxes, constraint]))
    encoder = CompactEncoder(20, lambda size: GRU(size, 45), False, 2, 0.0, front_channels=8)
    network = ClassificationNetwork(encoder, 10, "last", 0.0)
    run_figures.draw_flowchart(Path(), network, {}, FACTS | facts, 0.016, "gru")
    return found[0], found[1]


@pytest.mark.parametrize(
    ("constrained", "titles"),
    [
        ((), []),
        (("recurrent",), ["GRU", "GRU"]),
        (("convolution", "recurrent", "linear"), ["Convolution", "GRU", "GRU", "Linear"]),
        (["convolution", "recurrent", "pooling", "linear"], ["Convolution", "GRU", "GRU", "Pooling", "Linear"]),
    ],
)
def test_flowchart_marks_the_parts_that_the_constraint_acts_on(
    constrained: Any, titles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes, constraint = chart(monkeypatch, constrained=constrained)
    assert [box.title for box in boxes if box.constrained] == titles
    assert constraint == Constraint("Task B1", ["at most 36,864 bytes a layer"])


def test_the_flowchart_of_task_a_states_no_constraint(monkeypatch: pytest.MonkeyPatch) -> None:
    _, constraint = chart(monkeypatch, task="A", constraint=[], constrained=())
    assert constraint == Constraint("Task A", ["no constraint"])


def test_unknown_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="constrained is encoder, expected some of convolution, recurrent"):
        chart(monkeypatch, constrained=("encoder",))


def test_curves_get_the_phases_of_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(run_figures, "training_curves", lambda *args: found.append(args))
    rows: list[dict[str, Any]] = [{"epoch": 1, "phase": "float"}, {"epoch": 2, "phase": "ema"}]
    run_figures.draw_evaluation(tmp_path, EVALUATION, rows, 2, "gru")
    assert found == [(rows, 2, [("float", 1), ("ema", 2)], "gru", tmp_path / "training_curves.png")]


def test_run_that_trained_nothing_has_no_curves(tmp_path: Path) -> None:
    run_figures.draw_evaluation(tmp_path, EVALUATION, [], 0, "gru")
    assert {path.name for path in tmp_path.iterdir()} == {"confusion_matrix.png", "metrics_table.png"}


class Sum(nn.Module):
    """A network without encoder and with integer logits: that of class 0 is the sum of all features."""

    def forward(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        sums_B = features_BTF.sum((1, 2)).to(torch.int32)
        return torch.stack([sums_B, 0 * sums_B], dim=1)


def test_occlusion_of_any_network_is_what_the_masked_frames_give() -> None:
    features_BTF = torch.arange(6.0).reshape(1, 6, 1)
    batch = Batch(features_BTF, torch.tensor([6]), torch.tensor([0]), None, ["one"])
    starts_s, drops = run_figures.occlusion(Sum(), batch, hop_s=0.016)  # a window of 64 ms is 4 frames
    assert np.allclose(starts_s, [0.0, 0.016, 0.032])
    assert drops.tolist() == [0 + 1 + 2 + 3, 1 + 2 + 3 + 4, 2 + 3 + 4 + 5]
