"""From Hydra's command line to the action that it names, and errors in a form for users."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from omegaconf import DictConfig, read_write
from omegaconf.errors import OmegaConfBaseException

from speech_exp import ranks
from speech_exp.experiment import Experiment, started
from speech_exp.password import without_password

# Hydra finds launchers in packages of the name hydra_plugins, wherever they lie on the path.
sys.path.append(str(Path(__file__).parent / "launching" / "plugins"))

# Hydra's options for processes that only help another one to train.
_SILENT = [
    *("hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null"),
    *("~hydra.callbacks.record", "~hydra.callbacks.comparison"),
]
_GRACE_S = 10


class UserError(CompactHydraException):
    """What the user can mend; Hydra prints it as one line and exits with status 1."""


def end_soon() -> None:
    """Leave out Python's last collections at the end of this process: through all that torch made they take a second."""
    atexit.register(gc.freeze)


def start(main: Callable[[], None]) -> None:
    """Carry out Hydra's `main`; of several processes that train together the first alone logs and prints."""
    sys.argv[1:] = without_password(sys.argv[1:], os.environ)
    end_soon()
    started()  # before one of them can fail, so that no other waits for it there
    if ranks.number():
        typed = next((at for at, one in enumerate(sys.argv) if at and "=" in one), len(sys.argv))
        sys.argv[typed:typed] = _SILENT  # Hydra takes all overrides in one piece
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (until the process ends)
    try:
        main()
    except SystemExit as end:
        if end.code and sys.stderr is not sys.__stderr__:
            time.sleep(_GRACE_S)  # the first process meets the same error, but the end of this one would end it untold
        raise


def silence(launcher: Any) -> None:
    """As `start` does, of a task of a job, for which submitit's launcher composes the config."""
    with read_write(launcher.config.hydra):
        launcher.config.hydra.overrides.hydra.extend(_SILENT)
    launcher.hydra_context.callbacks = Callbacks()


def run(config: DictConfig) -> float | None:
    """Carry out the config's action; its return value is what a sweep's optimiser reads."""
    silent = sys.stderr
    if ranks.number():
        sys.stderr = sys.__stderr__  # for an error that this process alone meets
    with ranks.together():
        found = _run(config)
    sys.stderr = silent
    return found


def _run(config: DictConfig) -> float | None:
    try:
        hydra_config = HydraConfig.get()
        choices = {
            group: str(choice) for group, choice in hydra_config.runtime.choices.items() if "hydra/" not in group
        }
        experiment = Experiment(config, choices, Path(hydra_config.runtime.output_dir))
        experiment.overrides = tuple(hydra_config.overrides.task)
        _check_processes(choices["action"])
        with interruptible():
            return experiment.build("action")(experiment)
    except (ValueError, OmegaConfBaseException) as error:
        raise _for_user(error) from error
    except KeyboardInterrupt:
        print("stopped by the user; what was done is in the run folder", file=sys.stderr)
        raise SystemExit(130) from None


def _check_processes(action: str) -> None:
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if ranks.count() > 1 and action != "train":
        raise ValueError(
            f"{ranks.count()} processes were started, but action={action} takes one: start it without torchrun"
        )
    if ranks.count() == 1 and tasks > 1:
        raise ValueError(
            f"srun started {tasks} processes that know nothing of each other: use launcher=slurm slurm.tasks_per_node={tasks}, "
            f"torchrun, or srun --ntasks=1"
        )


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends what is done here even where its exception is lost, as any that is raised while an object is deleted."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # a process in the background does not listen to the terminal
        yield
        return
    received = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        raise KeyboardInterrupt


def _for_user(error: Exception) -> Exception:
    """`error` as a `UserError` where this project raised it, for its text then speaks to the user; else itself."""
    cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
    trace = cause.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_here = trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("speech_exp")
    return UserError(f"error: {cause}") if raised_here or isinstance(cause, OmegaConfBaseException) else error
