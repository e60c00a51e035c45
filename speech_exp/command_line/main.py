"""Run the action that Hydra's command line selects, and report errors in a form for users."""

from __future__ import annotations

import atexit
import errno
import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import FrameType
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException, InstantiationException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from speech_exp import __version__, ranks
from speech_exp.command_line.composition_errors import one_sentence, plain_text, unknown_flag, wrong_choice
from speech_exp.command_line.credentials import without_secrets
from speech_exp.command_line.help_text import help_text
from speech_exp.experiment import Experiment
from speech_exp.files import reason
from speech_exp.resolvers import started

# Hydra finds launchers in packages named hydra_plugins anywhere on the path.
sys.path.append(str(Path(__file__).parents[1] / "launching" / "plugins"))

# Hydra options for every rank except rank 0, which alone logs and keeps records.
_SILENT = [
    *("hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null"),
    *("~hydra.callbacks.record", "~hydra.callbacks.comparison"),
]
_SWEEP = ("-m", "--multirun")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG)
_FULL_ERROR = "HYDRA_FULL_ERROR"
_INTERRUPTED = 130  # exit status after Ctrl-C


class UserError(CompactHydraException):
    """An error that the user can correct; Hydra prints it as one line and exits with status 1."""


class LateFolder(Callback):
    """Callback that delays creating the run folder until it is needed; Hydra would do it before the command is validated."""

    place = Path()  # the run folder
    sweep: Path | None = None  # the sweep folder
    one_line = False  # whether a user error ends this process with a single line

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        HydraConfig.instance().set_config(config)  # for ${hydra:...}, which Hydra itself resolves only inside jobs
        LateFolder.place = _named("hydra.run.dir", config.hydra.run.dir)
        with read_write(config.hydra):
            config.hydra.run.dir = "."

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        HydraConfig.instance().set_config(config)
        LateFolder.sweep = _named("hydra.sweep.dir", config.hydra.sweep.dir)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """End this process if the run failed with a user error (Hydra would print more) or ends the other ranks too.

        Hydra would start the next run of a sweep without them.
        """
        if job_return.status is not JobStatus.FAILED:
            return
        error = job_return._return_value
        for_user = isinstance(error, UserError) and LateFolder.one_line
        several_ranks = ranks.world_size() > 1 and "slurm" not in config
        if several_ranks or (for_user and OmegaConf.is_missing(config.hydra.job, "num")):
            raise SystemExit(str(error) if for_user else "".join(traceback.format_exception(error))) from error


def _named(key: str, folder: str) -> Path:
    """Return a folder that a key names; an empty name would mean the current folder. Hydra only warns of other exceptions."""
    if not folder.strip():
        raise SystemExit(f"error: {key} is empty: expected the name of a folder, change {key}")
    return Path(folder).absolute()


def skip_final_gc() -> None:
    """Skip Python's final garbage collections in this process: with all of torch's objects they take about a second."""
    atexit.register(gc.freeze)


def wait_passively() -> None:
    """Let torch's CPU threads sleep while they wait for each other; it must be called before torch is imported.

    By default they spin. Beside another process on the same cores, two threads then took seven times as long as one.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def start(main: Callable[[], None]) -> None:
    """Run Hydra's `main`; when several ranks train together, only rank 0 logs and prints."""
    wait_passively()
    LateFolder.one_line = os.environ.get(_FULL_ERROR) != "1"
    if "--version" in sys.argv:
        print(f"speech_exp {__version__}")
        return
    sweeps = [one for one in sys.argv[1:] if one in _SWEEP]  # argparse accepts no flag between overrides
    sys.argv[1:] = sweeps + [one for one in without_secrets(sys.argv[1:], os.environ) if one not in _SWEEP]
    if {"--help", "-h"} & set(sys.argv):
        with _one_line():
            _refuse_wrong_words()
            print(help_text([one for one in sys.argv[1:] if "=" in one]))
        return
    os.environ[_FULL_ERROR] = "1"  # Hydra raises its errors instead of printing them
    skip_final_gc()
    started()  # before any rank can fail, because the ranks wait for each other here
    if ranks.rank():
        typed = next((at for at, one in enumerate(sys.argv) if at and "=" in one), len(sys.argv))
        sys.argv[typed:typed] = _SILENT  # Hydra expects all overrides in one block
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (until the process ends)
    with ranks.fail_together(), _one_line():
        _refuse_wrong_words()
        main()


def _refuse_wrong_words() -> None:
    if wrong := unknown_flag(sys.argv[1:]) or wrong_choice(sys.argv[1:]):
        raise UserError(f"error: {wrong}")


