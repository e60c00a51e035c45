"""Fixtures: composed configs and one feature cache for all actions of a module."""

import pytest
from composition import composing


@pytest.fixture(scope="module")
def compose():
    with composing() as composed:
        yield composed


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")
