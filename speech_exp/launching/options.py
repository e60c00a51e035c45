"""The SLURM options of a run, named as in `conf/launcher/slurm.yaml`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech_exp.bounds import NonNegativeInt, PositiveFloat, PositiveInt
from speech_exp.config_types import check_types

_PROJECT = Path(__file__).parents[2]
_OPTION = re.compile(r"--[a-z0-9-]+(=.*)?", re.DOTALL)
QUOTES = ("'", '"', "`", "\\")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class SlurmOptions:
    """The keys under `slurm`; the config file explains their meanings and units."""

    partition: str | None
    account: str | None
    qos: str | None
    nodes: PositiveInt
    gpus_per_node: NonNegativeInt
    tasks_per_node: PositiveInt | None
    cpus_per_task: PositiveInt
    memory_gb: PositiveFloat | None
    time_min: PositiveInt
    exclusive: bool
    array_parallelism: PositiveInt
    max_num_timeout: NonNegativeInt
    signal_delay_s: NonNegativeInt
    sbatch: list[str]
    srun: list[str]
    setup: list[str]
    environment: dict[str, str]
    python: str | None

    def __post_init__(self) -> None:
        if self.signal_delay_s >= self.time_min * 60:
            raise ValueError(
                f"slurm.signal_delay_s={self.signal_delay_s}: expected less than the time limit, slurm.time_min={self.time_min} "
                f"minutes, change slurm.signal_delay_s"
            )
        for option in (*self.sbatch, *self.srun):
            if not _OPTION.fullmatch(option):
                raise ValueError(
                    f"{option!r} under slurm.sbatch or slurm.srun: expected an option like --constraint=a100, change it"
                )
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"slurm.environment has {name!r}: expected the name of a variable, change it")
        for key, text, refused in self._texts():
            check_text(key, text, refused)

    def _texts(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Yield each text that goes into the batch script: its key, the text, and what would break out of its quotes."""
        for key in ("partition", "account", "qos"):
            yield f"slurm.{key}", getattr(self, key) or "", QUOTES
        for option in self.sbatch:
            yield "slurm.sbatch", option, QUOTES
        for name, value in self.environment.items():
            yield f"slurm.environment.{name}", value, ('"', "`", "\\", "$(")
        for key, texts in (("srun", self.srun), ("setup", self.setup), ("python", [self.python or ""])):
            for text in texts:  # submitit quotes these, or they are meant for the shell
                yield f"slurm.{key}", text, ()

    def parameters(self) -> dict[str, Any]:
        """Return the options under the names that submitit's `SlurmExecutor.update_parameters` uses."""
        return {
            "job_name": "speech_exp",
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "nodes": self.nodes,
            "ntasks_per_node": self.tasks_per_node or max(1, self.gpus_per_node),
            "gpus_per_node": self.gpus_per_node or None,
            "cpus_per_task": self.cpus_per_task,
            "mem": f"{round(self.memory_gb * 1024)}M" if self.memory_gb else None,
            "time": self.time_min,
            "exclusive": self.exclusive or None,
            "array_parallelism": self.array_parallelism,
            "signal_delay_s": self.signal_delay_s,
            "additional_parameters": {"requeue": True, **dict(map(_name_and_value, self.sbatch))},
            "srun_args": [
                f"--cpus-per-task={self.cpus_per_task}",  # only some versions of srun inherit it from sbatch
                "--kill-on-bad-exit=1",  # a failing task ends the others, which would otherwise wait for it
                *self.srun,
            ],
            "setup": [
                *self.setup,
                f"export PYTHONPATH={shlex.quote(str(_PROJECT))}${{PYTHONPATH:+:$PYTHONPATH}}",
                *(f'export {name}="{value}"' for name, value in self.environment.items()),
            ],
        }


def check_text(key: str, text: str, refused: tuple[str, ...]) -> None:
    """Raise ValueError for a text that would be more than one value in a batch script."""
    if bad := next((part for part in ("\n", "\r", *refused) if part in text), None):
        raise ValueError(f"{key}={text!r} contains {bad!r}, which a batch script cannot contain: change {key}")


def read_options(node: Mapping[str, Any]) -> SlurmOptions:
    """Build the options from the config node `slurm`, checking their types."""
    check_types("slurm", node)
    return SlurmOptions(**{key: value for key, value in node.items() if key != "_target_"})


def _name_and_value(option: str) -> tuple[str, str | bool]:
    """Split `--name=value` into name and value; the value of a bare option is True."""
    name, _, value = option.removeprefix("--").partition("=")
    return name, value or True
