"""The functions that files of conf/ call: `${started:%H-%M}`, `${sweep_subdir:...}`, `${speakers:...}`."""

from __future__ import annotations

from datetime import datetime
from functools import cache

from omegaconf import OmegaConf

from speech_exp import ranks
from speech_exp.folder_names import sweep_subdir


@cache
def started() -> datetime:
    """Return the start time, the same on all ranks; at the first call they wait for each other."""
    return ranks.broadcast_object(datetime.now)


def speakers(name: str, bundled: bool, root: str | None, folder: str) -> str:
    """Return the speakers of a digit data set in the form of a sweep: `george,jackson`."""
    from speech_exp.data.digits import speakers_of

    return ",".join(speakers_of(name, bundled, root, folder))


def register_resolvers() -> None:
    """Make the functions known to OmegaConf, before any config of conf/ is resolved."""
    OmegaConf.register_new_resolver("sweep_subdir", sweep_subdir, replace=True)
    OmegaConf.register_new_resolver("started", lambda form: started().strftime(form), replace=True)
    OmegaConf.register_new_resolver("speakers", speakers, use_cache=True, replace=True)
