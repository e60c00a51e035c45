"""A run fails if its packed model does not restore the deployed model."""

import pytest
import torch
from tiny import network

from speech_exp.actions import packing
from speech_exp.actions.packing import save_packed
from speech_exp.tasks.approaches.snapping import SnapEpoch
from speech_exp.tasks.codes import PowerCode
from speech_exp.tasks.deployment import CertificateError
from speech_exp.tasks.power_of_two import PowerOfTwo


@pytest.fixture
def deployment():
    return PowerOfTwo(SnapEpoch(), 10_000, None, None, None, -8, 8, 1e-3, "int16", None).deployment


def test_the_packed_model_is_written_and_restores_the_network(deployment, tmp_path):
    deployed, other = deployment.project(network("lmu")), network("lmu", 1)
    path = tmp_path / "checkpoints" / "checkpoint_epoch_3_best.packed"
    save_packed(deployment, other, deployed, path)
    assert path.stat().st_size == deployment.stored(deployed).packed_bytes
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in deployed.state_dict().items())


def test_a_file_that_is_damaged_on_the_disk_ends_the_run(deployment, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "write_bytes", lambda path, content: path.write_bytes(content[:-1] + b"?"))
    with pytest.raises(
        CertificateError, match="is not a complete packed model of this config: its checksum does not match"
    ):
        save_packed(deployment, network("gru", 1), deployment.project(network("gru")), tmp_path / "model.packed")


class Forgetful(PowerCode):
    """A faulty coding that loses the sign of the last weight."""

    def unpack(self, source, like):
        found = super().unpack(source, like)
        found[-1].view(-1)[-1].neg_()
        return found


def test_a_coding_that_loses_something_ends_the_run(deployment, tmp_path, monkeypatch):
    monkeypatch.setattr(SnapEpoch, "coding", Forgetful())
    with pytest.raises(CertificateError, match=r"model.packed does not reproduce .*: .*output.bias differ"):
        save_packed(deployment, network("gru", 1), deployment.project(network("gru")), tmp_path / "model.packed")
