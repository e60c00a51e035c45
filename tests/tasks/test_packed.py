"""Packed models: reading restores the same model bit for bit, sizes are exact, damage is reported in one sentence."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from approaches_by_name import APPROACHES
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import MODELS, network, part

from speech_exp.models.encoder import CompactEncoder
from speech_exp.models.layer import Bidirectional
from speech_exp.models.lmu import LMU
from speech_exp.objectives.classification import Classification
from speech_exp.objectives.objective import Network
from speech_exp.tasks.budget import Budget
from speech_exp.tasks.codes import Apot2Code, PowerCode, RowCode, pack_words, unpack_words, word_bits
from speech_exp.tasks.deployment import Deployment
from speech_exp.tasks.grids import Grid, apot2, nearest_power, row_shared
from speech_exp.tasks.packed import HEADER, Plain, Source, differing, pack, read
from speech_exp.tasks.power_of_two_deployment import PowerOfTwoDeployment
from speech_exp.tasks.state_space import Int16Code, stored
from speech_exp.tasks.unconstrained import Unconstrained

GRID = Grid(-8, 8)
FLOATS = st.floats(-300, 300, width=32)
SHAPES = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=4)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()


def again(coding, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Pack and unpack tensors, and check that no byte is left over."""
    source = Source(coding.pack(tensors))
    found = coding.unpack(source, [torch.empty_like(tensor) for tensor in tensors])
    source.end()
    return found


@given(
    st.lists(st.tuples(st.integers(0, 12), st.lists(st.integers(0, 2**12 - 1), max_size=40)), min_size=1, max_size=4)
)
def test_words_survive_packing_and_take_their_bits(fields):
    given_fields = [(np.array(words, np.int64) % 2**width, width) for width, words in fields]
    packed = pack_words(*given_fields)
    assert len(packed) == -(-sum(width * len(words) for words, width in given_fields) // 8)
    found = unpack_words(Source(packed), *((len(words), width) for words, width in given_fields))
    assert [one.tolist() for one in found] == [words.tolist() for words, _ in given_fields]


def test_words_are_packed_from_the_lowest_bit():
    assert pack_words((np.array([1, 2, 7]), 3), (np.array([1]), 1)) == bytes([0b11010001, 0b00000011])
    assert [word_bits(count) for count in (0, 1, 2, 3, 4, 5, 256, 257)] == [0, 0, 1, 2, 2, 3, 8, 9]


@settings(max_examples=60, deadline=None)
@given(st.data(), SHAPES, st.sampled_from(["power", "apot2", "rows"]))
def test_every_code_restores_its_weights(data, shapes, kind):
    coding, project = {
        "power": (PowerCode(), nearest_power),
        "apot2": (Apot2Code(), apot2),
        "rows": (RowCode(), row_shared),
    }[kind]
    numbers = [data.draw(st.lists(FLOATS, min_size=(n := int(np.prod(shape))), max_size=n)) for shape in shapes]
    tensors = [
        project(torch.tensor(values, dtype=torch.float32).view(shape), GRID)
        for values, shape in zip(numbers, shapes, strict=True)
    ]
    assert all(map(same_bits, again(coding, tensors), tensors))


@pytest.mark.parametrize("grid", [Grid(-126, 127), Grid(5, 5), Grid(-11, 11)])
def test_codes_hold_every_level_of_a_grid(grid):
    powers = torch.tensor([0.0, *(sign * 2.0**k for k in grid.exponents() for sign in (1, -1))])
    assert same_bits(again(PowerCode(), [powers])[0], powers)
    assert same_bits(again(RowCode(), [powers.unsqueeze(1)])[0], powers.unsqueeze(1))
    if grid.k_max - grid.k_min <= 22:
        every = torch.cat([apot2(powers + 2.0**k, grid) for k in grid.exponents()])
        assert same_bits(again(Apot2Code(), [every])[0], every)


def test_what_is_not_on_the_grid_is_not_packed():
    with pytest.raises(ValueError, match="not on their grid"):
        PowerCode().pack([torch.tensor([1.0, 3.0])])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-4, 4, width=32), min_size=9, max_size=9), st.integers(-20, 3))
