"""Fixtures: composed configs, a small data set, and one feature cache for all actions of a module."""

import shutil

import pytest
from composition import composing

from speech_exp.data.digits import BUNDLED


@pytest.fixture(scope="module")
def compose():
    with composing() as composed:
        yield composed


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory):
    """Root of 240 of the 1,200 bundled recordings: all digits of three voices, indices 0 to 7."""
    root = tmp_path_factory.mktemp("few")
    folder = root / "digits_demo"
    folder.mkdir()
    for speaker in ("arthur", "emil", "fern"):
        for path in (BUNDLED / "digits_demo").glob(f"?_{speaker}_[0-7].flac"):
            shutil.copyfile(path, folder / path.name)
    return root
