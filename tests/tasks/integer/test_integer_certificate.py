"""The certificate of task B2 accepts only the model that the config describes."""

import copy

import pytest
import torch
from integer_networks import batch, network

from speech_exp.tasks.deployment import CertificateError
from speech_exp.tasks.integer.conversion import convert
from speech_exp.tasks.integer_inference import IntegerInference
from speech_exp.tasks.state_space import spectral_radius

TASK = IntegerInference(10**6, False, 0, 5e-4, None)


def test_a_stable_memory_that_is_not_that_of_its_order_and_theta_is_refused_in_integers():
    built = network("lmu")
    converted = convert(built, [batch([9, 4])])
    assert TASK.deployment.certify(converted, built).passed
    bits = int(converted.layers[0].state_bits)
    other_A_MM = (torch.nn.init.orthogonal_(torch.empty(4, 4)) / 2 * 2**bits).round().short()
    assert spectral_radius(other_A_MM.double() / 2**bits) < 1
    for key, changed in (
        ("A", other_A_MM),
        ("B", converted.layers[0].B + torch.tensor([0, 0, 1, 0], dtype=torch.int16)),
        ("state_bits", torch.tensor(bits + 1, dtype=torch.int8)),
    ):
        tampered = copy.deepcopy(converted)
        setattr(tampered.layers[0], key, changed)
        with pytest.raises(CertificateError, match=rf"layers\.0\.{key} is not the zero-order hold"):
            TASK.deployment.certify(tampered, built)


def test_the_integer_form_of_another_network_is_refused():
    wide = convert(network("gru", num_layers=2), [batch([9, 4])])
    with pytest.raises(CertificateError, match="the model is not the one that its config describes"):
        TASK.deployment.certify(wide, network("gru"))
