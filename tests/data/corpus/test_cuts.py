"""A table agrees with its manifest about each utterance, in every process."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import string
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lhotse import CutSet
from lhotse.audio import AudioSource, Recording
from lhotse.cut import MonoCut
from lhotse.supervision import SupervisionSegment
from system import needs_fork

from speech_exp.data.corpus.cuts import REJECTIONS, CutTable, TableWriter, needed_frames, open_table, refusal
from speech_exp.data.gigaspeech.transcripts import training_text

RATE_HZ = 16000


def cut_of(number: int, text: str, duration_s: float = 1.5) -> MonoCut:
    recording = Recording(f"r{number}", [AudioSource("file", [0], f"{number}.opus")], RATE_HZ, 80 * RATE_HZ, 80.0)
    supervision = SupervisionSegment(f"u{number}", f"r{number}", 0.0, duration_s, text=text)
    return MonoCut(f"u{number}", number / 4, duration_s, 0, recording=recording, supervisions=[supervision])


def written(folder: Path, texts: list[str], part: str = "part") -> CutTable:
    with TableWriter(folder, part, RATE_HZ) as writer:
        for number, text in enumerate(texts):
            writer.write(cut_of(number, text, 1 + number / 100))
        assert len(writer) == len(texts)
    return open_table(folder, part)


TEXTS = ["HELLO <COMMA> WORLD", "<SIL>", "NUMBER 9", "<PERIOD>", "É", "ALL-STAR", "A <UNK> B"]


def test_each_line_is_the_cut_that_was_written(tmp_path: Path) -> None:
    table = written(tmp_path, TEXTS)
    assert len(table) == 7
    lines = table.manifest.read_bytes().splitlines(keepends=True)
    assert table.offsets_U.tolist() == [sum(map(len, lines[:number])) for number in range(7)]
    for number in (3, 0, 6, 1):
        assert table.cut(number) == cut_of(number, TEXTS[number], 1 + number / 100)
        assert table.id(number) == f"u{number}"
    assert [table.text(number) for number in range(7)] == ["hello world", "", "number 9", "", "é", "all star", "a b"]
    for number in (-1, 7):
        with pytest.raises(IndexError, match=f"utterance {number} of 7"):
            table.cut(number)


def test_lhotse_reads_the_manifest(tmp_path: Path) -> None:
    table = written(tmp_path, TEXTS)
    assert list(CutSet.from_jsonl_lazy(table.manifest)) == [table.cut(number) for number in range(len(table))]


def test_the_columns_of_a_table(tmp_path: Path) -> None:
    table = written(tmp_path, TEXTS)
    assert table.samples_U.tolist() == [round((1 + number / 100) * RATE_HZ) for number in range(7)]
    assert table.needed_U.tolist() == [12, 0, 8, 0, 1, 9, 9]
    assert table.refusal_U.tolist() == [0, 1, 2, 3, 2, 0, 5]
    assert table.shard_U.tolist() == [0] * 7
    types = {name: getattr(table, name).dtype for name in ("offsets_U", "samples_U", "needed_U", "refusal_U")}
    assert types == {"offsets_U": np.int64, "samples_U": np.int64, "needed_U": np.int32, "refusal_U": np.uint8}


@given(st.text(string.ascii_uppercase + "'- 9", max_size=40), st.sampled_from(["", " <COMMA>", " <SIL>"]))
def test_frames_and_refusals_of_any_transcript(raw: str, tag: str) -> None:
    text = training_text(raw + tag)
    assert (text is None) == (tag == " <SIL>")
    if text is not None:
        # CTC needs a blank between equal characters: each run of n equal characters takes n + n - 1 frames
        assert needed_frames(text) == sum(2 * len(list(run)) - 1 for _, run in groupby(text))
    expected = 1 if text is None else 2 if "9" in text else 3 if not text else 0
    assert refusal(text) == expected
    assert bool(REJECTIONS[expected]) == (expected != 0)


def test_columns_of_more_than_a_block(tmp_path: Path) -> None:
    with TableWriter(tmp_path, "long", RATE_HZ) as writer:
        cut = cut_of(0, "A B")
        for _ in range(20_000):
            writer.write(cut)
    table = open_table(tmp_path, "long")
    line = len(json.dumps(cut.to_dict(), ensure_ascii=False)) + 1
    np.testing.assert_array_equal(table.offsets_U, np.arange(20_000) * line)
    assert set(table.samples_U) == {24_000}
    assert table.cut(19_999) == cut
    assert isinstance(table.samples_U, np.memmap)


def test_nothing_is_seen_before_the_end_and_nothing_stays_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a fault"), TableWriter(tmp_path, "part", RATE_HZ) as writer:
        writer.write(cut_of(0, "A"))
        assert not (tmp_path / "part").exists()
        raise RuntimeError("a fault")
    assert list(tmp_path.iterdir()) == []


def test_a_pickled_table_maps_the_same_files(tmp_path: Path) -> None:
    table = written(tmp_path, ["A"] * 3000)
    assert table.id(1) == "u1"  # the handle is open
    content = pickle.dumps(table)
    assert len(content) < 3000
    again = pickle.loads(content)
    assert isinstance(again.offsets_U, np.memmap)
    assert again.id(2999) == "u2999"


@pytest.mark.parametrize("rows", [slice(2, 5), [4, 2]])
def test_a_table_of_selected_rows_reads_those_lines_and_pickles_small(tmp_path: Path, rows: slice | list[int]) -> None:
    table = written(tmp_path, TEXTS)
    part = CutTable(table.manifest, *(getattr(table, name)[rows] for name in COLUMNS))
    again = pickle.loads(pickle.dumps(part))
    chosen = list(range(7))[rows] if isinstance(rows, slice) else rows
    assert [again.id(number) for number in range(len(again))] == [f"u{number}" for number in chosen]
    assert again.refusal_U.tolist() == table.refusal_U[rows].tolist()


def test_a_long_line_and_a_cut_manifest(tmp_path: Path) -> None:
    table = written(tmp_path, ["LONG " * 2000, "B"])
    assert table.cut(0).supervisions[0].text == "LONG " * 2000
    table.manifest.write_bytes(table.manifest.read_bytes()[:-5])
    with pytest.raises(
        ValueError, match=r"cuts\.jsonl ends within the line of utterance 1: prepare the data set again"
    ):
        table.id(1)
    content = table.manifest.read_bytes()
    table.manifest.write_bytes(content.replace(b'"id"', b'"id', 1))
    with pytest.raises(
        ValueError, match=r"line of utterance 0 in .*cuts\.jsonl was damaged .*: remove .*part and prepare"
    ):
        table.id(0)


@pytest.mark.parametrize("name", ["cuts.jsonl", "samples_U.npy", "refusal_U.npy"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_table_that_was_changed_later_is_not_opened(tmp_path: Path, name: str, cut: bool) -> None:
    written(tmp_path, TEXTS)
    path = tmp_path / "part" / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] if cut else content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    with pytest.raises(
        ValueError, match=rf"part does not match what was prepared \({name} .*\): remove it and run again"
    ):
        open_table(tmp_path, "part")


COLUMNS = ("offsets_U", "samples_U", "needed_U", "shard_U", "refusal_U")


def read_ids(table: CutTable, results: multiprocessing.SimpleQueue) -> None:
    results.put([table.id(number) for number in range(len(table))] * 20)


@pytest.mark.parametrize("start", [pytest.param("fork", marks=needs_fork), "spawn"])
def test_processes_read_one_table_at_the_same_time(tmp_path: Path, start: str) -> None:
    table = written(tmp_path, ["A"] * 50)
    assert table.id(7) == "u7"
    context = multiprocessing.get_context(start)
    results = context.SimpleQueue()
    jobs = [context.Process(target=read_ids, args=(table, results)) for _ in range(2)]
    for job in jobs:
        job.start()
    found = [results.get() for _ in jobs]
    for job in jobs:
        job.join(timeout=60)
    assert found == [[f"u{number}" for number in range(50)] * 20] * 2
