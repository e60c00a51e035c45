"""Compact recurrent speech models under constraints of memory, arithmetic and multipliers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from speech_exp.pretrained import Device, Model

__all__ = ["load"]
__version__ = "0.1.0"


def load(checkpoint: str | Path, device: Device = "cpu") -> Model:
    """Load a trained model from a run's `checkpoint_epoch_N_best.pt`; see `speech_exp.pretrained.Model` for its methods.

        model = speech_exp.load("checkpoint_epoch_30_best.pt")
        model.predict("digit.wav").label

    The file is data: nothing in it is executed. Raises ValueError for any other file.
    """
    from speech_exp.pretrained import load as load_model  # torch is imported only when it is needed

    return load_model(checkpoint, device)
