"""Untrusted run folders: each broken file is one line of its run; neither comparison nor status fails or hangs."""

import json
import os

import pytest

from speech_exp.config_roles import config_hash
from speech_exp.runs.reading import find_runs
from speech_exp.sweeps.status import status_text, sweep_status

BROKEN = {
    "deep JSON": ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    "deep tables": ('{"a": ' + "[" * 50 + "]" * 50 + "}", "nested more than"),
    "a huge number": ('{"pid": ' + "9" * 5000 + "}", "digits"),
    "no config": ('{"status": "running", "overrides": []}', "no config"),
    "another config": (
        '{"overrides": [], "config": {"seed": 1}, "config_hash": "0"}',
        "does not match its config_hash",
    ),
    "overrides that are a text": ('{"overrides": "seed=1"}', "overrides"),
    "a status that is a list": ('{"status": []}', "status is"),
    "git that is a text": ('{"status": "finished", "git": "abc"}', "git is"),
    "a commit that is a number": ('{"status": "finished", "git": {"commit": 5}}', "git is"),
    "a time that is none": ('{"status": "running", "started": "soon"}', "started is"),
    "a trace that is a number": ('{"status": "failed", "trace": 7}', "trace is"),
    "bytes": ("\udcff", "not UTF-8"),
}
WHOLE = {"status": "running", "overrides": [], "config": {}, "config_hash": config_hash({})}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_a_line_of_its_run(name, tmp_path):
    content, reason = BROKEN[name]
    path = tmp_path / "one" / "run.json"
    path.parent.mkdir()
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    (run,) = find_runs(tmp_path)
    assert run.problem is not None
    assert run.problem.startswith("broken record: ")
    assert reason in run.problem
    assert path.name in run.problem
    assert len(run.problem) < 600
    assert f"broken record: {path.name}" in status_text(sweep_status(tmp_path))


def test_a_wide_cell_and_a_pipe_are_broken_records(tmp_path):
    run = tmp_path / "one"
    run.mkdir()
    (run / "run.json").write_text(json.dumps(WHOLE))
    (run / "history.csv").write_text("epoch\n" + "1" * 200_000 + "\n")
    assert "history.csv is not CSV" in status_text(sweep_status(tmp_path))
    (run / "history.csv").unlink()
    (run / "run.json").unlink()
    os.mkfifo(run / "run.json")
    assert "run.json is not a regular file" in status_text(sweep_status(tmp_path))


def test_a_terminal_sees_no_escape(tmp_path):
    run = tmp_path / "one"
    run.mkdir()
    strange = {"status": "failed", "error": "\x1b[2J\u202egone", "trace": ["\x1b]0;x\x07"]}
    (run / "run.json").write_text(json.dumps(WHOLE | strange))
    text = status_text(sweep_status(tmp_path))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\\x1b]0;x\\x07" in text
