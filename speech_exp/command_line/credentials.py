"""Keep passwords, and URIs that contain one, out of every record."""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from speech_exp.config_roles import Role, key_of, role
from speech_exp.config_types import flat
from speech_exp.safe_text import without_credentials

PASSWORD = "GIGASPEECH_PASSWORD"  # the data set's config reads dataset.password from it
_URI = "MLFLOW_TRACKING_URI"


def without_secrets(arguments: Sequence[str], environment: MutableMapping[str, str]) -> list[str]:
    """Return the command line without its secrets, which are moved to the environment.

    Hydra's files, run.json, sweep.json and the folder names of a sweep repeat what was typed. The system's process list has
    already shown the secret, so the user is warned.
    """
    kept = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        quoted = len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]
        plain = value[1:-1] if quoted else value
        # null is not a secret: it turns the download off even if the environment contains a password
        if role(key_of(argument)) is Role.SECRET and value != "null":
            environment[PASSWORD] = plain
            _warn(key, PASSWORD, "leave the key out")
        elif key_of(argument) == "trainer.mlflow" and without_credentials(value) != value:
            environment[_URI] = plain
            kept.append(f"{key}=${{oc.env:{_URI}}}")
            _warn(key, _URI, f"type {key}='${{oc.env:{_URI}}}'")
        else:
            kept.append(argument)
    return kept


def refuse_written_secrets(config: Mapping[str, Any]) -> None:
    """Raise a ValueError if a config file itself contains a password, because Hydra would copy it into multirun.yaml.

    Args:
        config: composed config with unresolved interpolations.
    """
    for key, value in flat(config).items():
        is_secret = role(key) is Role.SECRET and value is not None and not str(value).startswith("${")
        if is_secret or (key == "trainer.mlflow" and without_credentials(str(value)) != str(value)):
            variable = PASSWORD if is_secret else _URI
            raise ValueError(
                f"{key} contains a password in a file of conf/: set {variable} in the environment and {key} to ${{oc.env:{variable}}}"
            )


def _warn(key: str, variable: str, instead: str) -> None:
    print(
        f"warning: every user of this machine can read {key} in the list of processes: set {variable} in the environment "
        f"and {instead}",
        file=sys.stderr,
    )
