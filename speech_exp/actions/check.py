"""action=check: test whether this installation works, and say what to repair if not."""

from __future__ import annotations

import io
import platform
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from speech_exp.experiment import Experiment

_PACKAGES = ("hydra-core", "torch", "torchaudio", "librosa", "numpy", "matplotlib", "scikit-learn", "soundfile")
_SECONDS_OF_TRAINING = 1.0


class Check:
    """Prints one line for each part of the installation; the exit status is 1 if any part needs repair."""

    def __call__(self, experiment: Experiment) -> None:
        parts: dict[str, Callable[[Experiment], str]] = {
            "versions": _versions,
            "device": _device,
            "audio reading": _audio,
            "data": _data,
            "feature cache": _cache,
            "training": _training,
        }
        failed = []
        for name, part in parts.items():
            try:
                print(f"ok    {name:<14} {part(experiment)}")
            except Exception as error:  # one broken part must not keep the others from being checked
                failed.append(name)
                print(f"FAIL  {name:<14} {error}")
        if failed:
            raise ValueError(f"this installation needs repair: {', '.join(failed)} (see the lines above)")


def _versions(_: Experiment) -> str:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            raise ValueError(f"{package} is not installed: pip install -e . in the project's folder") from None
    return f"Python {platform.python_version()}, {', '.join(found)}"


def _device(experiment: Experiment) -> str:
    import torch

    runtime = experiment.trainer.runtime
    ones = torch.ones(8, 8, device=runtime.device)
    if not torch.equal(ones @ ones, 8 * ones):
        raise ValueError(
            f"a matrix product on {runtime.device_name} is wrong: reinstall torch, or set trainer.device=cpu"
        )
    gpus = torch.cuda.device_count()
    return f"{runtime.device_name} ({f'{gpus} GPU' if gpus else 'no GPU found, training runs on the CPU'})"


def _audio(_: Experiment) -> str:
    import numpy as np
    import soundfile

    from speech_exp.data.audio import decode

    tone = np.sin(np.arange(800) / 5).astype(np.float32) / 2
    for kind in ("WAV", "FLAC", "OGG"):
        content = io.BytesIO()
        soundfile.write(content, tone, 8000, format=kind)
        samples, _rate = decode(content.getvalue(), kind)
        error = float(np.abs(samples[: len(tone), 0] - tone).max())
        if error > 0.1:  # even a lossy format reproduces a pure tone this closely
            raise ValueError(f"{kind} files are read incorrectly (error {error:.2f}): reinstall soundfile")
    return "WAV, FLAC, Ogg"


def _data(experiment: Experiment) -> str:
    return f"{experiment.dataset.name}, {experiment.dataset.summary}"


def _cache(experiment: Experiment) -> str:
    folder = experiment.cache_folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            (Path(aside) / "probe").write_bytes(b"1")
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror}): set cache_dir to a folder that can") from None
    return f"{folder} can be written"


def _training(experiment: Experiment) -> str:
    """Train the chosen model for one second on made-up frames that directly encode their label."""
    import torch

    from speech_exp.features.batch import Batch

    network, device = experiment.network, experiment.trainer.runtime.device
    # Each label is one class, or a transcript of one character other than the blank (symbol 0).
    targets_B = 1 + torch.arange(32, device=device) % (len(experiment.class_names) - 1)
    features_BTF = torch.zeros(32, 16, experiment.front_end.extractor.num_features, device=device)
    features_BTF[torch.arange(32), :, targets_B] = 1.0
    lengths_B = torch.full((32,), 16, device=device)
    batch = Batch(features_BTF, lengths_B, targets_B, torch.ones_like(targets_B), [])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < _SECONDS_OF_TRAINING or len(losses) < 2:
        loss = experiment.objective.loss(network.train()(batch.features_BTF, batch.lengths_B), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if not min(losses) < losses[0]:
        raise ValueError(
            f"the loss did not fall in {len(losses)} steps ({losses[0]:.3f}, then at least {min(losses):.3f}): reinstall torch"
        )
    return f"{len(losses)} steps in {_SECONDS_OF_TRAINING:g} s, loss {losses[0]:.2f} to {min(losses):.2f}"
