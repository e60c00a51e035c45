"""Task B2: inference in integers alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from speech_exp.data.batches import Batch, Utterances
from speech_exp.models.layer import LayerSize
from speech_exp.objectives.objective import Network, Objective
from speech_exp.tasks.budget import Budget, float_network
from speech_exp.tasks.distillation import Distillation
from speech_exp.tasks.dynamic import dynamic_bytes, dynamic_int8
from speech_exp.tasks.integer.conversion import convert, from_state, integer_form
from speech_exp.tasks.integer.fake import FakeQuantized
from speech_exp.tasks.integer.form import IntegerForm, IntegerPart
from speech_exp.tasks.integer.proof import integer_operations
from speech_exp.tasks.storage import Stored, float_bytes
from speech_exp.tasks.task import Certificate, CertificateError, Phase, calibration_batches

_PROBE_UTTERANCES, _PROBE_FRAMES = 3, 9


class IntegerInference(Budget):
    """A float network sized for the budget, converted to integers after training.

    A classifier over the compact encoder becomes integers as a whole, of other networks the recurrent layers do and all
    else stays float; the certificate lists both.

    Without `qat_epochs` the best float epoch is converted; with them so many epochs follow in which the network trains
    with the integer rules faked, each is converted and validated in integers, and the best of these is deployed.

    Args:
        expand_to_budget: size by what INT8 stores (weights 1 byte, biases 4, the LMU's A and B 2) instead of float32.
        qat_epochs: epochs of quantisation-aware training after the float ones.
        fine_tune_lr: their learning rate.
        float_checkpoint: trained float run that takes the place of float training (handed over by the composition root).
        distillation: from a float teacher, in the quantisation-aware epochs.
    """

    name = "B2"

    def __init__(
        self,
        budget_bytes: int,
        expand_to_budget: bool,
        qat_epochs: int,
        fine_tune_lr: float,
        float_checkpoint: str | None,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__(budget_bytes)
        if qat_epochs < 0:
            raise ValueError(f"task.qat_epochs={qat_epochs}: expected at least 0, change task.qat_epochs")
        if not fine_tune_lr > 0:
            raise ValueError(f"task.fine_tune_lr={fine_tune_lr}: expected a number above 0, change task.fine_tune_lr")
        if distillation and not qat_epochs:
            raise ValueError(
                "kd=teacher needs epochs in which the integer network learns, got task.qat_epochs=0: set task.qat_epochs, "
                "or leave kd out"
            )
        self.expand_to_budget, self.qat_epochs, self.fine_tune_lr = expand_to_budget, qat_epochs, fine_tune_lr
        self.float_checkpoint, self.distillation = float_checkpoint, distillation
        self._fake: FakeQuantized | None = None
        self._train: Utterances | None = None
        self._promise = ""  # of the integer form, once there is one

    def layer_bytes(self, size: LayerSize) -> int:
        return size.bytes(weight=1, bias=4, fixed=2) if self.expand_to_budget else size.bytes()

    def constraint_lines(self) -> list[str]:
        lines = [
            *super().constraint_lines(),
            self._promise,
            f"{self.qat_epochs} quantisation-aware epochs" if self.qat_epochs else "converted after training",
        ]
        return [*lines, "distilled from a float teacher"] if self.distillation else lines

    def phases(self, epochs: int) -> list[Phase]:
        floats = [] if self.float_checkpoint else [Phase(1, epochs)]
        start = 0 if self.float_checkpoint else epochs
        faked = [Phase(start + 1, start + self.qat_epochs, self.fine_tune_lr)] if self.qat_epochs else []
        return floats + faked

    def begin_phase(self, network: Network, phase: Phase, train: Utterances, seed: int) -> None:
        integer_form(network)  # a layer that has none is refused before it is trained
        if phase.lr is not None:
            self.reference = copy.deepcopy(network)
            self._train = train
            self._fake = FakeQuantized(network, calibration_batches(train))

    def loss(self, objective: Objective, network: nn.Module, batch: Batch) -> torch.Tensor:
        if self._fake is None:
            return super().loss(objective, network, batch)
        self._fake.train()
        if self.distillation:
            return self.distillation.loss(objective, self._fake, batch)
        return super().loss(objective, self._fake, batch)

    def candidate(self, network: Network, epoch: int) -> nn.Module | None:
        if self._train is not None:
            return self._converted(network, self._train)
        return None if self.qat_epochs else network

    def stage(self, epoch: int) -> str:
        if not self.qat_epochs:
            return ""
        return "float" if self._fake is None else "quantisation-aware"

    def may_stop_early(self, epoch: int) -> bool:
        return not self.qat_epochs or self._fake is not None

    def deployable(self, network: nn.Module, train: Utterances) -> nn.Module:
        if isinstance(network, IntegerForm):
            return network
        self.reference = float_network(network)
        return self._converted(self.reference, train)

    def restore(self, network: Network, state: Mapping[str, torch.Tensor]) -> nn.Module:
        return from_state(network, state)

    def certify(self, deployed: nn.Module) -> Certificate:
        """Bytes, accumulators, and runs on random codes in which any floating-point operation is an error."""
        assert isinstance(deployed, IntegerForm)
        budget = super().certify(deployed)
        try:
            deployed.check()
            operations = sum(map(_operations_on_random_codes, deployed.integer_parts().values()))
        except ValueError as error:
            raise CertificateError(str(error)) from None
        details: dict[str, Any] = {
            **budget.details,
            "integer_operations": operations,
            "accumulator_bounds": deployed.accumulator_bounds(),
            "integer_layers": deployed.covered(),
            "float_parts": deployed.float_parts(),
            "spectral_radii": deployed.spectral_radii(),
        }
        return Certificate("integer_only", True, operations, details)

    def stored(self, deployed: nn.Module) -> Stored:
        assert isinstance(deployed, IntegerForm)
        layers, total = deployed.recurrent_layer_bytes(), deployed.model_bytes()
        return Stored(layers, total, 8.0, total, layers)

    def engines(self, deployed: nn.Module) -> dict[str, tuple[nn.Module, int]]:
        assert isinstance(deployed, IntegerForm)
        assert self.reference is not None, "engines stand side by side where the float network is at hand"
        on_cpu = copy.deepcopy(self.reference).cpu()
        return {
            "float": (on_cpu, float_bytes(on_cpu)),
            "dynamic": (dynamic_int8(on_cpu), dynamic_bytes(on_cpu)),
            "integer": (deployed, deployed.model_bytes()),
        }

    def _converted(self, network: Network, train: Utterances) -> IntegerForm:
        converted = convert(network, calibration_batches(train))
        self.constrained, self._promise = converted.constrained, converted.promise
        return converted


def _operations_on_random_codes(part: IntegerPart) -> int:
    generator = torch.Generator().manual_seed(0)
    shape = (_PROBE_UTTERANCES, _PROBE_FRAMES, part.features)
    codes_BTF = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
    lengths_B = torch.tensor([_PROBE_FRAMES, 1, _PROBE_FRAMES // 2])
    return integer_operations(part.compute, codes_BTF, lengths_B)
