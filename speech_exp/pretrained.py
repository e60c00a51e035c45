"""Use a trained model from Python: predict files and arrays, recognise speech while its audio arrives, compute features.

Shape letters: N samples, T frames, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from omegaconf import OmegaConf

from speech_exp.data.audio import AnyAudio, AudioError, any_audio, read_any
from speech_exp.experiment import Experiment
from speech_exp.features.front_end import FeatureStream
from speech_exp.objectives.ctc import Ctc, CtcNetwork
from speech_exp.objectives.decoders import Greedy, TimedWord
from speech_exp.objectives.objective import device_of
from speech_exp.objectives.prediction import Prediction, TextPrediction, Word
from speech_exp.objectives.streaming import StreamingRecogniser
from speech_exp.training.checkpoint import load_deployable

Device = Literal["auto", "cpu", "cuda"]
Audio = str | Path | np.ndarray | torch.Tensor  # a sound file, or samples
_LONGEST_S = {"classes": 60.0, "text": 3600.0}  # longer audio gets a note


def load(checkpoint: str | Path, device: Device = "cpu") -> Model:
    """Load a trained model from a file `checkpoint_epoch_N_best.pt` of a run.

    The file may come from anyone: it is data, and nothing in it is executed. Random states and torch's settings of this
    process stay as they are. Raises ValueError for any other file.
    """
    config = {"seed": 0, "action": {}, "checkpoint": str(checkpoint), "trainer": {"device": device}}
    asking = Experiment(OmegaConf.create(config), {"action": "load"}, Path())
    asking.overrides = (f"trainer.device={device}",)
    content = load_deployable(str(checkpoint))
    with _settings_kept():
        return Model(asking.from_checkpoint(content))


class Model:
    """A trained model in its deployable form, with the front end that it was trained with."""

    def __init__(self, original: Experiment) -> None:
        """Wrap the experiment that `Experiment.from_checkpoint` returns."""
        assert original.deployed is not None
        self._original, self.network = original, original.deployed.eval()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, or the symbols of a model that recognises text."""
        return self._original.class_names

    @property
    def sample_rate_hz(self) -> int:
        """The sample rate that the model expects; `predict` and `features` resample to it."""
        return self._original.dataset.sample_rate_hz

    @property
    def columns(self) -> list[str]:
        """Header for the cells of predictions."""
        return self._original.objective.columns(self.class_names)

    def predict(self, audio: Audio, rate_hz: int | None = None) -> Prediction:
        """Return what the model recognises in one utterance.

        It is a `ClassPrediction` (label, probabilities) or, from a model of text, a `TextPrediction` (text, words with times).

        Args:
            audio: sound file, or an array or tensor of samples (N,) or (N, channels): int16, or float with full scale 1.
                Channels are averaged.
            rate_hz: sample rate of an array or tensor; None: that of the model.

        Raises AudioError, a ValueError, if the audio cannot be read or used.
        """
        found = self._audio(audio, rate_hz)
        features_BTF = self._original.front_end(found.waveform_N).unsqueeze(0).to(device_of(self.network))
        lengths_B = torch.tensor([features_BTF.shape[1]], device=features_BTF.device)
        with torch.no_grad(), self._original.trainer.runtime.autocast():
            output = self.network(features_BTF, lengths_B)
            prediction = self._original.objective.prediction(output, self.class_names, self._step_s)
        return prediction.with_note(self._note(found))

    def predict_streaming(self, audio: str | Path, on_word: Callable[[Word], None]) -> TextPrediction:
        """Return the prediction for a file that is fed to `stream` hop by hop; `on_word` receives each complete word."""
        found, stream, hop = self._audio(audio, None), self.stream(), self._original.front_end.extractor.hop
        words: list[Word] = []

        def add(complete: list[Word]) -> None:
            for word in complete:
                on_word(word)
                words.append(word)

        for start in range(0, len(found.waveform_N), hop):
            add(stream.push(found.waveform_N[start : start + hop]))
        add(stream.finish())
        return TextPrediction(tuple(words), self._note(found))

    def features(self, audio: Audio, rate_hz: int | None = None) -> np.ndarray:
        """Return the normalised features (T, F) float32 that the network reads; arguments as for `predict`."""
        return self._original.front_end(self._audio(audio, rate_hz).waveform_N).numpy()

    def stream(self) -> Stream:
        """Start recognising an utterance while its audio arrives; ValueError if the model needs the whole utterance."""
        original, network = self._original, self.network
        if not isinstance(original.objective, Ctc) or not isinstance(network, CtcNetwork):
            raise ValueError(
                f"a stream returns words, but the checkpoint has objective={original.choices['objective']}: leave streaming out or "
                f"change checkpoint"
            )
        if not isinstance(original.objective.decoder, Greedy):
            raise ValueError("a stream is decoded frame by frame, but a beam looks back: set decoder=greedy")
        return Stream(original.front_end.stream(), network, self._step_s, self.sample_rate_hz)

    @property
    def _step_s(self) -> float:
        """The seconds between two successive states of the encoder."""
        return self._original.front_end.extractor.hop_s * self._original.network.encoder.frames_per_state

    def _audio(self, audio: Audio, rate_hz: int | None) -> AnyAudio:
        if isinstance(audio, np.ndarray | torch.Tensor):
            return any_audio(_samples(audio), self.sample_rate_hz if rate_hz is None else rate_hz, self.sample_rate_hz)
        if not isinstance(audio, str | Path):
            raise TypeError(
                f"audio is of type {type(audio).__name__}: expected the name of a sound file, or a NumPy array or torch tensor of samples"
            )
        if rate_hz is not None:
            raise ValueError(f"rate_hz={rate_hz} was given for {audio}: a file states its own rate, leave rate_hz out")
        return read_any(Path(audio), self.sample_rate_hz)

    def _note(self, audio: AnyAudio) -> str:
        """Return why a prediction for this audio would be meaningless; empty if there is no reason."""
        extractor, longest_s = self._original.front_end.extractor, _LONGEST_S[self._original.objective.targets]
        frame_s = extractor.window / extractor.sample_rate_hz
        reasons = {
            "silence": audio.is_silent,
            f"shorter than one frame of {frame_s * 1000:g} ms": audio.seconds < frame_s,
            f"longer than {longest_s:g} s": audio.seconds > longest_s,
        }
        return ", ".join(reason for reason, holds in reasons.items() if holds)


