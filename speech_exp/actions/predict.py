"""action=predict: label and probabilities, or text and word times, for audio files of any rate, mono or stereo.

Shape letters: N samples, T frames, F features, B batch (here 1).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from speech_exp.actions.context import Context
from speech_exp.actions.streaming import streaming_recogniser
from speech_exp.data.audio import AUDIO_SUFFIXES, AudioError, read_any
from speech_exp.objectives.ctc import word_cells
from speech_exp.objectives.decoders import TimedWord
from speech_exp.objectives.objective import device_of
from speech_exp.training.checkpoint import load_deployable


class Predict:
    """Prints one line a file: name, label and the probability of each class, or text and words with their times.

    With `streaming` each file is fed to the recogniser frame by frame, and lines of words stand before that of their file.
    In a folder, files that are not usable audio are named and passed over; exit status 1 follows where none was usable.
    """

    def __init__(self, checkpoint: str | None, audio: str | None, streaming: bool) -> None:
        self.checkpoint, self.audio, self.streaming = checkpoint, audio, streaming

    @torch.no_grad()
    def __call__(self, experiment: Context) -> None:
        paths = self._paths()
        original = experiment.of_checkpoint(load_deployable(self.checkpoint))
        assert original.deployed is not None
        network = original.deployed.eval()
        if self.streaming:
            streaming_recogniser(original, network)  # what cannot stream is told before any file is read
        cells_of = _streamed if self.streaming else _at_once
        print("file", *original.objective.columns(original.class_names), sep="\t")
        bad: list[AudioError] = []
        for path in paths:
            try:
                waveform_N = read_any(path, original.dataset.sample_rate_hz)
            except AudioError as error:
                bad.append(error)
                continue
            with original.trainer.runtime.autocast():
                cells = cells_of(original, network, waveform_N)
            print(path, *cells, sep="\t")
        if bad and len(bad) == len(paths):
            raise bad[0]
        for reason in bad:
            print(f"passed over: {reason}")

    def _paths(self) -> list[Path]:
        if self.audio is None:
            raise ValueError("no audio was given: set audio=FILE_OR_FOLDER")
        place = Path(self.audio)
        if not place.exists():
            raise ValueError(
                f"audio={self.audio} does not exist: expected a sound file or a folder of them, change audio"
            )
        if not place.is_dir():
            return [place]
        paths = sorted(path for path in place.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
        if not paths:
            raise ValueError(f"audio={self.audio} holds no file ending in {', '.join(AUDIO_SUFFIXES)}: change audio")
        return paths


def _at_once(original: Context, network: nn.Module, waveform_N: np.ndarray) -> list[str]:
    device = device_of(network)
    frames_TF = torch.from_numpy(original.extractor(waveform_N))
    lengths_B = torch.tensor([len(frames_TF)])
    features_BTF = original.normalizer(frames_TF, lengths_B).unsqueeze(0)
    output = network(features_BTF.to(device), lengths_B.to(device))
    return original.objective.cells(output, original.class_names, _step_s(original))


def _streamed(original: Context, network: nn.Module, waveform_N: np.ndarray) -> list[str]:
    """The cells of `_at_once`; each word is printed as soon as it is complete."""
    recogniser, hop, step_s = streaming_recogniser(original, network), original.extractor.hop, _step_s(original)
    words: list[TimedWord] = []

    def show(complete: list[TimedWord]) -> None:
        for word in complete:
            print(f"  {word.in_seconds(step_s)}", flush=True)
        words.extend(complete)

    for start in range(0, len(waveform_N), hop):
        show(recogniser.push(waveform_N[start : start + hop]))
    show(recogniser.finish())
    return word_cells(words, step_s)


def _step_s(original: Context) -> float:
    """Seconds from one state of the encoder to the next."""
    return original.extractor.hop_s * original.network.encoder.frames_per_state
