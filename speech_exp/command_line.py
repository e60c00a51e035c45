"""From Hydra's command line to the action that it names, and errors in a form for users."""

from __future__ import annotations

import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from speech_exp.experiment import Experiment

# Hydra finds launchers in packages of the name hydra_plugins, wherever they lie on the path.
sys.path.append(str(Path(__file__).parent / "launching" / "plugins"))


class UserError(CompactHydraException):
    """What the user can mend; Hydra prints it as one line and exits with status 1."""


def run(config: DictConfig) -> float | None:
    """Carry out the config's action; its return value is what a sweep's optimiser reads."""
    try:
        hydra_config = HydraConfig.get()
        choices = {
            group: str(choice) for group, choice in hydra_config.runtime.choices.items() if "hydra/" not in group
        }
        experiment = Experiment(config, choices, Path(hydra_config.runtime.output_dir))
        experiment.overrides = tuple(hydra_config.overrides.task)
        return experiment.build("action")(experiment)
    except (ValueError, OmegaConfBaseException) as error:
        raise _for_user(error) from error
    except KeyboardInterrupt:
        print("stopped by the user; what was done is in the run folder", file=sys.stderr)
        raise SystemExit(130) from None


def _for_user(error: Exception) -> Exception:
    """`error` as a `UserError` where this project raised it, for its text then speaks to the user; else itself."""
    cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
    trace = cause.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_here = trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("speech_exp")
    return UserError(f"error: {cause}") if raised_here or isinstance(cause, OmegaConfBaseException) else error
