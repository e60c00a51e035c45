"""Compare the training time of this framework with that of plain PyTorch scripts.

    python benchmarks/training.py [--epochs 20] [--rounds 3] [--json FILE]

Both train a bidirectional GRU 64 with batch 64 on FSDD's official split (20 MFCC, mean over time, same optimizer and
schedule) and test the last epoch's weights. The first plain script is what a tutorial teaches: a Dataset that reads and
transforms each file in every epoch, a DataLoader with 2 workers, packed sequences. The second computes the features once and
keeps them in memory, without workers. Rounds alternate; ratios are of medians. A cold cache contains no features.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import soundfile
import torch
from hydra import compose, initialize_config_dir
from omegaconf import open_dict
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset
from torchaudio.transforms import MFCC

from speech_exp.data.digits import Digits
from speech_exp.experiment import Experiment
from speech_exp.training.loop import TrainingLoop
from speech_exp.training.state import StateFiles

CONF = Path(__file__).parents[1] / "conf"
BATCH, LR, WEIGHT_DECAY = 64, 3e-3, 0.01
SETTINGS = ["dataset=fsdd", "model=gru", "augment=none", f"trainer.batch_size={BATCH}", f"trainer.lr={LR}"]
SETTINGS += [f"trainer.weight_decay={WEIGHT_DECAY}", "objective.label_smoothing=0.0", "trainer.device=cpu"]


def experiment(folder: Path, overrides: list[str]) -> Experiment:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides, return_hydra_config=True)
    choices = {group: str(choice) for group, choice in config.hydra.runtime.choices.items() if "hydra/" not in group}
    with open_dict(config):
        del config["hydra"]
    return Experiment(config, choices, folder)


def framework(epochs: int, folder: Path, cache: Path) -> tuple[float, float]:
    """Return the seconds and test accuracy of a run without its figures, including the time to read the data."""
    started = time.perf_counter()
    run = experiment(folder, [*SETTINGS, f"trainer.epochs={epochs}", f"cache_dir={cache}"])
    parts = run.data.parts
    TrainingLoop(
        run.trainer,
        run.network,
        run.objective,
        run.task.phases(epochs),
        run.augment,
        parts,
        run.dataset.class_names,
        run.seed,
        StateFiles(folder, 1, {}, None),
        lambda _: None,
    ).run()
    accuracy = run.objective.evaluate(run.network, parts["test"].by_length(BATCH), run.dataset.class_names).metrics[
        "accuracy"
    ]
    return time.perf_counter() - started, accuracy


class Files(Dataset):
    def __init__(self, recordings, mean=0.0, std=1.0):
        self.recordings, self.mean, self.std = recordings, mean, std
        self.transform = MFCC(8000, 20, melkwargs={"n_fft": 256, "hop_length": 128, "n_mels": 40})

    def __len__(self):
        return len(self.recordings)

    def __getitem__(self, number):
        recording = self.recordings[number]
        waveform, _ = soundfile.read(recording.path, dtype="float32")
        return (self.transform(torch.from_numpy(waveform)).T - self.mean) / self.std, recording.label


def collate(items):
    features, labels = zip(*items, strict=True)
    return (
        pad_sequence(list(features), batch_first=True),
        torch.tensor([len(one) for one in features]),
        torch.tensor(labels),
    )


class PlainNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(20, 64, batch_first=True, bidirectional=True)
        self.dropout, self.output = nn.Dropout(0.2), nn.Linear(128, 10)

    def forward(self, features, lengths):
        packed = pack_padded_sequence(features, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return self.output(self.dropout(states.sum(1) / lengths.unsqueeze(1)))


def plain(epochs: int, parts, cached: bool) -> tuple[float, float]:
    """Return the seconds and test accuracy of a plain script, which validates after each epoch like the framework."""
    torch.manual_seed(0)
    started = time.perf_counter()
    tenth = Files(parts["train"][::10])  # enough for statistics
    frames = torch.cat([tenth[number][0] for number in range(len(tenth))])
    statistics_ = frames.mean(0), frames.std(0)
    files = {name: Files(part, *statistics_) for name, part in parts.items()}
    items = {name: [part[number] for number in range(len(part))] if cached else part for name, part in files.items()}
    workers = 0 if cached else 2
    loaders = {
        name: DataLoader(part, BATCH, shuffle=name == "train", num_workers=workers, collate_fn=collate)
        for name, part in items.items()
    }
    network = PlainNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, epochs * len(loaders["train"]), pct_start=0.1)

    @torch.no_grad()
    def accuracy(name: str) -> float:
        network.eval()
        right = sum((network(x, lengths).argmax(1) == y).sum().item() for x, lengths, y in loaders[name])
        return right / len(parts[name])

    for _ in range(epochs):
        network.train()
        for features, lengths, labels in loaders["train"]:
            loss = nn.functional.cross_entropy(network(features, lengths), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
        accuracy("validation")
    return time.perf_counter() - started, accuracy("test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = Path(tempfile.mkdtemp())
    warm, cold = folder / "warm", folder / "cold"
    digits = experiment(folder, SETTINGS).dataset
    assert isinstance(digits, Digits)
    parts = digits.recorded.parts
    framework(1, folder, warm)  # fills the warm cache and imports what both need
    found: dict[str, list[tuple[float, float]]] = {"warm": [], "cold": [], "plain": [], "kept": []}
    for _ in range(arguments.rounds):
        found["warm"].append(framework(arguments.epochs, folder, warm))
        found["cold"].append(framework(arguments.epochs, folder, cold))
        shutil.rmtree(cold)
        found["plain"].append(plain(arguments.epochs, parts, cached=False))
        found["kept"].append(plain(arguments.epochs, parts, cached=True))
    shutil.rmtree(folder)
    median_s = {name: statistics.median(seconds for seconds, _ in runs) for name, runs in found.items()}
    print(
        f"{arguments.epochs} epochs, {arguments.rounds} rounds, {arguments.threads} threads, torch {torch.__version__}\n"
    )
    print(
        "| way | seconds (median) | all rounds | test accuracy (%) | faster than plain | than plain, features kept |\n"
        "| --- | ---: | --- | --- | ---: | ---: |"
    )
    titles = {"plain": "plain", "kept": "plain, features kept"}
    titles |= {"cold": "speech_exp, cold cache", "warm": "speech_exp, warm cache"}
    for name, title in titles.items():
        rounds = ", ".join(f"{seconds:.1f}" for seconds, _ in found[name])
        accuracies = ", ".join(f"{100 * accuracy:.1f}" for _, accuracy in found[name])
        ratios = " | ".join(f"{median_s[other] / median_s[name]:.1f}" for other in ("plain", "kept"))
        print(f"| {title} | {median_s[name]:.1f} | {rounds} | {accuracies} | {ratios} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"seconds_and_accuracy": found, "median_s": median_s}, indent=2))


if __name__ == "__main__":
    main()
