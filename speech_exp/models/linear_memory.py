"""The LMU's linear memory m_t = A m_{t-1} + B u_t by interchangeable algorithms, alone or with its output projection.

Shape letters: B batch, T frames, C memory channels, M memory order, H hidden, J taps, K chunks of L frames.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from speech_exp.models.memory_plan import CHUNK_LENGTHS, WINDOW_BLOCK, Plan, Workload, cheapest
from speech_exp.models.memory_tables import MemoryTables, legendre_state_space

__all__ = ["ALGORITHMS", "LinearMemory", "legendre_state_space"]

Algorithm = Literal["auto", "sequential", "fft", "chunked"]
ALGORITHMS: tuple[str, ...] = get_args(Algorithm)
LOOP_DEVICES = ("cpu",)  # where many small products cost less than few large ones with more arithmetic


class LinearMemory(nn.Module):
    """Keeps the last `theta` frames of each of C signals in M numbers each.

    Algorithms, equal within 1e-5 of the largest memory in float32 (TF32 off):
    `sequential` steps frame by frame; `fft` convolves with the impulse response, padded to twice the length;
    `chunked` is all matrix multiplication: short signals (and short windows) times the impulse response itself,
    others in chunks of L frames: [inputs of the chunk, state before it] times one constant table. `auto` takes the
    cheapest by count of operations.

    A and B are buffers, stored with every checkpoint because a device must store them, and never trained. Their
    products are computed in float64, so a lower precision of the module does not harm them. Change A and B through
    `set_state_space`.
    """

    A: torch.Tensor
    B: torch.Tensor

    def __init__(self, order: int, theta: float, algorithm: str = "auto", chunk_frames: int | None = None) -> None:
        super().__init__()
        if algorithm not in ALGORITHMS:
            raise ValueError(
                f"unknown memory algorithm {algorithm!r}, expected one of {', '.join(ALGORITHMS)}: "
                "change model.algorithm"
            )
        if chunk_frames is not None and chunk_frames < 1:
            raise ValueError(
                f"a chunk of {chunk_frames} frames was asked for, at least 1 is needed: change model.chunk_frames"
            )
        A_MM, B_M = legendre_state_space(order, theta)
        self.order = order
        self.theta = theta
        self.algorithm = algorithm
        self.chunk_lengths = CHUNK_LENGTHS if chunk_frames is None else (chunk_frames,)
        self.tables = MemoryTables(A_MM, B_M)
        self.register_buffer("A", A_MM.float())
        self.register_buffer("B", B_M.float())

    def set_state_space(self, A_MM: torch.Tensor, B_M: torch.Tensor) -> None:
        """Replaces A and B, for example by their quantised forms."""
        self.tables = MemoryTables(A_MM, B_M)
        with torch.no_grad():
            self.A.copy_(A_MM)
            self.B.copy_(B_M)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        expected_A, expected_B = self.tables.A_MM.to(self.A), self.tables.B_M.to(self.B)
        # A checkpoint may hold quantised matrices; if it holds the exact ones, the tables keep their float64.
        if not (torch.equal(self.A, expected_A) and torch.equal(self.B, expected_B)):
            self.tables = MemoryTables(self.A, self.B)

    def forward(self, u_BTC: torch.Tensor, state_BCM: torch.Tensor | None = None) -> torch.Tensor:
        """Memories after each frame (B, T, C, M), from `state_BCM` (zeros if None); the last is the next state."""
        return self._run(self.plan(u_BTC, has_state=state_BCM is not None), u_BTC, state_BCM, None)

    def project(self, u_BTC: torch.Tensor, weight_HX: torch.Tensor) -> torch.Tensor:
        """`weight_HX` (H, C * M) times the memories of all channels after each frame: (B, T, H).

        The same as `forward` and a product, but where it is cheaper the memories themselves are never made.
        """
        plan = self.plan(u_BTC, hidden=weight_HX.shape[0])
        if plan.folded:
            return self._run(plan, u_BTC, None, weight_HX.unflatten(1, (-1, self.order)))
        return F.linear(self._run(plan, u_BTC, None, None).flatten(2), weight_HX)

    def final(self, u_BTC: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Memory after each utterance's last frame (B, C, M): one product with the impulse response."""
        dtype = _product_dtype(u_BTC)
        taps = self.tables.taps(u_BTC.shape[1], dtype)
        frame_BJ = lengths_B.unsqueeze(1) + torch.arange(-taps, 0, device=u_BTC.device)
        window_BJC = u_BTC.gather(1, frame_BJ.clamp(min=0).unsqueeze(2).expand(-1, -1, u_BTC.shape[2]))
        window_BJC = window_BJC.masked_fill((frame_BJ < 0).unsqueeze(2), 0.0)
        return window_BJC.transpose(1, 2) @ self.tables.response(taps, u_BTC, dtype)

    def step(self, u_BC: torch.Tensor, state_BCM: torch.Tensor) -> torch.Tensor:
        """Memory after one more frame (B, C, M)."""
        dtype = _state_dtype(u_BC)
        with torch.autocast(u_BC.device.type, enabled=False):
            decayed_BCM = state_BCM.to(dtype) @ self.tables.matrix(1, u_BC, dtype)
            added_BCM = u_BC.to(dtype).unsqueeze(2) * self.tables.input_vector(u_BC, dtype)
            return (decayed_BCM + added_BCM).to(state_BCM.dtype)

    def plan(self, u_BTC: torch.Tensor, hidden: int = 0, has_state: bool = False) -> Plan:
        """How a signal of this shape will be treated, with `hidden` rows of projection or none.

        In a compiled graph chunks of one length serve signals of all lengths: a choice by length would compile anew for
        each, at minutes a time.
        """
        if torch.compiler.is_compiling() and self.algorithm in ("auto", "chunked"):
            return Plan("chunks", bool(hidden) and not has_state, self.chunk_lengths[0])
        return self._cheapest(u_BTC, hidden, has_state)

    @torch.compiler.disable
    def _cheapest(self, u_BTC: torch.Tensor, hidden: int, has_state: bool) -> Plan:
        batch, frames, channels = u_BTC.shape
        taps = self.tables.taps(frames, _product_dtype(u_BTC))
        work = Workload(batch, frames, channels, self.order, taps, hidden, u_BTC.device.type)
        return cheapest(work, self.algorithm, has_state, self.chunk_lengths)

    def _run(
        self, plan: Plan, u_BTC: torch.Tensor, state_BCM: torch.Tensor | None, weight_HCM: torch.Tensor | None
    ) -> torch.Tensor:
        if plan.route == "sequential":
            return self._sequential(u_BTC, state_BCM)
        if plan.route == "fft":
            return self._fft(u_BTC, state_BCM)
        if plan.route == "window":
            return self._windowed(u_BTC, weight_HCM)
        return self._chunked(u_BTC, state_BCM, weight_HCM, plan.chunk_frames)

    @torch.compiler.disable  # the compiler would unroll the frames
    def _sequential(self, u_BTC: torch.Tensor, state_BCM: torch.Tensor | None) -> torch.Tensor:
        dtype, product_dtype = _state_dtype(u_BTC), _product_dtype(u_BTC)
        with torch.autocast(u_BTC.device.type, enabled=False):
            A_MM = self.tables.matrix(1, u_BTC, dtype)
            added_BTCM = u_BTC.to(dtype).unsqueeze(3) * self.tables.input_vector(u_BTC, dtype)
            state_BCM = torch.zeros_like(added_BTCM[:, 0]) if state_BCM is None else state_BCM.to(dtype)
            states = []
            for added_BCM in added_BTCM.unbind(1):
                state_BCM = added_BCM + state_BCM @ A_MM
                states.append(state_BCM)
            return torch.stack(states, 1).to(product_dtype)

    @torch.compiler.disable  # the compiler makes no kernels of complex numbers
    def _fft(self, u_BTC: torch.Tensor, state_BCM: torch.Tensor | None) -> torch.Tensor:
        frames = u_BTC.shape[1]
        points = _fft_size(2 * frames)
        dtype, product_dtype = _state_dtype(u_BTC), _product_dtype(u_BTC)
        with torch.autocast(u_BTC.device.type, enabled=False):
            spectrum_NM = self.tables.spectrum(points, frames, u_BTC)
            product_BNCM = torch.fft.rfft(u_BTC.to(dtype), points, dim=1).unsqueeze(3) * spectrum_NM.unsqueeze(1)
            memory_BTCM = torch.fft.irfft(product_BNCM, points, dim=1)[:, :frames]
            if state_BCM is not None:
                memory_BTCM = memory_BTCM + self._decay(state_BCM.to(dtype), frames, 1)
            return memory_BTCM.to(product_dtype)

    def _decay(self, state_BCM: torch.Tensor, count: int, stride: int) -> torch.Tensor:
        """What is left of a state after stride, 2 stride, ..., count stride frames, (B, count, C, M).

        By doubling how many of them are known.
        """
        decayed_BKCM = (state_BCM @ self.tables.matrix(stride, state_BCM, state_BCM.dtype)).unsqueeze(1)
        while (known := decayed_BKCM.shape[1]) < count:
            later_BKCM = decayed_BKCM @ self.tables.matrix(known * stride, state_BCM, state_BCM.dtype)
            decayed_BKCM = torch.cat([decayed_BKCM, later_BKCM], 1)
        return decayed_BKCM[:, :count]

    def _windowed(self, u_BTC: torch.Tensor, weight_HCM: torch.Tensor | None) -> torch.Tensor:
        """Every frame's window of the signal times the impulse response, (B, T, C, M), or folded, (B, T, H)."""
        frames = u_BTC.shape[1]
        dtype = _product_dtype(u_BTC)
        taps = self.tables.taps(frames, dtype)
        response_JM = self.tables.response(taps, u_BTC, dtype)
        kernel_JCH = None if weight_HCM is None else _fold(response_JM, weight_HCM)
        padded_BTC = F.pad(u_BTC, (0, 0, taps - 1, 0))
        blocks = []
        start = 0
        while start < frames:
            # All frames whose window is full make one last block.
            stop = frames if start + WINDOW_BLOCK >= taps else min(frames, start + WINDOW_BLOCK)
            reach = min(stop, taps)  # the longest window of the block
            window_BTCJ = padded_BTC[:, start + taps - reach : stop + taps - 1].unfold(1, reach, 1)
            if kernel_JCH is None:
                blocks.append(_times(window_BTCJ, response_JM[taps - reach :]))
            else:
                kernel_XH = kernel_JCH[taps - reach :].transpose(0, 1).flatten(0, 1)
                blocks.append(_times(window_BTCJ.flatten(2), kernel_XH))
            start = stop
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)

    def _chunked(
        self, u_BTC: torch.Tensor, state_BCM: torch.Tensor | None, weight_HCM: torch.Tensor | None, length: int
    ) -> torch.Tensor:
        """Chunk by chunk [inputs, state before] times the chunk table, (B, T, C, M), or folded, (B, T, H)."""
        batch, frames, channels = u_BTC.shape
        dtype = _product_dtype(u_BTC)
        chunks = (frames + length - 1) // length
        padded_BTC = F.pad(u_BTC, (0, 0, 0, chunks * length - frames))
        u_BKCL = padded_BTC.view(batch, chunks, length, channels).transpose(2, 3)
        starts_BKCM = self._starts(u_BKCL, state_BCM)
        rows_BKCW = torch.cat([u_BKCL, starts_BKCM.to(u_BKCL.dtype)], -1)
        table_WLM = self.tables.chunk(length, u_BTC, dtype)
        if weight_HCM is None:
            memory_BKCLM = _times(rows_BKCW, table_WLM.flatten(1)).unflatten(-1, (length, self.order))
            return memory_BKCLM.transpose(2, 3).flatten(1, 2)[:, :frames]
        table_CWLH = _fold(table_WLM.flatten(0, 1), weight_HCM).unflatten(0, (-1, length)).permute(2, 0, 1, 3)
        projected_BKX = _times(rows_BKCW.flatten(2), table_CWLH.flatten(2).flatten(0, 1))
        return projected_BKX.view(batch, chunks * length, weight_HCM.shape[0])[:, :frames]

    def _starts(self, u_BKCL: torch.Tensor, state_BCM: torch.Tensor | None) -> torch.Tensor:
        """The state before each chunk (B, K, C, M), in float32 at least, as every state of the chunk is made of it."""
        dtype = _state_dtype(u_BKCL)
        with torch.autocast(u_BKCL.device.type, enabled=False):
            u_BKCL, state_BCM = u_BKCL.to(dtype), None if state_BCM is None else state_BCM.to(dtype)
            if u_BKCL.device.type in LOOP_DEVICES and not torch.compiler.is_compiling():
                return self._starts_by_steps(u_BKCL, state_BCM)
            return self._starts_at_once(u_BKCL, state_BCM)

    def _starts_by_steps(self, u_BKCL: torch.Tensor, state_BCM: torch.Tensor | None) -> torch.Tensor:
        batch, _, channels, length = u_BKCL.shape
        ends_BKCM = _times(u_BKCL[:, :-1], self.tables.response(length, u_BKCL, u_BKCL.dtype))
        ends_KNM = ends_BKCM.transpose(0, 1).flatten(1, 2)  # N = B * C signals
        decay_MM = self.tables.matrix(length, u_BKCL, u_BKCL.dtype)
        first_NM = ends_KNM.new_zeros(batch * channels, self.order) if state_BCM is None else state_BCM.flatten(0, 1)
        starts = [first_NM]
        for end_NM in ends_KNM.unbind(0):
            starts.append(torch.addmm(end_NM, starts[-1], decay_MM))
        return torch.stack(starts).unflatten(1, (batch, channels)).transpose(0, 1)

    def _starts_at_once(self, u_BKCL: torch.Tensor, state_BCM: torch.Tensor | None) -> torch.Tensor:
        """One product with the impulse response for all chunks, which on a GPU costs less than the launches of a loop."""
        chunks, length = u_BKCL.shape[1], u_BKCL.shape[3]
        if torch.compiler.is_compiling():  # one response for signals of all lengths
            response_JM = self.tables.whole_response(u_BKCL, u_BKCL.dtype)
        else:
            needed = self.tables.taps(chunks * length, u_BKCL.dtype)
            response_JM = self.tables.response(needed, u_BKCL, u_BKCL.dtype)
        taps = len(response_JM)
        u_BCT = u_BKCL.transpose(1, 2).flatten(2)
        window_BCKJ = F.pad(u_BCT, (taps, -length)).unfold(2, taps, length)  # of all frames before a chunk
        starts_BKCM = _times(window_BCKJ, response_JM).transpose(1, 2)
        if state_BCM is None:
            return starts_BKCM
        later_BKCM = self._decay(state_BCM, chunks - 1, length)
        return starts_BKCM + torch.cat([state_BCM.unsqueeze(1), later_BKCM], 1)


def _fold(table_XM: torch.Tensor, weight_HCM: torch.Tensor) -> torch.Tensor:
    """A constant table whose columns are memories, turned to columns of their projection: (X, C, H)."""
    return F.linear(table_XM, weight_HCM.transpose(0, 1).flatten(0, 1)).unflatten(1, (weight_HCM.shape[1], -1))


def _times(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """`rows @ matrix` as a single product, where `@` would make one of each row of overlapping windows."""
    return (rows.reshape(-1, rows.shape[-1]) @ matrix).view(*rows.shape[:-1], matrix.shape[-1])


def _product_dtype(u_BTC: torch.Tensor) -> torch.dtype:
    """In which dtype autocast, if it is on, will multiply this signal."""
    device = u_BTC.device.type
    if torch.is_autocast_enabled(device) and u_BTC.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return u_BTC.dtype


def _state_dtype(u_BTC: torch.Tensor) -> torch.dtype:
    """For what is carried over many frames, and for Fourier transforms: at least float32."""
    return torch.promote_types(u_BTC.dtype, torch.float32)


def _fft_size(at_least: int) -> int:
    """The smallest even number from there on without prime factors above 5, which FFT libraries transform fast."""
    size = at_least + at_least % 2
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2
