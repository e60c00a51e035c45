"""CTC against the enumeration of all paths; its lengths, normalisation, evaluation and initial blank bias."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_exp.features.batch import Batch
from speech_exp.models.encoder import CompactEncoder
from speech_exp.models.recurrent import GRU
from speech_exp.objectives.ctc import Ctc, CtcOutput, frames_needed
from speech_exp.objectives.text import SYMBOLS, to_ids


def batch_of(
    transcripts: list[list[int]], features_BTF: torch.Tensor | None = None, lengths: list[int] | None = None
) -> Batch:
    features_BTF = torch.zeros(len(transcripts), 1, 1) if features_BTF is None else features_BTF
    lengths = lengths or [features_BTF.shape[1]] * len(transcripts)
    return Batch(
        features_BTF,
        torch.tensor(lengths),
        torch.tensor([symbol for transcript in transcripts for symbol in transcript], dtype=torch.int64),
        torch.tensor([len(transcript) for transcript in transcripts]),
        [f"u{number}" for number in range(len(transcripts))],
    )


def enumerated(logits_TV: torch.Tensor, transcript: list[int]) -> torch.Tensor:
    """Return -ln of the summed probability of all paths that collapse to the transcript."""
    log_probabilities_TV = logits_TV.log_softmax(-1)
    frames, vocabulary = logits_TV.shape
    scores = []
    for path in itertools.product(range(vocabulary), repeat=frames):
        merged = [symbol for symbol, _ in itertools.groupby(path)]
        if [symbol for symbol in merged if symbol != 0] == transcript:
            scores.append(log_probabilities_TV[range(frames), list(path)].sum())
    return -torch.stack(scores).logsumexp(0) if scores else torch.tensor(math.inf)


@st.composite
def tiny_batches(draw):
    """Draw transcripts of up to three characters out of two, with enough frames for them."""
    transcripts = draw(st.lists(st.lists(st.integers(1, 2), max_size=3), min_size=1, max_size=3))
    lengths = []
    for transcript in transcripts:
        needed = len(transcript) + sum(map(int.__eq__, transcript, transcript[1:]))
        lengths.append(draw(st.integers(max(1, needed), 5)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    logits_BTV = 2 * torch.randn(len(transcripts), max(lengths) + 1, 3, generator=generator, dtype=torch.float64)
    return transcripts, lengths, logits_BTV


@given(tiny_batches())
@settings(max_examples=25, deadline=None)
def test_loss_and_gradient_are_those_of_all_paths_enumerated(case):
    transcripts, lengths, logits_BTV = case
    batch, ctc = batch_of(transcripts), Ctc(0.0, 0.0, 0.0, "wer")
    results = []
    for number in range(2):
        leaf_BTV = logits_BTV.clone().requires_grad_()
        if number == 0:
            loss = ctc.loss(CtcOutput(leaf_BTV, torch.tensor(lengths)), batch)
        else:
            each = [enumerated(leaf_BTV[n, : lengths[n]], transcript) for n, transcript in enumerate(transcripts)]
            loss = torch.stack(each).sum() / max(1, sum(map(len, transcripts)))
        loss.backward()
        results.append((loss.detach(), leaf_BTV.grad))
    (loss, gradient_BTV), (expected, expected_BTV) = results
    assert torch.isfinite(gradient_BTV).all()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradient_BTV, expected_BTV, rtol=0, atol=1e-10)


def test_the_loss_is_divided_by_the_characters_of_the_batch():
    ctc, logits_BTV = Ctc(0.0, 0.0, 0.0, "wer"), torch.randn(2, 6, 4, dtype=torch.float64)
    transcripts, lengths = [[1, 2, 3], [2]], [6, 4]
    sums = [
        enumerated(logits_BTV[n, :length], transcript)
        for n, (transcript, length) in enumerate(zip(transcripts, lengths, strict=True))
    ]
    together = ctc.loss(CtcOutput(logits_BTV, torch.tensor(lengths)), batch_of(transcripts))
    torch.testing.assert_close(together, sum(sums) / 4)
    alone = ctc.loss(CtcOutput(logits_BTV[:1], torch.tensor([6])), batch_of(transcripts[:1]))
    torch.testing.assert_close(alone, sums[0] / 3)


def test_half_precision_logits_are_summed_in_float32():
    output = CtcOutput(torch.randn(2, 6, 4).bfloat16(), torch.tensor([6, 5]))
    batch, ctc = batch_of([[1, 2], [3]]), Ctc(0.0, 0.0, 0.0, "wer")
    loss = ctc.loss(output, batch)
    assert loss.dtype == torch.float32
    assert loss == ctc.loss(output._replace(logits_BTV=output.logits_BTV.float()), batch)


def test_padding_changes_neither_loss_nor_rows_nor_gets_gradient():
    ctc, logits_BTV, lengths_B = (
        Ctc(0.0, 0.0, 0.0, "wer"),
        torch.randn(2, 5, 4, requires_grad=True),
        torch.tensor([5, 3]),
    )
    longer_BTV = torch.cat([logits_BTV, 100 * torch.randn(2, 4, 4)], dim=1)
    longer_BTV = torch.where(
        torch.arange(9).view(1, 9, 1) < lengths_B.view(2, 1, 1), longer_BTV, 100.0 * torch.randn(2, 9, 4)
    )
    batch = batch_of([[1, 2], [3]])
    torch.testing.assert_close(
        ctc.loss(CtcOutput(longer_BTV, lengths_B), batch),
        ctc.loss(CtcOutput(logits_BTV, lengths_B), batch),
        rtol=0,
        atol=0,
    )
    rows_NV = ctc.rows(CtcOutput(longer_BTV, lengths_B))
    torch.testing.assert_close(rows_NV, torch.cat([logits_BTV[0], logits_BTV[1, :3]]), rtol=0, atol=0)
    ctc.loss(CtcOutput(logits_BTV, lengths_B), batch).backward()
    assert (logits_BTV.grad[1, 3:] == 0).all()
    assert (logits_BTV.grad[0] != 0).any()


@pytest.mark.parametrize(
    ("transcripts", "needed"), [([[1, 2], [1, 1], []], [2, 3, 0]), ([[5, 5, 5], [5], [5, 5, 6, 6]], [5, 1, 6])]
)
def test_equal_neighbours_need_a_frame_between_them_within_one_utterance(transcripts, needed):
    batch = batch_of(transcripts)
    assert frames_needed(batch.targets, batch.target_lengths_B).tolist() == needed


def test_transcripts_that_the_frames_cannot_carry_are_named():
    ctc, batch = Ctc(0.0, 0.0, 0.0, "wer"), batch_of([[1, 1], [1, 2], [1, 2, 1]])
    output = CtcOutput(torch.randn(3, 3, 3), torch.tensor([2, 2, 2]))
    with pytest.raises(ValueError, match="too many characters for their frames") as caught:
        ctc.loss(output, batch)
    assert "u0 (2 frames, 3 needed)" in str(caught.value)
    assert "u2 (2 frames, 3 needed)" in str(caught.value)
    assert "u1" not in str(caught.value)
    assert torch.isfinite(ctc.loss(output._replace(lengths_B=torch.tensor([3, 2, 3])), batch))


def test_a_lower_wer_is_better_of_equals_a_lower_loss():
    ctc = Ctc(0.0, 0.0, 0.0, "wer")
    good, worse, later = {"wer": 0.1, "loss": 2.0}, {"wer": 0.2, "loss": 1.0}, {"wer": 0.1, "loss": 1.9}
    assert ctc.better(good, worse)
    assert not ctc.better(worse, good)
    assert ctc.better(later, good)
    assert not ctc.better(good, good)


class Fixed(torch.nn.Module):
    """A network whose logits are the features."""

    def forward(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> CtcOutput:
        return CtcOutput(features_BTF, lengths_B)


def spoken(path: str, frames: int) -> torch.Tensor:
    """Return logits (T, V): 9 for each frame's symbol (`_` is the blank), else 0; frames after the path have the symbol z."""
    symbols = [0 if one == "_" else to_ids(one)[0] for one in path.ljust(frames, "z")]
    return 9.0 * torch.nn.functional.one_hot(torch.tensor(symbols), len(SYMBOLS)).float()


