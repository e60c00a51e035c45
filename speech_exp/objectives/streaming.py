"""Recognise words while the audio arrives.

Shape letters: B batch (here 1), N samples, T frames, F features, V symbols.
"""

from __future__ import annotations

import numpy as np
import torch

from speech_exp.features.front_end import FeatureStream
from speech_exp.objectives.ctc import CtcNetwork
from speech_exp.objectives.decoders import TimedWord
from speech_exp.objectives.text import BLANK, SPACE, SYMBOLS


class GreedyStream:
    """The words of `Greedy.word_times`, each returned as soon as the space after it is recognised."""

    def __init__(self) -> None:
        self._frame = 0
        self._before = BLANK
        self._word: TimedWord | None = None

    def push(self, logits_V: torch.Tensor) -> list[TimedWord]:
        """Process one frame of the encoder's output; return the word that it completes, if any."""
        symbol, before, start = int(logits_V.argmax()), self._before, self._frame
        self._before, self._frame = symbol, start + 1
        if symbol == SPACE:
            return self.finish()
        if symbol != BLANK:
            word = self._word or TimedWord("", start, start)
            letter = SYMBOLS[symbol] if symbol != before else ""
            self._word = TimedWord(word.text + letter, word.start, start + 1)
        return []

    def finish(self) -> list[TimedWord]:
        """Return the unfinished word, if there is one."""
        complete = [] if self._word is None else [self._word]
        self._word = None
        return complete


class StreamingRecogniser:
    """Recognises one utterance from samples to words; keeps the states of features, network and decoder.

    The network's encoder must not look ahead (ValueError).
    """

    def __init__(self, features: FeatureStream, network: CtcNetwork) -> None:
        self.features, self.network = features, network
        self._state = network.initial_state(1, network.output.weight)
        self._words = GreedyStream()

    def push(self, samples_N: np.ndarray) -> list[TimedWord]:
        """Process any number of samples; return the words that they complete."""
        return self._step(self.features.push(samples_N))

    def finish(self) -> list[TimedWord]:
        """End the utterance and return the words that this completes; nothing can be pushed afterwards."""
        return self._step(self.features.finish()) + self._words.finish()

    @torch.no_grad()
    def _step(self, frames_TF: torch.Tensor) -> list[TimedWord]:
        frames_TF = frames_TF.to(self.network.output.weight.device)
        words = []
        for features_BF in frames_TF.split(1) if len(frames_TF) else ():
            logits_BV, self._state = self.network.step(features_BF, self._state)
            if logits_BV is not None:
                words += self._words.push(logits_BV[0])
        return words
