"""No operation between codes and logits is in floating point, and the check detects one that is."""

import pytest
import torch
from integer_networks import CELLS, batch, network, random_codes

from speech_exp.tasks.integer import rules
from speech_exp.tasks.integer.conversion import convert
from speech_exp.tasks.integer.proof import FloatOperationError, integer_operations

LENGTHS = torch.tensor([4, 1, 6])


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("name", CELLS)
def test_every_network_is_integer_only(name, pooling):
    for bidirectional, layers, front in ((False, 1, 0), (True, 2, 4)):
        converted = convert(network(name, bidirectional, layers, front, pooling), [batch([9, 4])])
        assert integer_operations(converted.integer_logits, random_codes(3, 6), LENGTHS) > 100


SMUGGLED = {
    "a float tensor": lambda x: (x.float() + 1).floor().to(x.dtype),
    "a float number": lambda x: torch.mul(x, 2.0).to(x.dtype),
    "a division that gives floats": lambda x: (x / 2).to(x.dtype),
    "a made float tensor": lambda x: x + torch.zeros(1).to(x.dtype),
    "half precision": lambda x: x.half().to(x.dtype),
    "a complex tensor": lambda x: torch.view_as_real(x.to(torch.complex64))[..., 0].to(x.dtype),
    "a float matrix product": lambda x: (x.double() @ torch.eye(x.shape[-1], dtype=torch.float64)).to(x.dtype),
    "numbers read out": lambda x: torch.full_like(x, int(x.sum().mul(0.5).item())),
}


@pytest.mark.parametrize("smuggled", SMUGGLED.values(), ids=SMUGGLED)
def test_a_smuggled_float_operation_is_found(smuggled, monkeypatch):
    converted = convert(network("gru"), [batch([9, 4])])
    honest = converted.layers[0].forward
    monkeypatch.setattr(converted.layers[0], "forward", lambda codes, lengths: smuggled(honest(codes, lengths)))
    with pytest.raises(FloatOperationError, match=r"aten\.\S+ (takes|gives) (a tensor of torch\.|the )"):
        integer_operations(converted.integer_logits, random_codes(3, 6), LENGTHS)


def test_float_rules_are_found(monkeypatch):
    converted = convert(network("lstm"), [batch([9, 4])])
    monkeypatch.setattr(
        "speech_exp.tasks.integer.cells.tanh_code", lambda x: (x / 4096).tanh().mul(32767).to(torch.int16)
    )
    with pytest.raises(FloatOperationError, match=r"aten\.div"):
        integer_operations(converted.integer_logits, random_codes(3, 6), LENGTHS)
    assert rules.tanh_code(torch.tensor([4096], dtype=torch.int16)).item() == 24956  # 2^15 tanh(1)


def test_quantisation_itself_is_not_covered():
    converted = convert(network("gru"), [batch([9, 4])])
    converted.integer_logits = lambda codes, lengths: converted(codes.float(), lengths)
    with pytest.raises(FloatOperationError):
        integer_operations(converted.integer_logits, random_codes(3, 6), LENGTHS)