def test_int16_matrices_survive_packing(values, exponent):
    matrix = stored(torch.tensor(values).view(3, 3) * 2.0**exponent, "int16", GRID)
    assert same_bits(again(Int16Code(), [matrix])[0], matrix)
    assert len(Int16Code().pack([matrix, matrix[0]])) == 2 * (9 + 3) + 2


def power_of_two(approach: str, scope: str, memory_matrices: str = "int16") -> PowerOfTwoDeployment:
    return PowerOfTwoDeployment(10**6, APPROACHES[approach](), GRID, scope, memory_matrices)


def two_layers(model: str, seed: int) -> Network:
    """Build a classifier with every part: two layers, a front, attention pooling."""
    torch.manual_seed(seed)
    encoder = CompactEncoder(4, MODELS[model], True, 2, 0.0, 3, 3)
    built = Classification("attention", 0.0, 0.0).network(encoder, 3)
    built.encoder.front.normalization.running_mean.normal_()
    return built


def written(path: Path, deployment: Deployment, deployed: Network) -> Path:
    path.write_bytes(pack(deployed.state_dict(), deployment.parts(deployed)))
    return path


def assert_same_model(deployment: Deployment, deployed: Network, blank: Network, path: Path) -> None:
    """Write `deployed`, read it into `blank` of the same topology, and check that bits, sizes and outputs are equal."""
    found = deployment.unpacked(blank, written(path, deployment, deployed))
    assert differing(deployed.state_dict(), found.state_dict(), deployment.parts(deployed)) == []
    compared = {name for part in deployment.parts(deployed) for name in part.names}
    assert {name for name in deployed.state_dict() if not name.endswith("num_batches_tracked")} == compared
    batch = next(iter(part(6, 1).by_length(6)))
    with torch.no_grad():
        expected = deployed.eval()(batch.features_BTF, batch.lengths_B)
        assert torch.equal(found.eval()(batch.features_BTF, batch.lengths_B), expected)
    stored_bytes = deployment.stored(deployed)
    assert stored_bytes.packed_bytes == path.stat().st_size > HEADER.size + sum(stored_bytes.packed_layer_bytes)


@pytest.mark.parametrize("deployment", [Unconstrained().deployment, Budget(10**6).deployment], ids=["A", "B1"])
@pytest.mark.parametrize("model", MODELS)
def test_a_float_model_survives_packing(tmp_path, model, deployment):
    deployed = two_layers(model, 0)
    assert_same_model(deployment, deployed, two_layers(model, 1), tmp_path / "packed")
    found = deployment.stored(deployed)
    assert found.packed_bytes == found.model_bytes + HEADER.size
    assert found.packed_layer_bytes == found.recurrent_layer_bytes


@pytest.mark.parametrize("memory_matrices", ["int16", "apot2"])
@pytest.mark.parametrize("scope", [None, "all", "rnn_only", "recurrent_matrices"])
@pytest.mark.parametrize("approach", APPROACHES)
def test_powers_of_two_survive_packing(tmp_path, approach, scope, memory_matrices):
    if APPROACHES[approach]().scope is not None and scope not in (None, APPROACHES[approach]().scope):
        return
    for model in ("gru", "lmu") if memory_matrices == "int16" else ("lmu",):
        deployment = power_of_two(approach, scope, memory_matrices)
        deployed = deployment.project(two_layers(model, 0))
        deployment.certify(deployed, two_layers(model, 1))
        assert_same_model(deployment, deployed, two_layers(model, 1), tmp_path / model)
        assert deployment.stored(deployed).packed_bytes < deployment.stored(deployed).model_bytes


