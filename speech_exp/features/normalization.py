"""Normalisation of features to zero mean and unit variance.

Shape letters: N all frames of all utterances one after the other, U utterances, F features.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

Mode = Literal["global", "utterance"]
_SMALL_STD = 0.1  # what hardly varies within a recording (in nepers or decibels) is not blown up to noise
_MIN_STD = 1e-5  # a feature that never varies stays zero instead of dividing by zero


class Normalizer:
    """`global`: by mean and deviation of the training split; `utterance`: by those of each recording itself."""

    def __init__(self, mode: Mode) -> None:
        if mode not in get_args(Mode):
            raise ValueError(
                f"features.normalization={mode}: expected one of {', '.join(get_args(Mode))}, change features.normalization"
            )
        self.mode = mode
        self.mean_F: torch.Tensor | None = None
        self.std_F: torch.Tensor | None = None

    def fit(self, frames_NF: torch.Tensor) -> None:
        """Take the statistics of the training split's frames; `utterance` has none to take."""
        if self.mode == "global":
            # float64: the mean of a hundred thousand frames must not depend on the order of summation
            self.mean_F = frames_NF.double().mean(0).float()
            self.std_F = frames_NF.double().std(0).float().clamp_min(_MIN_STD)

    def __call__(self, frames_NF: torch.Tensor, lengths_U: torch.Tensor) -> torch.Tensor:
        """Normalised frames of utterances that lie one after the other, `lengths_U` frames each."""
        if self.mode == "global":
            assert self.mean_F is not None, "fit or load statistics first"
            assert self.std_F is not None
            return (frames_NF - self.mean_F) / self.std_F
        owner_N = torch.repeat_interleave(torch.arange(len(lengths_U)), lengths_U)
        # float64: a mean that is rounded on the way would leave a constant feature a deviation, and make it 1 or -1
        zeros_UF = torch.zeros(len(lengths_U), frames_NF.shape[1], dtype=torch.float64)
        mean_UF = zeros_UF.index_add(0, owner_N, frames_NF.double()) / lengths_U.unsqueeze(1)
        centred_NF = frames_NF - mean_UF.float()[owner_N]
        variance_UF = zeros_UF.index_add(0, owner_N, centred_NF.double().square()) / lengths_U.unsqueeze(1)
        return centred_NF / (variance_UF + _SMALL_STD**2).sqrt().float()[owner_N]

    def batch(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Normalised features of a padded batch, zero behind each length; where they lie the statistics lie too."""
        valid_BT = torch.arange(features_BTF.shape[1], device=features_BTF.device) < lengths_B.unsqueeze(1)
        if self.mode == "global":
            return self(features_BTF, lengths_B) * valid_BT.unsqueeze(-1)
        with features_BTF.device:  # where the call then makes its own tensors
            normalized_NF = self(features_BTF[valid_BT], lengths_B)
        return torch.zeros_like(features_BTF).masked_scatter(valid_BT.unsqueeze(-1), normalized_NF)

    def to(self, device: torch.device) -> Normalizer:
        """A copy whose statistics lie on `device`."""
        copied = Normalizer(self.mode)
        if statistics := self.statistics():
            copied.load({name: value.to(device) for name, value in statistics.items()})
        return copied

    def statistics(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold to normalise the same way."""
        if self.mean_F is None or self.std_F is None:
            return {}
        return {"mean_F": self.mean_F, "std_F": self.std_F}

    def load(self, statistics: dict[str, torch.Tensor]) -> None:
        if self.mode == "global":
            self.mean_F, self.std_F = statistics["mean_F"], statistics["std_F"]
