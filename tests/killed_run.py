"""`run.py` in a process that is killed at a chosen file operation, so that a test always hits its moment.

    python killed_run.py EVENT PATTERN [OVERRIDE ...]

PATTERN matches the path of the file; EVENT is what happens at that file:

- `open` or `os.rename`: the process kills itself (SIGKILL) at this audit event; at `os.rename` the temporary file is complete.
- `terminate`: like `os.rename`, but with SIGTERM.
- `write`: the system kills the process (SIGXFSZ) after `HALF_BYTES` of the file.
- `fill`: the process lives, but from this file on it cannot write any file, as on a full disk.
- the name of a signal: the process gets that signal in step PATTERN of a phase of training.
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
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))  # Python ignores the signal SIGXFSZ
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
