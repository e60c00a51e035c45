"""Untrusted run folders through the real command line, and their texts and pictures in reports."""

import base64
import csv
import io
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from speech_exp.comparison.compare import compare, find_runs
from speech_exp.comparison.formats.html import MAX_PIXELS, embedded_figure
from speech_exp.comparison.formats.latex import escaped
from speech_exp.runs.record import read_predictions
from speech_exp.sweeps.status import status_text, sweep_status

RUN = Path(__file__).parents[2] / "run.py"
HEAD = "id,reference,prediction,score"
DAMAGED = {
    "empty": "",
    "another header": "a,b\n1,2\n",
    "a short row": f"{HEAD}\n1,yes\n",
    "a wide cell": f"{HEAD}\n1,{'y' * 200_000},yes,0\n",
    "bytes": f"{HEAD}\n1,\udcff,yes,0\n",
    "an utterance twice": f"{HEAD}\n1,yes,yes,0\n1,yes,no,0\n",
    "no utterance": f"{HEAD}\n",
}


def png(width, height, data=b""):
    def chunk(name, content):
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    rows = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + rows + chunk(b"IEND", b"")


def make_broken_runs(folder):
    """Write one run folder for each kind of damage; return the name of the broken file in each."""
    contents = {
        "deep": ("run.json", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        "number": ("run.json", '{"pid": ' + "9" * 5000 + "}"),
        "types": ("run.json", '{"status": []}'),
        "wide": ("history.csv", "epoch\n" + "1" * 200_000 + "\n"),
        "bytes": ("run.json", "\udcff"),
    }
    for name, (place, content) in contents.items():
        path = folder / name / place
        path.parent.mkdir(parents=True)
        (folder / name / "run.json").write_text((folder / "good" / "run.json").read_text())
        path.write_text(content, encoding="utf-8", errors="surrogateescape")
    (folder / "wide" / "results.json").write_text((folder / "good" / "results.json").read_text())
    (folder / "loop").mkdir()
    (folder / "loop" / "run.json").symlink_to("run.json")
    (folder / "loop" / "again").symlink_to(folder)
    (folder / "huge").mkdir()
    with (folder / "huge" / "run.json").open("wb") as file:
        file.truncate(1 << 40)
    return {name: Path(place).name for name, (place, _) in contents.items()} | {"loop": "run.json", "huge": "run.json"}


@pytest.mark.parametrize("action", ["compare", "status"])
def test_the_command_line_names_each_broken_run_and_ends_well(action, make_run, tmp_path):
    good = make_run("good", predictions=[("1", "yes", "yes")])
    broken = make_broken_runs(good.parent)
    (good.parent / "sweep.json").write_text('{"jobs": 5}')
    command = [sys.executable, str(RUN), f"action={action}", f"runs={good.parent}", f"hydra.run.dir={tmp_path / 'out'}"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    for name, file in broken.items():
        if action == "status":
            _, _, after = found.stdout.partition(f"failed {name}\n")
            line = after.partition("\n")[0]
        else:
            line = next(line for line in found.stdout.splitlines() if line.startswith(f"| {name} |"))
        assert f"broken record: {file}" in line
    assert ("| good |" in found.stdout) if action == "compare" else ("done" in found.stdout)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_predictions_become_a_note(name, make_run, tmp_path):
    """Three seeds are needed so that both intervals and tests read the predictions."""
    for model in ("gru", "lmu"):
        for seed in range(3):
            rows = [("1", "yes", "yes"), ("2", "no", "yes")]
            run = make_run(f"{model}{seed}", model=model, seed=seed, overrides=[f"model={model}"], predictions=rows)
    (run / "predictions.csv").write_text(DAMAGED[name], encoding="utf-8", errors="surrogateescape")
    notes = compare(find_runs(tmp_path / "runs"), tmp_path).markdown
    assert "Intervals of test metrics are over seeds alone, because " in notes
    assert "is not tested against" in notes
    assert "predictions.csv" in notes


@pytest.mark.usefixtures("undrawn")
def test_references_without_a_word_become_a_note(make_recogniser, tmp_path):
    for seed in range(3):
        make_recogniser(f"run{seed}", 0.1, seed=seed, predictions=[("1", "", "")])
    assert "every reference of predictions.csv is empty" in compare(find_runs(tmp_path / "runs"), tmp_path).markdown


def test_an_utterance_is_named_once(tmp_path):
    (tmp_path / "predictions.csv").write_text(DAMAGED["an utterance twice"])
    with pytest.raises(ValueError, match="contains an utterance twice"):
        read_predictions(tmp_path / "predictions.csv")


SWEEP = {
    "command": "c",
    "rerun": "r",
    "host": "h",
    "pid": 1,
    "process_started_s": 1.0,
    "started": "s",
    "finished": None,
}
JOB = {"folder": "good", "overrides": []}


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "[]",
        "{}",
        '{"jobs": 5}',
        json.dumps({**SWEEP, "jobs": [5]}),
        json.dumps({**SWEEP, "jobs": [{**JOB, "folder": 5}]}),
        json.dumps({**SWEEP, "jobs": [{**JOB, "folder": "/etc"}]}),
        json.dumps({**SWEEP, "jobs": [{**JOB, "folder": "../good"}]}),
        json.dumps({**SWEEP, "jobs": [{**JOB, "folder": "a\0b"}]}),
        json.dumps({**SWEEP, "jobs": [JOB], "rerun": 5}),
        json.dumps({**SWEEP, "jobs": [JOB], "unknown": 5}),
    ],
    ids=range(11),
)
def test_a_malformed_sweep_record_is_a_line_beside_its_runs(content, make_run):
    good = make_run("good")
    (good.parent / "sweep.json").write_text(content)
    status = sweep_status(good.parent)
    assert [(run.name, run.state) for run in status.runs] == [("good", "done")]
    (line,) = [line for line in status_text(status).splitlines() if line.startswith("broken record: ")]
    assert "sweep.json" in line


