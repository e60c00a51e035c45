"""The comparison page in a real browser: headless Chromium sorts, filters and opens a run's section."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from speech_exp.comparison.compare import compare, find_runs
from speech_exp.figures.style import group_id

MakeRun = Callable[..., Path]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1400,1000",
)  # fmt: skip
WRONG = {"gruA": 0, "gruB1": 6, "lmuA": 1, "lmuB1": 12}  # of 12 utterances

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        reason = "chromium or chromedriver is not installed (apt-get install chromium chromium-driver)"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture
def shown(browser: Any, make_run: MakeRun, tmp_path: Path) -> Any:
    """Open a page of gru and lmu in tasks A and B1 with two seeds each, and one failed run."""
    accuracies = iter((0.9, 0.8, 1.0, 0.75, 0.95, 0.5, 0.65, 0.099))
    for model in ("gru", "lmu"):
        for task in ("A", "B1"):
            for seed in (0, 1):
                own = f"{model}-{task}-{seed}"
                rows = [(str(at), "7", "1" if at < WRONG[model + task] else "7") for at in range(12)]
                typed = [f"model={model}", f"task={task}"]
                make_run(own, next(accuracies), model=model, task=task, seed=seed, overrides=typed, predictions=rows)
    failed = make_run(
        "zz<script>", overrides=["model=gru", "task=A"], run_info={"status": "failed", "error": "disk full"}
    )
    (failed / "results.json").unlink()
    compare(find_runs(tmp_path / "runs"), tmp_path / "out")
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get((tmp_path / "out" / "comparison.html").as_uri())
    return browser


def names(browser: Any, table: str = "runs") -> list[str]:
    """Return the first cells of the visible rows, from top to bottom."""
    cells = browser.find_elements("css selector", f"#{table} tbody tr th")
    return [cell.text for cell in cells if cell.is_displayed()]


def sections(browser: Any) -> list[str]:
    found = browser.find_elements("css selector", "details > summary")
    return [one.text.split()[0] for one in found if one.is_displayed()]


def click_header(browser: Any, title: str, table: str = "runs") -> str:
    """Click a column's header and return how the column is then sorted."""
    headers = browser.find_elements("css selector", f"#{table} thead th")
    (header,) = [one for one in headers if one.text.split("\n")[0].strip() == title]
    header.find_element("css selector", "button").click()
    return str(header.get_attribute("aria-sort"))


def choose(browser: Any, key: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    labels = browser.find_elements("css selector", "#filters label")
    (label,) = [one for one in labels if one.text.startswith(key)]
    Select(label.find_element("css selector", "select")).select_by_visible_text(value)


def test_sorts_by_number_both_ways_with_missing_values_last(shown: Any) -> None:
    assert click_header(shown, "accuracy (%)") == "ascending"
    rising = ["lmu-B1-1", "lmu-A-1", "lmu-B1-0", "gru-B1-1", "gru-A-1", "gru-A-0", "lmu-A-0", "gru-B1-0"]
    assert names(shown) == [*rising, "zz<script>"]  # 9.9 before 50: as numbers, not as text
    assert click_header(shown, "accuracy (%)") == "descending"
    assert names(shown) == [*reversed(rising), "zz<script>"]
    assert click_header(shown, "seed") == "ascending"
    assert [name[-1] for name in names(shown)[:8]] == list("00001111")


def test_sorts_groups(shown: Any) -> None:
    assert names(shown, "groups") == ["gru · A (baseline)", "gru · B1", "lmu · A", "lmu · B1"]
    click_header(shown, "accuracy (%)", "groups")
    assert names(shown, "groups") == ["lmu · B1", "lmu · A", "gru · A (baseline)", "gru · B1"]


def test_sorts_tests_by_value_and_not_by_text(shown: Any) -> None:
    click_header(shown, "difference (points, 95 %)", "tests")
    assert names(shown, "tests") == [
        "lmu · B1",
        "gru · B1",
        "lmu · A",
    ]  # -100, -50 and -8.33, which would sort differently as text
    click_header(shown, "p", "tests")
    assert names(shown, "tests") == ["lmu · B1", "gru · B1", "lmu · A"]  # < 0.001, 0.031 and 1.000


def test_filters_by_keys_and_words_together(shown: Any) -> None:
    choose(shown, "model", "gru")
    assert names(shown) == ["gru-A-0", "gru-A-1", "gru-B1-0", "gru-B1-1", "zz<script>"]
    assert names(shown, "groups") == ["gru · A (baseline)", "gru · B1"]
    assert sections(shown) == names(shown)
    choose(shown, "task", "B1")
    assert names(shown) == ["gru-B1-0", "gru-B1-1"]
    shown.find_element("id", "filter-text").send_keys("75.00")
    assert names(shown) == ["gru-B1-1"]
    assert shown.find_element("id", "shown").text == "1 of 9 runs"
    shown.find_element("css selector", "#filters button").click()
    assert len(names(shown)) == 9
    shown.find_element("id", "filter-text").send_keys("DISK failed")
    assert names(shown) == ["zz<script>"]


def test_a_filter_fades_the_other_groups_in_the_figures(shown: Any) -> None:
    def faded() -> set[str]:
        return {one.get_attribute("data-group") for one in shown.find_elements("css selector", "svg .filtered")}

    assert faded() == set()
    choose(shown, "model", "gru")
    assert faded() == {group_id("lmu · A"), group_id("lmu · B1")}


def test_a_filter_acts_on_the_paired_tests(shown: Any) -> None:
    choose(shown, "model", "lmu")
    assert names(shown, "tests") == ["lmu · A", "lmu · B1"]


@pytest.fixture
def phone(browser: Any) -> Iterator[None]:
    screen = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    yield
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_phone_shows_the_page_in_its_width_with_figures_large_enough_to_read(phone: None, shown: Any) -> None:
    shown.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert shown.execute_script("return document.documentElement.clientWidth") == 390
    assert shown.execute_script(wide) == 0
    widths = """return [...document.querySelectorAll('main > section .figures > figure')].map(
        (one) => one.firstChild.clientWidth / parseFloat(getComputedStyle(one).getPropertyValue('--width')))"""
    found = shown.execute_script(widths)
    assert len(found) == 6 and min(found) > 0.64


def test_sorted_rows_stay_filtered(shown: Any) -> None:
    choose(shown, "task", "A")
    click_header(shown, "accuracy (%)")
    assert names(shown) == ["lmu-A-1", "gru-A-1", "gru-A-0", "lmu-A-0", "zz<script>"]


def test_a_link_opens_the_section_of_its_run(shown: Any) -> None:
    (link,) = [one for one in shown.find_elements("css selector", "#runs a") if one.text == "lmu-A-1"]
    link.click()
    opened = [one for one in shown.find_elements("css selector", "details") if one.get_attribute("open")]
    assert [one.find_element("css selector", "summary").text.split()[0] for one in opened] == ["lmu-A-1"]
    assert opened[0].find_element("css selector", "table").is_displayed()


def test_no_error_no_request_and_figures_that_are_drawn(shown: Any) -> None:
    assert shown.get_log("browser") == []
    requests = [one for one in shown.get_log("performance") if '"Network.requestWillBeSent"' in one["message"]]
    assert requests
    assert all('"url":"file:' in one["message"] or '"url":"data:' in one["message"] for one in requests)
    drawings = (
        "return [...document.querySelectorAll('.figures > figure > *')].map((one) => one.getBoundingClientRect().width)"
    )
    widths = shown.execute_script(drawings)
    assert len(widths) == 6 and min(widths) > 200
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert shown.execute_script(wide) == 0  # wide tables scroll, not the page
