"""Measure training speed and memory of the speech recogniser; each row is printed as soon as it is measured.

    PYTHONPATH=. python benchmarks/asr.py --device cuda --dtype bf16 --compile
    PYTHONPATH=. python benchmarks/asr.py --small

A step is forward pass, CTC loss, backward pass, clipping and AdamW (fused), on random features of full length (padding would
be wasted work) and 12 random characters per second. Steps per second are the median over rounds, after one round of warm-up;
each round ends by waiting for the device. Peak memory is the most that torch allocated during the rounds (GPU only). Warm-up
includes compilation; in a compiled graph `auto` is `chunked`. The most important rows come first; those that would start
after `--limit-s` are skipped.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn
from training import experiment

from speech_exp.experiment import Experiment
from speech_exp.features.batch import Batch
from speech_exp.objectives.text import SYMBOLS
from speech_exp.training.runtime import compiled

MODELS = {
    "lmu, auto": ["model=lmu", "model.algorithm=auto"],
    "gru": ["model=gru"],
    "lstm": ["model=lstm"],
    "lmu, chunked": ["model=lmu", "model.algorithm=chunked"],
    "lmu, fft": ["model=lmu", "model.algorithm=fft"],
}
CHARACTERS_PER_FRAME = 0.12  # per input frame of 10 ms
COLUMNS = ("model", "checkpointing", "parameters", "steps/s", "utterances/s", "peak GB", "warm-up s", "loss")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"], help="bf16 runs under autocast")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", type=int, default=96, help="utterances")
    parser.add_argument("--frames", type=int, default=400, help="of the features, 10 ms each")
    parser.add_argument("--small", action="store_true", help="encoder asr_small and 4 utterances, for a CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--limit-s", type=float, default=420, help="no row begins later")
    arguments = parser.parse_args()
    if arguments.small:
        arguments.batch, arguments.rounds, arguments.steps = 4, 3, 2
    return arguments


def build(arguments: argparse.Namespace, model: str, checkpointing: bool) -> Experiment:
    """Build the experiment from the project's config, without reading a data set."""
    typed = [
        "dataset=fsdd_strings",
        "features=logmel80",
        f"encoder={'asr_small' if arguments.small else 'asr'}",
        f"encoder.checkpoint_activations={checkpointing}",
        *MODELS[model],
        f"trainer.device={arguments.device}",
        f"trainer.precision={arguments.dtype}",
        "trainer.deterministic=false",  # otherwise CTC runs on the CPU
    ]
    return experiment(Path(tempfile.gettempdir()), typed)


def make_batch(utterances: int, frames: int, num_features: int, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)
    characters = round(CHARACTERS_PER_FRAME * frames)
    return Batch(
        torch.randn(utterances, frames, num_features, generator=generator),
        torch.full((utterances,), frames),
        torch.randint(1, len(SYMBOLS), (utterances * characters,), generator=generator),
        torch.full((utterances,), characters),
        [str(number) for number in range(utterances)],
    ).to(device)


class Training:
    """The trainer's step, repeated on one batch."""

    def __init__(self, arguments: argparse.Namespace, run: Experiment) -> None:
        self.run, self.network = run, run.network.train()
        self.forward = compiled(self.network) if arguments.compile else self.network
        self.batch = make_batch(
            arguments.batch, arguments.frames, run.front_end.extractor.num_features, run.trainer.runtime.device
        )
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=True)

    def step(self) -> float:
        with self.run.trainer.runtime.autocast():
            output = self.forward(self.batch.features_BTF, self.batch.lengths_B)
            loss = self.run.objective.loss(output, self.batch)
        value = loss.item()  # the trainer reads every loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.run.trainer.clip_norm)
        self.optimizer.step()
        return value

    def round_s(self, steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        if self.batch.features_BTF.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started


def measure(arguments: argparse.Namespace, model: str, checkpointing: bool) -> list[str]:
    """Measure one row of the table."""
    training = Training(arguments, build(arguments, model, checkpointing))
    warm_up_s = training.round_s(arguments.steps)
    on_gpu = arguments.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = median(training.round_s(arguments.steps) for _ in range(arguments.rounds))
    peak = f"{torch.cuda.max_memory_allocated() / 1e9:.2f}" if on_gpu else "-"
    parameters = sum(parameter.numel() for parameter in training.network.parameters())
    steps_per_s = arguments.steps / seconds
    return [
        model,
        "yes" if checkpointing else "no",
        f"{parameters:,}",
        f"{steps_per_s:.2f}",
        f"{steps_per_s * arguments.batch:.0f}",
        peak,
        f"{warm_up_s:.1f}",
        f"{training.step():.3f}",
    ]


def main() -> None:
    arguments = parse_arguments()
    started = time.perf_counter()
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    how = "compiled" if arguments.compile else "not compiled"
    print(
        f"Encoder {'asr_small' if arguments.small else 'asr'}, batch {arguments.batch} x {arguments.frames} frames, ",
        end="",
    )
    print(f"{arguments.dtype}, {how}, {where}, torch {torch.__version__}\n")
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS), flush=True)
    for checkpointing in (False, True):
        for model in MODELS:
            if time.perf_counter() - started > arguments.limit_s:
                cells = [model, "yes" if checkpointing else "no", "not measured: time is up", *[""] * 5]
            else:
                cells = measure(arguments, model, checkpointing)
                release()
            print("| " + " | ".join(cells) + " |", flush=True)


def release() -> None:
    """Free what one row compiled and allocated, so that it does not count for the next row."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
