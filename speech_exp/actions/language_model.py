"""action=language_model: build an n-gram model for decoder.lm from the training transcripts or a text file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speech_exp.experiment import Experiment
from speech_exp.files import write_text
from speech_exp.objectives.language_model import LanguageModel, Order, estimate
from speech_exp.progress import print_table


class BuildLanguageModel:
    """Writes a word n-gram model in ARPA format and prints its perplexity on the validation transcripts, if there are any.

    Args:
        order: length of the longest n-gram in words.
        text: UTF-8 file with one sentence per line, lower-cased like the transcripts; None: the training transcripts.
        output: output file; None: lm.arpa in the run folder.
    """

    def __init__(self, order: Order, text: str | None, output: str | None) -> None:
        self.order, self.text, self.output = order, text, output

    def __call__(self, experiment: Experiment) -> None:
        has_transcripts = experiment.objective.targets == "text"
        if self.text is None and not has_transcripts:
            raise ValueError(
                f"dataset={experiment.choices['dataset']} provides {experiment.objective.targets}: expected transcripts, choose "
                f"another dataset, such as fsdd_strings, or set text=FILE"
            )
        sentences = transcripts(experiment, "train") if self.text is None else _lines(Path(self.text))
        model = estimate(sentences, self.order)
        path = Path(self.output) if self.output else experiment.folder / "lm.arpa"
        try:
            write_text(path, "".join(model.arpa()))
        except OSError as error:
            raise ValueError(f"output={path} cannot be written ({error.strerror}): change output") from None
        counts = ", ".join(f"{len(grams):,} of order {order}" for order, grams in enumerate(model.log10, start=1))
        print_table(
            {
                "vocabulary": f"{len(model.words):,} words",
                "n-grams": counts,
                "perplexity": _perplexity(model, experiment)
                if has_transcripts
                else "unknown, because the data set has no transcripts",
                "written": f"{path} ({path.stat().st_size:,} bytes), for decoder=beam decoder.lm={path}",
            }
        )


def transcripts(experiment: Experiment, part: str) -> Iterator[str]:
    """Return the transcripts of a part of the data set in its order, without reading any audio."""
    perplexity = experiment.data.survey(part)
    return map(perplexity.text, range(len(perplexity)))


def _perplexity(model: LanguageModel, experiment: Experiment) -> str:
    perplexity = model.perplexity(transcripts(experiment, "validation"))
    return f"{perplexity.value:.2f} on {perplexity.words:,} words of the validation transcripts, {perplexity.unknown:,} unknown"


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield line.lower()
    except OSError as error:
        raise ValueError(f"text={path} cannot be read ({error.strerror}): change text") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"text={path} is not UTF-8 ({error.reason}): convert it or change text") from None
