"""What a run asks of SLURM, in the words of `conf/launcher/slurm.yaml`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech_exp.config_types import check_types

_PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class SlurmOptions:
    """The keys under `slurm`; their units and meanings stand beside them in the config."""

    partition: str | None
    account: str | None
    qos: str | None
    nodes: int
    gpus_per_node: int
    tasks_per_node: int | None
    cpus_per_task: int
    memory_gb: float | None
    time_min: int
    exclusive: bool
    array_parallelism: int
    max_num_timeout: int
    signal_delay_s: int
    sbatch: list[str]
    srun: list[str]
    setup: list[str]
    environment: dict[str, str]
    python: str | None

    def __post_init__(self) -> None:
        for key in ("nodes", "tasks_per_node", "cpus_per_task", "memory_gb", "time_min", "array_parallelism"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ValueError(f"slurm.{key}={value}: expected more than 0, change slurm.{key}")
        for key in ("gpus_per_node", "max_num_timeout", "signal_delay_s"):
            if getattr(self, key) < 0:
                raise ValueError(f"slurm.{key}={getattr(self, key)}: expected at least 0, change slurm.{key}")
        for option in (*self.sbatch, *self.srun):
            if not option.startswith("--"):
                raise ValueError(
                    f"'{option}' under slurm.sbatch or slurm.srun: expected an option like --constraint=a100, change it"
                )

    def parameters(self) -> dict[str, Any]:
        """In the names of submitit's `SlurmExecutor.update_parameters`."""
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
                f"--cpus-per-task={self.cpus_per_task}",  # srun takes it from sbatch in some versions only
                "--kill-on-bad-exit=1",  # a failing task ends the others, which would wait for it
                *self.srun,
            ],
            "setup": [
                *self.setup,
                f"export PYTHONPATH={shlex.quote(str(_PROJECT))}${{PYTHONPATH:+:$PYTHONPATH}}",
                *(f'export {name}="{value}"' for name, value in self.environment.items()),
            ],
        }


def read_options(node: Mapping[str, Any]) -> SlurmOptions:
    """From the config node `slurm`."""
    check_types("slurm", node)
    return SlurmOptions(**{key: value for key, value in node.items() if key != "_target_"})


def _name_and_value(option: str) -> tuple[str, str | bool]:
    """`--name=value` in two; True is the value of an option without one."""
    name, _, value = option.removeprefix("--").partition("=")
    return name, value or True
