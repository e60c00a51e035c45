"""The front end: everything between a waveform and the features that a network reads.

Shape letters: N samples, T frames, F features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from speech_exp.features.distortion import Variants
from speech_exp.features.extractor import ExtractorStream, FeatureExtractor
from speech_exp.features.normalization import Normalizer
from speech_exp.parallel import one_thread


@dataclass(frozen=True)
class FrontEnd:
    """Turns waveforms into normalised features; training, prediction and streaming use the same object.

    Its state is the normaliser's statistics, which a checkpoint stores.

    Args:
        speeds: each training batch of waveforms is played at one of them.
        variants: distorted copies of the training recordings, or None.
        description: configs of the extractor and of the variants; part of the key of cached features.
    """

    extractor: FeatureExtractor
    normalizer: Normalizer
    speeds: tuple[float, ...] = (1.0,)
    variants: Variants | None = None
    description: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, waveform_N: np.ndarray) -> torch.Tensor:
        """Return the normalised features (T, F) of a waveform, on the CPU."""
        with one_thread():  # gives the same bits as the feature cache
            frames_TF = torch.from_numpy(self.extractor(waveform_N))
        return self.normalizer(frames_TF, torch.tensor([len(frames_TF)]))

    def extract(self, waveform_N: np.ndarray, recording_id: str, variant: int) -> np.ndarray:
        """Return the features (T, F) of one variant of a recording before normalisation; variant 0 is undistorted."""
        if not variant:
            return self.extractor(waveform_N)
        assert self.variants is not None
        # The generator depends on the recording and the variant alone, not on what else is computed.
        digest = hashlib.sha256(f"{recording_id}:{variant}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        return self.variants.features(self.extractor, waveform_N, variant, generator)

    def fit(self, training_frames_NF: Iterable[torch.Tensor]) -> None:
        """Compute the statistics from frames (N, F) before normalisation of the training part.

        Does nothing, and reads no frames, if the statistics were loaded or are not needed.
        """
        if self.normalizer.mode == "global" and self.normalizer.mean_F is None:
            self.normalizer.fit(torch.cat(list(training_frames_NF)))

    def stream(self) -> FeatureStream:
        """Start the features of a waveform that arrives in pieces; ValueError if they need the whole utterance."""
        if self.normalizer.mode != "global":
            raise ValueError(
                f"features.normalization={self.normalizer.mode} needs the whole utterance and cannot stream: leave streaming "
                f"out, or train with features.normalization=global"
            )
        return FeatureStream(self.extractor.stream(), self.normalizer)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.normalizer.statistics()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.normalizer.load(state, self.extractor.num_features)


class FeatureStream:
    """Normalised features of one waveform that arrives in pieces."""

    def __init__(self, frames: ExtractorStream, normalizer: Normalizer) -> None:
        self._frames, self._normalizer = frames, normalizer

    def push(self, samples_N: np.ndarray) -> torch.Tensor:
        """Add any number of samples and return the features (T, F) of the frames that they complete."""
        return self._normalized(self._frames.push(samples_N))

    def finish(self) -> torch.Tensor:
        """Return the features (T, F) of the last frames; ends the stream."""
        return self._normalized(self._frames.finish())

    def _normalized(self, frames_TF: torch.Tensor) -> torch.Tensor:
        return self._normalizer(frames_TF, torch.tensor([len(frames_TF)]))
