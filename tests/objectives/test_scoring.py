"""Error rates and alignments by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech_exp.objectives.scoring import Edits, character_edits, edits_of_words, find_errors


def word_edits(references: list[str], hypotheses: list[str]) -> Edits:
    return find_errors([f"u{number}" for number in range(len(references))], references, hypotheses).words


def distance(reference: list[str], hypothesis: list[str]) -> int:
    """Return the Levenshtein distance, computed row by row."""
    row = list(range(len(hypothesis) + 1))
    for i, spoken in enumerate(reference, 1):
        previous, row[0] = row[0], i
        for j, recognised in enumerate(hypothesis, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (spoken != recognised))
    return row[-1]


def test_rates_are_those_of_the_corpus_not_means_over_utterances():
    references = ["one two three four five six", "seven"]
    hypotheses = ["one two four five five six", "eight nine"]
    # three deleted and a five inserted, or two substituted: 2 edits either way; then 1 substituted, 1 inserted
    words = word_edits(references, hypotheses)
    assert (words.total, words.reference) == (4, 7)
    assert words.rate == 4 / 7
    assert word_edits(["a b c"], ["a x c d"]) == Edits(substitutions=1, deletions=0, insertions=1, reference=3)
    assert word_edits(["a b c"], ["c"]) == Edits(substitutions=0, deletions=2, insertions=0, reference=3)


def test_a_space_is_a_character_and_outer_ones_are_not():
    assert character_edits(["ab cd"], ["abcd"]) == Edits(0, 1, 0, 5)
    assert character_edits([" ab  cd "], ["ab cd"]) == Edits(0, 0, 0, 5)
    assert character_edits(["it's"], ["its"]).rate == 1 / 4


def test_empty_references_count_what_is_inserted():
    assert word_edits(["", "a b"], ["x y", "a b"]) == Edits(0, 0, 2, 2)
    assert word_edits([""], [""]).rate == 0
    assert word_edits([""], ["x y"]).rate == 2
    assert character_edits([""], ["xy"]).rate == 2
    assert word_edits(["a b"], [""]).rate == 1
    assert word_edits([], []) == character_edits([], []) == Edits(0, 0, 0, 0)


corpora = st.lists(st.tuples(*2 * [st.lists(st.sampled_from("abc"), max_size=5)]), min_size=1, max_size=4)


@given(corpora)
def test_edits_are_the_least_and_the_lines_show_them_all(corpus):
    references, hypotheses = [" ".join(one) for one, _ in corpus], [" ".join(other) for _, other in corpus]
    ids = [f"u{number}" for number in range(len(corpus))]
    errors = find_errors(ids, references, hypotheses)
    assert errors.words.total == sum(distance(*pair) for pair in corpus)
    assert errors.characters.total == sum(map(distance, references, hypotheses))
    assert sum(one.edits for one in errors.worst) == errors.words.total
    for one in errors.worst:
        assert len(one.reference) == len(one.hypothesis) == len(one.marks)
        number = ids.index(one.id)
        assert one.reference.replace("*", "").split() == references[number].split()
        assert one.hypothesis.replace("*", "").split() == hypotheses[number].split()
        assert len(one.marks.split()) == one.edits == distance(*corpus[number])
    counted = [count for *_, count in (*errors.confusions, *errors.deleted, *errors.inserted)]
    assert sum(counted) == errors.words.total


def test_errors_are_listed_by_kind_and_word():
    ids = ["good", "bad", "worse", "short"]
    references = ["one two", "five nine six", "five five two six", "one"]
    hypotheses = ["one two", "five five six", "nine two six six", "one oh"]
    errors = find_errors(ids, references, hypotheses, worst=2)
    assert errors.words.total == 1 + 3 + 1
    assert ("nine", "five", 1) in errors.confusions
    assert ("oh", 1) in errors.inserted
    # with equal edits, the utterance with more edits per word comes first
    assert [one.id for one in errors.worst] == ["worse", "short"]
    short = errors.worst[1]
    assert (short.reference, short.hypothesis, short.marks) == ("one **", "one oh", "    I ")
    assert short.text() == "short: 1 edits, 1 words\nREF one **\nHYP one oh\n        I "


def test_a_table_of_confusions_starts_with_the_most_frequent():
    errors = find_errors(list("abc"), ["one", "one", "two"], ["nine", "nine", "too"])
    assert errors.confusions == [("one", "nine", 2), ("two", "too", 1)]
    assert errors.deleted == errors.inserted == []
    assert find_errors([], [], []).worst == []


@pytest.mark.parametrize(
    ("spoken", "recognised", "marks"), [("a long word", "a word", "  D        "), ("ab", "cd", "S ")]
)
def test_marks_are_under_the_words(spoken, recognised, marks):
    assert find_errors(["x"], [spoken], [recognised]).worst[0].marks == marks


@pytest.mark.parametrize("hypothesis", ["two one", "one two three", "won too", "", "nine one two", "one  two"])
@pytest.mark.parametrize("characters", [False, True])
def test_edits_of_words_add_up_to_those_of_the_utterance(hypothesis: str, characters: bool) -> None:
    edits, sizes = edits_of_words("one two", hypothesis, characters)
    whole = (character_edits if characters else word_edits)(["one two"], [hypothesis])
    assert (sum(edits), sum(sizes)) == (whole.total, whole.reference)


def test_each_edit_is_counted_for_its_word() -> None:
    assert edits_of_words("one two six", "one too six", characters=False) == ([0, 1, 0], [1, 1, 1])
    assert edits_of_words("one two six", "one to sixth", characters=True) == ([0, 1, 2], [4, 4, 3])
    assert edits_of_words("one two", "nine one two ten", characters=False) == ([1, 1], [1, 1])
