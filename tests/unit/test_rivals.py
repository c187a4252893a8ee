# SPDX-License-Identifier: Apache-2.0
"""IPIP devices of the kernel beside ours: which are refused, which told of, and when they do not matter."""

from __future__ import annotations

import pytest

from dataplane import rivals
from dataplane.errors import RuntimeFailure
from dataplane.model import Encap, HostFacts

UP, DOWN = HostFacts(ipip_up=("tunl0",)), HostFacts(ipip_down=("tunl0",))
WITH, WITHOUT = (Encap.VXLAN, Encap.IPIP), (Encap.VXLAN, Encap.FLANNEL_UDP)


def test_case_031_one_that_is_up_is_refused() -> None:
    """A device that is up carries packets past our checks: no start, and the line says what to do."""
    with pytest.raises(RuntimeFailure, match=r"tunl0 is up.*Fix: ip link set tunl0 down"):
        rivals.check(UP, WITH)
    (warning,) = rivals.warnings(UP, WITH)
    assert "tunl0 is up" in warning


def test_one_that_is_down_is_told_of() -> None:
    """A device that is down only makes the kernel answer: a warning."""
    rivals.check(DOWN, WITH)
    (warning,) = rivals.warnings(DOWN, WITH)
    assert "ICMP port unreachable" in warning


@pytest.mark.parametrize("facts", [UP, DOWN, HostFacts()])
def test_without_ipip_they_do_not_matter(facts: HostFacts) -> None:
    """Who takes no IPIP has nothing to fear of them, and who has none neither."""
    rivals.check(facts, WITHOUT)
    assert rivals.warnings(facts, WITHOUT) == ()
    rivals.check(HostFacts(), WITH)
    assert rivals.warnings(HostFacts(), WITH) == ()
