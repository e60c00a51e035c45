"""Composing configs in tests as the command line does."""

from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict

import speech_exp.experiment  # registers the resolvers

CONF = Path(__file__).parents[1] / "conf"


def choices(group: str) -> list[str]:
    """Files of a config group, from the folder itself, so that a new file is tested unasked."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@contextmanager
def composing():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *overrides: compose("config", list(overrides), return_hydra_config=True)


def experiment(config: DictConfig, folder: Path) -> speech_exp.experiment.Experiment:
    chosen = {group: str(choice) for group, choice in config.hydra.runtime.choices.items() if "hydra/" not in group}
    plain = config.copy()
    with open_dict(plain):
        del plain["hydra"]
    return speech_exp.experiment.Experiment(plain, chosen, folder)
