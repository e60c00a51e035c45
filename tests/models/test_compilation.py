"""The recogniser's encoder under torch.compile: the stated number of graphs for all batch shapes, and the same results."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from speech_exp.models.asr_encoder import AsrEncoder
from speech_exp.models.linear_memory import LinearMemory
from speech_exp.models.lmu import LMU
from speech_exp.models.recurrent import GRU, LSTM

CELLS = {
    "gru": lambda width: GRU(width, 6),
    "lstm": lambda width: LSTM(width, 6),
    "lmu": lambda width: LMU(width, 6, order=4, theta=8, memory_channels=2),
}
# Utterances and input frames of batches; a batch of one is left out, because torch compiles a separate graph for it.
SHAPES = [(4, 50), (3, 130), (7, 34), (2, 160)]
TOLERANCE = 1e-11  # float64 as in test_asr_encoder, and gradients that are sums of some hundred such values


@pytest.fixture(autouse=True)
def _fresh():
    """Forget the graphs of other tests, and use the setting of `compiled` in training/runtime.py."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(specialize_float=True):
        yield
    torch._dynamo.reset()


def encoder(cell: str, attention: str, num_layers: int = 1, checkpoint_activations: bool = False) -> AsrEncoder:
    torch.manual_seed(0)
    made = AsrEncoder(3, CELLS[cell], False, num_layers, 0.0, 8, 2, attention, 2, 2, checkpoint_activations)
    return made.double()


def batch(utterances: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(frames)
    lengths_B = torch.randint(1, frames + 1, (utterances,), generator=generator)
    lengths_B[0] = frames
    return torch.randn(utterances, frames, 3, dtype=torch.float64, generator=generator), lengths_B


def results(run: torch.nn.Module, made: AsrEncoder, shape: tuple[int, int]) -> list[torch.Tensor]:
    """Return the valid states, and the gradients of their summed squares."""
    states_BTH, fewer_B = run(*batch(*shape))
    valid_NH = states_BTH[torch.arange(states_BTH.shape[1]) < fewer_B.unsqueeze(1)]
    return [valid_NH, *torch.autograd.grad(valid_NH.square().sum(), list(made.parameters()))]


# A graph without breaks for the LMU: one where the last chunk is full, one where it is not. Torch's GRU and LSTM run
# between graphs (the encoder's start and end, a block's before and after), and cause no recompilation.
@pytest.mark.parametrize(
    ("cell", "most_graphs"), [("lmu", 2), ("gru", 8), pytest.param("lstm", 8, marks=pytest.mark.slow)]
)
def test_few_graphs_serve_all_shapes_with_the_results_of_eager(cell, most_graphs):
    made = encoder(cell, "full")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(made, dynamic=True, backend=counter)
    for shape in SHAPES:
        for actual, expected in zip(results(compiled, made, shape), results(made, made, shape), strict=True):
            torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert 0 < counter.frame_count <= most_graphs


@pytest.mark.slow
def test_blocks_of_torch_layers_share_their_graphs():
    graphs = []
    for num_layers in (2, 4):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        torch.compile(encoder("gru", "full", num_layers), dynamic=True, backend=counter)(*batch(*SHAPES[0]))
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("cell", ["lmu", pytest.param("lstm", marks=pytest.mark.slow)])
def test_blocks_computed_again_compile_too(cell):
    made = encoder(cell, "full", checkpoint_activations=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(made, dynamic=True, backend=counter)
    for actual, expected in zip(results(compiled, made, SHAPES[0]), results(made, made, SHAPES[0]), strict=True):
        torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert 0 < counter.frame_count <= {"lmu": 1, "lstm": 8}[cell]


def test_a_graph_never_serves_another_memory():
    """Tables are inputs of a graph, so it also serves another module, and a module whose A and B were replaced."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda memory, u: memory(u), dynamic=True, backend=counter, fullgraph=True)
    u_BTC = batch(4, 50)[0]
    memory, other = LinearMemory(4, 8.0), LinearMemory(4, 9.0)
    for each in (memory, other, memory):
        torch.testing.assert_close(compiled(each, u_BTC), each(u_BTC), rtol=0, atol=TOLERANCE)
    memory.set_state_space(memory.A / 2, memory.B)
    torch.testing.assert_close(compiled(memory, u_BTC), memory(u_BTC), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("growth", [1.0, 1.0001, 1.2, 3.0])
def test_a_memory_that_never_forgets_is_refused(growth):
    memory = LinearMemory(4, 8.0)
    memory.set_state_space(growth * torch.eye(4), memory.B)
    with pytest.raises(ValueError, match=r"does not decay within .*: set trainer\.compile=false or lower model\.theta"):
        memory.tables.whole_response(memory.A, torch.float32)
