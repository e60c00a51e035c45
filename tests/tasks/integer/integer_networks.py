"""Small networks of every kind that has an integer form, and batches for them."""

import torch
from torch import nn

from speech_exp.features.batch import Batch
from speech_exp.models.asr_encoder import AsrEncoder
from speech_exp.models.encoder import CompactEncoder
from speech_exp.models.lmu import LMU
from speech_exp.models.recurrent import GRU, LSTM
from speech_exp.objectives.classification import ClassificationNetwork
from speech_exp.objectives.ctc import CtcNetwork, CtcOutput

FEATURES, CLASSES = 5, 4
CELLS = {
    "gru": lambda width: GRU(width, 7),
    "lstm": lambda width: LSTM(width, 7),
    "lmu": lambda width: LMU(width, 7, 4, 8, 3, input_activation="relu", activation="relu"),
    "lmu_tanh": lambda width: LMU(width, 7, 4, 8, 3, input_activation="tanh", activation="tanh"),
    "lmu_linear": lambda width: LMU(width, 7, 4, 8, 3, activation="linear"),
    "lmu_feedback": lambda width: LMU(width, 7, 4, 8, 3, feedback=True),
    "lmu_feedback_relu": lambda width: LMU(width, 7, 4, 8, 3, feedback=True, activation="relu"),
}


def network(
    name: str,
    bidirectional: bool = False,
    num_layers: int = 1,
    front: int = 0,
    pooling: str = "mean",
    gain: float = 1.0,
    seed: int = 1,
) -> ClassificationNetwork:
    """Build a network with initial weights times `gain`; the running statistics of a front differ from their initial values."""
    torch.manual_seed(seed)
    encoder = CompactEncoder(FEATURES, CELLS[name], bidirectional, num_layers, 0.1, front, front_width=3)
    built = ClassificationNetwork(encoder, CLASSES, pooling, dropout=0.1).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(gain)
        if encoder.front is not None:
            encoder.front.normalization.running_mean.normal_()
            encoder.front.normalization.running_var.uniform_(0.5, 2.0)
    return built


def batch(lengths: list[int], seed: int = 2) -> Batch:
    """Return normal noise, zero in the padding."""
    torch.manual_seed(seed)
    lengths_B = torch.tensor(lengths)
    valid_BT = torch.arange(max(lengths)) < lengths_B.unsqueeze(1)
    features_BTF = torch.randn(len(lengths), max(lengths), FEATURES) * valid_BT.unsqueeze(2)
    targets_B = torch.arange(len(lengths)) % CLASSES
    return Batch(features_BTF, lengths_B, targets_B, None, [str(number) for number in range(len(lengths))])


def random_codes(batch_size: int, frames: int, seed: int = 3) -> torch.Tensor:
    """Return random int8 codes, about a third of them at the extremes."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (batch_size, frames, FEATURES), generator=generator, dtype=torch.int8)
    extreme = torch.rand(codes.shape, generator=generator) < 0.3
    return torch.where(extreme, codes.sign() * 127, codes)


WIDTH, LENGTHS = 8, [14, 5, 9]
BLOCK = "encoder.blocks.1.recurrent"


def attention_encoder(name: str, bidirectional: bool = False) -> AsrEncoder:
    return AsrEncoder(FEATURES, CELLS[name], bidirectional, 2, 0.1, WIDTH, 2, "full", 2, 3, False)


def recogniser(name: str, bidirectional: bool = False) -> CtcNetwork:
    torch.manual_seed(1)
    return CtcNetwork(attention_encoder(name, bidirectional), 6, 0.1, 0.0).eval()


def compact_recogniser(name: str) -> CtcNetwork:
    torch.manual_seed(1)
    return CtcNetwork(CompactEncoder(FEATURES, CELLS[name], True, 2, 0.1, 3, 3), 6, 0.1, 0.0).eval()


def attention_classifier(name: str) -> ClassificationNetwork:
    torch.manual_seed(1)
    return ClassificationNetwork(attention_encoder(name), CLASSES, "attention", 0.1).eval()


# Networks with parts that stay float, and their recurrent layers.
MIXED = {
    "recogniser": (recogniser, ["encoder.blocks.0.recurrent", BLOCK]),
    "compact recogniser": (compact_recogniser, ["encoder.layers.0", "encoder.layers.1"]),
    "classifier with attention": (attention_classifier, ["encoder.blocks.0.recurrent", BLOCK]),
}


def of(network: nn.Module, given: Batch) -> torch.Tensor:
    """Return the logits of the utterances, or of their valid frames, as rows."""
    output = network(given.features_BTF, given.lengths_B)
    if not isinstance(output, CtcOutput):
        return output
    frames_T = torch.arange(output.logits_BTV.shape[1])
    return output.logits_BTV[frames_T < output.lengths_B.unsqueeze(1)]


def seen_by(module: nn.Module, network: nn.Module, given: Batch) -> tuple[torch.Tensor, ...]:
    """Return the inputs, lengths and output of `module` while `network` computes a batch."""
    found: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _, inputs, output: found.extend([*inputs, output]))
    network(given.features_BTF, given.lengths_B)
    handle.remove()
    return tuple(found)
