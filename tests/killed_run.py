"""`run.py` in a process that kills itself for real (SIGKILL) at a file operation, so that a test hits its moment always.

    python killed_run.py EVENT PATTERN [OVERRIDE ...]

EVENT is Python's audit event: `open`, or `os.rename` once the file is whole beside its place; PATTERN that of the path.
"""

import os
import runpy
import signal
import sys
from fnmatch import fnmatch
from pathlib import Path

_, awaited, pattern, *overrides = sys.argv


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == awaited and fnmatch(str(arguments[event == "os.rename"]), pattern):
        os.kill(os.getpid(), signal.SIGKILL)


run = Path(__file__).parents[1] / "run.py"
sys.argv = [str(run), *overrides]
sys.path.insert(0, str(run.parent))
sys.addaudithook(watch)
runpy.run_path(str(run), run_name="__main__")
