"""Classification with one label per utterance: pooling over time, a linear layer, cross-entropy.

Shape letters: B batch, T frames, F features, H encoder output, V classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from speech_exp.bounds import ProportionBelowOne
from speech_exp.features.batch import Batch
from speech_exp.models.encoder import Encoder
from speech_exp.models.layer import State
from speech_exp.objectives.objective import Evaluation, Network, Objective, full_precision
from speech_exp.objectives.prediction import ClassPrediction

Pooling = Literal["last", "mean", "attention"]


@dataclass(frozen=True)
class ClassEvaluation(Evaluation):
    """Metrics are accuracy, f1_macro and loss; the score of a prediction is its probability."""

    per_class: dict[str, dict[str, float]]  # class -> precision, recall, f1, support
    confusion_VV: list[list[int]]  # rows reference, columns prediction

    def tables(self) -> dict[str, Any]:
        return {"test_per_class": self.per_class}


class ClassificationNetwork(Network):
    """Encoder, pooling over time, dropout and a linear layer that gives logits (B, V).

    Pooling takes the `last` frame, the `mean` of the valid frames, or their mean weighted by the softmax of a learned score
    per frame (`attention`; Lin et al. 2017 with one head).
    """

    def __init__(self, encoder: Encoder, num_classes: int, pooling: Pooling, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(encoder.output_size, num_classes)
        self.score = nn.Linear(encoder.output_size, 1) if pooling == "attention" else None

    def forward(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        if self.pooling == "last":
            pooled_BH = self.encoder.final(features_BTF, lengths_B)
        else:
            states_BTH, lengths_B = self.encoder(features_BTF, lengths_B)
            valid_BT = torch.arange(states_BTH.shape[1], device=states_BTH.device) < lengths_B.unsqueeze(1)
            if self.score is None:
                weights_BT = valid_BT.to(states_BTH.dtype) / lengths_B.unsqueeze(1)
            else:
                weights_BT = self.score(states_BTH).squeeze(-1).masked_fill(~valid_BT, -torch.inf).softmax(1)
            pooled_BH = torch.einsum("bth,bt->bh", states_BTH, weights_BT.to(states_BTH.dtype))
        return self.output(self.dropout(pooled_BH))

    def stream(self, frames_TBF: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return logits (B, V) from frames (B, F) given one at a time, keeping only the recurrent state and a running mean."""
        states: list[State] = []
        for features_BF in frames_TBF:
            if not states:
                states = self.encoder.initial_state(len(features_BF), features_BF)
                pooled_BH = features_BF.new_zeros(len(features_BF), self.encoder.output_size)
                weight_B1 = features_BF.new_zeros(len(features_BF), 1)
            output_BH, states = self.encoder.step(features_BF, states)
            # Running weighted mean; with `last`, each frame replaces it.
            new_B1 = torch.ones_like(weight_B1) if self.score is None else self.score(output_BH).exp()
            weight_B1 = new_B1 if self.pooling == "last" else weight_B1 + new_B1
            pooled_BH = pooled_BH + (output_BH - pooled_BH) * (new_B1 / weight_B1)
        if not states:
            raise ValueError("streaming got no frame: expected at least one")
        return self.output(self.dropout(pooled_BH))


class Classification(Objective):
    """Cross-entropy over the classes; the metrics are accuracy and macro F1.

    The best epoch has the highest validation accuracy, with ties decided by the lower loss. With `select_by` loss it has the
    lowest loss: if validation is much easier than the test, as when its speakers are also in training, accuracy soon reaches
    100 % and no longer distinguishes epochs.
    """

    name = "classification"
    primary = "accuracy"
    goal = "maximize"
    targets = "classes"

    def __init__(
        self,
        pooling: Pooling,
        dropout: ProportionBelowOne,
        label_smoothing: ProportionBelowOne,
        select_by: Literal["accuracy", "loss"] = "accuracy",
    ) -> None:
        self.pooling, self.dropout, self.label_smoothing = pooling, dropout, label_smoothing
        self.select_by = select_by

    def network(self, encoder: Encoder, num_classes: int) -> ClassificationNetwork:
        return ClassificationNetwork(encoder, num_classes, self.pooling, self.dropout)

    def loss(self, logits_BV: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the mean over the batch."""
        return functional.cross_entropy(full_precision(logits_BV), batch.targets, label_smoothing=self.label_smoothing)

    def weight(self, batch: Batch) -> int:
        return len(batch.ids)

    def rows(self, logits_BV: torch.Tensor) -> torch.Tensor:
        return logits_BV

    def better(self, metrics: dict[str, float], than: dict[str, float]) -> bool:
        if self.select_by == "loss":
            return metrics["loss"] < than["loss"]
        return (metrics["accuracy"], -metrics["loss"]) > (than["accuracy"], -than["loss"])

    def columns(self, class_names: Sequence[str]) -> list[str]:
        return ["label", *(f"p({name})" for name in class_names)]

    def prediction(self, logits_BV: torch.Tensor, class_names: Sequence[str], step_s: float) -> ClassPrediction:
        probabilities = dict(zip(class_names, logits_BV[0].float().softmax(0).tolist(), strict=True))
        return ClassPrediction(max(class_names, key=probabilities.__getitem__), probabilities)

    def outcome(self, logits_BV: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        return full_precision(logits_BV).cpu(), batch.targets.cpu(), batch.ids

    def summary(self, outcomes: list[Any], class_names: Sequence[str]) -> ClassEvaluation:
        """Compute the metrics; the loss is cross-entropy without label smoothing, averaged over utterances."""
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

        logits, targets, batch_ids = zip(*outcomes, strict=True)
        logits_UV, targets_U = torch.cat(logits), torch.cat(targets)
        ids = [one for batch in batch_ids for one in batch]
        score_U, prediction_U = logits_UV.softmax(1).max(1)
        labels = range(len(class_names))
        precision, recall, f1, support = precision_recall_fscore_support(
            targets_U, prediction_U, labels=labels, zero_division=0
        )
        return ClassEvaluation(
            metrics={
                "accuracy": (prediction_U == targets_U).double().mean().item(),
                "f1_macro": float(f1.mean()),
                "loss": functional.cross_entropy(logits_UV, targets_U).item(),
            },
            per_class={
                name: {
                    "precision": float(precision[label]),
                    "recall": float(recall[label]),
                    "f1": float(f1[label]),
                    "support": int(support[label]),
                }
                for label, name in enumerate(class_names)
            },
            confusion_VV=confusion_matrix(targets_U, prediction_U, labels=labels).tolist(),
            predictions=[
                {"id": one, "reference": class_names[target], "prediction": class_names[guess], "score": score}
                for one, target, guess, score in sorted(
                    zip(ids, targets_U.tolist(), prediction_U.tolist(), score_U.tolist(), strict=True)
                )
            ],
        )
