"""The HTML of the comparison page: complete without scripts or network, and names are never code."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from speech_exp.comparison.findings import Findings
from speech_exp.comparison.formats import page as comparison_page
from speech_exp.comparison.formats.run_section import short_names
from speech_exp.comparison.grouping import group_runs
from speech_exp.comparison.paired_tests import choose_baseline
from speech_exp.figures import style
from speech_exp.runs.reading import find_runs

MakeRun = Callable[..., Path]
EVIL = '<script>alert("run")</script>'
VOID = {"meta", "input", "img", "br", "wbr"}


class Page(HTMLParser):
    """A parser that collects elements with their attributes, unclosed elements, and the texts of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def picture(path: Path) -> Path:
    """Write a picture of 1440 x 320 pixels."""
    figure = style.new_figure(9.0, 2.0)
    figure.subplots().plot([1, 2])
    return style.save(figure, path)


@pytest.fixture
def page(make_run: MakeRun, tmp_path: Path) -> Callable[[], Page]:
    def read() -> Page:
        runs = find_runs(tmp_path / "runs")
        grouping = group_runs(runs)
        unfinished = tuple(run for run in runs if run.results is None)
        figures = (picture(tmp_path / "comparison_bytes.png"),)
        baseline = choose_baseline(grouping.groups, None)
        return Page(comparison_page.page(Findings(grouping, baseline, (), ("a note",), unfinished, figures), "sweep"))

    return read


def test_every_run_has_a_row_and_a_section_that_it_links_to(make_run: MakeRun, page: Callable[[], Page]) -> None:
    for model in ("gru", "lmu"):
        for seed in (0, 1):
            make_run(f"{model}{seed}", 0.5 + 0.1 * seed, model=model, seed=seed)
    found = page()
    ids = [attributes["id"] for attributes in found.all("details")]
    assert ids == [f"run-{at}" for at in range(4)]
    assert [attributes["href"] for attributes in found.all("a")] == [f"#{name}" for name in ids]
    assert {"gru0", "gru1", "lmu0", "lmu1"} <= set(found.cells)
    assert "55.00" in found.cells
    assert "gru (baseline)" in found.cells


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["dataset=fsdd,model=gru,seed=0", "dataset=fsdd,model=lmu,seed=0"],
            ["model=gru", "model=lmu"],  # what varies
        ),
        (["a,seed=0", "a,b,seed=0"], ["a,seed=0", "a,b,seed=0"]),  # nothing would be left of the first
        (["seed=0,model=gru", "model=gru,seed=0"], ["seed=0,model=gru", "model=gru,seed=0"]),
        (["model=gru,seed=0"], ["model=gru,seed=0"]),
    ],
)
def test_run_names_say_what_varies(names: list[str], expected: list[str]) -> None:
    assert list(short_names(names).values()) == expected


def test_the_heading_names_the_sweep(make_run: MakeRun, page: Callable[[], Page]) -> None:
    for model in ("gru", "lmu"):
        make_run(f"task=A,model={model}", model=model)
    found = page()
    assert "<title>sweep: Comparison of model</title>" in found.text
    assert "<h1>sweep</h1>" in found.text
    assert found.cells.count("model=gru") == found.cells.count("model=lmu") == 1


def test_the_page_loads_nothing_and_may_run_only_its_script(make_run: MakeRun, page: Callable[[], Page]) -> None:
    make_run("a")
    found = page()
    addresses = [
        value for _, attributes in found.elements for name, value in attributes.items() if name in ("src", "href")
    ]
    assert addresses
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in addresses)
    assert "url(" not in found.text and "@import" not in found.text
    (script,) = re.findall(r"<script>(.*?)</script>", found.text, re.DOTALL)
    (policy,) = [one["content"] for one in found.all("meta") if "Security" in one.get("http-equiv", "")]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'" in policy
    assert policy.startswith("default-src 'none'")


def test_names_are_text_whatever_they_hold(make_run: MakeRun, page: Callable[[], Page]) -> None:
    override = "trainer.note=\"'><img src=x onerror=alert(1)>"
    config = f"{EVIL}: 1\n"
    make_run("plain")
    make_run(f"{EVIL.replace('/', '_')}", overrides=[f"'{override}'"], config=config)
    info = {"status": EVIL, "error": EVIL, "command": EVIL, "host": EVIL}
    (make_run("<b>broken", run_info=info) / "results.json").unlink()
    found = page()
    assert len(found.all("script")) == 1
    assert not found.all("b") and not any("onerror" in attributes for _, attributes in found.elements)
    assert all(one["src"].startswith("data:") for one in found.all("img"))
    assert EVIL.replace("/", "_") in found.cells and "<b>broken" in found.cells


def test_unfinished_runs_are_shown_with_their_reason(make_run: MakeRun, page: Callable[[], Page]) -> None:
    make_run("a", model="gru", overrides=["model=gru"])
    make_run("b", model="lmu", overrides=["model=lmu"])
    failed = make_run("c", overrides=["model=lmu", "seed=7"], run_info={"status": "failed", "error": "ValueError: no"})
    (failed / "results.json").unlink()
    found = page()
    at = found.cells.index("c")
    assert found.cells[at : at + 4] == ["c", "lmu", "7", "no results.json, status failed: ValueError: no"]
    assert "not counted: no results.json, status failed: ValueError: no" in found.text


def test_config_differences_to_the_run_of_the_baseline_with_the_same_seed(
    make_run: MakeRun, page: Callable[[], Page]
) -> None:
    for seed in (0, 1):
        for model, rate in (("gru", 0.1), ("lmu", 0.2)):
            config = f"seed: {seed}\nmodel: {{name: {model}}}\ntrainer: {{lr: {rate}, decay: {seed}}}\n"
            make_run(f"{model}{seed}", model=model, seed=seed, config=config)
    text = page().text
    sections = {
        name: text[text.index(f"<summary>{name}") :].partition("</details>")[0] for name in ("gru0", "gru1", "lmu1")
    }
    assert "This run is the baseline." in sections["gru0"] and "This run is the baseline." in sections["gru1"]
    assert "baseline: gru1" in sections["lmu1"]
    assert '<th scope="row">trainer.lr</th><td class="words">0.2</td><td class="words">0.1</td>' in sections["lmu1"]
    assert "trainer.decay" not in sections["lmu1"] and ">seed<" not in sections["lmu1"]


def test_figures_of_the_runs_are_embedded_with_a_text_instead(make_run: MakeRun, page: Callable[[], Page]) -> None:
    folder = make_run("a")
    picture(folder / "figures" / "training_curves.png")
    (folder / "figures" / "confusion_matrix.png").write_bytes(b"no picture")
    found = page()
    (curves,) = [one for one in found.all("img") if one["alt"] == "training curves of a"]
    assert (curves["width"], curves["height"]) == ("1200", "267")
    assert "confusion_matrix.png cannot be shown: cannot identify image file" in found.text
    assert all(one["alt"] for one in found.all("img"))


def test_tables_have_headers_and_filters_wait_for_the_script(make_run: MakeRun, page: Callable[[], Page]) -> None:
    for at, task in enumerate(("A", "B1")):
        make_run(f"{at}", task=task)
    found = page()
    assert {one["scope"] for one in found.all("th")} == {"col", "row"}
    (form,) = found.all("form")
    assert "hidden" in form
    assert [one["value"] for one in found.all("option")] == ["", "A", "B1"]
    assert found.text.count(" data-row ") == 2 + 2 + 2  # groups, runs, sections
