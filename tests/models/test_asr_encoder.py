"""The encoder of speech recognition: padding, streaming, lengths, order of its layers, and its two configs."""

import pytest
import torch
from composition import composing, experiment
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from speech_exp.models.asr_encoder import AsrEncoder
from speech_exp.models.attention import plan_attention
from speech_exp.models.downsampling import Downsampling
from speech_exp.models.layer import Bidirectional
from speech_exp.models.linear_memory import LinearMemory
from speech_exp.models.lmu import LMU
from speech_exp.models.memory_plan import Plan
from speech_exp.models.recurrent import GRU, LSTM

CELLS = {
    "gru": lambda width: GRU(width, 6),
    "lstm": lambda width: LSTM(width, 6),
    "lmu": lambda width: LMU(width, 6, order=4, theta=8, memory_channels=2),
}
ATTENTION = ["full", "window", "off"]
# float64 leaves rounding of about 1e-16 an operation, a few thousand operations a value, values of order one.
TOLERANCE = 1e-11
LENGTHS = [5, 1, 33, 12]
SIZES = {
    "dropout": 0.0,
    "width": 8,
    "attention_heads": 2,
    "attention_window": 2,
    "checkpoint_activations": False,
}  # in blocks with 17 frames


def encoder(
    cell: str = "gru", attention: str = "off", downsampling: int = 2, both: bool = False, **sizes
) -> AsrEncoder:
    torch.manual_seed(0)
    arguments = {**SIZES, "num_layers": 2, "attention": attention, "downsampling": downsampling, **sizes}
    made = AsrEncoder(3, CELLS.get(cell, cell), both, **arguments).double()
    for parameter in made.parameters():  # zero biases would hide mistakes
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=1.0, std=0.3)
    return made


