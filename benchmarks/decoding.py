"""Measure utterances per second of each decoder, with and without a language model, on one thread.

    python benchmarks/decoding.py [--checkpoint RUN/checkpoints/checkpoint_epoch_N_best.pt] [--rounds 5]

With a checkpoint of a recogniser, its logits on the test part are decoded, with a language model of its training
transcripts. Without one, the logits are simulated: random sentences over a vocabulary of random words, in which each
character peaks in one frame and one to three blank frames follow, with noise in all frames and some characters confused;
the language model is built from other sentences of the same source. Times include only the decoders, in batches, not the
network. Rounds alternate and the fastest counts, because other work on the machine can only add time.
"""

from __future__ import annotations

import argparse
import random
import string
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from training import experiment

from speech_exp.actions.language_model import transcripts
from speech_exp.objectives.ctc import CtcOutput
from speech_exp.objectives.decoders import Beam, Decoder, Greedy
from speech_exp.objectives.language_model import estimate
from speech_exp.objectives.scoring import find_errors
from speech_exp.objectives.text import BLANK, SYMBOLS, to_ids
from speech_exp.training.checkpoint import load_deployable

BATCH = 32
# Settings of the simulation: a frame every 20 ms, as after downsampling by 2, and sizes typical of read speech.
FRAME_S = 0.02
WORDS, SUCCESSORS, TRAINING_SENTENCES = 1000, 20, 5000
PEAK, NOISE, CONFUSED = 8.0, 1.0, 0.05


@dataclass(frozen=True)
class Material:
    title: str
    outputs: list[CtcOutput]
    references: list[str]
    audio_s: float
    training: Iterator[str]  # sentences for the language model


def recognised(checkpoint: str, folder: Path) -> Material:
    """Return the logits of a trained network."""
    run = experiment(folder, ["dataset=fsdd_strings", "trainer.device=cpu"]).from_checkpoint(
        load_deployable(checkpoint)
    )
    network = run.deployed.eval()
    step_s = run.front_end.extractor.hop_s * run.network.encoder.frames_per_state
    with torch.no_grad():
        outputs = [network(batch.features_BTF, batch.lengths_B) for batch in run.data.parts["test"].in_order(BATCH)]
    audio_s = step_s * sum(int(output.lengths_B.sum()) for output in outputs)
    title = f"logits of {checkpoint} on its test part"
    return Material(title, outputs, list(transcripts(run, "test")), audio_s, transcripts(run, "train"))


def simulated(utterances: int, seed: int) -> Material:
    """Return simulated logits that resemble those of a trained recogniser."""
    source = random.Random(seed)
    sentences = sentences_of(source)
    references = [next(sentences) for _ in range(utterances)]
    paths = [path_of(text, source) for text in references]
    generator = torch.Generator().manual_seed(seed)
    outputs = []
    for first in range(0, utterances, BATCH):
        chosen = [torch.tensor(path) for path in paths[first : first + BATCH]]
        path_BT = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=BLANK)
        logits_BTV = NOISE * torch.randn(*path_BT.shape, len(SYMBOLS), generator=generator)
        logits_BTV += PEAK * torch.nn.functional.one_hot(path_BT, len(SYMBOLS))
        outputs.append(CtcOutput(logits_BTV, torch.tensor([len(path) for path in chosen])))
    title = f"simulated logits of {utterances} random sentences over {WORDS} words, seed {seed}"
    training = (next(sentences) for _ in range(TRAINING_SENTENCES))
    return Material(title, outputs, references, FRAME_S * sum(map(len, paths)), training)


def sentences_of(source: random.Random) -> Iterator[str]:
    """Yield random sentences of 5 to 20 words; each word has a few possible successors, and the first is the most frequent."""
    words = ["".join(source.choices(string.ascii_lowercase, k=source.randint(2, 9))) for _ in range(WORDS)]
    successors = {word: source.choices(words, k=SUCCESSORS) for word in words}
    shares = [1 / rank for rank in range(1, SUCCESSORS + 1)]
    while True:
        sentence = [source.choice(words)]
        for _ in range(source.randint(4, 19)):
            sentence += source.choices(successors[sentence[-1]], shares)
        yield " ".join(sentence)


def path_of(text: str, source: random.Random) -> list[int]:
    path = [BLANK]
    for symbol in to_ids(text):
        heard = source.randrange(1, len(SYMBOLS)) if source.random() < CONFUSED else symbol
        path += [heard] + [BLANK] * source.randint(1, 3)
    return path


def measure(decoder: Decoder, outputs: list[CtcOutput]) -> tuple[float, list[str]]:
    started = time.perf_counter()
    texts = [text for output in outputs for text in decoder.decode(*output)]
    return time.perf_counter() - started, texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="of a recogniser; without one the logits are simulated")
    parser.add_argument("--utterances", type=int, default=128, help="of the simulation")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beam", type=int, default=50)
    parser.add_argument("--lm-weight", type=float, default=2.0)
    parser.add_argument("--order", type=int, default=3, help="of the language model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    if arguments.checkpoint:
        material = recognised(arguments.checkpoint, folder)
    else:
        material = simulated(arguments.utterances, arguments.seed)
    lm = folder / "lm.arpa"
    lm.write_text("".join(estimate(material.training, arguments.order).arpa()))
    beam, weight = arguments.beam, arguments.lm_weight
    decoders = {
        "greedy": Greedy(),
        f"beam {beam}": Beam(beam),
        f"beam {beam}, {arguments.order}-grams, weight {weight:g}": Beam(beam, str(lm), lm_weight=weight),
    }
    seconds: dict[str, list[float]] = {name: [] for name in decoders}
    for decoder in decoders.values():
        decoder.decode(*material.outputs[0])  # reads the language model and builds the word tree
    texts = {}
    for _ in range(arguments.rounds):
        for name, decoder in decoders.items():
            spent_s, texts[name] = measure(decoder, material.outputs)
            seconds[name].append(spent_s)
    print(f"{material.title}; {arguments.rounds} rounds, 1 thread, torch {torch.__version__}\n")
    print(
        "| decoder | utterances/s | audio seconds/s | times greedy's time | WER (%) |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for name, found in seconds.items():
        fastest_s, ratio = min(found), min(found) / min(seconds["greedy"])
        utterances = len(material.references)
        wer = find_errors([str(at) for at in range(utterances)], material.references, texts[name]).words.rate
        print(
            f"| {name} | {utterances / fastest_s:,.0f} | {material.audio_s / fastest_s:,.0f} | {ratio:,.1f} | {100 * wer:.2f} |"
        )


if __name__ == "__main__":
    main()
