"""The LMU's linear memory m_t = A m_{t-1} + B u_t with interchangeable algorithms, with or without output projection.

Shape letters: B batch, T frames, C memory channels, M memory order, H hidden, J taps, K chunks of L frames.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from speech_exp.models.memory_plan import CHUNK_LENGTHS, WINDOW_BLOCK, Plan, Workload, cheapest
from speech_exp.models.memory_tables import MemoryTables, legendre_state_space

Algorithm = Literal["auto", "sequential", "fft", "chunked"]
LOOP_DEVICES = ("cpu",)  # here many small products are faster than a few large ones with more arithmetic


class LinearMemory(nn.Module):
    """A memory of the last `theta` frames of C signals, with M numbers for each signal.

    The algorithms agree within 1e-5 of the largest memory value in float32 (with TF32 off):
    `sequential` computes frame by frame.
    `fft` convolves with the impulse response, padded to twice the length.
    `chunked` uses only matrix products: short signals (or windows) are multiplied by the impulse response; others are
    split into chunks of L frames, and [inputs of the chunk, state before it] is multiplied by a constant table.
    `auto` chooses the algorithm with the fewest operations.

    A and B are buffers and never trained; checkpoints include them because a device must store them. Their products are
    computed in float64, so a lower precision of the module does not affect them. Use `set_state_space` to change A and B.
    """

    A: torch.Tensor
    B: torch.Tensor

    def __init__(self, order: int, theta: float, algorithm: Algorithm = "auto") -> None:
        super().__init__()
        A_MM, B_M = legendre_state_space(order, theta)
        self.order = order
        self.theta = theta
        self.algorithm = algorithm
        self.tables = MemoryTables(A_MM, B_M)
        self.register_buffer("A", A_MM.float())
        self.register_buffer("B", B_M.float())

    def set_state_space(self, A_MM: torch.Tensor, B_M: torch.Tensor) -> None:
        """Replace A and B, for example with quantised matrices."""
        self.tables = MemoryTables(A_MM, B_M)
        with torch.no_grad():
            self.A.copy_(A_MM)
            self.B.copy_(B_M)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        expected_A, expected_B = self.tables.A_MM.to(self.A), self.tables.B_M.to(self.B)
        # A checkpoint may contain quantised matrices. With the exact ones, keep the tables in float64.
        if not (torch.equal(self.A, expected_A) and torch.equal(self.B, expected_B)):
            self.tables = MemoryTables(self.A, self.B)

    def forward(self, u_BTC: torch.Tensor) -> torch.Tensor:
        """Return the memory after each frame (B, T, C, M)."""
        return self._run(self.plan(u_BTC), u_BTC, None)

    def project(self, u_BTC: torch.Tensor, weight_HX: torch.Tensor) -> torch.Tensor:
        """Return `weight_HX` (H, C * M) times the memories of all channels after each frame: (B, T, H).

        The result equals `forward` followed by a product, but the memories themselves are not computed if that is cheaper.
        """
        plan = self.plan(u_BTC, hidden=weight_HX.shape[0])
        if plan.folded:
            return self._run(plan, u_BTC, weight_HX.unflatten(1, (-1, self.order)))
        return F.linear(self._run(plan, u_BTC, None).flatten(2), weight_HX)

    def final(self, u_BTC: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Return the memory after each utterance's last frame (B, C, M), with one product by the impulse response."""
        dtype = _product_dtype(u_BTC)
        taps = self.tables.taps(u_BTC.shape[1], dtype)
        frame_BJ = lengths_B.unsqueeze(1) + torch.arange(-taps, 0, device=u_BTC.device)
        window_BJC = u_BTC.gather(1, frame_BJ.clamp(min=0).unsqueeze(2).expand(-1, -1, u_BTC.shape[2]))
        window_BJC = window_BJC.masked_fill((frame_BJ < 0).unsqueeze(2), 0.0)
        return window_BJC.transpose(1, 2) @ self.tables.response(taps, u_BTC, dtype)

    def step(self, u_BC: torch.Tensor, state_BCM: torch.Tensor) -> torch.Tensor:
        """Return the memory after one more frame (B, C, M)."""
        dtype = _state_dtype(u_BC)
        with torch.autocast(u_BC.device.type, enabled=False):
            decayed_BCM = state_BCM.to(dtype) @ self.tables.matrix(1, u_BC, dtype)
            added_BCM = u_BC.to(dtype).unsqueeze(2) * self.tables.input_vector(u_BC, dtype)
            return (decayed_BCM + added_BCM).to(state_BCM.dtype)

    def plan(self, u_BTC: torch.Tensor, hidden: int = 0) -> Plan:
        """Return how a signal of this shape will be computed; `hidden` is the output size of the projection, 0 for none.

        A compiled graph uses chunks of one length for all signals, because a choice by signal length would recompile the
        graph for each length, which takes minutes.
        """
        if torch.compiler.is_compiling() and self.algorithm in ("auto", "chunked"):
            return Plan("chunks", bool(hidden), CHUNK_LENGTHS[0])
        return self._cheapest(u_BTC, hidden)

    @torch.compiler.disable
    def _cheapest(self, u_BTC: torch.Tensor, hidden: int) -> Plan:
        batch, frames, channels = u_BTC.shape
        taps = self.tables.taps(frames, _product_dtype(u_BTC))
        work = Workload(batch, frames, channels, self.order, taps, hidden, u_BTC.device.type)
        return cheapest(work, self.algorithm)

    def _run(self, plan: Plan, u_BTC: torch.Tensor, weight_HCM: torch.Tensor | None) -> torch.Tensor:
        if plan.route == "sequential":
            return self._sequential(u_BTC)
        if plan.route == "fft":
            return self._fft(u_BTC)
        if plan.route == "window":
            return self._windowed(u_BTC, weight_HCM)
        return self._chunked(u_BTC, weight_HCM, plan.chunk_frames)

    @torch.compiler.disable  # the compiler would unroll the frames
    def _sequential(self, u_BTC: torch.Tensor) -> torch.Tensor:
        dtype, product_dtype = _state_dtype(u_BTC), _product_dtype(u_BTC)
        with torch.autocast(u_BTC.device.type, enabled=False):
            A_MM = self.tables.matrix(1, u_BTC, dtype)
            added_BTCM = u_BTC.to(dtype).unsqueeze(3) * self.tables.input_vector(u_BTC, dtype)
            state_BCM = torch.zeros_like(added_BTCM[:, 0])
            states = []
            for added_BCM in added_BTCM.unbind(1):
                state_BCM = added_BCM + state_BCM @ A_MM
                states.append(state_BCM)
            return torch.stack(states, 1).to(product_dtype)

    @torch.compiler.disable  # the compiler has no kernels for complex numbers
    def _fft(self, u_BTC: torch.Tensor) -> torch.Tensor:
        frames = u_BTC.shape[1]
        points = _fft_size(2 * frames)
        dtype, product_dtype = _state_dtype(u_BTC), _product_dtype(u_BTC)
        with torch.autocast(u_BTC.device.type, enabled=False):
            spectrum_NM = self.tables.spectrum(points, frames, u_BTC)
            product_BNCM = torch.fft.rfft(u_BTC.to(dtype), points, dim=1).unsqueeze(3) * spectrum_NM.unsqueeze(1)
            return torch.fft.irfft(product_BNCM, points, dim=1)[:, :frames].to(product_dtype)

    def _windowed(self, u_BTC: torch.Tensor, weight_HCM: torch.Tensor | None) -> torch.Tensor:
        """Multiply each frame's window of the signal by the impulse response: (B, T, C, M), or (B, T, H) with a weight."""
        frames = u_BTC.shape[1]
        dtype = _product_dtype(u_BTC)
        taps = self.tables.taps(frames, dtype)
        response_JM = self.tables.response(taps, u_BTC, dtype)
        kernel_JCH = None if weight_HCM is None else _fold(response_JM, weight_HCM)
        padded_BTC = F.pad(u_BTC, (0, 0, taps - 1, 0))
        blocks = []
        start = 0
        while start < frames:
            # All frames with a full window form the last block.
            stop = frames if start + WINDOW_BLOCK >= taps else min(frames, start + WINDOW_BLOCK)
            reach = min(stop, taps)  # the longest window of the block
            window_BTCJ = padded_BTC[:, start + taps - reach : stop + taps - 1].unfold(1, reach, 1)
            if kernel_JCH is None:
                blocks.append(_matmul(window_BTCJ, response_JM[taps - reach :]))
            else:
                kernel_XH = kernel_JCH[taps - reach :].transpose(0, 1).flatten(0, 1)
                blocks.append(_matmul(window_BTCJ.flatten(2), kernel_XH))
            start = stop
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)

    def _chunked(self, u_BTC: torch.Tensor, weight_HCM: torch.Tensor | None, length: int) -> torch.Tensor:
        """Multiply [inputs, state before] of each chunk by the chunk table: (B, T, C, M), or (B, T, H) with a weight."""
        batch, frames, channels = u_BTC.shape
        dtype = _product_dtype(u_BTC)
        chunks = (frames + length - 1) // length
        padded_BTC = F.pad(u_BTC, (0, 0, 0, chunks * length - frames))
        u_BKCL = padded_BTC.view(batch, chunks, length, channels).transpose(2, 3)
        starts_BKCM = self._starts(u_BKCL)
        rows_BKCW = torch.cat([u_BKCL, starts_BKCM.to(u_BKCL.dtype)], -1)
        table_WLM = self.tables.chunk(length, u_BTC, dtype)
        if weight_HCM is None:
            memory_BKCLM = _matmul(rows_BKCW, table_WLM.flatten(1)).unflatten(-1, (length, self.order))
            return memory_BKCLM.transpose(2, 3).flatten(1, 2)[:, :frames]
        table_CWLH = _fold(table_WLM.flatten(0, 1), weight_HCM).unflatten(0, (-1, length)).permute(2, 0, 1, 3)
        projected_BKX = _matmul(rows_BKCW.flatten(2), table_CWLH.flatten(2).flatten(0, 1))
        return projected_BKX.view(batch, chunks * length, weight_HCM.shape[0])[:, :frames]

    def _starts(self, u_BKCL: torch.Tensor) -> torch.Tensor:
        """Return the state before each chunk (B, K, C, M), at least in float32: all states of the chunk depend on it."""
        dtype = _state_dtype(u_BKCL)
        with torch.autocast(u_BKCL.device.type, enabled=False):
            u_BKCL = u_BKCL.to(dtype)
            if u_BKCL.device.type in LOOP_DEVICES and not torch.compiler.is_compiling():
                return self._starts_by_steps(u_BKCL)
            return self._starts_at_once(u_BKCL)

    def _starts_by_steps(self, u_BKCL: torch.Tensor) -> torch.Tensor:
        batch, _, channels, length = u_BKCL.shape
        ends_BKCM = _matmul(u_BKCL[:, :-1], self.tables.response(length, u_BKCL, u_BKCL.dtype))
        ends_KNM = ends_BKCM.transpose(0, 1).flatten(1, 2)  # N = B * C signals
        decay_MM = self.tables.matrix(length, u_BKCL, u_BKCL.dtype)
        starts = [ends_KNM.new_zeros(batch * channels, self.order)]
        for end_NM in ends_KNM.unbind(0):
            starts.append(torch.addmm(end_NM, starts[-1], decay_MM))
        return torch.stack(starts).unflatten(1, (batch, channels)).transpose(0, 1)

    def _starts_at_once(self, u_BKCL: torch.Tensor) -> torch.Tensor:
        """Compute all states in one product with the impulse response; on a GPU this is faster than launching a loop."""
        chunks, length = u_BKCL.shape[1], u_BKCL.shape[3]
        if torch.compiler.is_compiling():  # one response serves signals of all lengths
            response_JM = self.tables.whole_response(u_BKCL, u_BKCL.dtype)
        else:
            needed = self.tables.taps(chunks * length, u_BKCL.dtype)
            response_JM = self.tables.response(needed, u_BKCL, u_BKCL.dtype)
        taps = len(response_JM)
        u_BCT = u_BKCL.transpose(1, 2).flatten(2)
        window_BCKJ = F.pad(u_BCT, (taps, -length)).unfold(2, taps, length)  # the last `taps` frames before each chunk
        return _matmul(window_BCKJ, response_JM).transpose(1, 2)


