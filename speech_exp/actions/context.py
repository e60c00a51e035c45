"""What an action may ask of the composition root; each object is built when first asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import nn

from speech_exp.data.dataset import DataSet, Loaded
from speech_exp.features.assembly import Features
from speech_exp.features.augment import SpecAugment
from speech_exp.features.mfcc import FeatureExtractor
from speech_exp.features.normalization import Normalizer
from speech_exp.objectives.objective import Network, Objective
from speech_exp.tasks.task import Task
from speech_exp.training.trainer import Trainer


class Context(Protocol):
    """One experiment, of which `speech_exp.experiment.Experiment` is the implementation."""

    folder: Path  # run folder
    choices: dict[str, str]  # config group -> chosen file
    features_seconds: float  # time that `features` took
    seed: int
    deployed: nn.Module | None  # of a checkpoint

    @property
    def trainer(self) -> Trainer: ...
    @property
    def dataset(self) -> DataSet: ...
    @property
    def loaded(self) -> Loaded: ...
    @property
    def extractor(self) -> FeatureExtractor: ...
    @property
    def normalizer(self) -> Normalizer: ...
    @property
    def features(self) -> Features: ...
    @property
    def augment(self) -> SpecAugment: ...
    @property
    def task(self) -> Task: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def network(self) -> Network: ...
    @property
    def cache_folder(self) -> Path: ...

    def prepare_training(self) -> None:
        """Get the trained runs that this one builds on; a teacher that no run is named for is trained."""

    def plain_config(self) -> dict[str, Any]:
        """Resolved config and group choices, as a checkpoint keeps them."""

    def identity(self) -> dict[str, Any]:
        """The config, flat, without the keys that cannot change a result."""

    def config_hash(self) -> str: ...

    def of_checkpoint(self, content: dict[str, Any]) -> Context:
        """The experiment that made a deployable checkpoint, with its weights and statistics."""