def evaluated(cases: list[tuple[str, str, str]], batch_size: int):
    """Evaluate the network `Fixed` on `cases`: id, path and reference of each utterance."""
    batches = []
    for start in range(0, len(cases), batch_size):
        chosen = cases[start : start + batch_size]
        frames = max(len(path) for _, path, _ in chosen)
        features_BTF = torch.stack([spoken(path, frames) for _, path, _ in chosen])
        batch = batch_of([to_ids(text) for *_, text in chosen], features_BTF, [len(path) for _, path, _ in chosen])
        batches.append(
            Batch(
                batch.features_BTF, batch.lengths_B, batch.targets, batch.target_lengths_B, [one for one, *_ in chosen]
            )
        )
    return Ctc(0.0, 0.0, 0.0, "wer").evaluate(Fixed(), batches, SYMBOLS)


CASES = [
    ("x2", "_oonn_ee  __ttwo_", "one two"),
    ("x0", "thre_e_ ", "three uh four"),  # the filler does not count: one of two words deleted
    ("x3", "six_ uh", "sax"),  # substituted; the recognised filler does not count
    ("x1", "____", ""),
]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_evaluation_by_hand_whatever_the_batches(batch_size):
    found = evaluated(CASES, batch_size)
    assert found.metrics["wer"] == 2 / 5
    # " FOUR" of "THREE FOUR" and one letter of "SAX", of 7 + 10 + 3 characters
    assert found.metrics["cer"] == 6 / 20
    assert [(row["id"], row["reference"], row["prediction"]) for row in found.predictions] == [
        ("x0", "three uh four", "three"),
        ("x1", "", ""),
        ("x2", "one two", "one two"),
        ("x3", "sax", "six uh"),
    ]
    sure = 9 - math.log(math.exp(9) + 28)
    assert [row["score"] for row in found.predictions] == pytest.approx([sure] * 4, rel=1e-4)
    assert found.errors.words.deletions == found.errors.words.substitutions == 1
    assert found.errors.confusions == [("SAX", "SIX", 1)]
    assert [one.id for one in found.errors.worst] == ["x3", "x0"]
    assert found.errors.worst[1].reference == "THREE FOUR"
    assert found.tables() == {"test_edits": {"substitutions": 1, "deletions": 1, "insertions": 0, "words": 5}}


