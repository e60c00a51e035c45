"""`python -m speech_exp predict CHECKPOINT AUDIO`: what the installed package can do without a clone of the repository."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from speech_exp.actions.predict import Predict
from speech_exp.experiment import Experiment


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m speech_exp",
        usage="%(prog)s predict [--streaming] CHECKPOINT AUDIO (training needs a clone of the project: python run.py there)",
    )
    parser.add_argument("command", choices=["predict"])
    parser.add_argument("checkpoint", help="checkpoint_epoch_N_best.pt of a run")
    parser.add_argument("audio", help="a sound file at any sample rate, or a folder of sound files")
    parser.add_argument("--streaming", action="store_true", help="decode each file frame by frame")
    given = parser.parse_args(arguments)
    config = OmegaConf.create({"seed": 0, "action": {}, "checkpoint": given.checkpoint})
    try:
        Predict(given.checkpoint, given.audio, given.streaming)(Experiment(config, {"action": "predict"}, Path()))
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
