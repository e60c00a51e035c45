"""Hydra callback: when the last run of a sweep ends, compare all of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

_log = logging.getLogger(__name__)


class CompareSweep(Callback):
    """Writes the comparison into the sweep folder; what goes wrong in it is logged and never fails the sweep."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if "study_name" in config.hydra.sweeper:
            return  # a search chooses by validation: test results of its trials side by side would tempt to choose by them
        folder = Path(config.hydra.sweep.dir)
        try:
            from speech_exp.reporting.comparison import compare, find_runs

            runs = find_runs(folder)
            if sum(run.results is not None for run in runs) < 2:
                return  # nothing to compare: launcher=slurm makes a sweep of a single run, too
            comparison = compare(runs, folder)
            print(comparison.markdown.partition("\n![")[0])  # the first table; figures and details are in the file
            print(f"the whole comparison: {folder / 'comparison.md'}")
        except Exception:
            _log.exception(
                "the comparison of %s could not be made; action=compare runs=%s makes it again", folder, folder
            )
