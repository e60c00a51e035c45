"""Describe a run before it trains: what action=train prints first, and what dry_run=true prints instead of training."""

from __future__ import annotations

import torch

from speech_exp.experiment import Experiment
from speech_exp.runs import environment
from speech_exp.runs.sizes import parameters, window_text
from speech_exp.tasks.storage import float_bytes, float_layer_bytes
from speech_exp.training.threads import cores_are_idle, usable_cores


def introduction(experiment: Experiment) -> dict[str, str]:
    """Return the facts that introduce a run: its folder, model, device and data."""
    network, device, threads = experiment.network, str(experiment.trainer.runtime.device), torch.get_num_threads()
    layers = network.encoder.recurrent_layers
    count = f"{len(layers)} layers of " if len(layers) > 1 else ""
    facts = {
        "run folder": str(experiment.folder),
        "model": f"{experiment.choices['model']}, {count}{layers[0].sizes_text()}, {parameters(network):,} parameters",
        "size": experiment.size.reason,
        "device": f"{device} ({environment.device_name(device)}), CPU threads: {threads} on {len(usable_cores())} cores",
        "warning": ""
        if cores_are_idle(threads)
        else "other processes use these cores, so the run is slower than it could be",
        "data": f"{experiment.dataset.name}, {experiment.dataset.summary}",
    }
    return {name: text for name, text in facts.items() if text}


def sizes(experiment: Experiment) -> dict[str, str]:
    """Return the sizes of the model and data (dry run)."""
    network, trainer, task = experiment.network, experiment.trainer, experiment.task
    size, utterances = trainer.training_batch, experiment.dataset.utterances_per_epoch
    return {
        "model": experiment.choices["model"],
        "recurrent layer": experiment.size.reason or network.encoder.recurrent_layers[0].sizes_text(),
        "parameters": f"{parameters(network):,}",
        "bytes per recurrent layer": ", ".join(f"{count:,}" for count in float_layer_bytes(network)) + " in float32",
        "bytes of the model": f"{float_bytes(network):,} in float32",
        "window": window_text(network, experiment.front_end.extractor.hop_s),
        "utterances per epoch": f"{utterances:,} in batches of "
        + (
            f"{size.utterances}" if size.frames is None else f"{size.frames * experiment.front_end.extractor.hop_s:g} s"
        ),
        "epochs": ", then ".join(f"{phase.first} to {phase.last}" for phase in task.phases(trainer.epochs)) or "none",
        "device": trainer.runtime.device_name,
    }
