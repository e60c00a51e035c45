"""One rank of short training runs in float64, started by test_ranks.py; rank 0 saves their results.

Usage: python rank_worker.py CASE,CASE,... FOLDER [STEP at which the last rank gets a signal]
"""

import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import tiny
import torch

from speech_exp import ranks
from speech_exp.data.batches import InMemoryUtterances
from speech_exp.features.augment import SpecAugment
from speech_exp.objectives.classification import Classification
from speech_exp.objectives.ctc import Ctc
from speech_exp.tasks.approaches.inq import Inq
from speech_exp.tasks.approaches.snapping import Ema, Stochastic
from speech_exp.tasks.approaches.ste import Ste
from speech_exp.tasks.distillation import Distillation
from speech_exp.tasks.phases import Hooks, Phase
from speech_exp.tasks.power_of_two import PowerOfTwo
from speech_exp.training.data_parallel import interleave_ranks
from speech_exp.training.loop import TrainingLoop
from speech_exp.training.runtime import seed_everything
from speech_exp.training.state import StateFiles

QUIET = {"time_masks": 0, "time_mask_share": 0.0, "feature_masks": 0, "feature_mask_width": 0}
TOLD = ("epoch", "train_loss", "lr", "gradient_norm")
EPOCHS = 4
STEADY = {"gain_std": 0.0, "shift_std": 0.0}


class Texts(InMemoryUtterances):
    """A part with transcripts of one to three characters, according to the class."""

    def _batch(self, chosen_B, variant_B):
        batch = super()._batch(chosen_B, variant_B)
        lengths_B = batch.targets + 1
        codes = [5 + number for length in lengths_B.tolist() for number in range(length)]
        return replace(batch, targets=torch.tensor(codes), target_lengths_B=lengths_B) if batch.ids else batch


def phases(hooks=Hooks):
    return [Phase(1, EPOCHS, None, hooks)]


def power_of_two(approach, teacher=None):
    distillation = Distillation(3.0, 0.6) if teacher else None
    given = {"budget_bytes": 10**6, "start_epoch": 2, "every_n_steps": None, "scope": None, "k_min": -8, "k_max": 8}
    given |= {"fine_tune_lr": 1e-3, "memory_matrices": "int16", "float_checkpoint": None, "distillation": distillation}
    return PowerOfTwo(approach, **given).phases(EPOCHS, teacher)


def teacher():
    return tiny.network("gru", seed=9).double()


def text_teacher():
    return Ctc(4.0, 0.0, 0.0, "wer").network(tiny.network("gru", seed=9).encoder, 29).double()


class Drifting(Hooks):
    """Hooks that change the weights of rank 1 before each epoch, like GPUs that round differently."""

    def begin_epoch(self, epoch):
        if ranks.rank() == 1:
            with torch.no_grad():
                for parameter in self.network.parameters():
                    parameter.add_(0.1)


CASES = {  # model, phases, objective; in "accumulation", batches of two parts
    "gru": ("gru", phases, tiny.OBJECTIVE),
    "lstm": ("lstm", phases, tiny.OBJECTIVE),
    "lmu": ("lmu", phases, tiny.OBJECTIVE),
    "inq": ("gru", lambda: power_of_two(Inq([[0.3, 1], [0.8, 1], [1.0, 0]])), tiny.OBJECTIVE),
    "ema": ("lmu", lambda: power_of_two(Ema(0.85)), tiny.OBJECTIVE),
    "stochastic": ("gru", lambda: power_of_two(Stochastic()), tiny.OBJECTIVE),
    "ste with a teacher": ("gru", lambda: power_of_two(Ste(), teacher()), tiny.OBJECTIVE),
    "ctc": ("lmu", phases, Ctc(4.0, 0.0, 0.0, "wer")),
    "ctc with a teacher": ("gru", lambda: power_of_two(Ste(), text_teacher()), Ctc(4.0, 0.0, 0.0, "wer")),
    "accumulation": ("gru", phases, tiny.OBJECTIVE),
    "last": ("lstm", phases, Classification("last", 0.0, 0.1)),
    "attention": ("gru", phases, Classification("attention", 0.0, 0.1)),
    "noise": ("gru", phases, tiny.OBJECTIVE),
    "drifting": ("gru", lambda: phases(hooks=Drifting), tiny.OBJECTIVE),
}


def fitting(case, folder, start):
    model, make_phases, objective = CASES[case]
    seed_everything(0)
    network = objective.network(tiny.network(model).encoder, 3)
    kind = InMemoryUtterances
    if isinstance(objective, Ctc):
        network, kind = objective.network(network.encoder, 29), Texts
    parts = {name: kind(**{**vars(part), "frames_NF": part.frames_NF.double()}) for name, part in tiny.parts().items()}
    network.dropout.p = 0.2 if case == "noise" else 0.0
    return TrainingLoop(
        tiny.trainer(batch_size=12, epochs=EPOCHS, accumulate=2 if case == "accumulation" else 1),
        network.double(),
        objective,
        make_phases(),
        SpecAugment(**QUIET, **STEADY, noise_std=0.3 if case == "noise" else 0.0),
        parts,
        tiny.NAMES,
        0,
        StateFiles(folder / "states", 1, {}, start),
        lambda _: None,
    )


def main(case, folder, signal_at="0"):
    start = ranks.broadcast_object(lambda: folder / "states" if (folder / "states").exists() else None)
    fit = fitting(case, folder, start)
    batches = fit.parts["validation"].by_length(7, fit.share)
    before = fit.objective.evaluate(fit.network, batches, tiny.NAMES, interleave_ranks)
    gradients = {}

    def watched(start, network, *rest):
        hooks = start(network, *rest)
        after_step = hooks.after_step

        def watched_step(step, steps):
            if not gradients:
                gradients.update({name: one.grad.clone() for name, one in network.named_parameters()})
            if step == int(signal_at) and ranks.rank() == ranks.world_size() - 1:
                os.kill(os.getpid(), signal.SIGUSR2)
            after_step(step, steps)

        hooks.after_step = watched_step
        return hooks

    fit.phases = [replace(phase, start=partial(watched, phase.start)) for phase in fit.phases]
    found = fit.run()
    if ranks.rank() == 0:
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


if __name__ == "__main__":
    with ranks.fail_together():
        for case in sys.argv[1].split(","):
            main(case, Path(sys.argv[2]) / case, *sys.argv[3:])
