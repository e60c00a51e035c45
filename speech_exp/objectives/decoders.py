"""From frame by frame scores to text: best path, and beam search with and without a language model.

Shape letters: B batch, T frames of the encoder's output, V vocabulary. A *path* is one symbol a frame; its *labels* are
what is left after repetitions are merged and blanks removed, the map B of Graves et al. 2006, section 3.1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch

from speech_exp.objectives.text import BLANK, SPACE, SYMBOLS, to_ids, to_text, words_apart

_NEVER = -1e9  # log-probability of what cannot be; finite, for the beam subtracts scores from each other
_WORD_BOUNDARY = "|"  # the space in language models of characters, as wav2letter and torchaudio write it


class TimedWord(NamedTuple):
    text: str
    start: int  # first frame of its first letter
    end: int  # frame after the last of its last letter

    def in_seconds(self, step_s: float) -> str:
        """The word, its start and end, of frames `step_s` apart."""
        return f"{self.text} {self.start * step_s:.2f}-{self.end * step_s:.2f}"


class Decoder(ABC):
    """`logits_BTV` need not be normalised; frames at and past `lengths_B` are never read."""

    @abstractmethod
    def paths(self, logits_BTV: torch.Tensor, lengths_B: torch.Tensor) -> list[list[int]]:
        """The path that the decoder takes through each utterance, as many symbols as it has frames."""

    def labels(self, logits_BTV: torch.Tensor, lengths_B: torch.Tensor) -> list[list[int]]:
        return [collapse(path) for path in self.paths(logits_BTV, lengths_B)]

    def decode(self, logits_BTV: torch.Tensor, lengths_B: torch.Tensor) -> list[str]:
        """Text of each utterance, one space between words and none around them."""
        return [words_apart(to_text(labels)) for labels in self.labels(logits_BTV, lengths_B)]

    def word_times(self, logits_BTV: torch.Tensor, lengths_B: torch.Tensor) -> list[list[TimedWord]]:
        """The words of `decode`, each with its frames [start, end) on the path.

        CTC is trained to name the characters in order, not when they are spoken: times may be some frames off.
        """
        return [_timed(path) for path in self.paths(logits_BTV, lengths_B)]


def collapse(path: list[int]) -> list[int]:
    """Labels of a path: repetitions merged, then blanks removed."""
    return [symbol for symbol, _ in groupby(path) if symbol != BLANK]


class Greedy(Decoder):
    """The most probable symbol of each frame (best path decoding; Graves et al. 2006, section 3.2).

    Works on the device of the logits and brings one tensor of labels back. The labels of the best path need not be the
    most probable labels, as many paths can share those.
    """

    def paths(self, logits_BTV: torch.Tensor, lengths_B: torch.Tensor) -> list[list[int]]:
        lengths = lengths_B.tolist()
        return [row[:length] for row, length in zip(logits_BTV.argmax(-1).tolist(), lengths, strict=True)]

    def labels(self, logits_BTV: torch.Tensor, lengths_B: torch.Tensor) -> list[list[int]]:
        path_BT = logits_BTV.argmax(-1)
        kept_BT = path_BT != BLANK
        kept_BT[:, 1:] &= path_BT[:, 1:] != path_BT[:, :-1]
        kept_BT &= torch.arange(path_BT.shape[1], device=path_BT.device) < lengths_B.to(path_BT.device).unsqueeze(1)
        counts = kept_BT.sum(1).tolist()
        return [part.tolist() for part in path_BT[kept_BT].cpu().split(counts)]


class Beam(Decoder):
    """Beam search through flashlight-text: prefixes compete by the probability summed over their paths.

    Without `lm` the search is free of a lexicon: it looks for the most probable labels, and finds them if the beam holds
    all prefixes. An `lm` of characters, one whose unigrams contain `|` for the space, joins in that free search. Any other
    `lm` is taken as one of words: only its words can be decoded, each spelled by its own letters and closed by a space,
    which the end of the utterance stands in for. The score of a hypothesis is

        ln p(labels | frames) + lm_weight * log10 p_lm(text, end of sentence) + word_score * words

    log10 because KenLM and flashlight count so, and published weights with them; ln 10 times the base of Bayes' rule.

    Args:
        beam: hypotheses kept after each frame.
        lm: KenLM file, text (.arpa) or binary.
        lexicon: words that may be decoded, one a line; null reads them from the unigrams of a text `lm`.
        lm_weight: see above.
        word_score: see above; above 0 it makes up for the language model's taste for few words. Only with an `lm` of words.
        beam_symbols: most probable symbols of a frame that are tried; null tries all.
        threshold: hypotheses so far (in ln) behind the best are dropped.
    """

    def __init__(
        self,
        beam: int,
        lm: str | None = None,
        lexicon: str | None = None,
        lm_weight: float = 0.0,
        word_score: float = 0.0,
        beam_symbols: int | None = None,
        threshold: float = 50.0,
    ) -> None:
        for key, value in {"beam": beam, "beam_symbols": beam_symbols}.items():
            if value is not None and value < 1:
                raise ValueError(f"decoder.{key}={value}: expected at least 1, change decoder.{key}")
        if not threshold > 0:
            raise ValueError(f"decoder.threshold={threshold}: expected a number above 0, change decoder.threshold")
        for key, file in {"lm": lm, "lexicon": lexicon}.items():
            if file is not None and not Path(file).is_file():
                raise ValueError(f"decoder.{key}={file}: no such file, change decoder.{key}")
        if lm is None and (lexicon is not None or word_score != 0):
            key = "word_score" if lexicon is None else "lexicon"
            raise ValueError(
                f"decoder.{key} was set without a language model: set decoder.lm or leave decoder.{key} out"
            )
        self.beam, self.lm, self.lexicon = beam, lm, lexicon
        self.lm_weight, self.word_score = lm_weight, word_score
        self.beam_symbols, self.threshold = beam_symbols, threshold
        self._flashlight = _flashlight()  # told to be missing now, not after an epoch
        self._words = self._read_words()
        self._decoders: dict[int, Callable[[torch.Tensor], list[int]]] = {}

    def paths(self, logits_BTV: torch.Tensor, lengths_B: torch.Tensor) -> list[list[int]]:
        log_probabilities_BTV = logits_BTV.float().log_softmax(-1).cpu()
        vocabulary = logits_BTV.shape[-1]
        if vocabulary not in self._decoders:
            make = self._of_characters if self._words is None else self._of_words
            self._decoders[vocabulary] = make(vocabulary)
        path_of = self._decoders[vocabulary]
        lengths = lengths_B.tolist()
        return [path_of(one_TV[:length]) for one_TV, length in zip(log_probabilities_BTV, lengths, strict=True)]

    def _read_words(self) -> list[str] | None:
        """Words to decode, None where the search is free."""
        if self.lm is None:
            return None
        if self.lexicon is not None:
            words = Path(self.lexicon).read_text(encoding="utf-8").split()
        else:
            words = _unigrams(Path(self.lm))
            if _WORD_BOUNDARY in words:
                if self.word_score != 0:
                    raise ValueError(
                        f"decoder.word_score={self.word_score}, but {self.lm} is a language model of characters: set decoder.word_score=0"
                    )
                return None
        spelled = [word for word in words if set(word.lower()) <= set(SYMBOLS[SPACE + 1 :])]
        if not spelled:
            raise ValueError(
                f"decoder.{'lm' if self.lexicon is None else 'lexicon'}: no word of letters a to z and apostrophes among "
                f"{len(words)}, change the file"
            )
        return spelled

    def _of_characters(self, vocabulary: int) -> Callable[[torch.Tensor], list[int]]:
        text = self._flashlight
        options = text.LexiconFreeDecoderOptions(
            beam_size=self.beam,
            beam_size_token=min(self.beam_symbols or vocabulary, vocabulary),
            beam_threshold=self.threshold,
            lm_weight=self.lm_weight,
            sil_score=0.0,
            log_add=True,  # sum over paths, not the best of them
            criterion_type=text.CriterionType.CTC,
        )
        names = ["<blank>", _WORD_BOUNDARY, *SYMBOLS[SPACE + 1 :]][:vocabulary]
        language = text.ZeroLM() if self.lm is None else _ken_lm(self.lm, names)
        # flashlight starts each hypothesis on its silence symbol and would take a first frame of it for a repetition:
        # blank in that place makes the search exact.
        decoder = text.LexiconFreeDecoder(options, language, BLANK, BLANK, [])

        def path(log_probabilities_TV: torch.Tensor) -> list[int]:
            return _best_path(decoder, log_probabilities_TV, len(log_probabilities_TV))

        return path

    def _of_words(self, vocabulary: int) -> Callable[[torch.Tensor], list[int]]:
        text, words = self._flashlight, self._words
        assert self.lm is not None
        assert words is not None
        options = text.LexiconDecoderOptions(
            beam_size=self.beam,
            beam_size_token=min(self.beam_symbols or vocabulary, vocabulary),
            beam_threshold=self.threshold,
            lm_weight=self.lm_weight,
            word_score=self.word_score,
            unk_score=float("-inf"),
            sil_score=0.0,
            log_add=True,
            criterion_type=text.CriterionType.CTC,
        )
        language = _ken_lm(self.lm, [*words, "<unk>"])
        trie, start = text.Trie(vocabulary, SPACE), language.start(False)
        for number, word in enumerate(words):
            # The space at the end belongs to the spelling: without it flashlight would take two equal last letters
            # without a blank between them for both.
            trie.insert([*to_ids(word.lower()), SPACE], number, language.score(start, number)[1])
        trie.smear(text.SmearingMode.MAX)
        decoder = text.LexiconDecoder(options, trie, language, SPACE, BLANK, len(words), [], False)
        end_1V = torch.full((1, vocabulary), _NEVER)
        end_1V[0, SPACE] = 0.0

        def path(log_probabilities_TV: torch.Tensor) -> list[int]:
            return _best_path(decoder, torch.cat([log_probabilities_TV, end_1V]), len(log_probabilities_TV))

        return path


def _best_path(decoder: Any, scores_TV: torch.Tensor, frames: int) -> list[int]:
    """Symbols of the first `frames` frames; flashlight puts one of its own before and one behind all."""
    if frames == 0:
        return []
    scores_TV = scores_TV.contiguous()
    results = decoder.decode(scores_TV.data_ptr(), *scores_TV.shape)
    return results[0].tokens[1 : frames + 1]


def _timed(path: list[int]) -> list[TimedWord]:
    words: list[TimedWord] = []
    open_word = False
    frame = 0
    for symbol, run in groupby(path):
        start, frame = frame, frame + len(list(run))
        if symbol == SPACE:
            open_word = False
        elif symbol != BLANK:
            if open_word:
                words[-1] = TimedWord(words[-1].text + SYMBOLS[symbol], words[-1].start, frame)
            else:
                words.append(TimedWord(SYMBOLS[symbol], start, frame))
            open_word = True
    return words


def _flashlight() -> Any:
    try:
        from flashlight.lib.text import decoder
    except ImportError as error:
        raise ValueError(
            f"decoder=beam needs the package flashlight-text ({error}): pip install 'speech_exp[asr]' or set decoder=greedy"
        ) from error
    return decoder


def _ken_lm(path: str, names: list[str]) -> Any:
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    try:
        return KenLM(path, Dictionary(names))
    except RuntimeError as error:
        raise ValueError(f"decoder.lm={path}: KenLM cannot read it ({error}), change decoder.lm") from error


def _unigrams(path: Path) -> list[str]:
    r"""Words of the section `\1-grams:` of an ARPA file, its sentence marks and unknown word left out."""
    words, inside = [], False
    with path.open(encoding="utf-8", errors="replace") as lines:
        if not next(lines, "").startswith(("\\data\\", "\n")):
            raise ValueError(
                f"decoder.lm={path}: not a language model in ARPA text; for a KenLM binary name its words, one a line, in "
                f"decoder.lexicon"
            )
        for line in lines:
            if line.startswith("\\"):
                if inside:
                    break
                inside = line.strip() == "\\1-grams:"
            elif inside and (fields := line.split()):
                words.append(fields[1])
    return [word for word in words if not (word.startswith("<") and word.endswith(">"))]
