"""One rank of short trainings in float64, started by test_ranks.py; rank 0 saves what came of each.

Usage: python rank_worker.py CASE,CASE,... FOLDER [STEP at which the last rank gets a signal]
"""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import tiny
import torch

from speech_exp import ranks
from speech_exp.data.batches import InMemoryUtterances
from speech_exp.features.augment import SpecAugment
from speech_exp.objectives.ctc import Ctc
from speech_exp.tasks.approaches.inq import Inq
from speech_exp.tasks.approaches.snapping import Ema, Stochastic
from speech_exp.tasks.approaches.ste import Ste
from speech_exp.tasks.distillation import Distillation
from speech_exp.tasks.power_of_two import PowerOfTwo
from speech_exp.tasks.task import Task
from speech_exp.training.fitting import Fitting, in_turn
from speech_exp.training.monitor import Watchdog
from speech_exp.training.runtime import seed_everything
from speech_exp.training.state import StateFiles

QUIET = {"time_masks": 0, "time_mask_share": 0.0, "feature_masks": 0, "feature_mask_width": 0}
TOLD = ("epoch", "train_loss", "lr", "gradient_norm")
STEADY = {"gain_std": 0.0, "shift_std": 0.0}


class Texts(InMemoryUtterances):
    """Of one to three characters, by the class."""

    def _batch(self, chosen_B, variant_B):
        batch = super()._batch(chosen_B, variant_B)
        lengths_B = batch.targets + 1
        codes = [5 + number for length in lengths_B.tolist() for number in range(length)]
        return replace(batch, targets=torch.tensor(codes), target_lengths_B=lengths_B) if batch.ids else batch


def power_of_two(approach, distillation=None):
    given = {"budget_bytes": 10**6, "start_epoch": 2, "every_n_steps": None, "scope": None, "k_min": -8, "k_max": 8}
    given |= {"fine_tune_lr": 1e-3, "memory_matrices": "int16", "float_checkpoint": None, "distillation": distillation}
    return PowerOfTwo(approach, **given)


def teacher():
    kd = Distillation(3.0, 0.6)
    kd.teacher = tiny.network("gru", seed=9).double()
    return kd


def text_teacher():
    kd = Distillation(3.0, 0.6)
    kd.teacher = Ctc(4.0, 0.0, 0.0, "wer").network(tiny.network("gru", seed=9).encoder, 29).double()
    return kd


CASES = {  # model, task, objective
    "gru": ("gru", Task, tiny.OBJECTIVE),
    "lstm": ("lstm", Task, tiny.OBJECTIVE),
    "lmu": ("lmu", Task, tiny.OBJECTIVE),
    "inq": ("gru", lambda: power_of_two(Inq([[0.3, 1], [0.8, 1], [1.0, 0]])), tiny.OBJECTIVE),
    "ema": ("lmu", lambda: power_of_two(Ema(0.85)), tiny.OBJECTIVE),
    "stochastic": ("gru", lambda: power_of_two(Stochastic()), tiny.OBJECTIVE),
    "ste with a teacher": ("gru", lambda: power_of_two(Ste(), teacher()), tiny.OBJECTIVE),
    "ctc": ("lmu", Task, Ctc(4.0, 0.0, 0.0, "wer")),
    "ctc with a teacher": ("gru", lambda: power_of_two(Ste(), text_teacher()), Ctc(4.0, 0.0, 0.0, "wer")),
    "noise": ("gru", Task, tiny.OBJECTIVE),
}


def fitting(case, folder, start, **changes):
    model, make_task, objective = CASES[case]
    seed_everything(0)
    network = tiny.network(model)
    kind = InMemoryUtterances
    if isinstance(objective, Ctc):
        network, kind = objective.network(network.encoder, 29), Texts
    parts = {name: kind(**{**vars(part), "frames_NF": part.frames_NF.double()}) for name, part in tiny.parts().items()}
    network.dropout.p = 0.2 if case == "noise" else 0.0
    return Fitting(
        tiny.trainer(batch_size=12, **changes),
        network.double(),
        objective,
        make_task(),
        SpecAugment(**QUIET, **STEADY, noise_std=0.3 if case == "noise" else 0.0),
        parts,
        tiny.NAMES,
        0,
        StateFiles(folder / "states", 1, {}, start),
        lambda _: None,
    )


def main(case, folder, signal_at="0"):
    start = ranks.from_first(lambda: folder / "states" if (folder / "states").exists() else None)
    fit = fitting(case, folder, start)
    batches = fit.parts["validation"].by_length(7, fit.share)
    before = fit.objective.evaluate(fit.network, batches, tiny.NAMES, in_turn)
    gradients, after_step = {}, fit.task.after_step

    def watched(network, step, steps):
        if not gradients:
            gradients.update({name: one.grad.clone() for name, one in network.named_parameters()})
        if step == int(signal_at) and ranks.number() == ranks.count() - 1:
            os.kill(os.getpid(), signal.SIGUSR2)
        after_step(network, step, steps)

    fit.task.after_step = watched
    found = fit.run()
    if ranks.number() == 0:
        content = {
            "gradients": gradients,
            "weights": found.best.state_dict(),
            "history": [
                {key: row[key] for key in row if key in TOLD or key.startswith("val_")} for row in found.history
            ],
            "before": before.metrics,
            "ids": [row["id"] for row in before.predictions],
        }
        torch.save(content, folder / "found.pt")


def stall(seconds="1.5"):
    """Rank 1 stalls in a step, and rank 0 waits for it."""
    ranks.gathered(0)
    print("all have met", flush=True)
    with Watchdog(0.5) as watchdog:
        watchdog.step()
        if ranks.number() == 1:
            time.sleep(float(seconds))
        ranks.gathered(0)


def fail_together():
    """Rank 1 fails while rank 0 waits for it and rank 2 sleeps."""
    with ranks.last_words(lambda error, failed: print(f"rank {ranks.number()} hears: {error}, {failed}", flush=True)):
        ranks.gathered(0)
        if ranks.number() == 1:
            raise ValueError("the disk of rank 1 is full")
        if ranks.number() == 2:
            time.sleep(300)
        ranks.gathered(1)


if __name__ == "__main__":
    with ranks.together():
        alone = {"fail": fail_together, "stall": stall}
        if sys.argv[1] in alone:
            alone[sys.argv[1]](*sys.argv[2:])
        else:
            for case in sys.argv[1].split(","):
                main(case, Path(sys.argv[2]) / case, *sys.argv[3:])
