"""Composition root: builds the objects of one run from its config on first use; the modules below it do not depend on Hydra."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from speech_exp.checkpoint_config import OWN_KEYS, check_config, check_sizes, keys_taken
from speech_exp.config_roles import config_hash, identity
from speech_exp.config_types import check_types, flat
from speech_exp.resolvers import register_resolvers
from speech_exp.safe_text import printable, without_credentials

if TYPE_CHECKING:
    from torch import nn

    from speech_exp.data.data_set import DataSet
    from speech_exp.data.prepared import DataRequest, PreparedData
    from speech_exp.features.augment import SpecAugment
    from speech_exp.features.front_end import FrontEnd
    from speech_exp.models.encoder import Encoder
    from speech_exp.objectives.objective import Network, Objective
    from speech_exp.tasks.sizing import Size
    from speech_exp.tasks.task import Task
    from speech_exp.training.trainer import Trainer

register_resolvers()
_TRAINING_BYTES = 16  # per parameter: float32 weight, gradient and the two moments of AdamW


class Experiment:
    """The objects of one run. `choices` are the selected files of the config groups, `folder` is the run folder."""

    def __init__(self, config: DictConfig, choices: dict[str, str], folder: Path) -> None:
        self.config, self.choices, self.folder = config, choices, folder
        self.overrides: tuple[str, ...] = ()
        if type(config.seed) is not int or not 0 <= config.seed < 2**32:
            raise ValueError(f"seed={config.seed}: expected an integer from 0 to 4294967295, change seed")
        self.seed = config.seed
        self.features_seconds = 0.0
        self.trains = True
        self.deployed: nn.Module | None = None  # deployable form of a checkpoint's network

    def build(self, key: str, **given: Any) -> Any:
        """Build the object of the config node `key`; `given` are arguments that the config cannot contain."""
        return self._constructor(key)(**given)

    def _constructor(self, key: str, leave: tuple[str, ...] = ()) -> Callable[..., Any]:
        """Return the class of the node `key` with its config bound as arguments, except for the keys in `leave`."""
        node = OmegaConf.to_container(OmegaConf.select(self.config, key), resolve=True, throw_on_missing=True)
        assert isinstance(node, dict)
        left = (*leave, *OWN_KEYS.get(key, ()))
        named = {str(name): value for name, value in node.items() if name not in left}
        check_types("" if key == "action" else key, named)  # an action's arguments are keys of the top level
        try:
            return instantiate(named, _partial_=True, _convert_="all")
        except InstantiationException as error:  # of a node inside this one; Hydra's message adds its own lines
            raise error.__cause__ or error from None

    @cached_property
    def trainer(self) -> Trainer:
        """The trainer, built first because it chooses the device; building it to train also seeds this process."""
        from speech_exp.training.runtime import seed_everything
        from speech_exp.training.threads import check_threads

        trainer: Trainer = self.build("trainer")
        if self.trains:
            check_threads(trainer.threads)
            seed_everything(self.seed)
        return trainer

    @cached_property
    def dataset(self) -> DataSet:
        return self.build("dataset")

    @cached_property
    def front_end(self) -> FrontEnd:
        """Everything between a waveform and the network; what only serves training is left out if nothing is trained."""
        from speech_exp.features.front_end import FrontEnd
        from speech_exp.features.normalization import Normalizer
        from speech_exp.features.speed import check_speeds

        keys, variants, speeds = {"extractor": "features.extractor"}, None, None
        if self.trains:
            speeds = self._plain("augment")["speeds"]
            if self.config.augment.variants:
                keys["variants"], variants = "augment.variants", self.build("augment.variants")
        description = {name: self._plain(key) for name, key in keys.items()}
        extractor, normalizer = self.build("features.extractor"), Normalizer(self.config.features.normalization)
        return FrontEnd(extractor, normalizer, check_speeds(speeds), variants, description)

    @cached_property
    def augment(self) -> SpecAugment:
        return self.build("augment.batch")

    @cached_property
    def task(self) -> Task:
        return self._build_with("task", approach="c_approach", distillation="kd")

    def _build_with(self, key: str, **groups: str) -> Any:
        """Build the object of the node `key`; those of the chosen `groups` (argument -> group) are arguments of it."""
        make, given = self._constructor(key), {}
        for argument, group in groups.items():
            if self.config.get(group):
                if argument not in inspect.signature(make.func).parameters:  # type: ignore[attr-defined]
                    raise ValueError(
                        f"{group}={self.choices[group]} cannot be used with {key}={self.choices[key]}: choose another {key} or "
                        f"leave {group} out"
                    )
                given[argument] = self.build(group)
        return make(**given)

    @cached_property
    def objective(self) -> Objective:
        objective: Objective = self._build_with("objective", decoder="decoder")
        if objective.targets != self.dataset.targets:
            raise ValueError(
                f"objective={self.choices['objective']} needs {objective.targets}, but dataset={self.choices['dataset']} provides "
                f"{self.dataset.targets}: change objective or dataset"
            )
        return objective

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the network's outputs."""
        return self.objective.outputs(self.dataset.class_names)

    @cached_property
    def network(self) -> Network:
        """The network on the trainer's device, with initial weights drawn from the run's seed."""
        device = self.trainer.runtime.device
        self._check_memory()
        return self.objective.network(self._encoder(self.size.hidden_size), len(self.class_names)).to(device)

    def untrained(self) -> Network:
        """Build another network of the same config on the CPU, as a reference for a trained one."""
        import torch

        with torch.random.fork_rng(devices=[]):
            return self.objective.network(self._encoder(self.size.hidden_size), len(self.class_names))

    @cached_property
    def size(self) -> Size:
        """The size of the recurrent layers, chosen by the task."""
        import torch

        _ = self.front_end  # keeps its tensors, so it must not be built on the device that allocates nothing
        with torch.random.fork_rng(devices=[]), torch.device("meta"):  # the task builds networks to try sizes
            return self.task.sizing.choose(
                lambda hidden: self._encoder(hidden).recurrent_layers, self.config.model.hidden_size
            )

    def _encoder(self, hidden_size: int) -> Encoder:
        unsolved = ("hidden_size",) if self.config.model.hidden_size is None else ()
        cell = self._constructor("model", leave=unsolved)
        return self.build(
            "encoder", input_size=self.front_end.extractor.num_features, cell=partial(cell, hidden_size=hidden_size)
        )

    def _check_memory(self) -> None:
        """Refuse a model that is larger than this machine's memory, before anything is allocated."""
        import psutil
        import torch

        _ = self.size  # builds the front end
        with torch.device("meta"):
            parameters = sum(parameter.numel() for parameter in self.untrained().parameters())
        needed_bytes = parameters * (_TRAINING_BYTES if self.trains else 4)
        if needed_bytes > (memory_bytes := psutil.virtual_memory().total):
            raise ValueError(
                f"the model has {parameters:,} parameters and needs {needed_bytes / 1e9:,.0f} GB, but this machine has "
                f"{memory_bytes / 1e9:,.0f} GB: lower model.hidden_size or a size under encoder"
            )

    def prepare_training(self) -> Network | None:
        """Load the float run that the task starts from; return the teacher, which is trained first if no run is given."""
        import torch

        if start := self.config.task.get("float_checkpoint"):
            self._load_float_run("task.float_checkpoint", start, self.network)
        if self.task.distillation is None:
            return None
        teacher = copy.deepcopy(self.network)
        with torch.random.fork_rng():  # training a teacher here must not change the student
            found = self.config.kd.run or self._train_teacher()
        self._load_float_run("kd.run", found, teacher)
        return teacher

    def _load_float_run(self, key: str, place: str, network: Network) -> None:
        from speech_exp.training.float_runs import load_float_run

        load_float_run(key, place, self.plain_config()["config"], self.dataset.fingerprint, network)

    def _train_teacher(self) -> str:
        """Train a float run of the student's topology inside this run's folder and return its folder."""
        config = self.config.copy()
        with open_dict(config):
            config.task = {"_target_": "speech_exp.tasks.unconstrained.Unconstrained"}
            config.c_approach = config.kd = None
            config.trainer.threads = self.trainer.threads
            config.resume = None if isinstance(config.resume, str) else config.resume  # a folder refers to the student
            config.model.update(self.network.encoder.recurrent_layers[0].sizes())
        teacher = Experiment(
            config, {**self.choices, "task": "A", "c_approach": "None", "kd": "none"}, self.folder / "teacher"
        )
        print(f"the teacher is trained first, in {teacher.folder}")
        teacher.build("action")(teacher)
        return str(teacher.folder)

    def check(self) -> None:
        """Build the parts of a run and find its data, so that errors appear before anything is written."""
        if not self.dataset.batches_by_frames:
            self.trainer.training_batch.of_utterances()
        self.dataset.check(self.front_end, self._data_request)
        _ = self.network, self.augment, self.dataset.fingerprint
        try:
            check_config(self.plain_config()["config"])
        except ValueError as error:
            raise ValueError(f"{error}: a checkpoint could not store this key, leave it out or change it") from None
        for key in ("task.float_checkpoint", "kd.run"):
            if place := OmegaConf.select(self.config, key):
                self._load_float_run(key, place, copy.deepcopy(self.network))

    @cached_property
    def data(self) -> PreparedData:
        """Normalised features of all parts, on the trainer's device."""
        started_s = time.perf_counter()
        data = self.dataset.prepare(self.front_end, self._data_request)
        self.features_seconds = time.perf_counter() - started_s
        return data

    @property
    def _data_request(self) -> DataRequest:
        from speech_exp.data.prepared import DataRequest
        from speech_exp.objectives.text import to_ids

        # The config states the downsampling, so preparing data needs no network; encoders without the key keep every frame.
        frames_per_state = self.config.encoder.get("downsampling", 1)
        return DataRequest(to_ids, frames_per_state, self.trains, self.cache_folder, self.trainer.runtime.device)

    @property
    def cache_folder(self) -> Path:
        from speech_exp.data.root import user_cache

        place = self.config.cache_dir
        if place is not None and (not isinstance(place, str) or Path(place).is_file()):
            raise ValueError(f"cache_dir={place}: expected a folder or null, change cache_dir")
        return Path(place) if place else user_cache() / "features"

    def _plain(self, key: str) -> Any:
        return OmegaConf.to_container(OmegaConf.select(self.config, key), resolve=True)

    def plain_config(self) -> dict[str, Any]:
        """Return the resolved config and the choices it was composed from, as plain Python values."""
        config = OmegaConf.to_container(self.config, resolve=True)
        assert isinstance(config, dict)
        if "password" in config["dataset"]:
            config["dataset"]["password"] = None  # never store a secret in a run folder
        if config["trainer"]["mlflow"]:
            config["trainer"]["mlflow"] = without_credentials(config["trainer"]["mlflow"])
        return {"choices": self.choices, "config": {str(key): value for key, value in config.items()}}

    def identity(self) -> dict[str, Any]:
        """Return the config as a flat table, without the keys that cannot change a result."""
        return identity(self.plain_config()["config"])

    def config_hash(self) -> str:
        """Return the hash of the `identity`."""
        return config_hash(self.plain_config()["config"])

    def from_checkpoint(self, content: dict[str, Any]) -> Experiment:
        """Return the experiment that made a checkpoint; keys that may be changed afterwards come from this command line."""
        taken = keys_taken(self.overrides, self.choices["action"], tuple(self.config.action), content["choices"])
        try:
            plain = check_config(content["config"])
            config = OmegaConf.create(plain)
            for key in ("cache_dir", "dataset.prepared"):  # a file must not decide where a folder is created
                if (place := OmegaConf.select(config, key)) and not Path(place).is_dir():
                    OmegaConf.update(config, key, None)
            for key in taken.intersection({"decoder", *flat(plain)}):
                OmegaConf.update(config, key, OmegaConf.select(self.config, key), merge=False)
            original = Experiment(config, content["choices"], self.folder)
            original.trains = False
            original._load(content)
        except Exception as error:  # numbers from a file can break a constructor in any way
            reason = printable(error.__cause__ or error, 500) or type(error).__name__
            raise ValueError(f"checkpoint={self.config.checkpoint} cannot be used: {reason}") from error
        return original

    def _load(self, content: dict[str, Any]) -> None:
        """Load the weights and statistics of a checkpoint after checking that they fit a network of this config."""
        import torch

        state = content["network"]
        numbers = check_sizes(content["config"], [tensor.numel() for tensor in state.values()])
        front_end = self.front_end
        with torch.device("meta"):  # only shapes: nothing is allocated for a size that the file does not have
            needed = sum(tensor.numel() for tensor in self.untrained().state_dict().values())
        if needed > 2 * numbers:
            raise ValueError(f"its config asks for {needed:,} numbers, the file contains {numbers:,}")
        front_end.load_state_dict(content["front_end"])
        self.deployed = self.task.deployment.restore(self.network, state)