def test_pictures_beyond_the_limits_are_words(tmp_path):
    path = tmp_path / "errors.png"
    contents = {
        "pixels": png(MAX_PIXELS // 1000 + 1, 1000),
        "larger than": png(1, 1, b"\0\0") + bytes(16 << 20),
        "cannot be shown": png(8, 8, b"\0\0")[:-30],
    }
    for reason, content in contents.items():
        path.write_bytes(content)
        shown = embedded_figure(path, "errors")
        assert shown.startswith("<p>errors.png cannot be shown: ")
        assert reason in shown


def test_a_picture_that_is_very_wide_is_shown(tmp_path):
    path = tmp_path / "errors.png"
    path.write_bytes(png(10_000, 1, bytes(10_001)))
    assert 'width="1200" height="1"' in embedded_figure(path, "errors")


def test_an_embedded_figure_keeps_every_colour(tmp_path):
    """The picture has more hues than a palette of 256 could hold."""
    pixels = np.arange(30 * 30 * 3, dtype=np.uint32).reshape(30, 30, 3) * 97 % 256
    picture = Image.fromarray(pixels.astype(np.uint8))
    picture.save(tmp_path / "figure.png")
    encoded = re.search('base64,([^"]+)', embedded_figure(tmp_path / "figure.png", "hues"))[1]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))), np.asarray(picture))


def test_texts_from_elsewhere_are_inert_in_every_report(make_run, tmp_path):
    evil = "=cmd|<script>alert(1)</script>[x](http://evil)\u202e\\input{x}"
    make_run("one", model=evil, overrides=["=1+1=@SUM(1)"])
    make_run("two", model="gru", overrides=["=1+1=-2"])
    (broken := tmp_path / "runs" / "<img src=x>[y](javascript:z)").mkdir()
    (broken / "run.json").write_text("[]")
    compare(find_runs(tmp_path / "runs"), tmp_path)
    cells = [cell for row in csv.reader(io.StringIO((tmp_path / "comparison.csv").read_text())) for cell in row]
    assert any("cmd|" in cell for cell in cells)
    texts = [cell for cell in cells if not cell.lstrip("+-").replace(".", "").isdigit()]
    assert not [cell for cell in texts if cell.startswith(("=", "+", "-", "@"))]
    markdown = (tmp_path / "comparison.md").read_text()
    page = (tmp_path / "comparison.html").read_text()
    assert "&lt;script>" in markdown
    for tag in ("<script>alert", "<img src=x"):
        assert tag not in markdown
        assert tag not in page
    assert "](http" not in markdown
    assert "](javascript" not in markdown
    assert "\u202e" not in markdown
    latex = (tmp_path / "comparison.tex").read_text()
    assert "\\input" not in latex
    assert "\u202e" not in latex


def test_latex_prints_control_characters_as_their_escape():
    assert escaped("a\x1b\n\\b{}%") == r"a\textbackslash{}x1b \textbackslash{}b\{\}\%"