class Stream:
    """Recognises an utterance while its audio arrives; returns each word as soon as it is complete."""

    def __init__(self, features: FeatureStream, network: CtcNetwork, step_s: float, rate_hz: int) -> None:
        self._recogniser, self._step_s, self._rate_hz = StreamingRecogniser(features, network), step_s, rate_hz
        self._ended = False

    def push(self, samples: np.ndarray | torch.Tensor) -> list[Word]:
        """Add any number of samples at the model's sample rate; return the words that they complete.

        Args:
            samples: (N,) or (N, channels), as for `Model.predict`.

        Raises AudioError, a ValueError, if they cannot be used.
        """
        self._check_open()
        if not len(samples):
            return []
        return self._timed(self._recogniser.push(any_audio(_samples(samples), self._rate_hz, self._rate_hz).waveform_N))

    def finish(self) -> list[Word]:
        """End the utterance and return its last words; nothing can be pushed afterwards."""
        self._check_open()
        self._ended = True
        return self._timed(self._recogniser.finish())

    def _check_open(self) -> None:
        if self._ended:
            raise ValueError("this utterance has ended: start the next one with model.stream()")

    def _timed(self, words: list[TimedWord]) -> list[Word]:
        return [word.in_seconds(self._step_s) for word in words]


def _samples(audio: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return samples as an array; half precision becomes float32, in which the limits of their level can be written."""
    if not isinstance(audio, np.ndarray | torch.Tensor):
        raise TypeError(f"the samples are of type {type(audio).__name__}: expected a NumPy array or torch tensor")
    if isinstance(audio, torch.Tensor):
        audio = audio.detach().cpu()
        audio = (audio.float() if audio.is_floating_point() else audio).numpy()
    if audio.ndim == 2 and audio.shape[0] < audio.shape[1]:
        raise AudioError(f"the samples have shape {audio.shape}: expected (N, channels), transpose (channels, N)")
    return audio.astype(np.float32) if audio.dtype == np.float16 else audio


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Restore torch's settings that building a model for training changes."""
    mode, cudnn, matmul = torch.get_deterministic_debug_mode(), torch.backends.cudnn, torch.backends.cuda.matmul
    benchmark, cudnn_tf32, matmul_tf32 = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = benchmark, cudnn_tf32, matmul_tf32
