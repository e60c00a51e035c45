"""Hydra callback that compares all runs at the end of a sweep."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

_log = logging.getLogger(__name__)


class CompareSweep(Callback):
    """Writes the comparison to the sweep folder; an error in it is logged and never fails the sweep."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if "study_name" in config.hydra.sweeper:
            return  # a search selects by validation; a comparison of test results would tempt users to select by those
        folder = Path(config.hydra.sweep.dir)
        try:
            from speech_exp.comparison.compare import compare, find_runs
            from speech_exp.comparison.formats.terminal import terminal_table

            runs = find_runs(folder)
            if sum(run.results is not None for run in runs) < 2:
                return  # nothing to compare: launcher=slurm turns even a single run into a sweep
            comparison = compare(runs, folder)
            print(f"\n{terminal_table(comparison.grouping.groups, shutil.get_terminal_size().columns)}\n")
            print(f"full comparison: {folder / 'comparison.html'}")
        except Exception:
            _log.exception("the comparison of %s failed; action=compare runs=%s repeats it", folder, folder)
