"""Compose configs in tests as the command line does."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict

import speech_exp.experiment  # registers the resolvers

CONF = Path(__file__).parents[1] / "conf"


def choices(group: str) -> list[str]:
    """Return the choices of a config group, read from its folder: a new file is tested automatically."""
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


@contextmanager
def without_figures() -> Iterator[None]:
    """Skip figures and time one utterance in runs whose numbers alone are tested: at toy size these take the most time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("speech_exp.actions.train.draw", lambda *_: None)
        patch.setattr("speech_exp.runs.latency._UTTERANCES", 1)
        patch.setattr("speech_exp.runs.latency._WARM_UP", 0)
        yield
