"""Multi-head self-attention for padded batches, over all frames or within a window, with rotary positions.

Shape letters: B batch, T frames, W width, N heads, D width of a head (W / N), S frames of a block, K blocks of a batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

# Blocks gather each key three times. On one CPU thread with windows of 16 to 64, they are faster than the full product
# when a batch is longer than about this many windows.
BLOCKS_FROM_WINDOWS = 8
ROTARY_BASE = 10000.0  # Su et al. 2021, section 3.2.2, after Vaswani et al. 2017


class AttentionPlan(NamedTuple):
    """Positions and mask of one padded batch, computed once by `plan_attention` for all layers of a stack."""

    cos_TD: torch.Tensor
    sin_TD: torch.Tensor
    mask: torch.Tensor  # True where a query sees a key: (B, 1, 1 or T, T), or (K, 1, S, 3S) with blocks
    block_frames: int  # S; 0: no blocks, all frames in one product


def plan_attention(
    lengths_B: torch.Tensor, frames: int, head_size: int, window: int | None, like: torch.Tensor
) -> AttentionPlan:
    """Plan attention for a batch padded to `frames`, where a frame sees `window` frames on each side, or all (None).

    No frame sees padding. With a window, however, each frame sees itself: a frame in the padding would otherwise see
    nothing, and a softmax over nothing is NaN. A narrow window is computed in blocks, with time and memory linear in the
    number of frames; a wide window is computed as a band in the matrix of all pairs of frames.
    """
    cos_TD, sin_TD = rotary_tables(frames, head_size, like)
    if window is None:
        frames_T = torch.arange(frames, device=lengths_B.device)
        seen_BT = frames_T < lengths_B.unsqueeze(1)
        return AttentionPlan(cos_TD, sin_TD, seen_BT[:, None, None], 0)
    if frames <= BLOCKS_FROM_WINDOWS * window:
        return AttentionPlan(cos_TD, sin_TD, band_mask(lengths_B, frames, window), 0)
    return AttentionPlan(cos_TD, sin_TD, _block_mask(lengths_B, frames, window), window)


def rotary_tables(frames: int, head_size: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine and sine of each position's angles, (T, D), at least float32: angle t * base^(-2i/D) for pair i."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    pair_P = torch.arange(0, head_size, 2, device=like.device, dtype=dtype) / head_size
    position_T = torch.arange(frames, device=like.device, dtype=dtype)
    angle_TP = position_T.unsqueeze(1) * ROTARY_BASE**-pair_P
    angle_TD = torch.cat([angle_TP, angle_TP], 1)
    return angle_TD.cos(), angle_TD.sin()


def rotate(x_BTND: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor:
    """Apply rotary position embedding (RoFormer, Su et al. 2021, eq. 34); pairs combine the two halves of a head.

    The product of a rotated query and a rotated key depends on their values and their distance in time, not on their
    absolute positions.
    """
    first, second = x_BTND.chunk(2, -1)
    turned_BTND = torch.cat([-second, first], -1)
    return (x_BTND * cos_TD.unsqueeze(1) + turned_BTND * sin_TD.unsqueeze(1)).to(x_BTND.dtype)


def band_mask(lengths_B: torch.Tensor, frames: int, window: int) -> torch.Tensor:
    """Return a mask (B, 1, T, T), True where a query (row) sees a key: at most `window` frames away, not in the padding.

    Each frame also sees itself, even in the padding.
    """
    frames_T = torch.arange(frames, device=lengths_B.device)
    distance_TT = (frames_T.unsqueeze(1) - frames_T).abs()
    seen_BT = frames_T < lengths_B.unsqueeze(1)
    return (((distance_TT <= window) & seen_BT.unsqueeze(1)) | (distance_TT == 0)).unsqueeze(1)


def _block_mask(lengths_B: torch.Tensor, frames: int, window: int) -> torch.Tensor:
    """Return `band_mask` in blocks: for `window` queries and the keys of the previous, the same and the next block."""
    device = lengths_B.device
    query_S = torch.arange(window, device=device) + window  # position among the keys of its block
    key_X = torch.arange(3 * window, device=device)
    distance_SX = (query_S.unsqueeze(1) - key_X).abs()
    starts_J = torch.arange(0, frames, window, device=device) - window  # first key of each block of an utterance
    frame_JX = starts_J.unsqueeze(1) + key_X
    seen_BJX = (frame_JX >= 0) & (frame_JX < lengths_B.view(-1, 1, 1))
    mask_BJSX = ((distance_SX <= window) & seen_BJX.unsqueeze(2)) | (distance_SX == 0)
    return mask_BJSX.flatten(0, 1).unsqueeze(1)


class SelfAttention(nn.Module):
    """Multi-head self-attention: softmax(q k' / sqrt(D)) v of each head, concatenated, then a linear layer.

    See Vaswani et al. 2017, eq. 1 and sec. 3.2.2. Dropout applies to the residual branch around this layer, not to the
    attention weights.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, inputs_BTW: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """Return outputs (B, T, W); inputs in the padding must be finite, outputs there are unspecified."""
        heads_BTXD = self.query_key_value(inputs_BTW).unflatten(-1, (3 * self.heads, -1))
        turned_BTXD, v_BTND = heads_BTXD.split([2 * self.heads, self.heads], 2)
        q_BTND, k_BTND = rotate(turned_BTXD, plan.cos_TD, plan.sin_TD).chunk(2, 2)
        if plan.block_frames:
            q_BTND = _blocks(q_BTND, plan.block_frames).flatten(0, 1)  # (K, S, N, D)
            k_BTND, v_BTND = (_surroundings(x_BTND, plan.block_frames) for x_BTND in (k_BTND, v_BTND))
        heads_BNTD = F.scaled_dot_product_attention(
            q_BTND.transpose(1, 2), k_BTND.transpose(1, 2), v_BTND.transpose(1, 2), attn_mask=plan.mask
        )
        batch, frames, width = inputs_BTW.shape
        merged_BTW = heads_BNTD.transpose(1, 2).reshape(batch, -1, width)[:, :frames]
        return self.output(merged_BTW)


def _blocks(x_BTND: torch.Tensor, block_frames: int) -> torch.Tensor:
    """Split frames into blocks, the last one padded with zeros: (B, blocks, S, N, D)."""
    filled_BTND = F.pad(x_BTND, (0, 0, 0, 0, 0, -x_BTND.shape[1] % block_frames))
    return filled_BTND.unflatten(1, (-1, block_frames))


def _surroundings(x_BTND: torch.Tensor, block_frames: int) -> torch.Tensor:
    """Return each block joined with the previous and the next block: (K, 3S, N, D)."""
    blocks_BJSND = F.pad(_blocks(x_BTND, block_frames), (0, 0, 0, 0, 0, 0, 1, 1))
    return torch.cat([blocks_BJSND[:, :-2], blocks_BJSND[:, 1:-1], blocks_BJSND[:, 2:]], 2).flatten(0, 1)
