"""Who shows progress, where several processes train together."""

import pytest

from speech_exp.progress import progress


@pytest.mark.parametrize(("rank", "for_all", "shown"), [(0, False, 1), (0, True, 1), (1, False, 0), (1, True, 1)])
def test_work_is_shown_once_and_by_the_process_that_does_it(monkeypatch, capsys, rank, for_all, shown):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    with progress("frames", 3, for_all=for_all) as bar:
        bar.advance(2)
        bar.advance(note="well")
    assert capsys.readouterr().err == shown * "frames: 3/3 well\n"
