"""action=inspect: show what the data pipeline feeds the model.

Shape letters: U utterances.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speech_exp.bounds import NonNegativeInt
from speech_exp.data.audio import AudioError
from speech_exp.data.prepared import Survey
from speech_exp.data.recordings import Dropped
from speech_exp.experiment import Experiment
from speech_exp.features.batch import Batch
from speech_exp.files import csv_text, write_bytes, write_json, write_text
from speech_exp.objectives.text import BLANK, SYMBOLS, to_text
from speech_exp.progress import print_table

_MOST_TRANSCRIPTS = 10_000  # in a larger corpus, characters are counted in a random sample of this size
_SHOWN_UTTERANCES = 12  # in the figure of a batch
_SHOWN_REASONS = 8
_SHOWN_TEXT = 100  # characters
_SPACE = "␣"


@dataclass(frozen=True)
class _Targets:
    """Counts of each character or class in the training transcripts; `transcripts` is how many were counted."""

    counts: dict[str, int]
    transcripts: int
    unit: str

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def missing(self) -> list[str]:
        return [symbol for symbol, count in self.counts.items() if not count]


class Inspect:
    """Summarises the training data in text, tables, figures and sound files.

    Of a corpus on disk, only the audio that is written or drawn is read.

    Args:
        listen: number of training utterances to write as sound files, including the shortest and the longest.
    """

    def __init__(self, listen: NonNegativeInt) -> None:
        self.listen = listen

    def __call__(self, experiment: Experiment) -> None:
        data, folder, rate_hz = experiment.data, experiment.folder, experiment.dataset.sample_rate_hz
        surveys = {name: data.survey(name) for name in data.parts}
        bad = _write_listening(folder, surveys["train"], self.listen, rate_hz, experiment.seed)
        data.dropped.extend(item for item in bad if item not in data.dropped)
        targets = _targets(
            surveys["train"], experiment.dataset.targets, experiment.dataset.class_names, experiment.seed
        )
        batch = _augmented_batch(experiment)
        seconds_of = {name: one.samples_U / rate_hz for name, one in surveys.items()}
        found = {
            "parts": {name: _durations(seconds_U) for name, seconds_U in seconds_of.items()},
            "dropped": _write_dropped(folder, data.every_dropped()),
            "epoch": _epoch(experiment),
            "targets": {
                "transcripts": targets.transcripts,
                "symbols": len(targets.counts),
                "missing": targets.missing,
            },
        }
        _write_targets(folder, targets)
        write_json(folder / "inspection.json", found)
        _draw(experiment, seconds_of, targets, batch)
        _print(experiment, found, targets.unit, len(surveys["train"]))


def _durations(seconds_U: np.ndarray) -> dict[str, float]:
    return {
        "utterances": len(seconds_U),
        "hours": float(seconds_U.sum()) / 3600,
        "min_s": float(seconds_U.min()),
        "median_s": float(np.median(seconds_U)),
        "mean_s": float(seconds_U.mean()),
        "p95_s": float(np.percentile(seconds_U, 95)),
        "max_s": float(seconds_U.max()),
    }


def _epoch(experiment: Experiment) -> dict[str, Any]:
    """Return the number of batches in a training epoch, their smallest and largest sizes, and the share of padding."""
    generator = torch.Generator().manual_seed(experiment.seed)
    shapes = experiment.data.parts["train"].batch_shapes(experiment.trainer.training_batch, generator)
    utterances, frames, unpadded = shapes.T
    return {
        "batches": len(shapes),
        "utterances": [int(utterances.min()), int(utterances.max())],
        "frames": [int(frames.min()), int(frames.max())],
        "features": experiment.front_end.extractor.num_features,
        "padding_share": 1 - float(unpadded.sum() / (utterances * frames).sum()),
    }


def _augmented_batch(experiment: Experiment) -> Batch:
    generator = torch.Generator().manual_seed(experiment.seed)
    batch = experiment.data.parts["train"].first_batch(experiment.trainer.training_batch, generator)
    experiment.augment.seed(experiment.seed, experiment.trainer.runtime.device)
    return experiment.augment(batch).to(torch.device("cpu"))


def _targets(train: Survey, kind: str, class_names: Iterable[str], seed: int) -> _Targets:
    chosen_U = np.arange(len(train))
    if len(train) > _MOST_TRANSCRIPTS:
        chosen_U = np.sort(np.random.default_rng(seed).choice(len(train), _MOST_TRANSCRIPTS, replace=False))
    texts = [train.text(number) for number in chosen_U.tolist()]
    found = Counter(texts) if kind == "classes" else Counter(character for text in texts for character in text)
    known = class_names if kind == "classes" else [symbol for place, symbol in enumerate(SYMBOLS) if place != BLANK]
    ranked = sorted(known, key=lambda symbol: (-found[symbol], symbol))
    counts = {_SPACE if symbol == " " else symbol: found[symbol] for symbol in ranked}
    return _Targets(counts, len(texts), "class" if kind == "classes" else "character")


def _write_targets(folder: Path, targets: _Targets) -> None:
    rows = [
        {targets.unit: symbol, "count": count, "share": count / targets.total}
        for symbol, count in targets.counts.items()
    ]
    write_text(folder / "characters.csv", csv_text((targets.unit, "count", "share"), rows))


def _write_dropped(folder: Path, dropped: Iterable[Dropped]) -> dict[str, int]:
    """Write dropped.csv; return the count of each reason, the most frequent first."""
    counts: Counter[str] = Counter()

    def rows() -> Iterable[dict[str, str]]:
        for item in dropped:
            counts[item.reason] += 1
            yield asdict(item)

    write_text(folder / "dropped.csv", csv_text(("id", "reason"), rows()))
    return dict(counts.most_common())


def _write_listening(folder: Path, train: Survey, listen: int, rate_hz: int, seed: int) -> list[Dropped]:
    """Write sound files and their transcripts; return the utterances that were chosen but could not be read."""
    generator = np.random.default_rng(seed)
    ends = dict.fromkeys((int(train.samples_U.argmin()), int(train.samples_U.argmax())))
    others = (int(number) for number in generator.permutation(len(train)) if number not in ends)
    rows: list[dict[str, Any]] = []
    bad = []
    for number in chain(ends, others):
        if len(rows) == listen:
            break
        speed = float(generator.choice(train.speeds))
        try:
            waveform_N = train.waveform_at_speed(number, speed)
        except AudioError as error:
            bad.append(Dropped(train.id(number), str(error)))
            continue
        name = f"{len(rows):02d}_{train.id(number)}.wav"
        write_bytes(folder / "listening" / name, _wav(waveform_N, rate_hz))
        seconds = len(waveform_N) / rate_hz
        rows.append({"file": name, "id": train.id(number), "seconds": seconds, "speed": speed, "text": train.text(number)})  # fmt: skip
    write_text(folder / "listening.csv", csv_text(("file", "id", "seconds", "speed", "text"), rows))
    return bad


def _wav(waveform_N: np.ndarray, rate_hz: int) -> bytes:
    """Encode a waveform as float32 WAV, which neither rounds nor clips the samples."""
    import soundfile

    content = io.BytesIO()
    soundfile.write(content, waveform_N, rate_hz, format="WAV", subtype="FLOAT")
    return content.getvalue()


def _draw(experiment: Experiment, seconds_of: dict[str, np.ndarray], targets: _Targets, batch: Batch) -> None:
    from speech_exp.figures.corpus import batch_figure, counts_figure, durations_figure

    figures = experiment.folder / "figures"
    durations_figure(seconds_of, figures / "durations.png")
    title = f"targets of {targets.transcripts:,} training utterances"
    counts_figure(targets.counts, title, targets.unit, figures / "characters.png")
    texts = _texts(batch, experiment.class_names)
    count = min(len(batch.ids), _SHOWN_UTTERANCES)
    shown = [
        (_cut(f"{batch.ids[row]}: {texts[row]}"), batch.features_BTF[row, : int(batch.lengths_B[row])].numpy())
        for row in np.linspace(0, len(batch.ids) - 1, count).round().astype(int).tolist()
    ]
    part = "" if count == len(batch.ids) else f"{count} of "
    title = f"a training batch after augmentation: {part}{len(batch.ids)} utterances"
    hop_s = experiment.front_end.extractor.hop_s
    batch_figure(shown, batch.features_BTF.shape[1], hop_s, title, figures / "batch.png")


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_TEXT else text[: _SHOWN_TEXT - 1] + "…"


def _texts(batch: Batch, class_names: tuple[str, ...]) -> list[str]:
    if batch.target_lengths_B is None:
        return [class_names[number] for number in batch.targets.tolist()]
    return [to_text(ids.tolist()) for ids in batch.targets.split(batch.target_lengths_B.tolist())]


def _span(ends: list[int]) -> str:
    return " to ".join(f"{end:,}" for end in dict.fromkeys(ends))


def _print(experiment: Experiment, found: dict[str, Any], unit: str, transcripts: int) -> None:
    epoch, targets, dropped = found["epoch"], found["targets"], found["dropped"]
    occurring = targets["symbols"] - len(targets["missing"])
    facts = {"data set": f"{experiment.dataset.name}, {experiment.dataset.summary}"}
    for name, part in found["parts"].items():
        facts[name] = (
            f"{part['utterances']:,} utterances, {part['hours']:,.2f} h, {part['min_s']:.2f} to {part['max_s']:.2f} s "
            f"(median {part['median_s']:.2f}, mean {part['mean_s']:.2f}, 95 % below {part['p95_s']:.2f})"
        )
    facts |= {
        "an epoch": f"{epoch['batches']:,} batches of {_span(epoch['utterances'])} utterances, {_span(epoch['frames'])} frames, "
        f"{epoch['features']} features",
        "padding": f"{epoch['padding_share']:.2%} of the frames of an epoch",
        "vocabulary": f"{occurring} of {targets['symbols']} {unit} targets occur in {targets['transcripts']:,} of "
        f"{transcripts:,} transcripts" + (f", never {' '.join(targets['missing'])}" if targets["missing"] else ""),
        "dropped": f"{sum(dropped.values()):,}",
    }
    print_table(facts | {"run folder": str(experiment.folder)})
    for reason, count in list(dropped.items())[:_SHOWN_REASONS]:
        print(f"{count:>9,} dropped: {reason}")
    if len(dropped) > _SHOWN_REASONS:
        print(f"{len(dropped) - _SHOWN_REASONS:>9,} more reasons: see dropped.csv")
