"""`run.py` in a process that is killed at a chosen file operation, so that a test always hits its moment.

    python killed_run.py EVENT PATTERN [OVERRIDE ...]

EVENT is Python's audit event, at which it kills itself (SIGKILL): `open`, or `os.rename` once the file is whole beside its
place; at `write` the system kills it (SIGXFSZ) after `HALF_BYTES` of the file; `terminate` is `os.rename` with a SIGTERM. At
`fill` it lives, but from the file on it can write no file, as on a full disk. PATTERN is that of the path. With the name of a
signal as EVENT it gets that signal in step PATTERN of a phase of training.
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
audited = {"write": "open", "fill": "open", "terminate": "os.rename"}.get(awaited, awaited)


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if event != audited:
        return
    if not fnmatch(str(arguments[event == "os.rename"]), pattern):
        return
    if awaited == "fill":
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))  # Python ignores the signal of it
    elif awaited == "write":
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores
        resource.setrlimit(resource.RLIMIT_FSIZE, (HALF_BYTES, HALF_BYTES))
    else:
        os.kill(os.getpid(), signal.SIGTERM if awaited == "terminate" else signal.SIGKILL)


def signal_in_step() -> None:
    from speech_exp.training.optimization import Optimization

    step = Optimization.step

    def watched(optimization, *arguments):
        if optimization.steps_done + 1 == int(pattern):
            os.kill(os.getpid(), signal.Signals[awaited])
        return step(optimization, *arguments)

    Optimization.step = watched


run = Path(__file__).parents[1] / "run.py"
sys.argv = [str(run), *overrides]
sys.path.insert(0, str(run.parent))
if awaited.startswith("SIG"):
    signal_in_step()
else:
    sys.addaudithook(watch)
runpy.run_path(str(run), run_name="__main__")
