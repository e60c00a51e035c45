"""What of a trained recogniser can run while the audio arrives."""

from __future__ import annotations

from torch import nn

from speech_exp.actions.context import Context
from speech_exp.features.logmel import LogMel
from speech_exp.features.streaming import StreamingLogMel
from speech_exp.objectives.ctc import Ctc, CtcNetwork
from speech_exp.objectives.decoders import Greedy
from speech_exp.objectives.streaming import StreamingRecogniser


def streaming_recogniser(original: Context, network: nn.Module) -> StreamingRecogniser:
    """Of a checkpoint's experiment and deployable network; what needs the whole utterance is a ValueError."""
    objective, choices = original.objective, original.choices
    if not isinstance(objective, Ctc) or not isinstance(network, CtcNetwork):
        raise ValueError(
            f"streaming=true gives words of a recogniser, the checkpoint is of objective={choices['objective']}: leave "
            f"streaming out or change checkpoint"
        )
    if not isinstance(objective.decoder, Greedy):
        raise ValueError("streaming=true decodes frame by frame, but a beam looks back: set decoder=greedy")
    if not isinstance(original.extractor, LogMel):
        raise ValueError(
            f"streaming=true has log-mel features, the checkpoint has features={choices['features']}: leave streaming out, or "
            f"train with features=logmel40"
        )
    if original.normalizer.mode != "global":
        raise ValueError(
            f"features.normalization={original.normalizer.mode} needs the whole utterance and cannot stream: leave streaming "
            f"out, or train with features.normalization=global"
        )
    return StreamingRecogniser(StreamingLogMel(original.extractor), original.normalizer, network)
