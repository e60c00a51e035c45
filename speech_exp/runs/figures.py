"""Draw all figures of one run into its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from speech_exp import files
from speech_exp.data.batches import Utterances
from speech_exp.features.batch import Batch
from speech_exp.features.extractor import FeatureExtractor
from speech_exp.figures.confusion import confusion_matrix
from speech_exp.figures.curves import Row, phases_of, training_curves
from speech_exp.figures.features import features_figure
from speech_exp.figures.flow import Box, Constraint, flowchart
from speech_exp.figures.metrics import metrics_table
from speech_exp.figures.occlusion import occlusion_figure
from speech_exp.figures.recognition import errors_figure, posterior_figure
from speech_exp.models.asr_encoder import AsrEncoder
from speech_exp.objectives.classification import ClassEvaluation, ClassificationNetwork
from speech_exp.objectives.ctc import CtcEvaluation, CtcOutput
from speech_exp.objectives.objective import Evaluation, Network, device_of

_OCCLUSION_WINDOW_S = 0.064
_PARTS = ("convolution", "recurrent", "pooling", "linear")  # parts of a network; a task names those that it constrains


def draw_evaluation(folder: Path, evaluation: Evaluation, history: Sequence[Row], best_epoch: int, title: str) -> None:
    """Draw training curves with their phases; also confusion matrix and metrics of a classification, or word errors of CTC.

    A model that was trained in a different run and only converted has no curves: its history contains only epoch 0.
    `title` names the run.
    """
    if any(row["epoch"] for row in history):
        training_curves(history, best_epoch, phases_of(history), title, folder / "training_curves.png")
    if isinstance(evaluation, ClassEvaluation):
        _draw_classes(folder, evaluation, title)
    if isinstance(evaluation, CtcEvaluation):
        _draw_words(folder, evaluation, title)


def _draw_classes(folder: Path, evaluation: ClassEvaluation, title: str) -> None:
    counts_VV = np.array(evaluation.confusion_VV)
    confusion_matrix(counts_VV, list(evaluation.per_class), title, folder / "confusion_matrix.png")
    metrics_table(evaluation.per_class, evaluation.metrics, title, folder / "metrics_table.png")


def _draw_words(folder: Path, evaluation: CtcEvaluation, title: str) -> None:
    """Draw the errors by word and type, and write the worst utterances, aligned, to a text file in the run folder."""
    errors = evaluation.errors
    edits: dict[str, dict[str, int]] = {}
    counted = [(word, "substituted", count) for word, _, count in errors.confusions]
    counted += [(word, "deleted", count) for word, count in errors.deleted]
    counted += [(word, "inserted", count) for word, count in errors.inserted]
    for word, kind, count in counted:
        found = edits.setdefault(word, {})
        found[kind] = found.get(kind, 0) + count
    errors_figure(edits, errors.words.reference, title, folder / "errors.png")
    worst = "\n\n".join(one.text() for one in errors.worst) or "no utterance has an error"
    files.write_text(folder.parent / "worst_utterances.txt", worst + "\n")


def draw_recording(
    folder: Path,
    network: nn.Module,
    test: Utterances,
    waveform_N: np.ndarray,
    extractor: FeatureExtractor,
    class_names: Sequence[str],
    evaluation: Evaluation,
    run: str,
) -> None:
    """Draw the features of the first test recording, and how each moment affects its logit, or for CTC the symbols in time.

    `evaluation` has the prediction for this recording; `run` names the run in the titles.
    """
    batch = next(iter(test.in_order(1))).to(device_of(network))
    features_TF = batch.features_BTF[0].cpu().numpy()
    predicted = next(row for row in evaluation.predictions if row["id"] == batch.ids[0])
    title = [run, f"test recording {batch.ids[0]}"]
    features_figure(
        waveform_N, extractor.sample_rate_hz, features_TF, extractor.hop_s, title, folder / "features.png", extractor.feature_names
    )  # fmt: skip
    with torch.no_grad():
        output = network.eval()(batch.features_BTF, batch.lengths_B)
    if not isinstance(output, CtcOutput):
        classes = f"class {predicted['reference']}, recognised as {predicted['prediction']}"
        _draw_occlusion(folder, network, batch, extractor, [run, f"test recording {batch.ids[0]}, {classes}"])
        return
    title += [f"reference: {predicted['reference']}", f"recognised: {predicted['prediction'] or '(nothing)'}"]
    posterior_TV = output.logits_BTV[0].float().softmax(-1).cpu().numpy()
    step_s = extractor.hop_s * max(1, round(len(features_TF) / len(posterior_TV)))
    posterior_figure(
        features_TF, extractor.hop_s, posterior_TV, step_s, class_names, title, folder / "posterior.png", extractor.feature_names
    )  # fmt: skip


def _draw_occlusion(
    folder: Path, network: nn.Module, batch: Batch, extractor: FeatureExtractor, title: Sequence[str]
) -> None:
    features_TF = batch.features_BTF[0].cpu().numpy()
    starts_s, drops = occlusion(network, batch, extractor.hop_s)
    occlusion_figure(
        features_TF, starts_s, drops, _OCCLUSION_WINDOW_S, extractor.hop_s, title, folder / "occlusion.png", extractor.feature_names
    )  # fmt: skip


@torch.no_grad()
def occlusion(network: nn.Module, batch: Batch, hop_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the start in s of each masked window, and the drop of the correct logit caused by masking it.

    A masked frame is set to the mean of the training features, which is zero after normalisation (Zeiler & Fergus 2014,
    section 4.2).
    """
    network.eval()
    width = max(1, round(_OCCLUSION_WINDOW_S / hop_s))
    frames = batch.features_BTF.shape[1]
    starts = torch.arange(max(1, frames - width + 1))
    frame_T = torch.arange(frames)
    masked_ST = (frame_T >= starts.unsqueeze(1)) & (frame_T < starts.unsqueeze(1) + width)
    occluded_STF = batch.features_BTF.masked_fill(masked_ST.to(batch.features_BTF.device).unsqueeze(-1), 0.0)
    correct = int(batch.targets[0])
    whole = network(batch.features_BTF, batch.lengths_B)[0, correct]
    logits_S = network(occluded_STF, batch.lengths_B.expand(len(starts)))[:, correct]
    return starts.numpy() * hop_s, (whole - logits_S).cpu().numpy()