def _fold(table_XM: torch.Tensor, weight_HCM: torch.Tensor) -> torch.Tensor:
    """Multiply the projection into a constant table of memories, so the table gives projected outputs: (X, C, H)."""
    return F.linear(table_XM, weight_HCM.transpose(0, 1).flatten(0, 1)).unflatten(1, (weight_HCM.shape[1], -1))


def _matmul(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Compute `rows @ matrix` as a single product; for overlapping windows `@` would compute one product per row."""
    return (rows.reshape(-1, rows.shape[-1]) @ matrix).view(*rows.shape[:-1], matrix.shape[-1])


def _product_dtype(u_BTC: torch.Tensor) -> torch.dtype:
    """Return the dtype of matrix products with this signal, which depends on autocast."""
    device = u_BTC.device.type
    if torch.is_autocast_enabled(device) and u_BTC.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return u_BTC.dtype


def _state_dtype(u_BTC: torch.Tensor) -> torch.dtype:
    """Return the dtype for states carried over many frames and for Fourier transforms: at least float32."""
    return torch.promote_types(u_BTC.dtype, torch.float32)


def _fft_size(at_least: int) -> int:
    """Return the smallest even number >= `at_least` without prime factors above 5; FFTs of such sizes are fast."""
    size = at_least + at_least % 2
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2
