"""Write the packed model of a run next to its checkpoint and verify it before anything is reported."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from speech_exp.files import write_bytes
from speech_exp.objectives.objective import Network
from speech_exp.tasks import packed
from speech_exp.tasks.deployment import CertificateError, Deployment


def save_packed(deployment: Deployment, untrained: Network, deployed: nn.Module, path: Path) -> None:
    """Write the packed model to `path`, read it back into `untrained` and compare the two.

    Raises CertificateError if they differ. `untrained` is a new network built from the config.
    """
    parts = deployment.parts(deployed)
    write_bytes(path, packed.pack(deployed.state_dict(), parts))
    try:
        found = deployment.unpacked(untrained, path).state_dict()
    except ValueError as error:
        raise CertificateError(str(error)) from None
    if changed := packed.differing(deployed.state_dict(), found, parts):
        raise CertificateError(f"{path} does not reproduce the deployed model: {', '.join(changed)} differ")
