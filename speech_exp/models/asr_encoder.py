"""The encoder for speech recognition: downsampling, then blocks of self-attention and a recurrent layer.

Shape letters: B batch, T frames, F features, W width of the residual stream, H output (equal to W).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from speech_exp.bounds import Between, PositiveInt, ProportionBelowOne
from speech_exp.models.attention import AttentionPlan, SelfAttention, plan_attention
from speech_exp.models.downsampling import ConvolutionState, Downsampling, Factor
from speech_exp.models.encoder import Cell, Encoder
from speech_exp.models.layer import Bidirectional, RecurrentLayer, State, frame_at

Attention = Literal["full", "window", "off"]


@dataclass(frozen=True)
class AsrState:
    """The streaming state: that of the convolutions and that of each recurrent layer."""

    downsampling: list[ConvolutionState]
    recurrent: list[State]


class AsrBlock(nn.Module):
    """One block: x + dropout(attention(norm(x))), then x + dropout(projection(recurrent(norm(x)))), all of `width`.

    Normalisation is at the input of each branch (pre-norm). The residual stream is then a plain sum with gradients of
    similar size at every depth, so training needs no long warm-up (Xiong et al. 2020). The projection is needed even if
    the recurrent layer has the same width: an LMU's output is not negative (ReLU), and the branch must also be able to
    subtract from the stream. There is no feed-forward sublayer, because the recurrent layer with its nonlinearity and
    the projection already acts as one.
    """

    def __init__(self, width: int, heads: int | None, recurrent: RecurrentLayer, dropout: float) -> None:
        super().__init__()
        self.attention_norm = None if heads is None else nn.LayerNorm(width)
        self.attention = None if heads is None else SelfAttention(width, heads)
        self.recurrent_norm = nn.LayerNorm(width)
        self.recurrent = recurrent
        self.projection = nn.Linear(recurrent.output_size, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTW: torch.Tensor, lengths_B: torch.Tensor, plan: AttentionPlan | None) -> torch.Tensor:
        if self.attention is not None:
            assert self.attention_norm is not None
            assert plan is not None
            x_BTW = x_BTW + self.dropout(self.attention(self.attention_norm(x_BTW), plan))
        return x_BTW + self.dropout(self.projection(self.recurrent(self.recurrent_norm(x_BTW), lengths_B)))

    def step(self, x_BW: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        output_BH, next_state = self.recurrent.step(self.recurrent_norm(x_BW), state)
        return x_BW + self.dropout(self.projection(output_BH)), next_state


class AsrEncoder(Encoder):
    """A speech encoder: `encoder(features_BTF, lengths_B)` returns states and lengths in frames after downsampling.

    ceil(lengths / downsampling) frames remain; later states are unspecified. State n belongs to input frame
    `downsampling * n`. Recurrent layers see frames after downsampling, so an LMU's theta is in these frames.

    Args:
        cell: makes one recurrent layer of one direction for a given input size.
        dropout: dropout rate of each residual branch and of the input of the first block.
        attention: `full`: over the whole utterance; `window`: over `attention_window` frames (after downsampling) on each
            side, past and future; `off`: no attention, the only choice with which the encoder may stream.
        checkpoint_activations: store only the input of each block, and compute the block again with the same dropout in the
            backward pass (Chen et al. 2016): a third more arithmetic, but memory hardly grows with `num_layers`.
    """

    def __init__(
        self,
        input_size: int,
        cell: Cell,
        bidirectional: bool,
        num_layers: Annotated[int, Between(1, 1000)],
        dropout: ProportionBelowOne,
        width: PositiveInt,
        downsampling: Factor,
        attention: Attention,
        attention_heads: PositiveInt,
        attention_window: PositiveInt,
        checkpoint_activations: bool,
    ) -> None:
        super().__init__()
        if attention != "off" and width % (2 * attention_heads):
            raise ValueError(
                f"encoder.width={width}: expected a multiple of twice encoder.attention_heads={attention_heads} (rotary positions "
                "turn pairs), change encoder.width or encoder.attention_heads"
            )
        self.input_size = input_size
        self.width = width
        self.attention = attention
        self.attention_window = attention_window
        self.checkpoint_activations = checkpoint_activations
        self.frames_per_state = downsampling
        self.front = None
        self.head_size = width // attention_heads
        self.downsampling = Downsampling(input_size, width, downsampling)
        self.dropout = nn.Dropout(dropout)
        heads = None if attention == "off" else attention_heads
        self.blocks = nn.ModuleList(
            AsrBlock(width, heads, Bidirectional(cell(width), cell(width)) if bidirectional else cell(width), dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise linear layers Xavier uniform with zero biases; recurrent layers and convolutions initialise themselves.

        The weights of the last layer of each residual branch are divided by the square root of the number of branches, so
        the sum of all branches has a similar size at any depth (Radford et al. 2019, section 2.3).
        """
        ends = [block.projection for block in self._blocks]
        ends += [block.attention.output for block in self._blocks if block.attention is not None]
        starts = [block.attention.query_key_value for block in self._blocks if block.attention is not None]
        for layer in [self.downsampling.projection, *starts, *ends]:
            nn.init.xavier_uniform_(layer.weight, gain=len(ends) ** -0.5 if layer in ends else 1.0)
            nn.init.zeros_(layer.bias)

    @property
    def recurrent_layers(self) -> list[RecurrentLayer]:
        return [block.recurrent for block in self._blocks]

    @property
    def output_size(self) -> int:
        return self.width

    def forward(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x_BTW, lengths_B = self.downsampling(features_BTF, lengths_B)
        # Keep the residual stream in full precision under autocast.
        x_BTW = self.dropout(x_BTW.to(features_BTF.dtype))
        plan = None
        if self.attention != "off":
            window = self.attention_window if self.attention == "window" else None
            plan = plan_attention(lengths_B, x_BTW.shape[1], self.head_size, window, x_BTW)
        for block in self.blocks:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x_BTW = checkpoint(block, x_BTW, lengths_B, plan, use_reentrant=False)
            else:
                x_BTW = block(x_BTW, lengths_B, plan)
        return self.norm(x_BTW), lengths_B

    def final(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Return the state of each utterance's last frame (B, H)."""
        states_BTH, lengths_B = self(features_BTF, lengths_B)
        return frame_at(states_BTH, lengths_B - 1)

    def initial_state(self, batch_size: int, like: torch.Tensor) -> AsrState:
        """Return the state before the first frame, on the device and in the dtype of `like`; ValueError with attention."""
        self._check_streamable()
        return AsrState(
            self.downsampling.initial_state(batch_size, like),
            [layer.initial_state(batch_size, like) for layer in self.recurrent_layers],
        )

    def step(self, features_BF: torch.Tensor, state: AsrState) -> tuple[torch.Tensor | None, AsrState]:
        """Process one input frame of a stream; return the output (B, H) and the next state.

        Only the first frame and every `downsampling`-th frame after it give an output; it is None for the others.
        """
        self._check_streamable()
        x_BW, collected = self.downsampling.step(features_BF, state.downsampling)
        if x_BW is None:
            return None, AsrState(collected, state.recurrent)
        x_BW = self.dropout(x_BW.to(features_BF.dtype))
        next_states = []
        for block, layer_state in zip(self._blocks, state.recurrent, strict=True):
            x_BW, next_state = block.step(x_BW, layer_state)
            next_states.append(next_state)
        return self.norm(x_BW), AsrState(collected, next_states)

    def window_frames(self) -> float | None:
        """Return how many past input frames the stack's explicit memory covers, or None if it has none or it is unlimited.

        This is the sum over the blocks of theta and, with `attention=window`, the window, times the downsampling factor.
        """
        windows = [layer.window_frames() for layer in self.recurrent_layers]
        known = [window for window in windows if window is not None]
        if self.attention == "full" or len(known) < len(windows):
            return None
        seen = self.attention_window * len(windows) if self.attention == "window" else 0
        return self.downsampling.factor * (sum(known) + seen)

    @property
    def _blocks(self) -> list[AsrBlock]:
        return list(self.blocks)  # type: ignore[arg-type]

    def _check_streamable(self) -> None:
        if self.attention != "off":
            raise ValueError(
                f"encoder.attention={self.attention} looks ahead and cannot stream: set encoder.attention=off"
            )
