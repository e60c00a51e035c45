"""The place of a job in its sweep, and the time left."""

import time

from speech_exp.sweeps.clock import SweepClock
from speech_exp.sweeps.record import Job


def test_the_time_left_is_estimated_from_the_jobs_that_this_process_ran(tmp_path, monkeypatch):
    seconds = iter([0.0, 100.0, 200.0, 500.0, 600.0, 700.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    jobs = [Job(f"seed={number}", ()) for number in range(5)]
    for number in (0, 4):  # finished by an earlier process
        (tmp_path / f"seed={number}").mkdir()
        (tmp_path / f"seed={number}" / "results.json").touch()
    clock, shown = SweepClock(tmp_path, jobs), []
    for number in range(5):
        shown.append(clock.begin(number))
        (tmp_path / f"seed={number}").mkdir(exist_ok=True)
        (tmp_path / f"seed={number}" / "results.json").touch()
        clock.end()
    assert shown == [
        "job 1 of 5",
        "job 2 of 5",
        "job 3 of 5, 3 min 20 s left",
        "job 4 of 5, 3 min 20 s left",
        "job 5 of 5",
    ]
