"""Log-mel features of a waveform that arrives in pieces, equal to those of the whole.

Shape letters: N samples, T frames, W window, K frequency bins, F mel bands.
"""

from __future__ import annotations

import numpy as np
import torch

from speech_exp.features.logmel import LogMel


class StreamingLogMel:
    """Gives each frame as soon as its window is filled: frame t, centred on t * hop, after half a window more.

    Of the waveform it keeps less than a window. Equal to `LogMel` up to rounding, as the zeros with which a window is
    filled up to n_fft shift the phase alone.
    """

    def __init__(self, extractor: LogMel) -> None:
        self.extractor = extractor
        self._samples = self._frames = 0
        # Silence before the first sample, as far as the window of frame 0 reaches.
        before = extractor.n_fft // 2 - (extractor.n_fft - extractor.window) // 2
        self._waiting_N = torch.zeros(before)

    def push(self, samples_N: np.ndarray) -> torch.Tensor:
        """Features (T, F) of the frames that any number of further samples complete."""
        self.extractor.refuse_impossible(samples_N)
        self._samples += len(samples_N)
        return self._complete(torch.from_numpy(samples_N.astype(np.float32)))

    def finish(self) -> torch.Tensor:
        """Features (T, F) of the last frames, with silence behind the last sample; nothing can be pushed after it."""
        missing = self.extractor.transform.num_frames(self._samples) - self._frames
        needed = self.extractor.window + (missing - 1) * self.extractor.hop if missing else 0
        return self._complete(torch.zeros(max(0, needed - len(self._waiting_N))))

    def _complete(self, samples_N: torch.Tensor) -> torch.Tensor:
        window, hop = self.extractor.window, self.extractor.hop
        waiting_N = torch.cat([self._waiting_N, samples_N])
        frames = max(0, 1 + (len(waiting_N) - window) // hop)
        self._frames += frames
        self._waiting_N = waiting_N[frames * hop :].clone()
        if not frames:
            return torch.zeros(0, self.extractor.num_features)
        framed_TW = waiting_N.unfold(0, window, hop) * self.extractor.transform.window
        power_TK = torch.fft.rfft(framed_TW, self.extractor.n_fft).abs().square()
        return self.extractor.transform.from_power(power_TK)
