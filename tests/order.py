# SPDX-License-Identifier: Apache-2.0
"""Which test files begin first: those that take longest, so that no worker is alone with one at the end."""

from __future__ import annotations

# Longest first. The others follow as they are collected: those of tests/unit, which are short, at the end.
LONGEST = (
    "tests/c/test_c.py",
    "tests/fuzz/test_fuzz.py",
    "tests/e2e/test_integrity.py",
    "tests/e2e/test_cluster.py",
    "tests/e2e/test_lease_life.py",
    "tests/e2e/test_meddling.py",
    "tests/e2e/test_families.py",
    "tests/e2e/test_bad_input.py",
    "tests/e2e/test_kernel_datapath.py",
    "tests/e2e/test_cni.py",
    "tests/e2e/test_flannel_multi.py",
    "tests/e2e/test_two_processes.py",
    "tests/e2e/test_tiers.py",
    "tests/e2e/test_lease_table.py",
    "tests/e2e/test_table_churn.py",
    "tests/e2e/test_path_mtu.py",
    "tests/e2e/test_lease_race.py",
    "tests/e2e/test_bench.py",
    "tests/e2e/test_start_fails.py",
    "tests/e2e/test_flannel_udp.py",
    "tests/e2e/test_direct.py",
    "tests/property/test_lease.py",
    "tests/unit/test_source.py",
    "tests/unit/test_lpm.py",
    "tests/unit/test_bench_callgrind.py",
    "tests/unit/test_store_registry.py",
    "tests/property/test_peers.py",
)
_PLACES = {name: place for place, name in enumerate(LONGEST)}


def place(nodeid: str) -> int:
    """Return the place of a test's file among the longest; the same for all others."""
    return _PLACES.get(nodeid.partition("::")[0], len(LONGEST))
