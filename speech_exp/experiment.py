"""Composition root: from a composed config to the objects of one run, built when first asked for, in the order of the
data flow. Nothing below this module knows Hydra.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import time
from collections.abc import Callable
from datetime import datetime
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from speech_exp import ranks
from speech_exp.config_types import check_types, flat
from speech_exp.folder_names import sweep_subdir

if TYPE_CHECKING:
    from torch import nn

    from speech_exp.data.dataset import DataSet
    from speech_exp.features.assembly import Features
    from speech_exp.features.augment import SpecAugment
    from speech_exp.features.distortion import Variants
    from speech_exp.features.mfcc import FeatureExtractor
    from speech_exp.features.normalization import Normalizer
    from speech_exp.models.encoder import Encoder
    from speech_exp.objectives.objective import Network, Objective
    from speech_exp.tasks.task import Task
    from speech_exp.training.trainer import Trainer

OmegaConf.register_new_resolver("sweep_subdir", sweep_subdir, replace=True)


@cache
def started() -> datetime:
    """One moment for all processes that train together, which meet here at the first call."""
    return ranks.from_first(datetime.now)


OmegaConf.register_new_resolver("started", lambda form: started().strftime(form), replace=True)

# Keys that say where things lie or what is done, and cannot change a result.
_LOCATION_KEYS = ("dataset.root", "dataset.prepared", "dataset.workers", "cache_dir", "trainer.device")
_OWN_KEYS = ("checkpoint", "audio", "streaming", "part")  # of the actions that read a checkpoint
_NOT_IN_HASH = (
    *_LOCATION_KEYS[:-1],
    *("dataset.password", "dataset.host", "dry_run", "resume", "action", "study", "slurm"),
    *("trainer.tensorboard", "trainer.mlflow", "trainer.wandb", "trainer.checkpoint_every_s"),
    *("trainer.watchdog_s", "trainer.keep"),
)


class Experiment:
    """The objects of one run. `choices` are the chosen files of the config groups, `folder` is the run folder."""

    def __init__(self, config: DictConfig, choices: dict[str, str], folder: Path) -> None:
        self.config, self.choices, self.folder = config, choices, folder
        self.overrides: tuple[str, ...] = ()
        if type(config.seed) is not int or not 0 <= config.seed < 2**32:
            raise ValueError(f"seed={config.seed}: expected a whole number from 0 to 2^32 - 1, change seed")
        self.seed = config.seed
        self.features_seconds = 0.0
        self.trains = True
        self.deployed: nn.Module | None = None  # of a checkpoint

    def build(self, key: str, **given: Any) -> Any:
        """Object of the config node `key`; `given` are the arguments that the config cannot hold."""
        return self._constructor(key)(**given)

    def _constructor(self, key: str, leave: tuple[str, ...] = ()) -> Callable[..., Any]:
        """What the node `key` names, its config bound except for the keys `leave`."""
        node = OmegaConf.to_container(OmegaConf.select(self.config, key), resolve=True, throw_on_missing=True)
        assert isinstance(node, dict)
        named = {str(name): value for name, value in node.items() if name not in leave}
        check_types(key, named)
        return instantiate(named, _partial_=True, _convert_="all")

    @cached_property
    def trainer(self) -> Trainer:
        """Built first: it decides the device and seeds this process."""
        from speech_exp.training.runtime import seed_everything

        trainer: Trainer = self.build("trainer")
        seed_everything(self.seed)
        return trainer

    @cached_property
    def dataset(self) -> DataSet:
        return self.build("dataset")

    @cached_property
    def loaded(self) -> Any:
        """The data set's `Loaded`, of which `features` knows the kind."""
        return self.dataset.load()

    @cached_property
    def extractor(self) -> FeatureExtractor:
        return self.build("features.extractor")

    @cached_property
    def normalizer(self) -> Normalizer:
        from speech_exp.features.normalization import Normalizer

        return Normalizer(self.config.features.normalization)

    @cached_property
    def augment(self) -> SpecAugment:
        return self.build("augment.batch")

    @property
    def variants(self) -> Variants | None:
        """What the training features hold beside the recordings themselves; None where nothing is trained."""
        return self.build("augment.variants") if self.trains and self.config.augment.variants else None

    @cached_property
    def task(self) -> Task:
        """With the approach and the distillation that the config chose, which a task without use for them refuses."""
        make = self._constructor("task")
        given = {}
        for group, argument in (("c_approach", "approach"), ("kd", "distillation")):
            if self.config.get(group):
                if argument not in inspect.signature(make.func).parameters:  # type: ignore[attr-defined]
                    raise ValueError(
                        f"{group}={self.choices[group]} has no meaning with task={self.choices['task']}: choose another task "
                        f"or leave {group} out"
                    )
                given[argument] = self._constructor(group, leave=("run",))()
        return make(**given)

    @cached_property
    def objective(self) -> Objective:
        given = {"decoder": self.build("decoder")} if self.config.get("decoder") else {}
        make = self._constructor("objective")
        if given and "decoder" not in inspect.signature(make.func).parameters:  # type: ignore[attr-defined]
            raise ValueError(
                f"decoder={self.choices['decoder']} has no meaning with objective={self.choices['objective']}: leave decoder out"
            )
        objective: Objective = make(**given)
        if objective.targets != self.dataset.targets:
            raise ValueError(
                f"objective={self.choices['objective']} learns {objective.targets}, dataset={self.choices['dataset']} gives "
                f"{self.dataset.targets}: change objective or dataset"
            )
        return objective

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the network's outputs."""
        return self.objective.outputs(self.dataset.class_names)

    @cached_property
    def network(self) -> Network:
        """On the trainer's device, with fresh weights drawn from the run's seed."""
        import torch

        device = self.trainer.runtime.device
        with torch.random.fork_rng(devices=[]):  # the task tries sizes out
            hidden_size = self.task.hidden_size(
                lambda hidden: self._encoder(hidden).recurrent_layers, self.config.model.hidden_size
            )
        return self.objective.network(self._encoder(hidden_size), len(self.class_names)).to(device)

    def _encoder(self, hidden_size: int) -> Encoder:
        unsolved = ("hidden_size",) if self.config.model.hidden_size is None else ()
        cell = self._constructor("model", leave=("bidirectional", *unsolved))
        return self.build(
            "encoder", input_size=self.extractor.num_features, cell=partial(cell, hidden_size=hidden_size)
        )

    def prepare_training(self) -> None:
        """Get the float run that the task starts from, and the teacher, which is trained here where no run is named."""
        import torch

        from speech_exp.training.float_runs import load_float_run

        config = self.plain_config()["config"]
        if start := config["task"].get("float_checkpoint"):
            load_float_run("task.float_checkpoint", start, config, self.network)
        if (distillation := self.task.distillation) is not None:
            teacher = copy.deepcopy(self.network)
            with torch.random.fork_rng():  # whether a teacher is trained here must not change the student
                found = config["kd"]["run"] or self._train_teacher()
            load_float_run("kd.run", found, config, teacher)
            distillation.teacher = teacher

    def _train_teacher(self) -> str:
        """Folder of a float run of the student's topology, kept in this run's folder."""
        config = self.config.copy()
        with open_dict(config):
            config.task, config.c_approach, config.kd = {"_target_": "speech_exp.tasks.task.Task"}, None, None
            config.resume = None if isinstance(config.resume, str) else config.resume  # a folder is the student's
            config.model.hidden_size = self.network.encoder.recurrent_layers[0].hidden_size
        teacher = Experiment(
            config, {**self.choices, "task": "A", "c_approach": "None", "kd": "none"}, self.folder / "teacher"
        )
        print(f"the teacher is trained first, in {teacher.folder}")
        teacher.build("action")(teacher)
        return str(teacher.folder)

    @cached_property
    def features(self) -> Features:
        """Normalised features of all parts on the trainer's device; recordings dropped for bad audio are named."""
        from speech_exp.features.parts import FeaturePlan, features_of
        from speech_exp.features.speed import check_speeds
        from speech_exp.objectives.text import to_ids

        started_s, variants = time.perf_counter(), self.variants
        plan = FeaturePlan(
            self.extractor,
            self._descriptions(variants is not None),
            self.normalizer,
            variants,
            check_speeds(list(self.config.augment.speeds or ()) if self.trains else None),
            self.trains,
            to_ids,
            self.network.encoder.frames_per_state,
            self.cache_folder,
            self.trainer.runtime.device,
        )
        features = features_of(self.dataset, self.loaded, plan)
        self.features_seconds = time.perf_counter() - started_s
        return features

    @property
    def cache_folder(self) -> Path:
        from speech_exp.data.root import user_cache

        return Path(self.config.cache_dir) if self.config.cache_dir else user_cache() / "features"

    def _descriptions(self, with_variants: bool) -> dict[str, dict[str, Any]]:
        """Configs of what decides the features."""
        keys = {"extractor": "features.extractor", **({"variants": "augment.variants"} if with_variants else {})}
        return {name: cast("dict[str, Any]", self._plain(key)) for name, key in keys.items()}

    def _plain(self, key: str) -> Any:
        return OmegaConf.to_container(OmegaConf.select(self.config, key), resolve=True)

    def plain_config(self) -> dict[str, Any]:
        """The resolved config and the choices it was composed from, in plain Python values."""
        config = OmegaConf.to_container(self.config, resolve=True)
        assert isinstance(config, dict)
        if "password" in config["dataset"]:
            config["dataset"]["password"] = None  # a secret has no place in a run folder
        return {"choices": self.choices, "config": {str(key): value for key, value in config.items()}}

    def identity(self) -> dict[str, Any]:
        """The config, flat, without the keys that cannot change a result."""
        config = flat(self.plain_config()["config"])
        return {key: value for key, value in config.items() if not _is_in(key, _NOT_IN_HASH)}

    def config_hash(self) -> str:
        """Hash of the `identity`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]

    def of_checkpoint(self, content: dict[str, Any]) -> Experiment:
        """The experiment that made a deployable checkpoint, its weights and statistics loaded.

        Only where things lie, which device computes and how logits become text is taken from this command line;
        anything else that was typed would make another experiment and is refused.
        """
        config = OmegaConf.create(content["config"])
        for override in self.overrides:
            key, _, value = override.lstrip("+~").partition("=")
            if content["choices"].get(key) == value:
                continue
            if key.partition(".")[0] == "decoder":
                config.decoder = self.config.decoder
            elif key in _LOCATION_KEYS:
                OmegaConf.update(config, key, OmegaConf.select(self.config, key))
            elif key.partition(".")[0] not in ("action", "launcher", "slurm", *_OWN_KEYS):
                raise ValueError(
                    f"{override} was typed, but action={self.choices['action']} takes it from the checkpoint: leave it out "
                    f"(only {', '.join(_LOCATION_KEYS)} and decoder may be set)"
                )
        original = Experiment(config, content["choices"], self.folder)
        original.trains = False
        original.normalizer.load(content["statistics"])
        original.deployed = original.task.restore(original.network, content["network"])
        return original


def _is_in(key: str, tables: tuple[str, ...]) -> bool:
    """Whether `key` is one of the keys, or below one of them."""
    return any(key == table or key.startswith(f"{table}.") for table in tables)
