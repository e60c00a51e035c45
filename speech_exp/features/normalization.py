"""Normalisation of features to zero mean and unit variance.

Shape letters: B batch, T frames, N frames of all utterances concatenated, U utterances, F features.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

Mode = Literal["global", "utterance"]
_SMALL_STD = 0.1  # in nepers or decibels; avoids amplifying a feature that hardly varies within a recording
_MIN_STD = 1e-5  # a feature that never varies becomes zero instead of a division by zero


class Normalizer:
    """A normaliser with the mean and deviation of the training split (`global`) or of each recording (`utterance`)."""

    def __init__(self, mode: Mode) -> None:
        if mode not in get_args(Mode):
            raise ValueError(
                f"features.normalization={mode}: expected one of {', '.join(get_args(Mode))}, change features.normalization"
            )
        self.mode = mode
        self.mean_F: torch.Tensor | None = None
        self.std_F: torch.Tensor | None = None

    def fit(self, frames_NF: torch.Tensor) -> None:
        """Compute the statistics from the frames of the training split; does nothing in mode `utterance`."""
        if self.mode == "global":
            # float64: the mean of a hundred thousand frames must not depend on the order of summation
            self.mean_F = frames_NF.double().mean(0).float()
            self.std_F = frames_NF.double().std(0).float().clamp_min(_MIN_STD)

    def __call__(self, frames_NF: torch.Tensor, lengths_U: torch.Tensor) -> torch.Tensor:
        """Return the normalised frames of concatenated utterances with `lengths_U` frames each."""
        if self.mode == "global":
            assert self.mean_F is not None, "fit or load statistics first"
            assert self.std_F is not None
            return (frames_NF - self.mean_F) / self.std_F
        owner_N = torch.repeat_interleave(torch.arange(len(lengths_U)), lengths_U)
        # float64: rounding of the mean would leave a constant feature with a deviation, and normalisation would amplify it
        zeros_UF = torch.zeros(len(lengths_U), frames_NF.shape[1], dtype=torch.float64)
        mean_UF = zeros_UF.index_add(0, owner_N, frames_NF.double()) / lengths_U.unsqueeze(1)
        centred_NF = frames_NF - mean_UF.float()[owner_N]
        variance_UF = zeros_UF.index_add(0, owner_N, centred_NF.double().square()) / lengths_U.unsqueeze(1)
        return centred_NF / (variance_UF + _SMALL_STD**2).sqrt().float()[owner_N]

    def batch(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Return the normalised features of a padded batch, zero in the padding; the statistics must be on its device."""
        valid_BT = torch.arange(features_BTF.shape[1], device=features_BTF.device) < lengths_B.unsqueeze(1)
        if self.mode == "global":
            return self(features_BTF, lengths_B) * valid_BT.unsqueeze(-1)
        with features_BTF.device:  # the call creates tensors on this device
            normalized_NF = self(features_BTF[valid_BT], lengths_B)
        return torch.zeros_like(features_BTF).masked_scatter(valid_BT.unsqueeze(-1), normalized_NF)

    def to(self, device: torch.device) -> Normalizer:
        """Return a copy with its statistics on `device`."""
        copied = Normalizer(self.mode)
        if statistics := self.statistics():
            copied.mean_F, copied.std_F = (statistics[name].to(device) for name in ("mean_F", "std_F"))
        return copied

    def statistics(self) -> dict[str, torch.Tensor]:
        """Return the statistics that a checkpoint needs to normalise in the same way; empty if there are none."""
        if self.mean_F is None or self.std_F is None:
            return {}
        return {"mean_F": self.mean_F, "std_F": self.std_F}

    def load(self, statistics: dict[str, torch.Tensor], num_features: int) -> None:
        if self.mode != "global":
            return
        for name in ("mean_F", "std_F"):
            found = statistics.get(name)
            if found is None or found.shape != (num_features,) or found.dtype != torch.float32:
                raise ValueError(f"{name} is not {num_features} float32 numbers, one per feature")
        if not (statistics["std_F"] > 0).all():
            raise ValueError("std_F contains a deviation that is not above 0")
        self.mean_F, self.std_F = statistics["mean_F"], statistics["std_F"]
