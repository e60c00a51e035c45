"""action=language_model: n-grams of the training transcripts, or of a text file, for decoder.lm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speech_exp.actions.context import Context
from speech_exp.features.survey import survey
from speech_exp.objectives.language_model import estimate
from speech_exp.progress import print_table
from speech_exp.reporting.files import write_text


class BuildLanguageModel:
    """Writes a model of words in ARPA text and prints its perplexity on the validation transcripts.

    Args:
        order: words of the longest n-gram.
        text: file of one sentence a line, in UTF-8, made lower-case as transcripts are; None: the training transcripts.
        output: file to write; None: lm.arpa in the run folder.
    """

    def __init__(self, order: int, text: str | None, output: str | None) -> None:
        self.order, self.text, self.output = order, text, output

    def __call__(self, experiment: Context) -> None:
        _refuse_classes(experiment)
        sentences = transcripts(experiment, "train") if self.text is None else _lines(Path(self.text))
        model = estimate(sentences, self.order)
        path = Path(self.output) if self.output else experiment.folder / "lm.arpa"
        try:
            write_text(path, "".join(model.arpa()))
        except OSError as error:
            raise ValueError(f"output={path} cannot be written ({error.strerror}): change output") from None
        found = model.perplexity(transcripts(experiment, "validation"))
        counts = ", ".join(f"{len(grams):,} of order {order}" for order, grams in enumerate(model.log10, start=1))
        print_table(
            {
                "vocabulary": f"{len(model.words):,} words",
                "n-grams": counts,
                "perplexity": f"{found.value:.2f} on {found.words:,} words of the validation transcripts, {found.unknown:,} unknown",
                "written": f"{path} ({path.stat().st_size:,} bytes), for decoder=beam decoder.lm={path}",
            }
        )


def transcripts(experiment: Context, part: str) -> Iterator[str]:
    """Texts of a part of the data set, in its order; no audio is read for them."""
    found = survey(experiment.features.parts[part], part, experiment.loaded)
    return map(found.text, range(len(found)))


def _refuse_classes(experiment: Context) -> None:
    if experiment.objective.targets != "text":
        raise ValueError(
            f"dataset={experiment.choices['dataset']} gives {experiment.objective.targets}: expected transcripts, choose another "
            f"dataset, such as fsdd_strings"
        )


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield line.lower()
    except OSError as error:
        raise ValueError(f"text={path} cannot be read ({error.strerror}): change text") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"text={path} is not UTF-8 ({error.reason}): convert it or change text") from None
