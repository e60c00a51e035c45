"""The Legendre state space, and the products of its matrices that the memory's algorithms multiply by.

Shape letters: M memory order, J taps of the impulse response, L frames of a chunk, W rows of a chunk table (L + M), N
FFT points.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# Numbers below this are stored as zero. Powers of A decay into denormals, which slow a CPU product tenfold; their
# products with signals of order one lie 11 decimal orders below the rounding of float32.
FLUSH_BELOW = 1e-18
LONGEST_RESPONSE = 2**16  # frames; at order 192 a window of a minute at 100 frames a second needs 11,000
UNBOUNDED = 1e100  # a power of A that large only grows on; float64 still holds its square
CACHED_SPECTRA = 8  # a bucketed epoch meets few FFT sizes; an endless stream of lengths must not fill the memory


def legendre_state_space(order: int, theta_frames: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A (M, M) and B (M) of m_t = A m_{t-1} + B u_t, float64: the last `theta_frames` of u in M Legendre polynomials.

    Voelker, Kajic, Eliasmith (2019), eqs. 1-2, discretised by zero-order hold with a step of one frame:
    exp([[A, B], [0, 0]]) = [[A_d, B_d], [0, 1]].
    """
    if order < 1:
        raise ValueError(f"the memory order is {order}, but must be at least 1: change model.order")
    if not (theta_frames > 0 and math.isfinite(theta_frames)):
        raise ValueError(f"the memory window is {theta_frames} frames, but must be positive: change model.theta")
    i = torch.arange(order, dtype=torch.float64)
    row, column = i.unsqueeze(1), i.unsqueeze(0)
    sign = torch.where(row < column, -1.0, 1.0 - 2.0 * ((row - column + 1) % 2))
    # The exponential is taken in the basis of normalised polynomials sqrt(2i+1) P_i, where A has a norm small and even
    # (and |A_d| <= 1), and turned back: fewer squarings, less rounding.
    norm = (2 * i + 1).sqrt()
    generator = torch.zeros(order + 1, order + 1, dtype=torch.float64)
    generator[:order, :order] = norm.unsqueeze(1) * norm.unsqueeze(0) * sign / theta_frames
    generator[:order, order] = norm * (1 - 2 * (i % 2)) / theta_frames
    exponential = torch.linalg.matrix_exp(generator)
    return norm.unsqueeze(1) * exponential[:order, :order] / norm.unsqueeze(0), norm * exponential[:order, order]


