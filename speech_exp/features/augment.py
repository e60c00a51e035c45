"""Augmentation of batches of training features on the device.

Shape letters: B batch, T frames, F features, M masks.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from speech_exp.bounds import NonNegativeFloat, NonNegativeInt, Proportion
from speech_exp.features.batch import Batch


class SpecAugment:
    """SpecAugment (Park et al. 2019): masks in time and over features; plus random gain, shift and noise.

    It applies to normalised features.

    Args:
        time_masks, time_mask_share: number of time masks in each utterance, each up to this share of its frames.
        feature_masks, feature_mask_width: number of masks over neighbouring features, each up to this width.
        gain_std: deviation of a random factor around 1, one for each feature and utterance.
        shift_std: deviation of a random offset, one for each feature and utterance, like another microphone or voice.
        noise_std: deviation of the white noise added to the features.
    """

    def __init__(
        self,
        time_masks: NonNegativeInt,
        time_mask_share: Proportion,
        feature_masks: NonNegativeInt,
        feature_mask_width: NonNegativeInt,
        gain_std: NonNegativeFloat,
        shift_std: NonNegativeFloat,
        noise_std: NonNegativeFloat,
    ) -> None:
        self.time_masks, self.time_mask_share = time_masks, time_mask_share
        self.feature_masks, self.feature_mask_width = feature_masks, feature_mask_width
        self.gain_std, self.shift_std, self.noise_std = gain_std, shift_std, noise_std
        self.generator = torch.Generator()

    def seed(self, seed: int, device: torch.device) -> None:
        """Seed the random generator of this object, on the device of the batches."""
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, batch: Batch) -> Batch:
        features_BTF = batch.features_BTF
        lengths_B = batch.lengths_B
        size_B, frames, size_F = features_BTF.shape
        valid_BT1 = (torch.arange(frames, device=features_BTF.device) < lengths_B.unsqueeze(1)).unsqueeze(-1)
        if self.gain_std:
            features_BTF = features_BTF * (1 + self.gain_std * self._normal(features_BTF, size_B, 1, size_F))
        if self.shift_std:
            features_BTF = features_BTF + self.shift_std * self._normal(features_BTF, size_B, 1, size_F)
        if self.noise_std:
            features_BTF = features_BTF + self.noise_std * self._normal(features_BTF, size_B, frames, size_F)
        if self.time_masks:
            longest_B = (lengths_B * self.time_mask_share).floor()
            masked_BT = self._masked(self.time_masks, longest_B, lengths_B, frames)
            features_BTF = features_BTF.masked_fill(masked_BT.unsqueeze(-1), 0.0)
        if self.feature_masks:
            width_B = torch.full_like(lengths_B, self.feature_mask_width)
            masked_BF = self._masked(self.feature_masks, width_B, torch.full_like(lengths_B, size_F), size_F)
            features_BTF = features_BTF.masked_fill(masked_BF.unsqueeze(1), 0.0)
        if features_BTF is batch.features_BTF:
            return batch
        return replace(batch, features_BTF=features_BTF * valid_BT1)

    def _normal(self, like: torch.Tensor, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, device=like.device, dtype=like.dtype)

    def _masked(self, masks: int, longest_B: torch.Tensor, size_B: torch.Tensor, width: int) -> torch.Tensor:
        """Return True inside any of `masks` random intervals: lengths uniform in 0..longest, starts uniform in `size_B`."""
        uniform = torch.rand((2, masks, len(size_B)), generator=self.generator, device=size_B.device)
        length_MB = (uniform[0] * (longest_B + 1)).floor()
        start_MB = (uniform[1] * (size_B - length_MB + 1).clamp_min(1)).floor()
        place_W = torch.arange(width, device=size_B.device)
        inside_MBW = (place_W >= start_MB.unsqueeze(-1)) & (place_W < (start_MB + length_MB).unsqueeze(-1))
        return inside_MBW.any(0)
