"""Entry point: `python run.py` composes one run (or, with -m, a sweep) from `conf/` and carries out its action."""

import hydra
from omegaconf import DictConfig

from speech_exp.command_line import run, start


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    return run(config)


if __name__ == "__main__":
    start(main)
