# SPDX-License-Identifier: Apache-2.0
"""Global pytest set-up: how Hypothesis behaves in this suite, and which tests there are."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.order import place

# No deadline: two busy cores make any single example slow now and then. Derandomised: a red run is
# red again; the fuzzers are there for surprises.
settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("suite")

COLLECTED = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Remember the ids of all tests before any is left out; test_cases.py looks for cases in them.

    Then let the longest files begin.
    """
    config.stash[COLLECTED] = [item.nodeid for item in items]
    items.sort(key=lambda item: place(item.nodeid))