def test_the_loss_of_an_evaluation_is_that_of_training_over_the_corpus():
    cases = [("a", "one_", "on"), ("b", "_two__", "two")]
    frames = [spoken(path, len(path)) for _, path, _ in cases]
    ctc = Ctc(0.0, 0.0, 0.0, "wer")
    sums = [
        len(text) * ctc.loss(CtcOutput(one[None], torch.tensor([len(one)])), batch_of([to_ids(text)])).item()
        for one, (*_, text) in zip(frames, cases, strict=True)
    ]
    assert evaluated(cases, 2).metrics["loss"] == pytest.approx(sum(sums) / 5, rel=1e-6)
    # a transcript with too few frames has no loss, but its words count
    crowded = evaluated([*cases, ("c", "abc", "abcdef")], 3)
    assert crowded.metrics["loss"] == pytest.approx(sum(sums) / 5, rel=1e-6)
    assert crowded.errors.words.reference == 3


def network(blank_bias: float, dropout: float = 0.0) -> torch.nn.Module:
    encoder = CompactEncoder(8, lambda width: GRU(width, 16), bidirectional=False, num_layers=1, dropout=0.0)
    return Ctc(blank_bias, dropout, 0.0, "wer").network(encoder, len(SYMBOLS))


def test_a_padded_batch_equals_its_utterances_one_by_one():
    torch.manual_seed(0)
    model = copy.deepcopy(network(4.0, dropout=0.5)).double().eval()
    assert model.score is None
    features_BTF, lengths_B = torch.randn(3, 8, 8, dtype=torch.float64), torch.tensor([8, 2, 5])
    logits_BTV, output_lengths_B = model(features_BTF, lengths_B)
    assert output_lengths_B.tolist() == [8, 2, 5]
    for number, length in enumerate(lengths_B.tolist()):
        alone = model(features_BTF[number : number + 1, :length], lengths_B[number : number + 1])
        torch.testing.assert_close(logits_BTV[number, :length], alone.logits_BTV[0], rtol=0, atol=1e-12)


def test_the_blank_starts_on_its_bias_and_learns_on():
    model = network(4.0)
    assert model.output.bias.tolist() == [4.0] + [0.0] * 28
    assert model.output.bias.requires_grad


