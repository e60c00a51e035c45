"""action=predict: label and probabilities, or text and word times, for audio files of any rate, mono or stereo."""

from __future__ import annotations

from pathlib import Path

import torch

from speech_exp.actions.context import Context
from speech_exp.data.audio import AUDIO_SUFFIXES, AudioError, read_any
from speech_exp.objectives.objective import device_of
from speech_exp.training.checkpoint import load_deployable


class Predict:
    """Prints one line a file: name, label and the probability of each class, or text and words with their times.

    In a folder, files that are not usable audio are named and passed over; exit status 1 follows where none was usable.
    """

    def __init__(self, checkpoint: str | None, audio: str | None) -> None:
        self.checkpoint, self.audio = checkpoint, audio

    @torch.no_grad()
    def __call__(self, experiment: Context) -> None:
        paths = self._paths()
        original = experiment.of_checkpoint(load_deployable(self.checkpoint))
        assert original.deployed is not None
        network, names = original.deployed.eval(), original.class_names
        device = device_of(network)
        print("file", *original.objective.columns(names), sep="\t")
        bad: list[AudioError] = []
        for path in paths:
            try:
                waveform_N = read_any(path, original.dataset.sample_rate_hz)
            except AudioError as error:
                bad.append(error)
                continue
            frames_TF = torch.from_numpy(original.extractor(waveform_N))
            lengths_B = torch.tensor([len(frames_TF)])
            features_BTF = original.normalizer(frames_TF, lengths_B).unsqueeze(0)
            with original.trainer.runtime.autocast():
                output = network(features_BTF.to(device), lengths_B.to(device))
            print(path, *original.objective.cells(output, names, original.extractor.hop_s, len(frames_TF)), sep="\t")
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
