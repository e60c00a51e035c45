"""Entry point: `python run.py` composes one run (or, with -m, a sweep) from `conf/` and carries out its action."""

import os
import sys

import hydra
from omegaconf import DictConfig

from speech_exp.command_line import run, start
from speech_exp.password import without_password


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    return run(config)


if __name__ == "__main__":
    sys.argv[1:] = without_password(sys.argv[1:], os.environ)
    start(main)
