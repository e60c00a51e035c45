"""Which rank shows progress, and how it looks in a terminal and elsewhere."""

import io
import re
import sys
import time

import pytest

from speech_exp import progress as module
from speech_exp.progress import duration, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("rank", "for_all", "shown"), [(0, False, 1), (0, True, 1), (1, False, 0), (1, True, 1)])
def test_work_is_shown_once_and_by_the_process_that_does_it(monkeypatch, capsys, rank, for_all, shown):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    with progress("frames", 3, for_all=for_all) as bar:
        bar.advance(2)
        bar.reach(3, note="well")
    assert capsys.readouterr().err == shown * "frames: 3/3, well\n"


def test_a_long_note_leaves_count_time_and_time_left_whole_at_80_columns(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    with progress("train", 30_400, done=3_040) as bar:
        bar.reach(30_399, note="epoch 39  " + "val_accuracy 0.8667  " * 8)
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", terminal.getvalue())
    last = plain.rstrip().replace("\r", "\n").splitlines()[-1]
    assert re.fullmatch(r"train [━╸]+ +30399/30400 0:00:0\d [-\d]:[-\d]+:[-\d]+ epoch 39  val_accuracy [\d.]+…", last)
    assert len(last) == 80


def test_lines_appear_even_while_a_step_takes_long(monkeypatch, capsys):
    monkeypatch.setattr(module, "_PLAIN_EVERY_S", 0.05)
    with progress("batches", 1000, done=400) as bar:
        bar.reach(401)
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1
    assert all(line.startswith("batches: 401/1,000, ") and line.endswith(" left") for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min"), (725, "12 min 5 s"), (7200, "2 h"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")],
)
def test_durations_have_at_most_two_units(seconds, text):
    assert duration(seconds) == text
