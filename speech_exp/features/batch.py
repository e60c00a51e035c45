"""A padded batch of utterances: features and targets.

Shape letters: B batch, T frames, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Batch:
    features_BTF: torch.Tensor  # float32, zero after the end of each utterance
    lengths_B: torch.Tensor  # int64, frames
    targets: torch.Tensor  # class ids B, or concatenated character ids
    target_lengths_B: torch.Tensor | None
    ids: list[str]

    @classmethod
    def empty(cls, device: torch.device) -> Batch:
        """Return a batch without utterances: a rank gets it if there are fewer utterances than ranks or only bad audio."""
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(torch.zeros(0, 0, 0, device=device), nothing, nothing, nothing, [])

    def to(self, device: torch.device) -> Batch:
        lengths = None if self.target_lengths_B is None else self.target_lengths_B.to(device)
        return Batch(
            self.features_BTF.to(device), self.lengths_B.to(device), self.targets.to(device), lengths, self.ids
        )

    def split(self, parts: int) -> list[Batch]:
        """Split into at most `parts` batches of about equal size, each padded only to its longest utterance."""
        if parts == 1:
            return [self]
        rows = [rows_B for rows_B in torch.arange(len(self.ids)).tensor_split(parts) if len(rows_B)]
        return [self._rows(int(rows_B[0]), int(rows_B[-1]) + 1) for rows_B in rows]

    def repeated(self, times: int) -> Batch:
        """Return a batch with all utterances in order, repeated `times` times."""
        if times == 1:
            return self
        lengths = None if self.target_lengths_B is None else self.target_lengths_B.repeat(times)
        features_BTF = self.features_BTF.repeat(times, 1, 1)
        return Batch(features_BTF, self.lengths_B.repeat(times), self.targets.repeat(times), lengths, self.ids * times)

    def _rows(self, first: int, end: int) -> Batch:
        lengths_B = self.lengths_B[first:end]
        features_BTF = self.features_BTF[first:end, : int(lengths_B.max())]
        if self.target_lengths_B is None:
            return Batch(features_BTF, lengths_B, self.targets[first:end], None, self.ids[first:end])
        before = int(self.target_lengths_B[:first].sum())
        target_lengths_B = self.target_lengths_B[first:end]
        targets = self.targets[before : before + int(target_lengths_B.sum())]
        return Batch(features_BTF, lengths_B, targets, target_lengths_B, self.ids[first:end])