def draw_flowchart(
    folder: Path,
    network: Network,
    parts: Mapping[str, Utterances],
    facts: dict[str, Any],
    hop_s: float,
    title: str,
) -> None:
    """Draw the pipeline of this run with its sizes, and where the task's constraint acts.

    `facts` contains the config choices by group, `split`, `normalization`, `best_epoch`, `epochs`, `result`,
    `constraint` (its lines, empty for a task without one) and `constrained` (the parts that it acts on, out of
    convolution, recurrent, pooling and linear).
    """
    constrained = set(facts["constrained"])
    if constrained - set(_PARTS):
        raise ValueError(
            f"constrained is {', '.join(map(str, facts['constrained']))}, expected some of {', '.join(_PARTS)}"
        )
    layers = network.encoder.recurrent_layers
    counts = [f"{len(part)} {name}" for name, part in parts.items()]
    boxes = [
        Box("Data", [facts["dataset"], f"split {facts['split']}", *counts], "data"),
        Box("Features", [facts["features"], f"{network.encoder.input_size} per frame", f"hop {1000 * hop_s:g} ms", f"{facts['normalization']} normalisation"], "features"),
        Box("Augmentation", [facts["augment"], "training only"], "augment"),
    ]  # fmt: skip
    if network.encoder.front is not None:
        convolution = network.encoder.front.convolution
        width = f"{convolution.kernel_size[0]} frames"
        boxes.append(Box("Convolution", [f"{convolution.in_channels} → {convolution.out_channels}, {width}", "batch norm, ReLU"], "encoder", "convolution" in constrained))  # fmt: skip
    before: list[str] = []
    if isinstance(network.encoder, AsrEncoder):
        encoder = network.encoder
        boxes.append(Box("Downsampling", [f"{encoder.input_size} → {encoder.width}", f"{encoder.frames_per_state} frames to one"], "encoder", "convolution" in constrained))  # fmt: skip
        reach = f" of ±{encoder.attention_window} frames" if encoder.attention == "window" else ""
        before = [f"attention {encoder.attention}{reach}, then"]
    for layer in layers:
        size = layer.size()
        direction = "both directions" if layer.output_size > layer.hidden_size else "forwards"
        lines = [
            *before,
            f"{layer.input_size} → {layer.output_size}, {direction}",
            f"{size.numbers:,} numbers",
            f"{size.bytes():,} bytes",
        ]
        if (theta := layer.window_frames()) is not None:
            lines.append(f"window {1000 * theta * network.encoder.frames_per_state * hop_s:g} ms (theta {theta:g})")
        boxes.append(Box(layer.name.upper(), lines, "encoder", "recurrent" in constrained, layer.name))
    if isinstance(network, ClassificationNetwork):
        boxes.append(Box("Pooling", [f"{network.pooling} over time", f"{network.encoder.output_size} values"], "head", "pooling" in constrained))  # fmt: skip
    boxes += [
        Box("Linear", [f"{network.output.in_features} → {network.output.out_features} logits"], "head", "linear" in constrained),
        Box("Output", [f"best epoch {facts['best_epoch']} of {facts['epochs']}", facts["result"]], "output"),
    ]  # fmt: skip
    constraint = Constraint(f"Task {facts['task']}", facts["constraint"] or ["no constraint"])
    flowchart(boxes, constraint, title, folder / "flowchart.png")