class MemoryTables:
    """Impulse responses and powers of one pair A, B: computed in float64 on first need, kept in each dtype and device.

    Immutable but for its caches, so copies of a module share one object; a pickle carries A and B only.
    """

    def __init__(self, A_MM: torch.Tensor, B_M: torch.Tensor) -> None:
        self.A_MM = A_MM.detach().to("cpu", torch.float64, copy=True)
        self.B_M = B_M.detach().to("cpu", torch.float64, copy=True)
        self._response_JM = self.B_M.unsqueeze(0)  # A^j B for j = 0, 1, ...
        self._powers = {1: self.A_MM}
        self._kept: dict[str, dict[tuple[Any, ...], torch.Tensor]] = {kind: {} for kind in _MAKERS}
        self._spectra: OrderedDict[tuple[Any, ...], torch.Tensor] = OrderedDict()
        self._taps: dict[tuple[int, torch.dtype], int] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> MemoryTables:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return MemoryTables, (self.A_MM, self.B_M)

    @property
    def order(self) -> int:
        return len(self.B_M)

    def power(self, exponent: int) -> torch.Tensor:
        """A^exponent (M, M), float64 on the CPU."""
        if exponent not in self._powers:
            half = self.power(exponent // 2)
            square = half @ half
            self._powers[exponent] = self.A_MM @ square if exponent % 2 else square
        return self._powers[exponent]

    @torch.compiler.disable
    def taps(self, frames: int, dtype: torch.dtype) -> int:
        """How many taps of the impulse response matter to `frames` frames of signal in `dtype`; at most `frames`.

        The response dies out soon after theta frames (at order 192 it takes 1.8 theta to fall to 1e-8). Taps are left
        out where all later ones together weigh less than an eighth of the dtype's rounding, each state measured in
        units of its own polynomial's norm.
        """
        key = (frames, dtype)
        if key not in self._taps:
            response_JM = self._response(frames)[:frames]
            weight_J = (response_JM.square() / (2 * torch.arange(self.order, dtype=torch.float64) + 1)).sum(1).sqrt()
            tail_J = weight_J.flip(0).cumsum(0).flip(0)
            negligible = torch.finfo(dtype).eps / 8 * weight_J.square().sum().sqrt()
            self._taps[key] = max(1, int((tail_J > negligible).sum()))
        return self._taps[key]

    @torch.compiler.disable
    def response(self, taps: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A^j B for j = taps-1 down to 0, (J, M): what a window of the signal is multiplied by, oldest frame first."""
        length = len(self._response(taps))
        return self._get("response", length, like, dtype)[length - taps :]

    def whole_response(self, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`response` with all taps that matter to a signal of any length."""
        return self._get("whole_response", 0, like, dtype)

    @torch.compiler.disable
    def matrix(self, exponent: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The transpose of A^exponent, (M, M), by which rows of states are multiplied."""
        return self._get("matrix", exponent, like, dtype)

    @torch.compiler.disable
    def input_vector(self, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self._get("input_vector", 0, like, dtype)

    def chunk(self, length: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """From a chunk's L inputs and the state before it to its L states: (W, L, M), the state's rows last."""
        return self._get("chunk", length, like, dtype)

    @torch.compiler.disable
    def spectrum(self, points: int, frames: int, like: torch.Tensor) -> torch.Tensor:
        """Fourier transform of the first `frames` taps, zero-padded to `points`: (N // 2 + 1, M), complex."""
        dtype = torch.complex128 if like.dtype == torch.float64 else torch.complex64
        key = (points, frames, dtype, like.device)
        if key not in self._spectra:
            with torch.inference_mode(False), torch.no_grad():
                spectrum = torch.fft.rfft(self._response(frames)[:frames], points, dim=0)
                self._spectra[key] = spectrum.to(like.device, dtype)
            if len(self._spectra) > CACHED_SPECTRA:
                self._spectra.popitem(last=False)
        return self._spectra[key]

    def _response(self, frames: int) -> torch.Tensor:
        with torch.inference_mode(False), torch.no_grad():
            while len(self._response_JM) < frames:
                length = len(self._response_JM)
                self._response_JM = torch.cat([self._response_JM, self._response_JM @ self.power(length).T])
        return self._response_JM

    def _chunk(self, length: int) -> torch.Tensor:
        response_JM = self._response(length)
        table_WLM = torch.zeros(length + self.order, length, self.order, dtype=torch.float64)
        for frame in range(length):  # input `frame` reaches the states from `frame` on
            table_WLM[frame, frame:] = response_JM[: length - frame]
        powers = [self.A_MM]
        for _ in range(length - 1):
            powers.append(self.A_MM @ powers[-1])
        table_WLM[length:] = torch.stack(powers).permute(2, 0, 1)
        return table_WLM

    def _whole_response(self, dtype: torch.dtype) -> torch.Tensor:
        frames = 1
        while (taps := self.taps(frames, dtype)) == frames:
            frames *= 2
            if frames > LONGEST_RESPONSE or not self.power(frames).abs().max() < UNBOUNDED:
                raise ValueError(
                    f"an impulse response of the memory does not die out within {LONGEST_RESPONSE} frames, as compiled "
                    "training needs: set trainer.compile=false or lower model.theta"
                )
        return self._response(taps)[:taps].flip(0)

    def _get(self, kind: str, size: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        self._keep(kind, size, like.device, dtype)
        return self._kept[kind][size, like.device, dtype]

    # Called while a graph is traced too, which then finds the table and takes it as an input. A dictionary for each kind,
    # because the tracer knows a dictionary by what it held when it was first seen.
    @torch.compiler.assume_constant_result
    def _keep(self, kind: str, size: int, device: torch.device, dtype: torch.dtype) -> None:
        key = (size, device, dtype)
        if key not in self._kept[kind]:
            # A table born in inference mode could not serve a later training step.
            with torch.inference_mode(False), torch.no_grad():
                table = _MAKERS[kind](self, size, dtype)
                table = table.masked_fill(table.abs() < FLUSH_BELOW, 0.0)
                # Of a parameter, unlike any other tensor, the compiler takes the shape as fixed.
                self._kept[kind][key] = nn.Parameter(table.to(device, dtype).contiguous(), requires_grad=False)


_MAKERS: dict[str, Callable[[MemoryTables, int, torch.dtype], torch.Tensor]] = {
    "response": lambda tables, length, _: tables._response_JM[:length].flip(0),
    "whole_response": lambda tables, _, dtype: tables._whole_response(dtype),
    "matrix": lambda tables, exponent, _: tables.power(exponent).T,
    "input_vector": lambda tables, *_: tables.B_M,
    "chunk": lambda tables, length, _: tables._chunk(length),
}
