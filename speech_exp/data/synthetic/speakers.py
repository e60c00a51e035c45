"""Synthetic voices as additional training data, generated on this machine when their features are first needed."""

from __future__ import annotations

import numpy as np

from speech_exp.data.synthetic.synthesize import synthesize_voice
from speech_exp.data.synthetic.voices import random_voice_specs

_SEED = 0


class SyntheticVoices:
    """`count` random voices that speak each digit once (extra `voices`); voice i does not depend on `count`."""

    def __init__(self, count: int) -> None:
        self.specs = random_voice_specs(count, _SEED)

    def waveform(self, voice: int, digit: int, sample_rate_hz: int) -> np.ndarray:
        generator = np.random.default_rng([_SEED, voice, digit])
        return synthesize_voice(self.specs[voice], digit, generator, sample_rate_hz)