def test_all_zero_weights_survive_packing(tmp_path):
    deployment = power_of_two("row_shared", "all")
    deployed = two_layers("gru", 0)
    with torch.no_grad():
        for weight in deployment.weights(deployed).values():
            weight.zero_()
    assert_same_model(deployment, deployed, two_layers("gru", 1), tmp_path / "packed")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a deployment, a network of its topology, and a complete packed file."""
    deployment = power_of_two("apot2", "rnn_only")
    deployed = deployment.project(network("lmu"))
    return (
        deployment,
        network("lmu", 1),
        written(tmp_path_factory.mktemp("whole") / "packed", deployment, deployed).read_bytes(),
    )


def refusal(deployment: Deployment, blank: Network, path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not a complete packed model of this config: ") as caught:
        deployment.unpacked(blank, path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value).rpartition("config: ")[2]


def test_a_truncated_or_longer_file_is_reported_in_one_sentence(tmp_path, whole):
    deployment, blank, content = whole
    for length in range(0, len(content), 7):
        assert "too short" in refusal(deployment, blank, tmp_path / "cut", content[:length])
    assert "1 bytes too long" in refusal(deployment, blank, tmp_path / "long", content + b"\0")
    assert "more than this model can have" in refusal(deployment, blank, tmp_path / "long", content + bytes(2**22))


def test_every_flipped_bit_is_reported_in_one_sentence(tmp_path, whole):
    deployment, blank, content = whole
    for byte in [*range(HEADER.size), *range(HEADER.size, len(content), 11)]:
        changed = bytearray(content)
        changed[byte] ^= 1 << byte % 8
        refusal(deployment, blank, tmp_path / "flipped", bytes(changed))


def sealed(body: bytes) -> bytes:
    return HEADER.pack(b"SXP1", len(body), zlib.crc32(body)) + body


def test_other_files_are_reported_in_one_sentence(tmp_path, whole):
    deployment, blank, content = whole
    assert "does not begin with SXP1" in refusal(deployment, blank, tmp_path / "other", b"PK" + content[2:])
    assert "too short" in refusal(deployment, blank, tmp_path / "of_another_config", sealed(content[HEADER.size : -1]))
    assert "too long" in refusal(
        deployment, blank, tmp_path / "of_another_config", sealed(content[HEADER.size :] + b"\0")
    )
    with pytest.raises(ValueError, match="it is not a file"):
        deployment.unpacked(blank, tmp_path / "missing")
    infinite = content[HEADER.size : -4] + struct.pack("<f", float("inf"))
    assert "not finite" in refusal(deployment, blank, tmp_path / "infinite", sealed(infinite))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["ste", "row_shared", "apot2"]), st.binary(max_size=400), st.integers(0, 400))
@example("ste", b"\x00\x00\x00\x00\x80", 103)  # an int16 matrix with exponent -128: 2^128 is not finite in float32
def test_any_bytes_with_a_right_checksum_are_a_model_or_one_sentence(tmp_path_factory, approach, noise, start):
    deployment = power_of_two(approach, "all")
    deployed = deployment.project(network("lmu"))
    body = bytearray(pack(deployed.state_dict(), deployment.parts(deployed))[HEADER.size :])
    body[start : start + len(noise)] = noise
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(sealed(bytes(body)))
    state, refused = {}, ""
    try:
        state = read(path, deployed, deployment.parts(deployed))
    except ValueError as error:
        refused = str(error)
    assert bool(state) != ("is not a complete packed model of this config: it" in refused)
    assert "\n" not in refused and all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


def test_a_source_yields_no_more_than_it_has():
    with pytest.raises(ValueError, match="it is 1 bytes too short"):
        Plain().unpack(Source(bytes(7)), [torch.zeros(2)])
    with pytest.raises(ValueError, match="too short"):
        Plain().unpack(Source(bytes(7)), [torch.empty(2**40, device="meta")])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("model", [*MODELS, "lmu_feedback"])
def test_state_bytes_are_of_what_a_step_hands_on(model, bidirectional):
    cells = {**MODELS, "lmu_feedback": lambda width: LMU(width, 8, 4, 6.0, 2, feedback=True)}
    layer = cells[model](4)
    _, state = layer.step(torch.zeros(1, 4), layer.initial_state(1, torch.zeros(1)))
    numbers = sum(tensor.numel() for tensor in state)
    assert numbers == {"gru": 8, "lstm": 16, "lmu": 8, "lmu_feedback": 16}[model]
    if bidirectional:
        layer, numbers = Bidirectional(layer, cells[model](4)), 2 * numbers
    assert layer.state_numbers() == numbers
