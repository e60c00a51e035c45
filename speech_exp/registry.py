"""The classes that a config may name with `_target_`, for each node; no other class is ever built from a config.

To add a class, add one line here and one file in `conf/`; `tests/test_registry.py` checks that both agree. The names are
strings, so importing this table imports none of the classes.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from speech_exp.safe_text import printable

_APPROACHES = "speech_exp.tasks.approaches"

REGISTERED: dict[str, tuple[str, ...]] = {
    "dataset": (
        "speech_exp.data.digits.Digits",
        "speech_exp.data.strings.DigitStrings",
        "speech_exp.data.gigaspeech.data_set.GigaSpeech",
    ),
    "dataset.download": ("speech_exp.data.download.Archive",),
    "dataset.strings": ("speech_exp.data.string_rules.StringRules",),
    "dataset.limits": ("speech_exp.data.corpus.selection.Limits",),
    "features.extractor": (
        "speech_exp.features.mfcc.TorchMfcc",
        "speech_exp.features.mfcc.LibrosaMfcc",
        "speech_exp.features.mfcc.DynamicRangeMfcc",
        "speech_exp.features.logmel.LogMel",
    ),
    "augment.batch": ("speech_exp.features.augment.SpecAugment",),
    "augment.variants": ("speech_exp.features.distortion.Variants",),
    "encoder": ("speech_exp.models.encoder.CompactEncoder", "speech_exp.models.asr_encoder.AsrEncoder"),
    "model": (
        "speech_exp.models.recurrent.GRU",
        "speech_exp.models.recurrent.LSTM",
        "speech_exp.models.lmu.LMU",
    ),
    "objective": ("speech_exp.objectives.classification.Classification", "speech_exp.objectives.ctc.Ctc"),
    "decoder": ("speech_exp.objectives.decoders.Greedy", "speech_exp.objectives.decoders.Beam"),
    "task": (
        "speech_exp.tasks.unconstrained.Unconstrained",
        "speech_exp.tasks.budget.Budget",
        "speech_exp.tasks.integer_inference.IntegerInference",
        "speech_exp.tasks.power_of_two.PowerOfTwo",
    ),
    "c_approach": (
        f"{_APPROACHES}.snapping.Ema",
        f"{_APPROACHES}.snapping.SnapEpoch",
        f"{_APPROACHES}.snapping.SnapStep",
        f"{_APPROACHES}.snapping.Stochastic",
        f"{_APPROACHES}.snapping.Apot2",
        f"{_APPROACHES}.snapping.MixedPot",
        f"{_APPROACHES}.row_shared.RowShared",
        f"{_APPROACHES}.inq.Inq",
        f"{_APPROACHES}.ste.Ste",
    ),
    "kd": ("speech_exp.tasks.distillation.Distillation",),
    "trainer": ("speech_exp.training.trainer.Trainer",),
    "action": ("speech_exp.actions.train.Train",),  # the only action that writes a checkpoint
}


def registered_class(node: str, name: Any) -> type:
    """Return the class `name` for the config node `node`; it is imported only if the table lists it."""
    known = REGISTERED.get(node, ())
    if name not in known:
        raise ValueError(
            f"{node}._target_={printable(name, 100)}: expected {' or '.join(known) or 'no _target_ here'}; a new class is added to "
            "speech_exp/registry.py"
        )
    module, _, attribute = name.rpartition(".")
    found: type = getattr(import_module(module), attribute)
    return found
