"""Whether a command starts a run, resumes it, or leaves it unchanged."""

import json
import multiprocessing
import re

import pytest

from speech_exp.training.resuming import Plan, plan, run_lock
from speech_exp.training.state import StateFiles


def run_folder(folder, status, config_hash="abc", state=True, results=False):
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"status": status, "config_hash": config_hash}))
    if state:
        StateFiles(folder / "checkpoints", 1, {}, None).save({"state": {}}, 3, 0)
    if results:
        (folder / "results.json").write_text(json.dumps({"metrics": {}}))
    return folder


@pytest.mark.parametrize("resume", [None, True, False])
def test_an_empty_folder_is_a_start(tmp_path, resume):
    found = plan(tmp_path, resume, "abc")
    assert (found.finished, found.start) == (None, None)
    assert found.note == (f"resume=true: {tmp_path} contains nothing to resume, so the run starts" if resume else None)


@pytest.mark.parametrize("status", ["running", "interrupted", "failed", "finished"])
def test_a_started_run_resumes(tmp_path, status):
    folder = run_folder(tmp_path / "run", status)
    for resume in (None, True):
        assert plan(folder, resume, "abc") == Plan(start=folder / "checkpoints")


def test_a_run_that_died_before_its_first_state_starts(tmp_path):
    folder = run_folder(tmp_path / "run", "running", state=False)
    assert plan(folder, None, "abc") == Plan()
    assert plan(folder, None, "other") == Plan()  # nothing is lost


def test_a_finished_run_is_not_repeated(tmp_path):
    folder = run_folder(tmp_path / "run", "finished", results=True)
    for resume in (None, True):
        assert plan(folder, resume, "abc") == Plan(finished={"metrics": {}})


@pytest.mark.parametrize("state", [True, False])
def test_only_resume_false_replaces_a_run_of_another_config_and_reports_it(tmp_path, state):
    folder = run_folder(tmp_path / "run", "finished", config_hash="other", state=state, results=True)
    other = run_folder(tmp_path / "other", "failed")
    ways_out = r"set hydra.run.dir to another folder, repeat its command, or replace it with resume=false"
    for resume in (None, str(other), *([] if state else [True])):
        with pytest.raises(ValueError, match=rf"run contains a run with a different config: {ways_out}"):
            plan(folder, resume, "abc")
    if state:  # the state is read, and refused with the keys that differ
        assert plan(folder, True, "abc") == Plan(start=folder / "checkpoints")
    assert plan(folder, False, "abc") == Plan(note=f"resume=false: the run in {folder} is replaced")


@pytest.mark.parametrize("record", [b"", b"{", b"[]", None])
def test_a_damaged_record_beside_whole_states_starts_nothing_from_zero(tmp_path, record):
    folder = run_folder(tmp_path / "run", "interrupted")
    (folder / "run.json").unlink()
    if record is not None:
        (folder / "run.json").write_bytes(record)
    with pytest.raises(ValueError, match=r"run.json is missing or damaged: .* training state with resume=true, or"):
        plan(folder, None, "abc")
    assert plan(folder, True, "abc") == Plan(start=folder / "checkpoints")


def test_results_beside_a_damaged_record_are_not_replaced(tmp_path):
    folder = run_folder(tmp_path / "run", "finished", state=False, results=True)
    (folder / "run.json").write_text("{")
    for resume in (None, True):
        with pytest.raises(ValueError, match=r"run\.json is missing or damaged"):
            plan(folder, resume, "abc")


def test_a_run_resumes_elsewhere(tmp_path):
    folder = run_folder(tmp_path / "run", "failed")
    assert plan(tmp_path / "new", str(folder), "abc") == Plan(start=folder / "checkpoints")
    with pytest.raises(ValueError, match=r"resume=.*nothing contains no training state"):
        plan(tmp_path / "new", str(tmp_path / "nothing"), "abc")


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_a_requeued_job_resumes_from_its_own_states(tmp_path, status):
    """A requeued job repeats its command with resume=FOLDER, although its own folder has progressed further."""
    other, own = run_folder(tmp_path / "other", "failed"), run_folder(tmp_path / "own", status)
    assert plan(own, str(other), "abc") == Plan(start=own / "checkpoints")
    (own / "checkpoints" / "checkpoint_epoch_3.pt").unlink()
    assert plan(own, str(other), "abc") == Plan(start=other / "checkpoints")


def test_what_went_on_elsewhere_to_its_end_is_not_repeated(tmp_path):
    other = run_folder(tmp_path / "other", "failed")
    own = run_folder(tmp_path / "own", "finished", results=True)
    assert plan(own, str(other), "abc") == Plan(finished={"metrics": {}})


def _hold(folder, begun, end):
    with run_lock(folder):
        begun.set()
        end.wait(20)


def test_a_lock_excludes_a_second_process_until_the_first_is_killed(tmp_path):
    context = multiprocessing.get_context("spawn")
    begun, end = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, begun, end))
    process.start()
    assert begun.wait(20)
    message = rf"{re.escape(str(tmp_path))} is in use by process {process.pid} on "
    with pytest.raises(ValueError, match=message), run_lock(tmp_path):
        pass
    process.kill()
    process.join()
    with run_lock(tmp_path):
        assert (tmp_path / ".lock.owner").exists()
    assert not (tmp_path / ".lock.owner").exists()
