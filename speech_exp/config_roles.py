"""One table of what each config key affects: whether it can change a result, and how.

The config hash, the folder names of sweeps, the groups of a comparison, the keys that action=evaluate may set and the keys
that a float run must share with the run that starts from it are all derived from this table. A key not listed changes results.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

from speech_exp.config_types import flat


class Role(Enum):
    # These change results.
    RESULT = auto()  # the data or the network; the default for keys that are not in the table
    FOLD = auto()  # which part of the data is held out
    REPETITION = auto()  # which repetition of a setting, such as a seed
    TRAINING = auto()  # how the network is trained
    USE = auto()  # also how a trained network is used, so an evaluation may choose it again
    # These do not.
    PLACE = auto()  # where files are, and where and with how many processes the work is done
    SHOWN = auto()  # what is done, shown or kept besides the result
    SECRET = auto()


# An entry also covers the keys below it, except those with an entry of their own.
ROLES = {
    "seed": Role.REPETITION,
    "recipe": Role.TRAINING,
    "dry_run": Role.SHOWN,
    "resume": Role.SHOWN,
    "cache_dir": Role.PLACE,
    "dataset.root": Role.PLACE,
    "dataset.prepared": Role.PLACE,
    "dataset.host": Role.PLACE,
    "dataset.workers": Role.PLACE,
    "dataset.max_dropped_share": Role.SHOWN,  # it can only end a run, not change its result
    "dataset.password": Role.SECRET,
    "dataset.storage": Role.TRAINING,  # the same recordings, stored with a different rounding
    "dataset.split_seed": Role.FOLD,
    "dataset.test_speaker": Role.FOLD,
    "dataset.validation_speaker": Role.FOLD,
    "augment": Role.TRAINING,
    "encoder.checkpoint_activations": Role.TRAINING,
    "sizes": Role.TRAINING,  # the sizes that the model uses also appear in its own keys
    "model.algorithm": Role.TRAINING,
    "objective.dropout": Role.TRAINING,
    "objective.label_smoothing": Role.TRAINING,
    "objective.select_by": Role.TRAINING,
    "decoder": Role.USE,
    "task": Role.TRAINING,
    "task.float_checkpoint": Role.REPETITION,  # each seed starts from its own float run
    "c_approach": Role.TRAINING,
    "kd": Role.TRAINING,
    "kd.run": Role.REPETITION,
    "trainer": Role.TRAINING,
    "trainer.device": Role.USE,
    "trainer.tensorboard": Role.SHOWN,
    "trainer.mlflow": Role.SHOWN,
    "trainer.wandb": Role.SHOWN,
    "trainer.checkpoint_every_s": Role.SHOWN,
    "trainer.watchdog_s": Role.SHOWN,
    "trainer.keep": Role.SHOWN,
    "trainer.threads": Role.PLACE,  # results may differ in their last bits, as between machines
    "action": Role.SHOWN,
    "runs": Role.PLACE,
    "output": Role.PLACE,
    "baseline": Role.SHOWN,
    "silent_after_minutes": Role.SHOWN,
    "launcher": Role.PLACE,
    "slurm": Role.PLACE,
    "study": Role.PLACE,
}


def role(key: str) -> Role:
    """Return the role of a key such as `trainer.lr`: its own entry or that of the nearest key above it."""
    while key not in ROLES and "." in key:
        key = key.rpartition(".")[0]
    return ROLES.get(key, Role.RESULT)


def changes_results(key: str) -> bool:
    return role(key) not in (Role.PLACE, Role.SHOWN, Role.SECRET)


def sets_apart(key: str) -> bool:
    """Whether runs that differ in this key have different settings, so that they are not averaged."""
    return changes_results(key) and role(key) not in (Role.FOLD, Role.REPETITION)


def evaluation_may_set(key: str) -> bool:
    """Whether the key may be set again for a trained model."""
    return role(key) is Role.USE or not changes_results(key)


def float_run_shares(key: str) -> bool:
    """Whether a float run must agree in this key with the run that starts from it or learns from it."""
    return role(key) in (Role.RESULT, Role.FOLD)


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved config as a flat table, without the keys that cannot change a result."""
    return {key: value for key, value in flat(config).items() if changes_results(key)}


def config_hash(config: Mapping[str, Any]) -> str:
    """Return the hash of the `identity`."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:16]


def keys_of(wanted: Role) -> tuple[str, ...]:
    return tuple(key for key, found in ROLES.items() if found is wanted)


def key_of(override: str) -> str:
    """Return the key of a typed override: `trainer.lr` for `++trainer.lr=0.1`."""
    return override.lstrip("+~").partition("=")[0]
