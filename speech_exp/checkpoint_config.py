"""Check a config from an untrusted file before anything is built from it.

Such a config selects registered classes and sets their numbers, texts and lists. It cannot name code to import or call,
cannot refer to anything outside itself, and cannot request absurdly large sizes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from speech_exp.config_roles import Role, evaluation_may_set, key_of, keys_of
from speech_exp.config_types import check_types
from speech_exp.registry import REGISTERED, registered_class
from speech_exp.safe_text import printable

# Keys of a group that are not arguments of its class: the composition root reads them.
OWN_KEYS = {"kd": ("run",), "model": ("bidirectional",)}
_TABLES = {"features": {"normalization", "extractor"}, "augment": {"batch", "variants", "speeds"}}
_MAY_LACK = ("decoder", "c_approach", "kd", "action")
_PLAIN = ("recipe", "sizes", "seed", "dry_run", "resume", "cache_dir", "study")  # never built
_NOT_READ = ("launcher", "slurm")  # how a job was started, not what it computes
_DEEPEST, _LONGEST_TEXT, _LARGEST_NUMBER = 8, 10_000, 2**40
_KEY = re.compile(r"[A-Za-z]\w*(-\w+)*")
# Numbers that determine how much is computed or allocated before any weight is read.
_LARGEST = dict.fromkeys(("n_mels", "n_mfcc", "delta_window", "order", "workers", "digits", "evaluation_passes"), 2**10)
_LARGEST |= dict.fromkeys(("window_s", "hop_s", "pause_s", "edge_s"), 60)
_LARGEST |= {"sample_rate_hz": 2**20, "n_fft": 2**14, "beam": 2**14, "theta": 2**12, "attention_window": 2**20}


def check_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of `config` that defines a model; raise a one-sentence ValueError if it cannot be trusted."""
    read = {key: value for key, value in config.items() if key not in _NOT_READ}
    _check_plain(read, "", 0)
    groups = {node.partition(".")[0] for node in REGISTERED}
    if unknown := sorted(read.keys() - groups - set(_PLAIN)):
        raise ValueError(f"{unknown[0]} is not a key of a model's config")
    if missing := sorted(groups - read.keys() - set(_MAY_LACK)):
        raise ValueError(f"{missing[0]} is missing")
    for key, value in _numbers(read, ""):
        name = key.rpartition(".")[2]
        if not abs(value) <= _LARGEST.get(name, _LARGEST_NUMBER):
            raise ValueError(f"{key}={printable(value, 60)}: expected at most {_LARGEST.get(name, _LARGEST_NUMBER):,}")
    for group, fields in _TABLES.items():
        if not isinstance(read[group], dict) or read[group].keys() != fields:
            raise ValueError(f"{group} has keys other than {', '.join(sorted(fields))}")
    for node in REGISTERED:
        _check_node(node, read)
    return read


def check_sizes(config: Mapping[str, Any], tensor_sizes: Sequence[int]) -> int:
    """Refuse layers too large for the file's tensors before building them; return how many numbers the file contains."""
    tensors, numbers = len(tensor_sizes), sum(tensor_sizes)
    for group in ("encoder", "model"):
        for key, value in config[group].items():
            most = tensors if key == "num_layers" else math.isqrt(numbers) if key == "order" else numbers
            if type(value) is int and value > most and key != "attention_window":
                raise ValueError(
                    f"{group}.{key}={value}, but the file contains {numbers:,} numbers in {tensors:,} tensors"
                )
    return numbers


def _check_node(node: str, config: Mapping[str, Any]) -> None:
    """Check that the node names a registered class with fitting arguments; null and missing nodes are left to their owner."""
    group, _, part = node.partition(".")
    found = config.get(group)
    if part:
        found = found.get(part) if isinstance(found, dict) else None
    if found in (None, {}) and (part or group in _MAY_LACK):
        return
    if not isinstance(found, dict) or "_target_" not in found:
        raise ValueError(f"{node} names no class")
    left = OWN_KEYS.get(node, ())
    if node == "model" and found.get("hidden_size", 0) is None:  # the task solves for it
        left = (*left, "hidden_size")
    if group != "action":
        check_types(node, {key: value for key, value in found.items() if key not in left})


def _check_plain(value: Any, key: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"{key} is nested more than {_DEEPEST} tables deep")
    if isinstance(value, dict):
        for name, item in value.items():
            below = f"{key}.{printable(name, 60)}".lstrip(".")
            if name == "_target_":
                registered_class(key, item)
            elif not (isinstance(name, str) and _KEY.fullmatch(name)):
                raise ValueError(f"{below} is not a key of a config")
            _check_plain(item, below, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, key, depth + 1)
    elif isinstance(value, str):
        if "${" in value or value == "???" or len(value) > _LONGEST_TEXT:
            raise ValueError(f"{key}={printable(value, 60)}: expected a plain text")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key}={value}: expected a finite number")
    elif value is not None and type(value) not in (bool, int, float):
        raise ValueError(f"{key} is a {type(value).__name__}, expected a plain value")


def _numbers(value: Any, key: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _numbers(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, key)
    elif type(value) in (int, float):
        yield key, value


def keys_taken(
    overrides: Iterable[str], action: str, action_keys: Container[str], choices: Mapping[str, str]
) -> set[str]:
    """Return the keys of a trained model that the overrides typed on the command line replace.

    Keys that belong to the action (`action_keys`) are ignored, and so are `choices` that the model was already trained with. A key
    that would make it a different experiment raises a ValueError.
    """
    taken = set()
    for override in overrides:
        key = key_of(override)
        if key in action_keys or choices.get(key) == override.partition("=")[2]:
            continue
        if not evaluation_may_set(key):
            raise ValueError(
                f"{override} cannot be set here, because action={action} takes it from the checkpoint: leave it out "
                f"(only {', '.join(keys_of(Role.USE))} and what changes no result may be set)"
            )
        taken.add("decoder" if key.partition(".")[0] == "decoder" else key)
    return taken
