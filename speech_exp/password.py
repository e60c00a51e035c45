"""A password that was typed on the command line is kept out of every record."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

_KEY = "dataset.password"
VARIABLE = "GIGASPEECH_PASSWORD"  # where the data set's config looks for it


def without_password(arguments: Sequence[str], environment: MutableMapping[str, str]) -> list[str]:
    """The arguments but for a typed `dataset.password`, which is moved to the environment.

    Hydra's files, run.json, sweep.json and the names of a sweep's folders repeat what was typed.
    """
    kept = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key.lstrip("+") != _KEY or value == "null":  # null asks for no download, whatever the environment holds
            kept.append(argument)
            continue
        quoted = len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]
        environment[VARIABLE] = value[1:-1] if quoted else value
    return kept
