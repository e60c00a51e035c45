"""A new data set, model and approach, added to a copy of the project by the documented steps, train and deploy.

The steps are in the docstrings of `speech_exp/data/data_set.py`, `speech_exp/models/__init__.py` and `speech_exp/tasks/__init__.py`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
DIGITS = "speech_exp/data/digits_demo"

ADDED = {
    "speech_exp/data/tones.py": '''
"""Tones of two pitches, made in memory."""

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import soundfile

from speech_exp.bounds import PositiveInt
from speech_exp.data.data_set import DataSet
from speech_exp.data.digit_features import PreparedDigits
from speech_exp.data.digit_recordings import DigitRecordings
from speech_exp.data.prepared import DataRequest, PreparedData
from speech_exp.data.recordings import Recording, fingerprint
from speech_exp.features.front_end import FrontEnd


@dataclass(eq=False)
class Tones(DataSet):
    name: str
    sample_rate_hz: PositiveInt
    per_part: PositiveInt

    targets = "classes"
    class_names = ("low", "high")
    split = "official"
    test_speaker = None

    @cached_property
    def recorded(self) -> DigitRecordings:
        time_s, parts, contents = np.arange(self.sample_rate_hz // 4) / self.sample_rate_hz, {}, []
        for start, part in enumerate(("train", "validation", "test")):
            parts[part] = []
            for number in range(start * self.per_part, (start + 1) * self.per_part):
                recording = f"{part}_{number}"
                parts[part].append(Recording(recording, Path(f"{recording}.wav"), number % 2, "synthesizer", number))
                file = io.BytesIO()
                tone_N = np.sin(2 * np.pi * (300 + 900 * (number % 2) + number) * time_s) / 2
                soundfile.write(file, tone_N, self.sample_rate_hz, format="WAV")
                contents.append(file.getvalue())
        recordings = [recording for members in parts.values() for recording in members]
        return DigitRecordings(
            recordings, contents, parts, [], fingerprint(recordings, contents), self.sample_rate_hz, 0.0
        )

    @property
    def fingerprint(self) -> str:
        return self.recorded.fingerprint

    @property
    def summary(self) -> str:
        return f"{len(self.recorded.recordings)} tones"

    @property
    def utterances_per_epoch(self) -> int:
        return self.per_part

    def fetch(self) -> Path:
        return Path()

    def check(self, front_end: FrontEnd, request: DataRequest) -> None:
        pass

    def prepare(self, front_end: FrontEnd, request: DataRequest) -> PreparedData:
        return PreparedDigits(self.recorded, 0, front_end, request)
''',
    "conf/dataset/tones.yaml": """
# Tones of two pitches.
_target_: speech_exp.data.tones.Tones
name: tones
sample_rate_hz: 8000
per_part: 20  # tones in each part
""",
    "speech_exp/models/elman.py": '''
"""The simplest recurrent layer: h_t = tanh(W x_t + V h_{t-1} + b)."""

import torch
from torch import nn

from speech_exp.bounds import PositiveInt
from speech_exp.models.layer import RecurrentLayer, State


class Elman(RecurrentLayer):
    name = "elman"

    def __init__(self, input_size: int, hidden_size: PositiveInt) -> None:
        super().__init__(input_size, hidden_size)
        self.from_input = nn.Linear(input_size, hidden_size)
        self.from_hidden = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        state, outputs = self.initial_state(len(inputs_BTD), inputs_BTD), []
        for inputs_BD in inputs_BTD.unbind(1):
            output_BH, state = self.step(inputs_BD, state)
            outputs.append(output_BH)
        return torch.stack(outputs, 1)

    def initial_state(self, batch_size: int, like: torch.Tensor) -> State:
        return (like.new_zeros(batch_size, self.hidden_size),)

    def step(self, inputs_BD: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        hidden_BH = torch.tanh(self.from_input(inputs_BD) + self.from_hidden(state[0]))
        return hidden_BH, (hidden_BH,)
''',
    "conf/model/elman.yaml": """
# Simple recurrent layer.
_target_: speech_exp.models.elman.Elman
hidden_size: 64
bidirectional: false
""",
    "speech_exp/tasks/approaches/fractions.py": '''
"""Powers of two of at most 1."""

import torch

from speech_exp.tasks.approaches.approach import Approach
from speech_exp.tasks.grids import Grid, nearest_power


class Fractions(Approach):
    name = "fractions"
    level_text = "0 or ±2^k, k <= 0"

    def project(self, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
        return nearest_power(weight.clamp(-1, 1), grid)
''',
    "conf/c_approach/fractions.yaml": """
# Powers of two of at most 1.
_target_: speech_exp.tasks.approaches.fractions.Fractions
""",
}
REGISTERED = {
    '        "speech_exp.data.strings.DigitStrings",\n': '        "speech_exp.data.tones.Tones",\n',
    '        "speech_exp.models.lmu.LMU",\n': '        "speech_exp.models.elman.Elman",\n',
    '        f"{_APPROACHES}.ste.Ste",\n': '        f"{_APPROACHES}.fractions.Fractions",\n',
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Return a copy of the project with the additions."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(PROJECT / "conf", folder / "conf")
    shutil.copytree(
        PROJECT / "speech_exp", folder / "speech_exp", ignore=shutil.ignore_patterns("digits_demo", "__pycache__")
    )
    (folder / DIGITS).symlink_to(PROJECT / DIGITS)
    shutil.copyfile(PROJECT / "run.py", folder / "run.py")
    for path, text in ADDED.items():
        (folder / path).write_text(text.lstrip(), encoding="utf-8")
    registry = folder / "speech_exp" / "registry.py"
    text = registry.read_text(encoding="utf-8")
    for before, line in REGISTERED.items():
        assert before in text
        text = text.replace(before, before + line)
    registry.write_text(text, encoding="utf-8")
    return folder


def run(project, *overrides):
    command = [sys.executable, "run.py", "dataset=tones", "model=elman", "trainer.device=cpu", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def test_they_train_and_deploy_together(project):
    typed = ["trainer=debug", "trainer.epoch_batches=2", f"cache_dir={project / 'cache'}"]
    done = run(project, "task=C", "c_approach=fractions", *typed, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    results = json.loads((project / "run" / "results.json").read_text(encoding="utf-8"))
    names = [results[name] for name in ("dataset", "model", "c_approach")]
    assert names == ["tones", "elman", "fractions"]
    assert results["metrics"]["test"]["accuracy"] >= 0.5
    assert list(results["metrics"]["test_per_class"]) == ["low", "high"]
    assert results["size"]["hidden_size"] == 86  # H(D + H + 1) numbers of 4 bytes with D = 20, within 36 KiB
    assert results["certificate"]["details"]["exponents_in_use"][1] <= 0


def test_a_model_without_an_integer_form_is_refused_before_any_work(project):
    done = run(project, "task=B2", "hydra.run.dir=refused")
    assert done.returncode == 1
    assert "task=B2 has integer forms of gru, lstm and lmu, but not of elman: change model or task" in done.stderr
    assert not (project / "refused").exists()
