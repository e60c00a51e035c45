"""A certificate accepts only the model that the config describes, even if another has values on the same grid."""

import pytest
import torch
from tiny import MODELS, network
from torch import nn

from speech_exp.models.memory_tables import legendre_state_space
from speech_exp.tasks.approaches.snapping import SnapEpoch
from speech_exp.tasks.budget import Budget
from speech_exp.tasks.deployment import CertificateError
from speech_exp.tasks.power_of_two import PowerOfTwo
from speech_exp.tasks.state_space import is_stored, spectral_radius, stored


class Scaled(nn.Module):
    """A float32 linear layer of a different class."""

    def __init__(self, like):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn_like(like.weight)), nn.Parameter(like.bias.detach().clone())

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


def task(scope=None, memory_matrices="int16"):
    return PowerOfTwo(SnapEpoch(), 10_000, None, None, scope, -8, 8, 1e-3, memory_matrices, None)


@pytest.mark.parametrize("scope", ["all", "rnn_only", "recurrent_matrices"])
@pytest.mark.parametrize("model", MODELS)
def test_what_is_exempt_follows_from_the_scope(model, scope):
    constraint, built = task(scope=scope), network(model, front_channels=6)
    certificate = constraint.deployment.certify(constraint.deployment.project(built), built)
    parameters = {name for name, _ in built.named_parameters()}
    exempt = {name: why for name, why in certificate.details["exempt"].items() if name in parameters}
    assert exempt.keys() == parameters - certificate.details["weights"].keys()
    if scope == "all":
        assert exempt == {f"encoder.front.normalization.{key}": "float32, normalisation" for key in ("weight", "bias")}
    else:
        assert set(exempt.values()) == {f"float32, outside {scope}"}
        assert {"output.weight", "output.bias", "encoder.front.convolution.weight"} <= exempt.keys()


def test_a_float_output_layer_is_not_an_exemption_of_scope_all():
    constraint, built = task(), network("gru")
    deployed = constraint.deployment.project(built)
    deployed.output = Scaled(deployed.output)
    with pytest.raises(
        CertificateError, match=r"output\.(weight|bias) is in float32, but task\.scope=all exempts only norm"
    ):
        constraint.deployment.certify(deployed, built)
    # With another scope the layer is exempt, but the model is still not the one that the config describes.
    with pytest.raises(CertificateError, match=r"output is .*Scaled, expected torch.*Linear: the model is not the one"):
        task(scope="rnn_only").deployment.certify(deployed, built)


@pytest.mark.parametrize("make", [lambda: Budget(10_000), task], ids=["B1", "C"])
def test_a_model_with_other_parameters_than_its_config_describes_is_refused(make):
    constraint, built = make(), network("gru")
    other = constraint.deployment.blank(network("gru", front_channels=6))
    with pytest.raises(CertificateError, match=r"encoder.* is .*, expected .*: the model is not the one"):
        constraint.deployment.certify(other, built)
    more = constraint.deployment.blank(network("gru"))
    more.register_buffer("bonus", torch.zeros(3))
    with pytest.raises(CertificateError, match=r"bonus is torch\.float32 \[3\], expected none"):
        constraint.deployment.certify(more, built)


@pytest.mark.parametrize("storage", ["int16", "apot2"])
def test_a_stable_memory_that_is_not_that_of_its_order_and_theta_is_refused_in_powers_of_two(storage):
    constraint, built = task(memory_matrices=storage), network("lmu")
    deployed = constraint.deployment.project(built)
    assert constraint.deployment.certify(deployed, built).passed
    memory = deployed.encoder.layers[0].memory
    A_MM, B_M = memory.A.clone(), memory.B.clone()
    other_A_MM = stored(nn.init.orthogonal_(torch.empty(4, 4)) / 2, storage, constraint.deployment.grid)
    assert spectral_radius(other_A_MM) < 1
    of_other_theta = [stored(one.float(), storage, constraint.deployment.grid) for one in legendre_state_space(4, 7.0)]
    for key, changed in (
        ("A", (other_A_MM, B_M)),
        ("A", (of_other_theta[0], B_M)),
        ("B", (A_MM, of_other_theta[1])),
        ("B", (A_MM, -B_M)),
    ):
        memory.set_state_space(*changed)
        assert bool(is_stored(memory.A, storage, constraint.deployment.grid).all())
        with pytest.raises(CertificateError, match=rf"layers\.0\.memory\.{key} is not the zero-order hold"):
            constraint.deployment.certify(deployed, built)
