"""Decode frame-wise scores to text: best path, and beam search with or without a language model.

Shape letters: B batch, T frames of the encoder's output, V vocabulary. A *path* is one symbol per frame; its *labels* are
what remains after merging repetitions and removing blanks, the map B of Graves et al. 2006, section 3.1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch

from speech_exp.bounds import PositiveFloat, PositiveInt
from speech_exp.objectives.arpa import read_words
from speech_exp.objectives.prediction import Word
from speech_exp.objectives.text import BLANK, SPACE, SYMBOLS, normalise_spaces, to_ids, to_text

_NEVER = -1e9  # log-probability of the impossible; finite, because the beam subtracts scores
_WORD_BOUNDARY = "|"  # the space in character language models, as in wav2letter and torchaudio


class TimedWord(NamedTuple):
    text: str
    start: int  # first frame of its first letter
    end: int  # frame after the last of its last letter

    def in_seconds(self, step_s: float) -> Word:
        """Return the word with its start and end in seconds, for frames `step_s` apart."""
        return Word(self.text, self.start * step_s, self.end * step_s)


class Decoder(ABC):
    """Turns logits into text. `logits_BTV` need not be normalised; frames at and beyond `lengths_B` are ignored."""

    @abstractmethod
    def paths(self, logits_BTV: torch.Tensor, lengths_B: torch.Tensor) -> list[list[int]]:
        """Return the path chosen for each utterance, one symbol per frame."""

    def labels(self, logits_BTV: torch.Tensor, lengths_B: torch.Tensor) -> list[list[int]]:
        return [collapse(path) for path in self.paths(logits_BTV, lengths_B)]

    def decode(self, logits_BTV: torch.Tensor, lengths_B: torch.Tensor) -> list[str]:
        """Return the text of each utterance, with single spaces between words and none at the ends."""
        return [normalise_spaces(to_text(labels)) for labels in self.labels(logits_BTV, lengths_B)]

    def word_times(self, logits_BTV: torch.Tensor, lengths_B: torch.Tensor) -> list[list[TimedWord]]:
        """Return the words of `decode`, each with its frames [start, end) on the path.

        CTC learns the order of the characters, not when they are spoken: times may be off by some frames.
        """
        return [_timed(path) for path in self.paths(logits_BTV, lengths_B)]


def collapse(path: list[int]) -> list[int]:
    """Return the labels of a path: repetitions merged, then blanks removed."""
    return [symbol for symbol, _ in groupby(path) if symbol != BLANK]


class Greedy(Decoder):
    """The most probable symbol at each frame (best path decoding; Graves et al. 2006, section 3.2).

    Runs on the device of the logits and copies only one tensor of labels to the CPU. The labels of the best path need not be
    the most probable labels, because many paths can share the same labels.
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
    """Beam search with flashlight-text: prefixes compete by their probability summed over all their paths.

    Without `lm` the search uses no lexicon and looks for the most probable labels; it finds them if the beam is large enough
    for all prefixes. An `lm` of characters, recognised by the unigram `|` for the space, is added to that search. Any other
    `lm` is treated as one of words: only its words can be decoded, spelled by their letters and followed by a space; the end
    of the utterance counts as that space. The score of a hypothesis is

        ln p(labels | frames) + lm_weight * log10 p_lm(text, end of sentence) + word_score * words

    with log10 because KenLM, flashlight and published weights use it; the weight of Bayes' rule would be ln 10.

    Args:
        beam: hypotheses kept after each frame.
        lm: language model in ARPA text. KenLM's binaries are refused because they cannot be checked before loading.
        lexicon: file of the words that may be decoded, one per line; null uses the unigrams of `lm`.
        lm_weight: see above.
        word_score: see above; a positive value offsets the language model's bias towards few words. Only with an `lm` of words.
        beam_symbols: number of most probable symbols tried at each frame; null tries all.
        threshold: hypotheses whose score is this far (in ln) below the best are dropped.
    """

    def __init__(
        self,
        beam: PositiveInt,
        lm: str | None = None,
        lexicon: str | None = None,
        lm_weight: float = 0.0,
        word_score: float = 0.0,
        beam_symbols: PositiveInt | None = None,
        threshold: PositiveFloat = 50.0,
    ) -> None:
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
        self._flashlight = _flashlight()  # so that a missing package is reported now, not after an epoch
        self._words = self._read_words()
        self._decoders: dict[int, Callable[[torch.Tensor], list[int]]] = {}

    def paths(self, logits_BTV: torch.Tensor, lengths_B: torch.Tensor) -> list[list[int]]:
        _check_finite(logits_BTV, lengths_B)
        log_probabilities_BTV = logits_BTV.float().log_softmax(-1).cpu()
        vocabulary = logits_BTV.shape[-1]
        if vocabulary not in self._decoders:
            make = self._character_decoder if self._words is None else self._word_decoder
            self._decoders[vocabulary] = make(vocabulary)
        path_of = self._decoders[vocabulary]
        lengths = lengths_B.tolist()
        return [path_of(first_TV[:length]) for first_TV, length in zip(log_probabilities_BTV, lengths, strict=True)]

    def _read_words(self) -> list[str] | None:
        """Return the words to decode, or None if the search uses no lexicon."""
        if self.lm is None:
            return None
        words = [word for word in read_words(Path(self.lm)) if not (word.startswith("<") and word.endswith(">"))]
        if self.lexicon is not None:
            words = _lexicon(Path(self.lexicon))
        elif _WORD_BOUNDARY in words:
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

    def _character_decoder(self, vocabulary: int) -> Callable[[torch.Tensor], list[int]]:
        text = self._flashlight
        options = text.LexiconFreeDecoderOptions(
            beam_size=self.beam,
            beam_size_token=min(self.beam_symbols or vocabulary, vocabulary),
            beam_threshold=self.threshold,
            lm_weight=self.lm_weight,
            sil_score=0.0,
            log_add=True,  # sum over all paths instead of taking the best one
            criterion_type=text.CriterionType.CTC,
        )
        names = ["<blank>", _WORD_BOUNDARY, *SYMBOLS[SPACE + 1 :]][:vocabulary]
        language = text.ZeroLM() if self.lm is None else _ken_lm(self.lm, names)
        # flashlight starts each hypothesis on its silence symbol and would treat it in the first frame as a repetition:
        # using the blank as silence makes the search exact.
        decoder = text.LexiconFreeDecoder(options, language, BLANK, BLANK, [])

        def path(log_probabilities_TV: torch.Tensor) -> list[int]:
            return _best_path(decoder, log_probabilities_TV, len(log_probabilities_TV))

        return path

    def _word_decoder(self, vocabulary: int) -> Callable[[torch.Tensor], list[int]]:
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
            # The final space is part of the spelling: without it flashlight would accept a single letter for a double one at
            # the end of a word.
            trie.insert([*to_ids(word.lower()), SPACE], number, language.score(start, number)[1])
        trie.smear(text.SmearingMode.MAX)
        decoder = text.LexiconDecoder(options, trie, language, SPACE, BLANK, len(words), [], False)
        end_1V = torch.full((1, vocabulary), _NEVER)
        end_1V[0, SPACE] = 0.0

        def path(log_probabilities_TV: torch.Tensor) -> list[int]:
            return _best_path(decoder, torch.cat([log_probabilities_TV, end_1V]), len(log_probabilities_TV))

        return path


