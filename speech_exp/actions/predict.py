"""action=predict: print the label and probabilities, or the text and word times, of audio files (any rate, mono or stereo)."""

from __future__ import annotations

import sys
from pathlib import Path

from speech_exp.data.audio import AUDIO_SUFFIXES, AudioError
from speech_exp.experiment import Experiment
from speech_exp.objectives.prediction import Prediction, Word
from speech_exp.pretrained import Model
from speech_exp.safe_text import escaped
from speech_exp.training.checkpoint import load_deployable


class Predict:
    """Prints one line per file: its name, then label and class probabilities, or text and word times, and a note.

    The note warns of audio that the model cannot handle: silence, or an unreasonable length. With `streaming`, each file is
    fed to the recogniser frame by frame, and its words are printed before its line. If a file in a folder is not usable
    audio, it is named on standard error, the others are still predicted, and the exit status is 1.
    """

    def __init__(self, checkpoint: str | None, audio: str | None, streaming: bool) -> None:
        self.checkpoint, self.audio, self.streaming = checkpoint, audio, streaming

    def __call__(self, experiment: Experiment) -> None:
        paths = self._paths()
        model = Model(experiment.from_checkpoint(load_deployable(self.checkpoint)))
        if self.streaming:
            model.stream()  # refuse a model that cannot stream before reading any file
        print("file", *model.columns, "note", sep="\t")
        bad = 0
        for path in paths:
            try:
                prediction = _streamed(model, path) if self.streaming else model.predict(path)
            except AudioError as error:
                if len(paths) == 1:
                    raise
                bad += 1
                print(f"not predicted: {escaped(str(error))}", file=sys.stderr)
                continue
            print(escaped(str(path)), *prediction.cells(), prediction.note, sep="\t", flush=True)
        if bad:
            raise ValueError(
                f"{bad:,} of {len(paths):,} files of audio={self.audio} were not predicted for the reasons above: replace or remove them"
            )

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
            raise ValueError(f"audio={self.audio} contains no file ending in {', '.join(AUDIO_SUFFIXES)}: change audio")
        return paths


def _streamed(model: Model, path: Path) -> Prediction:
    """Return the same prediction as `model.predict`, and print each word as soon as it is complete."""

    def show(word: Word) -> None:
        print(f"  {word}", flush=True)

    return model.predict_streaming(path, show)
