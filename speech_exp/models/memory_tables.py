"""The Legendre state space, and tables of its matrix products for the memory's algorithms.

Shape letters: M memory order, J taps of the impulse response, L frames of a chunk, W rows of a chunk table (L + M), N
FFT points.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# Numbers below this are stored as zero. Powers of A decay to denormals, which make a CPU product ten times slower; their
# products with signals of order one are 11 orders of magnitude below the rounding of float32.
FLUSH_BELOW = 1e-18
LONGEST_RESPONSE = 2**16  # frames; at order 192 a window of a minute at 100 frames a second needs 11,000
UNBOUNDED = 1e100  # a power of A this large keeps growing; its square still fits in float64
CACHED_SPECTRA = 8  # a bucketed epoch has few FFT sizes; the limit keeps varying lengths from filling the memory


def legendre_state_space(order: int, theta_frames: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (M, M) and B (M), float64, of m_t = A m_{t-1} + B u_t: `theta_frames` of u in M Legendre polynomials.

    Voelker, Kajic, Eliasmith (2019), eqs. 1-2, discretised by zero-order hold with a step of one frame:
    exp([[A, B], [0, 0]]) = [[A_d, B_d], [0, 1]].
    """
    i = torch.arange(order, dtype=torch.float64, device="cpu")  # computed even if the network is built on "meta"
    row, column = i.unsqueeze(1), i.unsqueeze(0)
    sign = torch.where(row < column, -1.0, 1.0 - 2.0 * ((row - column + 1) % 2))
    # The exponential is computed in the basis of normalised polynomials sqrt(2i+1) P_i and converted back. A is balanced
    # there with a small norm (and |A_d| <= 1), which needs fewer squarings and causes less rounding.
    norm = (2 * i + 1).sqrt()
    generator = torch.zeros(order + 1, order + 1, dtype=torch.float64, device="cpu")
    generator[:order, :order] = norm.unsqueeze(1) * norm.unsqueeze(0) * sign / theta_frames
    generator[:order, order] = norm * (1 - 2 * (i % 2)) / theta_frames
    exponential = torch.linalg.matrix_exp(generator)
    return norm.unsqueeze(1) * exponential[:order, :order] / norm.unsqueeze(0), norm * exponential[:order, order]


class MemoryTables:
    """A cache of impulse responses and powers of one pair A, B, computed in float64 when first needed.

    Results are kept for each dtype and device. A and B never change, so copies of a module share one object; a pickle
    contains only A and B.
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
        """Return A^exponent (M, M), float64 on the CPU."""
        if exponent not in self._powers:
            half = self.power(exponent // 2)
            square = half @ half
            self._powers[exponent] = self.A_MM @ square if exponent % 2 else square
        return self._powers[exponent]

    @torch.compiler.disable
    def taps(self, frames: int, dtype: torch.dtype) -> int:
        """Return how many taps of the impulse response matter for a signal of `frames` in `dtype`; at most `frames`.

        The response decays soon after theta frames (at order 192 it falls to 1e-8 after 1.8 theta). The end of the response
        is cut where it weighs less than an eighth of the dtype's rounding, with each state scaled by the norm of its
        polynomial.
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
        """Return A^j B for j = taps-1 down to 0, (J, M), the factor for a window of the signal with the oldest frame first."""
        length = len(self._response(taps))
        return self._get("response", length, like, dtype)[length - taps :]

    def whole_response(self, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the `response` with all taps that matter for a signal of any length."""
        return self._get("whole_response", 0, like, dtype)

    @torch.compiler.disable
    def matrix(self, exponent: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the transpose of A^exponent, (M, M), to multiply rows of states by."""
        return self._get("matrix", exponent, like, dtype)

    @torch.compiler.disable
    def input_vector(self, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self._get("input_vector", 0, like, dtype)

    def chunk(self, length: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the table (W, L, M) that maps a chunk's L inputs and, in the last rows, the state before it to L states."""
        return self._get("chunk", length, like, dtype)

    @torch.compiler.disable
    def spectrum(self, points: int, frames: int, like: torch.Tensor) -> torch.Tensor:
        """Return the Fourier transform of the first `frames` taps, zero-padded to `points`: (N // 2 + 1, M), complex."""
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
        for frame in range(length):  # input `frame` affects the states from `frame` on
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
                    f"an impulse response of the memory does not decay within {LONGEST_RESPONSE} frames, as compiled "
                    "training needs: set trainer.compile=false or lower model.theta"
                )
        return self._response(taps)[:taps].flip(0)

    def _get(self, kind: str, size: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        self._keep(kind, size, like.device, dtype)
        return self._kept[kind][size, like.device, dtype]

    # This is also called while a graph is traced, so the tracer finds the table and uses it as an input. Each kind has a
    # separate dictionary because the tracer remembers the content of a dictionary from when it first saw it.
    @torch.compiler.assume_constant_result
    def _keep(self, kind: str, size: int, device: torch.device, dtype: torch.dtype) -> None:
        key = (size, device, dtype)
        if key not in self._kept[kind]:
            # A table created in inference mode could not be used in a later training step.
            with torch.inference_mode(False), torch.no_grad():
                table = _MAKERS[kind](self, size, dtype)
                table = table.masked_fill(table.abs() < FLUSH_BELOW, 0.0)
                # The compiler treats the shape of a parameter as fixed, unlike that of other tensors.
                self._kept[kind][key] = nn.Parameter(table.to(device, dtype).contiguous(), requires_grad=False)


_MAKERS: dict[str, Callable[[MemoryTables, int, torch.dtype], torch.Tensor]] = {
    "response": lambda tables, length, _: tables._response_JM[:length].flip(0),
    "whole_response": lambda tables, _, dtype: tables._whole_response(dtype),
    "matrix": lambda tables, exponent, _: tables.power(exponent).T,
    "input_vector": lambda tables, *_: tables.B_M,
    "chunk": lambda tables, length, _: tables._chunk(length),
}
