"""`run.py` in a process that dies for real at a file operation, so that a test hits its moment always.

    python killed_run.py EVENT PATTERN [OVERRIDE ...]

EVENT is Python's audit event, at which it kills itself (SIGKILL): `open`, or `os.rename` once the file is whole beside its
place; at `write` the system kills it (SIGXFSZ) after `HALF_BYTES` of the file. PATTERN is that of the path.
"""

import os
import resource
import runpy
import signal
import sys
from fnmatch import fnmatch
from pathlib import Path

HALF_BYTES = 4096
_, awaited, pattern, *overrides = sys.argv


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if event != ("open" if awaited == "write" else awaited):
        return
    if not fnmatch(str(arguments[event == "os.rename"]), pattern):
        return
    if awaited == "write":
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores
        resource.setrlimit(resource.RLIMIT_FSIZE, (HALF_BYTES, HALF_BYTES))
    else:
        os.kill(os.getpid(), signal.SIGKILL)


run = Path(__file__).parents[1] / "run.py"
sys.argv = [str(run), *overrides]
sys.path.insert(0, str(run.parent))
sys.addaudithook(watch)
runpy.run_path(str(run), run_name="__main__")
