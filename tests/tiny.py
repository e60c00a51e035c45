"""A network, utterances and a training run for tests of about one second."""

import torch

from speech_exp.data.batches import InMemoryUtterances
from speech_exp.features.augment import SpecAugment
from speech_exp.models.encoder import CompactEncoder
from speech_exp.models.lmu import LMU
from speech_exp.models.recurrent import GRU, LSTM
from speech_exp.objectives.classification import Classification
from speech_exp.tasks.unconstrained import Unconstrained
from speech_exp.training.loop import TrainingLoop
from speech_exp.training.runtime import seed_everything
from speech_exp.training.state import StateFiles
from speech_exp.training.trainer import Trainer

MODELS = {
    "gru": lambda width: GRU(width, 8),
    "lstm": lambda width: LSTM(width, 8),
    "lmu": lambda width: LMU(
        width, 8, order=4, theta=6.0, memory_channels=2, input_activation="relu", activation="relu"
    ),
}
NAMES = ("a", "b", "c")
OBJECTIVE = Classification("mean", 0.0, 0.1)


def network(model, seed=0, **encoder):
    torch.manual_seed(seed)
    return OBJECTIVE.network(CompactEncoder(4, MODELS[model], False, 1, 0.0, **encoder), 3)


def part(size, seed):
    """Return utterances of noise in which feature 0, 1 or 2 is raised; its index is the class."""
    generator = torch.Generator().manual_seed(seed)
    lengths_U = torch.randint(3, 9, (size,), generator=generator)
    targets_U = torch.arange(size) % 3
    frames_NF = torch.randn(int(lengths_U.sum()), 4, generator=generator)
    frames_NF[torch.arange(len(frames_NF)), targets_U.repeat_interleave(lengths_U)] += 1.5
    starts_U = lengths_U.cumsum(0) - lengths_U
    return InMemoryUtterances(
        frames_NF, starts_U.unsqueeze(0), lengths_U.unsqueeze(0), targets_U, [f"u{n}" for n in range(size)]
    )


def parts():
    return {"train": part(70, 0), "validation": part(30, 1)}


def trainer(**changes):
    settings = {"epochs": 4, "batch_size": 16, "batch_seconds": None, "frame_s": 0.01, "epoch_batches": None}
    settings |= {"accumulate": 1, "lr": 1e-2, "weight_decay": 0.01, "schedule": "constant", "warmup_share": 0.1}
    settings |= {"clip_norm": 1.0, "patience": None, "device": "cpu", "precision": "fp32", "compile": False}
    settings |= {"deterministic": True, "tensorboard": False, "mlflow": None, "wandb": None}
    settings |= {"checkpoint_every_s": None, "watchdog_s": None, "keep": 1, "threads": 1}
    return Trainer(**(settings | changes))


def fit(folder, task, model, seed=0, teacher=None, **changes):
    """Train from scratch under a task; return the fit, the history and the trained network."""
    phases = (task or Unconstrained()).phases(changes.get("epochs", 4), teacher)
    return fit_phases(folder, phases, model, seed, **changes)


def fit_phases(folder, phases, model, seed=0, **changes):
    seed_everything(seed)
    live = network(model, seed)
    quiet = {"time_masks": 0, "time_mask_share": 0.0, "feature_masks": 0, "feature_mask_width": 0}
    augment = SpecAugment(**quiet, gain_std=0.0, shift_std=0.0, noise_std=0.0)
    history = []
    files = StateFiles(folder, 1, {}, None)
    fitting = TrainingLoop(
        trainer(**changes),
        live,
        OBJECTIVE,
        phases,
        augment,
        parts(),
        NAMES,
        seed,
        files,
        lambda rows: history.append(rows[-1]),
    )
    return fitting.run(), history, live
