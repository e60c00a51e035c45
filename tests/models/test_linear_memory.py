"""The linear memory against one float64 recurrence.

Tolerance of float32: 1e-5 of the largest absolute memory (of the largest gradient, for gradients). A memory is a sum
whose terms are as large as the largest memories, each rounded at 6e-8 of its size, so an error is measured against
them and not against an entry that happens to be near zero; in the basis of normalised polynomials |A| <= 1, so errors
do not grow along the sequence. Measured errors reach 2e-6.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_exp.models.linear_memory import LinearMemory
from speech_exp.models.memory_plan import Plan, Workload, cheapest
from speech_exp.models.memory_tables import legendre_state_space

FLOAT32_TOLERANCE = 1e-5
# bfloat16 keeps 8 bits: inputs, table and result are each rounded by at most 2^-9 of their size, products are summed
# in float32, and the state that is carried on stays float32: three roundings of the largest memory, and as much again
# where the table is multiplied by the (rounded) projection before.
BFLOAT16_TOLERANCE = 6 * 2**-9

ROUTES = [
    Plan("sequential"),
    Plan("fft"),
    Plan("window"),
    Plan("window", folded=True),
    Plan("chunks", False, 16),
    Plan("chunks", True, 16),
    Plan("chunks", False, 64),
]


def recurrence(memory: LinearMemory, u_BTC: torch.Tensor) -> torch.Tensor:
    """Compute m_t = A m_{t-1} + B u_t literally, in float64."""
    A_MM, B_M = memory.tables.A_MM, memory.tables.B_M
    state_BCM = torch.zeros(u_BTC.shape[0], u_BTC.shape[2], len(B_M)).double()
    states = []
    for u_BC in u_BTC.double().unbind(1):
        state_BCM = state_BCM @ A_MM.T + u_BC.unsqueeze(-1) * B_M
        states.append(state_BCM)
    return torch.stack(states, 1)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = FLOAT32_TOLERANCE) -> None:
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"{error:.2e} of the largest value"


def route(memory: LinearMemory, plan: Plan) -> LinearMemory:
    """Force one algorithm, whatever the plan would choose."""

    def fixed(u_BTC: torch.Tensor, hidden: int = 0) -> Plan:
        return plan if hidden else Plan(plan.route, False, plan.chunk_frames)

    memory.plan = fixed  # type: ignore[method-assign]
    return memory


def signal(batch: int, frames: int, channels: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, frames, channels, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("order", "theta"), [(1, 5.0), (8, 30.0), (32, 12.5), (64, 100.0), (192, 50.0), (192, 1600.0)])
def test_state_space_is_zero_order_hold_of_scipy(order: int, theta: float) -> None:
    from scipy.signal import cont2discrete

    # Voelker et al. (2019), eq. 2, written with loops.
    A = np.array(
        [[(2 * i + 1) / theta * (-1.0 if i < j else (-1.0) ** (i - j + 1)) for j in range(order)] for i in range(order)]
    )
    B = np.array([[(2 * i + 1) / theta * (-1.0) ** i] for i in range(order)])
    expected_A, expected_B, *_ = cont2discrete((A, B, np.eye(order), np.zeros((order, 1))), dt=1.0, method="zoh")
    actual_A, actual_B = legendre_state_space(order, theta)
    # scipy takes the exponential in the unnormalised basis, which costs it digits at order 192.
    np.testing.assert_allclose(actual_A.numpy(), expected_A, atol=1e-10)
    np.testing.assert_allclose(actual_B.numpy(), expected_B[:, 0], atol=1e-10)


def test_memory_holds_the_window_it_promises() -> None:
    """sum_i P_i(2 s / theta - 1) m_i = u(t - s): Legendre polynomials read any delay up to theta out of the memory."""
    theta, frames = 100.0, 400
    time = torch.arange(frames, dtype=torch.float64)
    u_BTC = (torch.sin(0.06 * time) + 0.5 * torch.cos(0.11 * time + 1.0)).view(1, -1, 1)
    memory_M = recurrence(LinearMemory(24, theta), u_BTC)[0, -1, 0].numpy()
    for delay in (0, 25, 50, 75, 100):
        decoded = np.polynomial.legendre.legval(2 * delay / theta - 1, memory_M)
        # Zero-order hold delays by half a frame more; the signal changes by at most 0.12 a frame.
        position = frames - 1 - delay + 0.5
        expected = np.sin(0.06 * position) + 0.5 * np.cos(0.11 * position + 1.0)
        assert decoded == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("plan", ROUTES, ids=str)
@pytest.mark.parametrize(
    ("order", "theta", "frames"),
    [
        (8, 30.0, 1),
        (8, 30.0, 143),
        (16, 200.0, 65),
        (32, 10.0, 300),
        (192, 100.0, 200),
        (192, 800.0, 801),
        (192, 1600.0, 1600),
    ],
)
def test_every_route_equals_the_recurrence(plan: Plan, order: int, theta: float, frames: int) -> None:
    memory = route(LinearMemory(order, theta), plan)
    u_BTC, weight_HX = signal(2, frames, 2), signal(1, 12, 2 * order, seed=1)[0]
    expected_BTCM = recurrence(memory, u_BTC)
    assert_close(memory(u_BTC), expected_BTCM)
    assert_close(memory.project(u_BTC, weight_HX), F.linear(expected_BTCM.flatten(2), weight_HX.double()))


@settings(max_examples=60, deadline=None)
@given(
    plan=st.sampled_from(ROUTES),
    batch=st.integers(1, 3),
    frames=st.integers(1, 150),
    channels=st.integers(1, 3),
    order=st.integers(1, 24),
    theta=st.floats(1.5, 200.0),
)
def test_gradients_equal_those_of_the_recurrence(
    plan: Plan, batch: int, frames: int, channels: int, order: int, theta: float
) -> None:
    memory = route(LinearMemory(order, theta), plan)
    u_BTC, weight_HX = signal(batch, frames, channels), signal(1, 5, channels * order, seed=1)[0]
    upstream_BTH = signal(batch, frames, 5, seed=2)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        u, weight = u_BTC.to(dtype).requires_grad_(), weight_HX.to(dtype).requires_grad_()
        h = memory.project(u, weight) if dtype == torch.float32 else F.linear(recurrence(memory, u).flatten(2), weight)
        gradients.append((h, *torch.autograd.grad(h, (u, weight), upstream_BTH.to(dtype))))
    for actual, expected in zip(*gradients, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("plan", ROUTES, ids=str)
def test_float64_signals_are_computed_in_float64(plan: Plan) -> None:
    memory = route(LinearMemory(12, 25.0), plan)
    u_BTC = signal(2, 90, 1).double()
    assert_close(memory(u_BTC), recurrence(memory, u_BTC), tolerance=1e-13)


@pytest.mark.parametrize("plan", ROUTES, ids=str)
@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_stays_within_its_rounding(plan: Plan, autocast: bool) -> None:
    memory = route(LinearMemory(64, 80.0), plan)
    u_BTC, weight_HX = signal(2, 300, 2), signal(1, 20, 128, seed=1)[0]
    expected_BTCM = recurrence(memory, u_BTC)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            actual_BTCM, actual_BTH = memory(u_BTC), memory.project(u_BTC, weight_HX)
    else:
        memory.bfloat16()
        actual_BTCM, actual_BTH = memory(u_BTC.bfloat16()), memory.project(u_BTC.bfloat16(), weight_HX.bfloat16())
    assert actual_BTCM.dtype == actual_BTH.dtype == torch.bfloat16
    assert_close(actual_BTCM, expected_BTCM, BFLOAT16_TOLERANCE)
    assert_close(actual_BTH, F.linear(expected_BTCM.flatten(2), weight_HX.double()), BFLOAT16_TOLERANCE)


def test_steps_equal_the_sequence() -> None:
    memory = LinearMemory(48, 40.0)
    u_BTC = signal(2, 120, 2)
    state_BCM, states = torch.zeros(2, 2, 48), []
    for u_BC in u_BTC.unbind(1):
        state_BCM = memory.step(u_BC, state_BCM)
        states.append(state_BCM)
    assert_close(torch.stack(states, 1), recurrence(memory, u_BTC))


@pytest.mark.parametrize("theta", [7.0, 60.0])  # shorter and longer than the shortest utterance
def test_final_is_the_memory_at_the_last_frame(theta: float) -> None:
    memory = LinearMemory(16, theta)
    u_BTC, lengths_B = signal(4, 143, 2).requires_grad_(), torch.tensor([143, 1, 28, 90])
    expected_BCM = recurrence(memory, u_BTC)[torch.arange(4), lengths_B - 1]
    final_BCM = memory.final(u_BTC, lengths_B)
    assert_close(final_BCM, expected_BCM)
    upstream_BCM = signal(4, 2, 16, seed=1)
    (actual,) = torch.autograd.grad(final_BCM, u_BTC, upstream_BCM, retain_graph=True)
    (expected,) = torch.autograd.grad(expected_BCM, u_BTC, upstream_BCM.double())
    assert_close(actual, expected.double())


def test_padding_does_not_reach_the_final_memory() -> None:
    memory = LinearMemory(16, 30.0)
    u_BTC, lengths_B = signal(2, 50, 1), torch.tensor([20, 50])
    u_BTC[0, 20:] = torch.nan
    assert torch.equal(
        memory.final(u_BTC, lengths_B)[0], memory.final(u_BTC[:1, :20].repeat(1, 3, 1)[:, :50], lengths_B[:1])[0]
    )


@pytest.mark.parametrize("theta", [20.0, 100.0, 1000.0])  # the response ends within the signal, or continues after it
@pytest.mark.parametrize("frames", [1, 16, 405])
def test_chunk_starts_agree_between_loop_and_product(
    monkeypatch: pytest.MonkeyPatch, theta: float, frames: int
) -> None:
    """A GPU computes the states before the chunks in one product; this test runs both ways on the CPU."""
    memory = route(LinearMemory(32, theta), Plan("chunks", False, 16))
    u_BTC = signal(2, frames, 3)
    assert_close(memory(u_BTC), recurrence(memory, u_BTC))
    monkeypatch.setattr("speech_exp.models.linear_memory.LOOP_DEVICES", ())
    assert_close(memory(u_BTC), recurrence(memory, u_BTC))


def test_chunks_on_a_gpu_serve_a_memory_that_never_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speech_exp.models.linear_memory.LOOP_DEVICES", ())
    memory = route(LinearMemory(4, 20.0), Plan("chunks", False, 16))
    memory.set_state_space(1.01 * torch.eye(4), memory.B)
    assert_close(memory(signal(2, 200, 1)), recurrence(memory, signal(2, 200, 1)))


def test_tables_hold_no_denormals() -> None:
    memory = LinearMemory(192, 1600.0)
    table = memory.tables.chunk(16, memory.A, torch.float32)
    assert table[table != 0].abs().min() > 1e-19


def test_taps_end_where_the_response_has_died_out() -> None:
    memory = LinearMemory(32, 30.0)
    assert memory.tables.taps(1000, torch.float32) < 100 < memory.tables.taps(1000, torch.float64)
    assert memory.tables.taps(20, torch.float32) == 20


def copies(memory: LinearMemory) -> dict[str, Callable[[], LinearMemory]]:
    def reloaded() -> LinearMemory:
        other = LinearMemory(16, 11.0)
        other.load_state_dict(memory.state_dict())
        return other

    def pickled() -> LinearMemory:
        file = io.BytesIO()
        torch.save(memory, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    return {"deepcopy": lambda: copy.deepcopy(memory), "state_dict": reloaded, "pickle": pickled}


@pytest.mark.parametrize("way", ["deepcopy", "state_dict", "pickle"])
@pytest.mark.parametrize("quantised", [False, True])
def test_copies_remember_the_same(way: str, quantised: bool) -> None:
    memory = LinearMemory(16, 30.0)
    if quantised:
        memory.set_state_space((memory.A * 2**14).round() / 2**14, (memory.B * 2**14).round() / 2**14)
    u_BTC = signal(2, 100, 1)
    expected_BTCM = memory(u_BTC)
    assert_close(expected_BTCM, recurrence(memory, u_BTC))
    copied = copies(memory)[way]()
    assert torch.equal(copied.A, memory.A)
    assert_close(copied(u_BTC), expected_BTCM.double())


@pytest.mark.parametrize("key", ["A", "B"])
def test_a_memory_uses_the_matrices_of_its_checkpoint_even_if_only_one_differs(key: str) -> None:
    memory, u_BTC = LinearMemory(16, 30.0), signal(2, 100, 1)
    exact_BTCM = memory(u_BTC)
    state = memory.state_dict() | {key: 0.5 * memory.state_dict()[key]}
    memory.load_state_dict(state)
    expected_BTCM = torch.zeros(2, 100, 1, 16, dtype=torch.float64)
    state_BCM = torch.zeros(2, 1, 16, dtype=torch.float64)
    for frame, u_BC in enumerate(u_BTC.double().unbind(1)):
        state_BCM = state_BCM @ state["A"].double().T + u_BC.unsqueeze(-1) * state["B"].double()
        expected_BTCM[:, frame] = state_BCM
    assert_close(memory(u_BTC), expected_BTCM)
    assert not torch.allclose(exact_BTCM, memory(u_BTC), atol=0.1)


def test_inference_first_does_not_spoil_training() -> None:
    memory = route(LinearMemory(16, 30.0), Plan("chunks", False, 8))
    u_BTC = signal(2, 100, 1)
    with torch.inference_mode():
        memory(u_BTC)
    upstream_BTCM = signal(2, 100, 16, seed=1).unsqueeze(2)
    (actual,) = torch.autograd.grad(memory(u_BTC.requires_grad_()), u_BTC, upstream_BTCM)
    (expected,) = torch.autograd.grad(recurrence(memory, u_BTC), u_BTC, upstream_BTCM.double())
    assert_close(actual, expected.double())


def test_compiled_equals_eager() -> None:
    memory = LinearMemory(16, 30.0)
    u_BTC, weight_HX = signal(2, 100, 1), signal(1, 8, 16)[0]
    compiled = torch.compile(memory.project, backend="aot_eager")
    for frames in (100, 30, 57):
        assert_close(compiled(u_BTC[:, :frames], weight_HX), memory.project(u_BTC[:, :frames], weight_HX).double())


def test_auto_is_never_dearer_than_any_algorithm() -> None:
    for frames in (1, 28, 200, 1600):
        for order in (8, 192, 600):
            work = Workload(16, frames, 1, order, frames, 128, "cpu")
            auto = cheapest(work, "auto")
            assert auto.cost <= min(cheapest(work, name).cost for name in ("fft", "chunked"))
