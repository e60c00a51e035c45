"""Character recognition without time alignments: connectionist temporal classification (Graves et al. 2006).

Shape letters: B batch, T frames of the encoder's output, F features, H encoder output, V symbols (0 is the blank),
N valid frames of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from speech_exp.bounds import NonNegativeFloat, ProportionBelowOne
from speech_exp.features.batch import Batch
from speech_exp.models.encoder import Encoder
from speech_exp.objectives.decoders import Decoder, Greedy
from speech_exp.objectives.objective import Evaluation, Network, Objective, full_precision
from speech_exp.objectives.prediction import TextPrediction
from speech_exp.objectives.scoring import Errors, find_errors
from speech_exp.objectives.text import BLANK, SYMBOLS, scoring_text, to_text


class CtcOutput(NamedTuple):
    """A named tuple, so that compilation, autocast and deepcopy treat it like the tensors in it."""

    logits_BTV: torch.Tensor
    lengths_B: torch.Tensor  # int64, frames after the encoder's downsampling


@dataclass(frozen=True)
class CtcEvaluation(Evaluation):
    """Metrics are wer, cer and loss.

    A row of `predictions` contains the text as decoded, before the scoring rules, and a score: the mean over the frames of
    the largest log-probability, which measures how certain the best path is, independent of the decoder.
    """

    errors: Errors

    def tables(self) -> dict[str, Any]:
        """Return word edits by kind; `errors` has the worst utterances and the confusions."""
        words = self.errors.words
        counts = {kind: getattr(words, kind) for kind in ("substitutions", "deletions", "insertions")}
        return {"test_edits": {**counts, "words": words.reference}}


class CtcNetwork(Network):
    """Encoder, dropout and a linear layer at each frame, giving logits (B, T, V) and their lengths.

    `blank_bias` is the initial bias of the blank, which is then trained like any other; the other biases start at 0. The
    reason: if all symbols start equally probable, nearly all paths that collapse to a transcript much shorter than its frames
    have blanks at nearly all frames. The first gradients then teach every weight the blank before any character, and the
    network stays on a plateau where it outputs nothing (100 % WER; Zeyer, Schlüter, Ney 2021, "Why does CTC result in peaky
    behavior?"). A bias that gives the blank its share from the start leaves the weights free to learn characters, just as
    object detectors initialise the share of their background (Lin et al. 2017, section 3.3). Blanks at a share r of the frames
    correspond to the bias ln((V - 1) r / (1 - r)), 4 to 5 for V = 29 and r = 2/3 to 5/6. A negative bias hides the empty
    outputs but does not learn sooner (`tests/objectives/test_ctc.py` compares them).
    """

    def __init__(self, encoder: Encoder, vocabulary: int, dropout: float, blank_bias: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.score = None  # a recogniser does not pool over time
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(encoder.output_size, vocabulary)
        with torch.no_grad():
            self.output.bias.zero_()
            self.output.bias[BLANK] = blank_bias

    def forward(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> CtcOutput:
        states_BTH, lengths_B = self.encoder(features_BTF, lengths_B)
        return CtcOutput(self.output(self.dropout(states_BTH)), lengths_B)

    def initial_state(self, batch_size: int, like: torch.Tensor) -> Any:
        """Return the initial streaming state, with the device and dtype of `like`; ValueError if the encoder looks ahead."""
        return self.encoder.initial_state(batch_size, like)

    def step(self, features_BF: torch.Tensor, state: Any) -> tuple[torch.Tensor | None, Any]:
        """Process one input frame; return logits (B, V), or None if the encoder emits no frame here, and the next state."""
        states_BH, state = self.encoder.step(features_BF, state)
        return None if states_BH is None else self.output(self.dropout(states_BH)), state


class Ctc(Objective):
    """CTC over characters; the metrics are WER, CER and loss.

    Args:
        blank_bias: initial bias of the blank (`CtcNetwork` explains why).
        dropout: before the linear layer.
        consistency: weight of the consistency of two differently augmented views of each utterance (`_inconsistency`); 0
            uses one view.
        select_by: what selects the best epoch on validation: the lowest WER or CER (ties: lower loss), or the last epoch.
        decoder: turns logits into text in `evaluate`; None is greedy.
    """

    name = "ctc"
    primary = "wer"
    goal = "minimize"
    targets = "text"

    def __init__(
        self,
        blank_bias: float,
        dropout: ProportionBelowOne,
        consistency: NonNegativeFloat,
        select_by: Literal["wer", "cer", "last"],
        decoder: Decoder | None = None,
    ) -> None:
        self.blank_bias, self.dropout, self.consistency = blank_bias, dropout, consistency
        self.views, self.select_by = 2 if consistency else 1, select_by
        self.decoder = decoder or Greedy()

    def outputs(self, class_names: tuple[str, ...]) -> tuple[str, ...]:
        return SYMBOLS

    def network(self, encoder: Encoder, num_classes: int) -> CtcNetwork:
        return CtcNetwork(encoder, num_classes, self.dropout, self.blank_bias)

    def loss(self, output: CtcOutput, batch: Batch) -> torch.Tensor:
        """Return -ln p(transcript | frames) summed over the batch, divided by the number of characters in the batch.

        Every character thus has the same weight in long and short utterances. The loss, its gradient and a good learning rate
        do not depend on how many utterances a batch contains, or how long they are. Averaging over utterances, each divided by
        its own length, would give the characters of short utterances more weight.

        Raises a ValueError that names the utterances with too few frames for their transcripts.
        """
        assert batch.target_lengths_B is not None, "CTC batches must contain the lengths of their transcripts"
        missing = _frames_missing(output, batch)
        if (missing > 0).any():
            lengths, named = output.lengths_B.tolist(), (missing > 0).nonzero().flatten().tolist()
            shown = ", ".join(
                f"{batch.ids[n]} ({lengths[n]} frames, {lengths[n] + missing[n]} needed)" for n in named[:5]
            )
            raise ValueError(
                f"transcripts with too many characters for their frames (one frame per character and one more between "
                f"two equal ones): {shown}{', ...' if len(named) > 5 else ''}: drop these utterances or lower the "
                f"encoder's downsampling"
            )
        loss = _losses(output, batch).sum() / self.weight(batch)
        if self.consistency:
            loss = loss + self.consistency * _inconsistency(output) / self.weight(batch)
        return loss

    def weight(self, batch: Batch) -> int:
        """Return the number of characters."""
        return max(1, len(batch.targets))

    def rows(self, output: CtcOutput) -> torch.Tensor:
        """Return the logits (N, V) of the valid frames, utterance after utterance."""
        frames_T = torch.arange(output.logits_BTV.shape[1], device=output.logits_BTV.device)
        return output.logits_BTV[frames_T < output.lengths_B.unsqueeze(1)]

    def better(self, metrics: dict[str, float], than: dict[str, float]) -> bool:
        if self.select_by == "last":
            return True
        return (metrics[self.select_by], metrics["loss"]) < (than[self.select_by], than["loss"])

    def columns(self, class_names: Sequence[str]) -> list[str]:
        return ["text", "words with their start and end in s"]

    def prediction(self, output: CtcOutput, class_names: Sequence[str], step_s: float) -> TextPrediction:
        (words,) = self.decoder.word_times(output.logits_BTV, output.lengths_B)
        return TextPrediction(tuple(word.in_seconds(step_s) for word in words))

    def outcome(self, output: Any, batch: Batch) -> tuple[float, int, list[dict[str, Any]]]:
        """Return the sum of the losses, the number of characters in it, and the predictions."""
        output = CtcOutput(*output)
        assert batch.target_lengths_B is not None, "CTC batches must contain the lengths of their transcripts"
        carried_B = _frames_missing(output, batch) <= 0
        loss_sum = _losses(output, batch).double()[carried_B].sum().item()
        transcripts = batch.targets.cpu().split(batch.target_lengths_B.tolist())
        texts = self.decoder.decode(output.logits_BTV, output.lengths_B)
        scores = _confidence(output).tolist()
        rows = [
            {"id": one, "reference": to_text(ids.tolist()), "prediction": text, "score": score}
            for one, ids, text, score in zip(batch.ids, transcripts, texts, scores, strict=True)
        ]
        return loss_sum, int(batch.target_lengths_B[carried_B].sum()), rows

    def summary(self, outcomes: list[Any], class_names: Sequence[str]) -> CtcEvaluation:
        """Compute corpus WER and CER by GigaSpeech's rules (`scoring_text`).

        The loss is the training loss over the whole corpus. Utterances with too few frames for their transcripts count in WER
        and CER, but not in the loss.
        """
        loss_sum = sum(loss for loss, _, _ in outcomes)
        characters = sum(count for _, count, _ in outcomes)
        rows = sorted((row for _, _, rows in outcomes for row in rows), key=lambda row: str(row["id"]))
        errors = find_errors(
            [row["id"] for row in rows],
            [scoring_text(row["reference"]) for row in rows],
            [scoring_text(row["prediction"]) for row in rows],
        )
        metrics = {"wer": errors.words.rate, "cer": errors.characters.rate, "loss": loss_sum / max(1, characters)}
        return CtcEvaluation(metrics, rows, errors)


def _inconsistency(output: CtcOutput) -> torch.Tensor:
    """Return the sum over the valid frames of D(b || a) and D(a || b), where a and b are the two halves of the batch.

    Each view learns from the other one, whose gradient is stopped (Yao et al. 2025, "CR-CTC", arXiv 2410.05101). The paper
    halves both this sum and that of the two CTC losses; here division by the doubled number of characters has the same
    effect, so `consistency` is the paper's alpha.
    """
    log_a_BTV, log_b_BTV = full_precision(output.logits_BTV).log_softmax(-1).chunk(2)
    valid_BT = torch.arange(log_a_BTV.shape[1], device=log_a_BTV.device) < output.lengths_B.chunk(2)[0].unsqueeze(1)

    def divergence_BT(learning: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        return functional.kl_div(learning, fixed.detach(), reduction="none", log_target=True).sum(-1)

    both_BT = divergence_BT(log_a_BTV, log_b_BTV) + divergence_BT(log_b_BTV, log_a_BTV)
    return both_BT.where(valid_BT, 0.0).sum()


def frames_needed(targets: torch.Tensor, target_lengths_B: torch.Tensor) -> torch.Tensor:
    """Return the minimum number of frames (B) per transcript: its characters, plus a blank between equal neighbours."""
    utterance_of = torch.repeat_interleave(target_lengths_B)
    doubled = (targets[1:] == targets[:-1]) & (utterance_of[1:] == utterance_of[:-1])
    return target_lengths_B.index_add(0, utterance_of[1:], doubled.to(target_lengths_B.dtype))


def _frames_missing(output: CtcOutput, batch: Batch) -> torch.Tensor:
    assert batch.target_lengths_B is not None
    return frames_needed(batch.targets, batch.target_lengths_B) - output.lengths_B


def _losses(output: CtcOutput, batch: Batch) -> torch.Tensor:
    """Return -ln p of each transcript (B), infinite if it has too few frames.

    Uses torch's own kernel in float32 (or float64), because cuDNN's has ignored infinite losses. On a GPU its gradient is
    summed in no fixed order, so the CPU computes it when deterministic results are required.
    """
    log_probabilities_BTV = full_precision(output.logits_BTV).log_softmax(-1)
    device = torch.device("cpu") if torch.are_deterministic_algorithms_enabled() else log_probabilities_BTV.device
    with torch.backends.cudnn.flags(enabled=False):
        losses_B = functional.ctc_loss(
            log_probabilities_BTV.to(device).transpose(0, 1),
            batch.targets.to(device),
            output.lengths_B.to(device),
            batch.target_lengths_B.to(device),  # type: ignore[union-attr]
            blank=BLANK,
            reduction="none",
        )
    return losses_B.to(log_probabilities_BTV.device)


def _confidence(output: CtcOutput) -> torch.Tensor:
    """Return the mean over the frames of each utterance (B) of the largest log-probability."""
    best_BT = output.logits_BTV.float().log_softmax(-1).amax(-1)
    valid_BT = torch.arange(best_BT.shape[1], device=best_BT.device) < output.lengths_B.unsqueeze(1)
    return best_BT.where(valid_BT, 0.0).sum(1) / output.lengths_B.clamp(min=1)
