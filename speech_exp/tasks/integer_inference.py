"""Task B2: integer-only inference."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from speech_exp.bounds import NonNegativeInt, PositiveFloat, PositiveInt
from speech_exp.data.batches import Utterances
from speech_exp.features.batch import Batch
from speech_exp.models.layer import RecurrentLayer
from speech_exp.objectives.objective import Network, Objective
from speech_exp.tasks.deployment import Certificate, CertificateError, Deployment, budget_certificate, float_network
from speech_exp.tasks.distillation import Distillation, loss_with
from speech_exp.tasks.dynamic import dynamic_bytes, dynamic_int8
from speech_exp.tasks.integer.calibration import calibration_batches
from speech_exp.tasks.integer.conversion import convert, from_state, integer_form
from speech_exp.tasks.integer.fake import FakeQuantized
from speech_exp.tasks.integer.form import IntegerForm, IntegerPart, integer_layer
from speech_exp.tasks.integer.proof import integer_operations
from speech_exp.tasks.packed import Part
from speech_exp.tasks.phases import Hooks, Loss, Phase, WarmUpHooks
from speech_exp.tasks.sizing import LargestWithin, Storage, float_storage
from speech_exp.tasks.storage import Stored, float_bytes
from speech_exp.tasks.task import Constraint, Deployed, Task

_PROBE_UTTERANCES, _PROBE_FRAMES = 3, 9


class IntegerInference(Task):
    """A float network sized for the budget and converted to integers after training.

    A classifier over the compact encoder is converted as a whole. In other networks only the recurrent layers are converted
    and the rest stays float; the certificate lists both.

    Without `qat_epochs` the best float epoch is converted. With them, that many epochs follow in which the network trains with
    simulated integer rules; each is converted and validated in integers, and the best of them is deployed.

    Args:
        expand_to_budget: compute the size from what the integer layer stores (`IntegerLayer.stored_bytes`), not from float32.
        qat_epochs: epochs of quantisation-aware training after the float epochs.
        fine_tune_lr: learning rate of those epochs.
        float_checkpoint: trained float run that replaces float training (loaded by the composition root).
        distillation: from a float teacher, in the quantisation-aware epochs.
    """

    name = "B2"
    sizing: LargestWithin

    def __init__(
        self,
        budget_bytes: PositiveInt,
        expand_to_budget: bool,
        qat_epochs: NonNegativeInt,
        fine_tune_lr: PositiveFloat,
        float_checkpoint: str | None,
        distillation: Distillation | None = None,
    ) -> None:
        if distillation and not qat_epochs:
            raise ValueError(
                "kd=teacher needs quantisation-aware epochs, got task.qat_epochs=0: set task.qat_epochs, "
                "or leave kd out"
            )
        self.sizing = LargestWithin(budget_bytes, integer_storage if expand_to_budget else convertible_storage)
        self.deployment = IntegerDeployment(budget_bytes)
        self.qat_epochs, self.fine_tune_lr = qat_epochs, fine_tune_lr
        self.float_checkpoint, self.distillation = float_checkpoint, distillation

    def phases(self, epochs: int, teacher: Network | None = None) -> list[Phase]:
        floats = [] if self.float_checkpoint else [Phase(1, epochs, None, WarmUpHooks if self.qat_epochs else Hooks)]
        if not self.qat_epochs:
            return floats
        before = 0 if self.float_checkpoint else epochs
        start = partial(QuantizationAwareHooks, loss_with(self.distillation, teacher))
        return [*floats, Phase(before + 1, before + self.qat_epochs, self.fine_tune_lr, start)]

    def deploy(self, best: nn.Module, reference: Network | None, train: Utterances) -> Deployed:
        if isinstance(best, IntegerForm):
            return Deployed(best, reference)
        trained = float_network(best)
        return Deployed(convert(trained, calibration_batches(train)), trained)

    def constraint(self, deployed: nn.Module, epochs: int) -> Constraint:
        assert isinstance(deployed, IntegerForm)
        trained = f"{self.qat_epochs} quantisation-aware epochs" if self.qat_epochs else "converted after training"
        lines = (*self.sizing.lines(), deployed.promise, trained)
        return Constraint(
            (*lines, "distilled from a float teacher") if self.distillation else lines, deployed.constrained
        )

    def engines(self, deployed: Deployed) -> dict[str, tuple[nn.Module, int]]:
        integer = deployed.network
        assert isinstance(integer, IntegerForm)
        assert deployed.reference is not None
        on_cpu = copy.deepcopy(deployed.reference).cpu()
        return {
            "float": (on_cpu, float_bytes(on_cpu)),
            "dynamic": (dynamic_int8(on_cpu), dynamic_bytes(on_cpu)),
            "integer": (integer, integer.model_bytes()),
        }


class QuantizationAwareHooks(Hooks):
    """Trains the float weights through simulated integer rules, and validates what they convert to."""

    def __init__(self, loss: Loss, network: Network, train: Utterances, seed: int) -> None:
        super().__init__(network, train, seed)
        self.reference = copy.deepcopy(network)
        self._train, self._loss = train, loss
        self._fake = FakeQuantized(network, calibration_batches(train))

    def loss(self, objective: Objective, network: nn.Module, batch: Batch) -> torch.Tensor:
        return self._loss(objective, self._fake.train(), batch)

    def candidate(self, epoch: int) -> nn.Module:
        return convert(self.network, calibration_batches(self._train))

    def restored(self, network: Network, state: Mapping[str, torch.Tensor]) -> nn.Module:
        return from_state(network, state)

    def stage(self, epoch: int) -> str:
        return "quantisation-aware"


class IntegerDeployment(Deployment):
    """A network that computes its recurrent layers, or everything, in integers."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes

    def blank(self, network: Network) -> nn.Module:
        return integer_form(network)

    def restore(self, network: Network, state: Mapping[str, torch.Tensor]) -> nn.Module:
        return from_state(network, state)

    def certify(self, deployed: nn.Module, untrained: Network) -> Certificate:
        """Check bytes and accumulators, then run random codes with any floating-point operation raising an error."""
        assert isinstance(deployed, IntegerForm)
        try:
            deployed.check()
            operations = sum(map(_operations_on_random_codes, deployed.integer_parts().values()))
        except ValueError as error:
            raise CertificateError(str(error)) from None
        budget = budget_certificate(
            deployed, self.blank(untrained), deployed.recurrent_layer_bytes(), self.budget_bytes
        )
        details: dict[str, Any] = {
            **budget.details,
            "integer_operations": operations,
            "accumulator_bounds": deployed.accumulator_bounds(),
            "integer_layers": deployed.covered(),
            "float_parts": deployed.float_parts(),
            "spectral_radii": deployed.spectral_radii(),
        }
        return Certificate("integer_only", True, operations, details)

    def parts(self, deployed: nn.Module) -> list[Part]:
        assert isinstance(deployed, IntegerForm)
        return deployed.parts()

    def stored(self, deployed: nn.Module) -> Stored:
        assert isinstance(deployed, IntegerForm)
        return Stored.of(
            deployed,
            deployed.parts(),
            deployed.recurrent_layer_bytes(),
            deployed.recurrent_state_bytes(),
            deployed.model_bytes(),
            8.0,
        )


def convertible_storage(layer: RecurrentLayer) -> Storage:
    """Return what the layer stores in float32; refuse one that has no integer form."""
    integer_layer(layer)
    return float_storage(layer)


def integer_storage(layer: RecurrentLayer) -> Storage:
    """Return what the integer form of the layer stores."""
    built = integer_layer(layer)
    numbers = {**float_storage(layer).numbers, "multipliers and as many shifts": built.requantised_rows()}
    return Storage(built.stored_bytes(), numbers)


def _operations_on_random_codes(part: IntegerPart) -> int:
    generator = torch.Generator().manual_seed(0)
    shape = (_PROBE_UTTERANCES, _PROBE_FRAMES, part.features)
    codes_BTF = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
    lengths_B = torch.tensor([_PROBE_FRAMES, 1, _PROBE_FRAMES // 2])
    return integer_operations(part.compute, codes_BTF, lengths_B)
