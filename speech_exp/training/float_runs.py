"""Load trained float runs that another run starts from or learns from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speech_exp.config_roles import float_run_shares
from speech_exp.config_types import flat
from speech_exp.folder_names import best_checkpoints
from speech_exp.objectives.objective import Network
from speech_exp.training.checkpoint import load_deployable

FLOAT_TASKS = ("A", "B1")


def load_float_run(key: str, place: str, config: Mapping[str, Any], fingerprint: str, network: Network) -> None:
    """Load into `network` the weights of a float run with the same data and topology.

    Args:
        key: config key that named the run, for error messages.
        place: run folder or deployable checkpoint.
        config: resolved config of the current run; a float run on a different split could have been trained on the test set.
        fingerprint: fingerprint of the current run's recordings, independent of where the files are.
    """
    content = load_deployable(best_of_run(key, place), key)
    task = content["choices"].get("task")
    if task not in FLOAT_TASKS:
        raise ValueError(
            f"{key}={place} is a run of task {task}: expected one of {', '.join(FLOAT_TASKS)}, change {key}"
        )
    current, trained = flat(config), flat(content["config"])
    # These are null if the task solves for them; the shapes are compared below.
    free = {f"model.{size}" for size in network.encoder.recurrent_layers[0].sizes()}
    if current.get("dataset.split") != "random":
        free.add("dataset.split_seed")
    for at in sorted((current.keys() | trained.keys()) - free):
        if float_run_shares(at) and current.get(at) != trained.get(at):
            raise ValueError(
                f"{key}={place} was trained with {at}={trained.get(at)}, this run has {current.get(at)}: they must agree, change "
                f"{key} or {at}"
            )
    if content["data_fingerprint"] != fingerprint:
        raise ValueError(
            f"{key}={place} was trained on different recordings (fingerprint {content['data_fingerprint'][:12]}, this run's are "
            f"{fingerprint[:12]}): change {key} or dataset.root"
        )
    shapes = {at: tuple(tensor.shape) for at, tensor in network.state_dict().items()}
    found = {at: tuple(tensor.shape) for at, tensor in content["network"].items()}
    if shapes != found:
        at = next(at for at in (*shapes, *found) if shapes.get(at) != found.get(at))
        raise ValueError(
            f"{key}={place} contains {at} of shape {found.get(at)}, this run's is {shapes.get(at)}: train both with the same "
            f"model.hidden_size, or change {key}"
        )
    network.load_state_dict(content["network"])


def best_of_run(key: str, place: str) -> str:
    """Return the deployable checkpoint of a run folder; a path to a file is returned unchanged."""
    folder = Path(place)
    if not folder.is_dir():
        return place
    found = best_checkpoints(folder)
    if len(found) != 1:
        raise ValueError(
            f"{key}={place} has {len(found)} files checkpoints/checkpoint_epoch_N_best.pt, expected one: is the run finished? "
            f"Change {key}"
        )
    return str(found[0])