def _best_path(decoder: Any, scores_TV: torch.Tensor, frames: int) -> list[int]:
    """Return the symbols of the first `frames` frames; flashlight adds one symbol before and one after them."""
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


def _check_finite(logits_BTV: torch.Tensor, lengths_B: torch.Tensor) -> None:
    """Refuse NaN and infinite scores, on which flashlight crashes or returns nonsense."""
    bad_BT = ~logits_BTV.isfinite().all(-1)
    bad_BT &= torch.arange(bad_BT.shape[1], device=bad_BT.device) < lengths_B.to(bad_BT.device).unsqueeze(1)
    if bad_BT.any():
        row, frame = bad_BT.nonzero()[0].tolist()
        raise ValueError(
            f"the network gives NaN or infinite scores (utterance {row} of the batch, frame {frame}): it diverged or its "
            "weights are damaged, use another checkpoint, or lower trainer.lr"
        )


def _lexicon(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"decoder.lexicon={path} cannot be read as UTF-8 ({error}), change decoder.lexicon") from None


def _flashlight() -> Any:
    try:
        from flashlight.lib.text import decoder
    except ImportError as error:
        raise ValueError(
            f"decoder=beam needs the package flashlight-text ({error}): pip install 'speech_exp[asr]' (Python below 3.13) or set decoder=greedy"
        ) from error
    return decoder


def _ken_lm(path: str, names: list[str]) -> Any:
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    try:
        return KenLM(path, Dictionary(names))
    except RuntimeError as error:  # its message has several lines
        raise ValueError(
            f"decoder.lm={path}: KenLM cannot read it ({' '.join(str(error).split())}), change decoder.lm"
        ) from error
