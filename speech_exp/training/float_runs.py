"""Trained float runs that another run starts from or learns from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speech_exp.objectives.objective import Network
from speech_exp.training.checkpoint import load_deployable

FLOAT_TASKS = ("A", "B1")
# What must be the same in both runs, apart from the keys that change neither the data nor the topology.
_SAME = {
    "dataset": ("root", "prepared", "workers", "password", "host", "storage"),
    "features": (),
    "encoder": ("checkpoint_activations",),
    "model": ("hidden_size", "algorithm"),
    "objective": ("dropout", "label_smoothing", "select_by"),
}


def load_float_run(key: str, place: str, config: Mapping[str, Any], network: Network) -> None:
    """Load into `network` the weights of a float run of the same data and topology.

    Args:
        key: config key that named the run, for errors.
        place: run folder or deployable checkpoint.
        config: resolved config of the run that asks; of other data the found model could have heard the test set.
    """
    content = load_deployable(best_of_run(key, place), key)
    task = content["choices"]["task"]
    if task not in FLOAT_TASKS:
        raise ValueError(
            f"{key}={place} is a run of task {task}: expected one of {', '.join(FLOAT_TASKS)}, change {key}"
        )
    for name, free in _SAME.items():
        if name == "dataset" and config["dataset"].get("split") != "random":
            free = (*free, "split_seed")
        own, other = _flat(config[name], free), _flat(content["config"][name], free)
        differing = sorted(at for at in own.keys() | other.keys() if own.get(at) != other.get(at))
        if differing:
            at = differing[0]
            raise ValueError(
                f"{key}={place} was trained with {name}.{at}={other.get(at)}, this run has {own.get(at)}: they must agree, "
                f"change {key} or {name}.{at}"
            )
    shapes = {at: tuple(tensor.shape) for at, tensor in network.state_dict().items()}
    found = {at: tuple(tensor.shape) for at, tensor in content["network"].items()}
    if shapes != found:
        at = next(at for at in shapes if shapes[at] != found.get(at))
        raise ValueError(
            f"{key}={place} holds {at} of shape {found.get(at)}, this run's is {shapes[at]}: train both with the same "
            f"model.hidden_size, or change {key}"
        )
    network.load_state_dict(content["network"])


def best_of_run(key: str, place: str) -> str:
    """The deployable checkpoint of a run folder; a file is taken as it is."""
    folder = Path(place)
    if not folder.is_dir():
        return place
    found = sorted((folder / "checkpoints").glob("checkpoint_epoch_*_best.pt"))
    if len(found) != 1:
        raise ValueError(
            f"{key}={place} has {len(found)} files checkpoints/checkpoint_epoch_N_best.pt, expected one: is the run finished? "
            f"Change {key}"
        )
    return str(found[0])


def _flat(node: Mapping[str, Any], leave: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, (), f"{prefix}{name}.")
        elif name not in leave:
            flat[f"{prefix}{name}"] = value
    return flat