def chirps(utterances: int, generator: torch.Generator) -> Batch:
    """Return utterances of 80 noisy frames with 6 characters of 4 frames each, out of four kinds: 70 % of the frames are silent."""
    characters, frames, slot = 6, 80, 13
    patterns_VF = torch.randn(4, 8, generator=torch.Generator().manual_seed(9))
    kinds = torch.randint(4, (utterances, characters), generator=generator)
    starts = torch.randint(slot - 4, (utterances, characters), generator=generator) + slot * torch.arange(characters)
    features_BTF = 0.3 * torch.randn(utterances, frames, 8, generator=generator)
    for frame in range(4):
        features_BTF[torch.arange(utterances).unsqueeze(1), starts + frame] += patterns_VF[kinds]
    return batch_of((kinds + 2).tolist(), features_BTF)


def test_a_blank_that_starts_on_its_share_cures_the_collapse_to_empty_outputs():
    found = {}
    for blank_bias in (0.0, -2.0, 4.0):
        torch.manual_seed(1)
        generator, ctc, model = torch.Generator().manual_seed(1), Ctc(blank_bias, 0.0, 0.0, "wer"), network(blank_bias)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(180):
            batch = chirps(16, generator)
            optimizer.zero_grad()
            ctc.loss(model(batch.features_BTF, batch.lengths_B), batch).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        found[blank_bias] = ctc.evaluate(model, [chirps(32, torch.Generator().manual_seed(99))], SYMBOLS)
    assert {row["prediction"] for row in found[0.0].predictions} == {""}
    assert found[0.0].metrics["cer"] == 1.0
    assert found[-2.0].metrics["cer"] > 0.5  # no longer empty, but not right any sooner
    assert found[4.0].metrics["cer"] < 0.1


def test_a_batch_seen_twice_the_same_way_is_consistent():
    batch = batch_of([[1, 2], [3]])
    logits_BTV, lengths_B = torch.randn(2, 6, 4, dtype=torch.float64), torch.tensor([6, 4])
    twice = CtcOutput(logits_BTV.repeat(2, 1, 1), lengths_B.repeat(2))
    once = Ctc(0.0, 0.0, 0.0, "wer").loss(CtcOutput(logits_BTV, lengths_B), batch)
    assert Ctc(0.0, 0.0, 0.7, "wer").views == 2
    torch.testing.assert_close(Ctc(0.0, 0.0, 0.7, "wer").loss(twice, batch.repeated(2)), once)


def test_inconsistency_is_that_of_the_valid_frames_by_hand():
    batch = batch_of([[1, 2], [3]])
    views = torch.randn(4, 5, 4, dtype=torch.float32, requires_grad=True)
    lengths_B = torch.tensor([5, 3, 5, 3])
    output, doubled = CtcOutput(views, lengths_B), batch.repeated(2)
    added = Ctc(0.0, 0.0, 0.5, "wer").loss(output, doubled) - Ctc(0.0, 0.0, 0.0, "wer").loss(output, doubled)
    expected = 0.0
    for row, frames in ((0, 5), (1, 3)):
        for frame in range(frames):
            a, b = views[row, frame].softmax(0), views[row + 2, frame].softmax(0)
            expected += float(((a - b) * (a / b).log()).sum())  # D(a || b) + D(b || a)
    assert float(added) == pytest.approx(0.5 * expected / 6, rel=1e-5)


def test_each_view_learns_from_the_other_one_alone():
    views = torch.randn(2, 3, 4, requires_grad=True)
    lengths_B = torch.tensor([3, 3])
    empty = Batch(
        torch.zeros(2, 3, 1),
        lengths_B,
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
        ["u", "u"],
    )
    with_it, without = (
        torch.autograd.grad(Ctc(0.0, 0.0, weight, "wer").loss(CtcOutput(views, lengths_B), empty), views)[0]
        for weight in (1.0, 0.0)
    )
    a, b = views.detach().softmax(-1)
    # The gradient of D(b || softmax(z)) with b fixed is softmax(z) - b.
    torch.testing.assert_close(with_it - without, torch.stack([a - b, b - a]), rtol=1e-4, atol=1e-5)


def test_what_selects_the_best_epoch():
    one, other = {"wer": 0.9, "cer": 0.6, "loss": 2.0}, {"wer": 1.0, "cer": 0.5, "loss": 3.0}
    assert Ctc(0.0, 0.0, 0.0, "wer").better(one, other)
    assert Ctc(0.0, 0.0, 0.0, "cer").better(other, one)
    last = Ctc(0.0, 0.0, 0.0, "last")
    assert last.better(one, other)
    assert last.better(other, one)
