"""Entry point: `python run.py` composes one run (or a sweep, with -m) from `conf/` and executes its action."""

import sys

try:
    import hydra
    from omegaconf import DictConfig

    from speech_exp.command_line.main import run, start
except KeyboardInterrupt:  # these imports take about a second
    print("stopped by the user; nothing was written", file=sys.stderr)
    sys.exit(130)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    return run(config)


if __name__ == "__main__":
    start(main)