def padded(lengths: list[int], filler: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Return utterances of these lengths, padded with `filler`."""
    torch.manual_seed(1)
    features_BTF = torch.randn(len(lengths), max(lengths), 3, dtype=torch.float64)
    lengths_B = torch.tensor(lengths)
    behind_BT = torch.arange(max(lengths)) >= lengths_B.unsqueeze(1)
    return features_BTF.masked_fill(behind_BT.unsqueeze(2), filler), lengths_B


@pytest.mark.parametrize("filler", [1e3, float("nan")])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("downsampling", [2, 4])
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("cell", CELLS)
def test_a_padded_batch_equals_its_utterances_one_by_one(cell, attention, downsampling, both, filler):
    made = encoder(cell, attention, downsampling, both)
    features_BTF, lengths_B = padded(LENGTHS, filler)
    states_BTH, fewer_B = made(features_BTF, lengths_B)
    final_BH = made.final(features_BTF, lengths_B)
    assert states_BTH.shape == (4, -(-33 // downsampling), made.output_size)
    for number, length in enumerate(LENGTHS):
        alone_1TH, (frames,) = made(features_BTF[number : number + 1, :length], lengths_B[number : number + 1])
        assert fewer_B[number] == frames == alone_1TH.shape[1]
        torch.testing.assert_close(states_BTH[number, :frames], alone_1TH[0], rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(final_BH[number], alone_1TH[0, -1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("cell", CELLS)
def test_padding_gets_no_gradient(cell, attention):
    made = encoder(cell, attention)
    features_BTF, lengths_B = padded(LENGTHS)
    features_BTF.requires_grad_()
    states_BTH, fewer_B = made(features_BTF, lengths_B)
    (states_BTH * (torch.arange(17) < fewer_B.unsqueeze(1)).unsqueeze(2)).square().sum().backward()
    valid_BT = torch.arange(33) < lengths_B.unsqueeze(1)
    assert (features_BTF.grad[~valid_BT] == 0).all()
    assert features_BTF.grad[valid_BT].abs().sum() > 0
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


@pytest.mark.parametrize(("factor", "expected"), [(2, [1, 1, 2, 2, 3, 3, 4, 4, 5]), (4, [1, 1, 1, 1, 2, 2, 2, 2, 3])])
def test_lengths_after_downsampling(factor, expected):
    layer = Downsampling(3, 8, factor)
    features_BTF, lengths_B = padded(list(range(1, 10)))
    x_BTW, fewer_B = layer(features_BTF.float(), lengths_B)
    assert fewer_B.tolist() == expected
    assert fewer_B.dtype == torch.int64
    assert x_BTW.shape == (9, expected[-1], 8)


def test_downsampling_is_its_equation():
    layer = Downsampling(3, 8, 2).double()
    features_BTF, lengths_B = padded([6])
    convolution = layer.convolutions[0]
    behind_TF = torch.cat([torch.zeros(2, 3, dtype=torch.float64), features_BTF[0]])
    for frame in range(3):  # from input frames 2 frame - 2, 2 frame - 1 and 2 frame
        window_KF = behind_TF[2 * frame : 2 * frame + 3]
        inner_W = (torch.einsum("wfk,kf->w", convolution.weight, window_KF) + convolution.bias).relu()
        torch.testing.assert_close(
            layer(features_BTF, lengths_B)[0][0, frame], layer.projection(inner_W), rtol=0, atol=TOLERANCE
        )


@pytest.mark.parametrize("downsampling", [2, 4])
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("cell", CELLS)
def test_receptive_field_of_a_state(cell, attention, downsampling):
    """State n depends on all input frames up to `downsampling * n`, and after that on none, those in the windows, or all."""
    made = encoder(cell, attention, downsampling)
    features_BTF, lengths_B = padded([60])
    states_BTH, _ = made(features_BTF, lengths_B)
    frame = 3
    reach = {"off": frame, "window": frame + 2 * SIZES["attention_window"], "full": 60}[attention]
    influential = []
    for number in range(60):
        other_BTF = features_BTF.clone()
        other_BTF[0, number] += 10
        influential.append(not torch.equal(made(other_BTF, lengths_B)[0][0, frame], states_BTH[0, frame]))
    last = downsampling * min(reach, states_BTH.shape[1] - 1)
    assert influential == [number <= last for number in range(60)]


@pytest.mark.parametrize("downsampling", [2, 4])
@pytest.mark.parametrize("cell", CELLS)
def test_streaming_equals_the_sequence_form(cell, downsampling):
    made = encoder(cell, "off", downsampling, dropout=0.3).eval()
    features_BTF, lengths_B = padded([11, 11])
    state = made.initial_state(2, features_BTF)
    outputs = []
    for number, features_BF in enumerate(features_BTF.unbind(1)):
        output_BH, state = made.step(features_BF, state)
        assert (output_BH is not None) == (number % downsampling == 0)
        outputs += [] if output_BH is None else [output_BH]
    torch.testing.assert_close(torch.stack(outputs, 1), made(features_BTF, lengths_B)[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("attention", ["full", "window"])
def test_attention_cannot_stream(attention):
    made = encoder("gru", attention)
    for refused in (lambda: made.initial_state(1, torch.zeros(1)), lambda: made.step(torch.zeros(1, 3), None)):
        with pytest.raises(ValueError, match=f"encoder.attention={attention} looks ahead .* set encoder.attention=off"):
            refused()


def test_two_directions_cannot_stream():
    with pytest.raises(ValueError, match=r"set model\.bidirectional=false"):
        encoder("gru", both=True).initial_state(1, torch.zeros(1))


@pytest.mark.parametrize("both", [False, True])
def test_layers_are_in_the_order_of_the_equations(both):
    """Each block computes x + attention(norm x), then x + projection(recurrent(norm x)); a norm follows the last block."""
    made = encoder("lstm", "full", both=both)
    features_BTF, lengths_B = padded([14])
    called = []
    for name, module in made.named_modules():
        if "." in name and name.split(".")[-1] in ("attention_norm", "attention", "recurrent_norm", "recurrent"):
            module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    states_BTH, _ = made(features_BTF, lengths_B)
    parts = ["attention_norm", "attention", "recurrent_norm", "recurrent"]
    assert called == [f"blocks.{number}.{part}" for number in (0, 1) for part in parts]
    assert made.recurrent_layers == [block.recurrent for block in made.blocks]
    assert all(isinstance(layer, Bidirectional) == both for layer in made.recurrent_layers)

    x_BTW, fewer_B = made.downsampling(features_BTF, lengths_B)
    plan = plan_attention(fewer_B, 7, 4, None, x_BTW)
    for block in made.blocks:
        x_BTW = x_BTW + block.attention(block.attention_norm(x_BTW), plan)
        x_BTW = x_BTW + block.projection(block.recurrent(block.recurrent_norm(x_BTW), fewer_B))
    torch.testing.assert_close(states_BTH, made.norm(x_BTW), rtol=0, atol=TOLERANCE)
    mean_BT = ((states_BTH - made.norm.bias) / made.norm.weight).mean(2)
    torch.testing.assert_close(mean_BT, torch.zeros_like(mean_BT), rtol=0, atol=TOLERANCE)


def test_attention_off_leaves_the_sublayer_out():
    names = [name for name, _ in encoder("gru", "off").named_parameters()]
    assert not [name for name in names if "attention" in name]


def test_the_residual_stream_keeps_its_size_at_the_start():
    """All branches together are about as large as the stream, so no block dominates the others (eight blocks)."""
    torch.manual_seed(3)
    made = AsrEncoder(40, lambda width: GRU(width, 64), False, 8, 0.0, 64, 2, "full", 4, 16, False)
    growths = []
    for block in made.blocks:
        block.register_forward_hook(lambda _, given, x: growths.append((x.std() / given[0].std()).item()))
    made(torch.randn(4, 100, 40), torch.full((4,), 100))
    assert len(growths) == 8
    assert all(0.95 < growth < 1.5 for growth in growths)


def test_window_frames_add_up_over_blocks_in_input_frames():
    assert encoder("lmu", "off", 2).window_frames() == 2 * (8 + 8)
    assert encoder("lmu", "off", 4).window_frames() == 4 * (8 + 8)
    assert encoder("lmu", "window", 2).window_frames() == 2 * (8 + 2 + 8 + 2)
    assert encoder("lmu", "full").window_frames() is None
    assert encoder("gru", "off").window_frames() is None


@pytest.mark.parametrize(("cell", "attention"), [("gru", "off"), ("lstm", "window"), ("lmu", "full")])
def test_it_compiles_and_runs_in_bf16(cell, attention):
    made = encoder(cell, attention).float()
    features_BTF, lengths_B = padded(LENGTHS)
    features_BTF = features_BTF.float()
    valid_BT = torch.arange(17) < (lengths_B.unsqueeze(1) + 1) // 2
    expected_NH = made(features_BTF, lengths_B)[0][valid_BT]
    compiled = torch.compile(made, backend="aot_eager")
    # The same operations, partly in a different order: float32 rounding through two blocks of values of order one.
    torch.testing.assert_close(compiled(features_BTF, lengths_B)[0][valid_BT], expected_NH, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        states_BTH, _ = made(features_BTF, lengths_B)
    assert states_BTH.dtype == torch.float32  # layer normalisation of a stream kept in float32
    states_BTH[valid_BT].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())
    # Rounding of 2^-9 relative in each of some twenty products of order one, adding up at random.
    error = (states_BTH[valid_BT] - expected_NH).square().mean().sqrt()
    assert error < 20**0.5 * 2**-8


class Float32Products(TorchDispatchMode):
    """Counts matrix products and convolutions of float32 numbers, forward and backward."""

    NAMES = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")

    def __init__(self) -> None:
        super().__init__()
        self.count = {torch.float32: 0, torch.bfloat16: 0}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        if name in self.NAMES or name.startswith("_scaled_dot_product"):
            self.count[args[-1 if name.endswith("mm") else 0].dtype] += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("cell", CELLS)
def test_products_run_in_bf16_under_autocast(cell, monkeypatch):
    """One product per LMU stays float32 on a GPU, with its gradient: the states before the chunks, which later frames use."""
    monkeypatch.setattr("speech_exp.models.linear_memory.LOOP_DEVICES", ())
    monkeypatch.setattr(LinearMemory, "plan", lambda *_, **__: Plan("chunks", True, 16))
    made = encoder(cell, "full").float()
    loss_and_gradients(made, bf16=True)  # tables are made, in float64
    with Float32Products() as products:
        loss_and_gradients(made, bf16=True)
    assert products.count[torch.float32] == (2 * len(made.blocks) if cell == "lmu" else 0)
    assert products.count[torch.bfloat16] > 20


@pytest.mark.parametrize("cell", CELLS)
def test_bf16_stays_close_to_float32_at_the_size_of_a_laptop(cell):
    """Every number that enters or leaves a product is rounded by at most 2^-9 of its size, about 20 times on the way through two
    blocks, in random directions; the residual stream and the norms between them are float32. The gradient goes that way
    twice.
    """
    torch.manual_seed(0)
    made = {
        "gru": lambda width: GRU(width, 64),
        "lstm": lambda width: LSTM(width, 64),
        "lmu": lambda width: LMU(width, 64, order=16, theta=40, memory_channels=6, algorithm="chunked"),
    }[cell]
    sizes = {"width": 64, "attention_heads": 4, "num_layers": 2}
    network = encoder(made, "full", **sizes).float()
    expected, actual = loss_and_gradients(network), loss_and_gradients(network, bf16=True)
    assert all(tensor.isfinite().all() for tensor in actual)
    bound = (2 * 20) ** 0.5 * 2**-8
    assert (actual[0] - expected[0]).abs() < bound * expected[0]
    difference = sum((one - other).square().sum() for one, other in zip(actual[1:], expected[1:], strict=True))
    assert difference.sqrt() < bound * sum(other.square().sum() for other in expected[1:]).sqrt()


def loss_and_gradients(made: nn.Module, bf16: bool = False) -> list[torch.Tensor]:
    """Return the summed square of the valid states and its gradients, with the same dropout on every call."""
    features_BTF, lengths_B = padded(LENGTHS)
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        states_BTH, fewer_B = made(features_BTF.to(next(made.parameters()).dtype), lengths_B)
    valid_BT = torch.arange(states_BTH.shape[1]) < fewer_B.unsqueeze(1)
    loss = states_BTH[valid_BT].square().sum()
    return [loss.detach(), *torch.autograd.grad(loss, list(made.parameters()))]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("cell", CELLS)
def test_checkpointing_changes_no_bit(cell, attention, bf16):
    ways = [
        loss_and_gradients(encoder(cell, attention, dropout=0.3, checkpoint_activations=way).float(), bf16)
        for way in (False, True)
    ]
    assert all(torch.equal(kept, computed_again) for kept, computed_again in zip(*ways, strict=True))


def test_checkpointing_changes_nothing_in_evaluation():
    made = encoder("lmu", "full", dropout=0.3, checkpoint_activations=True).eval()
    with_gradients = made(*padded(LENGTHS))[0]
    with torch.no_grad():
        torch.testing.assert_close(made(*padded(LENGTHS))[0], with_gradients, rtol=0, atol=0)
    with_gradients.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


@pytest.mark.parametrize("cell", CELLS)
def test_checkpointing_keeps_one_activation_a_block(cell):
    """For the backward pass, each further block keeps only its input and the state of the dropout generator."""

    def kept_bytes(num_layers: int, checkpoint_activations: bool) -> int:
        made = encoder(cell, "full", num_layers=num_layers, dropout=0.3, checkpoint_activations=checkpoint_activations)
        weights = {parameter.untyped_storage().data_ptr() for parameter in made.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states_BTH, _ = made(*padded(LENGTHS))
        assert states_BTH.requires_grad  # keeps the graph, and all that it holds, alive until here
        return sum(kept.values())

    input_bytes = 4 * 17 * 8 * 8  # utterances, frames after downsampling, width, bytes of a float64
    assert kept_bytes(3, True) - kept_bytes(2, True) == input_bytes
    assert kept_bytes(3, False) - kept_bytes(2, False) > 10 * input_bytes


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"encoder\.width=8: expected a multiple of twice encoder\.attention_heads=8"):
        encoder(attention="full", attention_heads=8)


# The two configs.

PARAMETERS = {"asr": (3e6, 6e6), "asr_small": (2e5, 5e5)}


@pytest.fixture(scope="module")
def compose():
    with composing() as composed:
        yield composed


@pytest.mark.parametrize("task", ["A", "B1"])
@pytest.mark.parametrize("model", CELLS)
@pytest.mark.parametrize("name", PARAMETERS)
def test_both_configs_build_with_each_model(compose, tmp_path, name, model, task):
    config = compose(f"encoder={name}", f"model={model}", f"task={task}", "trainer.device=cpu")
    built = experiment(config, tmp_path).network.encoder
    assert isinstance(built, AsrEncoder)
    assert {layer.name for layer in built.recurrent_layers} == {model}
    assert built.output_size == config.encoder.width
    layer_bytes = max(layer.size().bytes() for layer in built.recurrent_layers)
    if task == "A":
        low, high = PARAMETERS[name]
        assert low < sum(parameter.numel() for parameter in built.parameters()) < high
        assert built.recurrent_layers[0].hidden_size == config.encoder.width
        assert layer_bytes > config.sizes.budget_bytes  # otherwise the budget would not constrain the layer
    else:
        assert 0.9 * config.sizes.budget_bytes < layer_bytes <= config.sizes.budget_bytes


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("encoder.downsampling=3", "encoder.downsampling=3: expected one of 2, 4"),
        ("encoder.attention=none", "encoder.attention=none: expected one of full, window, off"),
        ("encoder.dropout=much", "encoder.dropout=much: expected a number"),
    ],
)
def test_a_wrong_value_on_the_command_line_is_reported_in_one_sentence(compose, tmp_path, typed, expected):
    with pytest.raises(ValueError, match=expected):
        _ = experiment(compose("encoder=asr_small", typed, "trainer.device=cpu"), tmp_path).network


@pytest.mark.parametrize("attention", ATTENTION)
def test_the_attention_of_the_command_line_is_used(compose, tmp_path, attention):
    """`off` must stay a string; YAML 1.1 would read it as false."""
    typed = ["encoder=asr_small", f"encoder.attention={attention}", "trainer.device=cpu"]
    assert experiment(compose(*typed), tmp_path).network.encoder.attention == attention