@contextmanager
def _one_line() -> Iterator[None]:
    """End this process with one line if the user interrupted it or Hydra refused the command."""
    try:
        yield
    except CompactHydraException as error:
        if isinstance(error, InstantiationException) or not LateFolder.one_line:
            raise
        raise SystemExit(
            str(error) if isinstance(error, UserError) else f"error: {one_sentence(error, sys.argv[1:])}"
        ) from error
    except InterpolationResolutionError as error:
        if not LateFolder.one_line:
            raise
        raise SystemExit(f"error: {plain_text(error)}") from error
    except KeyboardInterrupt:  # before a run, or between the runs of a sweep
        _stopped(LateFolder.sweep, "hydra.sweep.dir")
        raise SystemExit(_INTERRUPTED) from None
    except BrokenPipeError:  # the reader of our output has ended, as in `run.py --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more when it ends
        raise SystemExit(1) from None


def silence(launcher: Any) -> None:
    """Do the same as `start` for a task of a SLURM job, whose config submitit's launcher composes."""
    with read_write(launcher.config.hydra):
        launcher.config.hydra.overrides.hydra.extend(_SILENT)
    launcher.hydra_context.callbacks = Callbacks()


def run(config: DictConfig) -> float | None:
    """Run the action of the config; a sweep's optimiser reads the return value."""
    # Ranks other than 0 are silent, except for warnings about what only they do.
    with redirect_stderr(sys.__stderr__ if ranks.rank() else sys.stderr):
        return _run(config)


def _run(config: DictConfig) -> float | None:
    hydra_config = HydraConfig.get()
    choices = {group: str(choice) for group, choice in hydra_config.runtime.choices.items() if "hydra/" not in group}
    if OmegaConf.is_missing(hydra_config.job, "num"):  # only jobs of a sweep are numbered
        key, place = "hydra.run.dir", LateFolder.place
        folder = place
    else:
        key, place = "hydra.sweep.dir", Path(hydra_config.sweep.dir)
        folder = Path(hydra_config.runtime.output_dir)
    try:
        _end_by_exception()
        experiment = Experiment(config, choices, folder)
        typed = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)  # ${oc.env:...} may be a secret
        assert isinstance(typed, list)
        experiment.overrides = tuple(map(str, typed))
        _check_processes(choices["action"])
        with interruptible():
            return experiment.build("action")(experiment)
    except (ValueError, OmegaConfBaseException) as error:
        raise _for_user(error) from error
    except OSError as error:
        if error.errno in _DISK_FULL:
            advice = "free space there, or set hydra.run.dir to a folder on another disk"
        elif str(error.filename or "").startswith(str(place)) and (error.errno in _REFUSED or not place.exists()):
            advice = f"set {key} to a folder that can be written"
        else:
            raise
        raise UserError(
            f"error: {error.filename or 'a file of the run'} could not be written ({reason(error)}): {advice}"
        ) from error
    except KeyboardInterrupt:
        _stopped(place, key)
        raise SystemExit(_INTERRUPTED) from None


def _stopped(place: Path | None, key: str) -> None:
    """Say that Ctrl-C ended this process, which folder it leaves, and the command that resumes."""
    from speech_exp.sweeps.record import rerun_command

    if ranks.rank():  # Ctrl-C reaches every rank
        return
    advice = ""
    if place is not None and place.exists():
        command = rerun_command(["python", *sys.argv], place, key)
        advice = f"; {place} contains the progress so far, resume with: {command}"
    print(f"stopped by the user{advice}", file=sys.stderr)
    atexit.register(logging.disable)  # torch logs when Python ends if its import was interrupted


def _check_processes(action: str) -> None:
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if ranks.world_size() > 1 and action != "train":
        raise ValueError(
            f"{ranks.world_size()} processes were started, but action={action} takes one: start it without torchrun"
        )
    if ranks.world_size() == 1 and tasks > 1:
        raise ValueError(
            f"srun started {tasks} processes that know nothing of each other: use launcher=slurm slurm.tasks_per_node={tasks}, "
            f"torchrun, or srun --ntasks=1"
        )


def _end_by_exception() -> None:
    """Make SIGTERM raise SystemExit so that the run's record says what ended it; by default the process just ends.

    An existing handler, such as submitit's, stays in place. With several ranks only rank 0 writes the record.
    """
    if ranks.rank() == 0 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit_by)


def _exit_by(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def interruptible() -> Iterator[None]:
    """Make Ctrl-C end this context even if its exception is lost, for example while an object is being deleted."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # a background process ignores the terminal's Ctrl-C
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
    """Return `error` as a `UserError` if this project raised it, because its text is then written for users; else unchanged."""
    cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
    trace = cause.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_here = trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("speech_exp")
    return (
        UserError(f"error: {plain_text(cause)}") if raised_here or isinstance(cause, OmegaConfBaseException) else error
    )
