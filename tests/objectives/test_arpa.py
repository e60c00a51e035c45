"""An incomplete language model is refused in one sentence before KenLM, which would end the process, reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from speech_exp.objectives.arpa import read_words
from speech_exp.objectives.language_model import estimate

WHOLE = """\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-1.5\t<unk>
-99\t<s>\t-0.3
-0.8\t</s>
-0.5\tab\t-0.2
-0.7\tb

\\2-grams:
-0.2\t<s> ab
-0.4\tab b
-0.3\tb </s>

\\end\\
"""


def file_of(folder: Path, content: str | bytes) -> Path:
    path = folder / "lm.arpa"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_complete_model_yields_its_words(tmp_path: Path) -> None:
    assert read_words(file_of(tmp_path, WHOLE)) == ["<unk>", "<s>", "</s>", "ab", "b"]
    assert read_words(file_of(tmp_path, "\n\n" + WHOLE.replace("\n", "\r\n"))) == ["<unk>", "<s>", "</s>", "ab", "b"]
    assert read_words(file_of(tmp_path, WHOLE.replace("ab", "a\u3000b")))[3] == "a\u3000b"


@pytest.mark.parametrize("order", [2, 3, 4])
def test_what_this_project_writes_is_whole(tmp_path: Path, order: int) -> None:
    model = estimate(["one two three", "two three four", "one four"], order)
    found = read_words(file_of(tmp_path, "".join(model.arpa())))
    assert sorted(word for word in found if not word.startswith("<")) == model.words


def changed(old: str, new: str) -> str:
    assert old in WHOLE
    return WHOLE.replace(old, new, 1)


BROKEN = {
    "negative count": (changed("1=5", "1=-5"), "line 2 is ngram 1=-5, expected ngram 1= and a count above 0"),
    "count of zero": (changed("2=3", "2=0"), "line 3 is ngram 2=0, expected"),
    "count that would fill the memory": (changed("2=3", "2=99999999999"), "lists 3 of the 99,999,999,999 n-grams of order 2"),
    "count beyond 64 bits": (changed("2=3", "2=" + "9" * 30), "n-grams of order 2 that its header states"),
    "count with a digit that is none": (changed("2=3", "2=\u00b3"), "line 3 is ngram 2=.*, expected"),
    "order left out": (changed("ngram 2", "ngram 3"), "line 3 is ngram 3=3, expected ngram 2="),
    "one order": (changed("ngram 2=3\n", ""), "ends the counts of 1 orders, expected 2 to 6"),
    "seven orders": (changed("ngram 2=3", "\n".join(f"ngram {n}=3" for n in range(2, 8))), "ends the counts of 7 orders"),
    "fewer listed": (changed("-0.5\tab\t-0.2\n", ""), "lists 4 of the 5 n-grams of order 1"),
    "more listed": (changed("1=5", "1=4"), "lists more n-grams of order 1 than its header states"),
    "missing section": (WHOLE[: WHOLE.index("\\2-grams")] + "\\end\\\n", r"is \\end\\, expected \\2-grams:"),
    "other section": (changed("\\1-grams", "\\2-grams"), r"is \\2-grams:, expected \\1-grams:"),
    "cut in a section": (WHOLE[: WHOLE.index("-0.3\tb")], "lists 2 of the 3 n-grams of order 2"),
    "cut in a line": (WHOLE[: WHOLE.index("-0.3\tb") + 6], "of at most 0 and 2 words"),
    "cut before the end": (changed("\\end\\\n", ""), r"is the end of the file, expected \\end\\"),
    "NaN": (changed("-0.5", "nan"), "line 9 is nan.*, expected a log10 probability"),
    "infinity": (changed("-0.5", "-inf"), "line 9 is -inf.*, expected a log10 probability"),
    "overflow": (changed("-0.5", "-1e999"), "expected a log10 probability"),
    "what float32 cannot hold": (changed("-0.5", "-1e39"), "expected a log10 probability"),
    "NaN back-off": (changed("-0.2", "nan"), "line 9 .*expected a log10 probability"),
    "words for a score": (changed("-0.5", "often"), "expected a log10 probability"),
    "probability above 1": (changed("-0.5", "0.5"), "is 0.5.*expected a log10 probability of at most 0 and 1 words"),
    "too many words": (changed("ab b", "ab b b"), "of at most 0 and 2 words"),
    "no words": (changed("-0.4\tab b", "-0.4"), "of at most 0 and 2 words"),
    "a word twice": (changed("-0.7\tb", "-0.7\tab"), "must list each word once"),
    "no begin": (changed("<s>\t", "s\t"), "must list each word once, <s> and </s> among them"),
    "terminal escapes": (changed("-0.4\tab b", "\x1b[2Jab b"), r"is \\x1b\[2Jab b, expected a log10 prob"),
    "empty": ("", r"is the end of the file, expected \\data\\: not a complete language model in ARPA format"),
    "garbage": (b"\x7f\x00\xff" * 1000, "is not UTF-8: not a complete language model in ARPA format"),
    "one long line": (b"a" * 2**20, "is longer than 65,536 bytes"),
    "zeros": (bytes(2**20), "is longer than 65,536 bytes"),
    "binary": (b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(1000), "is a KenLM binary, which cannot be checked"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_model_is_reported_in_one_sentence(tmp_path: Path, kind: str) -> None:
    content, message = BROKEN[kind]
    path = file_of(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        read_words(path)
    text = str(caught.value)
    assert text.startswith(f"decoder.lm={path}: ")
    assert text.endswith(", change decoder.lm")
    assert text.isprintable()
