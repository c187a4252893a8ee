# SPDX-License-Identifier: Apache-2.0
"""Global pytest set-up: how Hypothesis behaves in this suite."""

from __future__ import annotations

from hypothesis import settings

# No deadline: two busy cores make any single example slow now and then. Derandomised: a red run is
# red again; the fuzzers are there for surprises.
settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("suite")
