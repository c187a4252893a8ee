# SPDX-License-Identifier: Apache-2.0
"""What is broken in a release, or fails its test, is done without, and status says why."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from typing import Any

import pytest

from dataplane.backend.offloads import Offloads
from dataplane.errors import KernelError
from dataplane.kernels import known_bad
from dataplane.model import ALL_OFFLOADS, Offload


@pytest.mark.parametrize(
    ("release", "off"),
    [
        *(
            ("6.6.43", None),
            ("6.6.44", Offload.TUN_GRO),
            ("6.6.45-0-virt", Offload.TUN_GRO),
            ("6.6.46", None),
        ),
        *(("6.18.44-fc-v595", None), ("6.19.14", None), ("7.0.0-rc1", Offload.UDP_GSO)),
        *(("7.1", Offload.UDP_GSO), ("7.1.4", Offload.UDP_GSO), ("7.1.5", None), ("7.10.0", None)),
        *(("", None), ("next-20261123", None)),
    ],
)
def test_ranges(release: str, off: Offload | None) -> None:
    """Exactly the releases of a range are meant, whatever a distribution appends to their number."""
    assert set(known_bad(release)) == ({off} if off else set())


def test_what_is_broken_is_off_with_all_that_needs_it() -> None:
    """A broken offload is off, and those that need it; the others are on; the reason names the release."""
    offloads = Offloads((), "6.6.44-generic")
    assert offloads.of_tun & (Offload.TUN_GRO | Offload.TUN_UGRO) == 0
    assert offloads.of_tun & Offload.TUN_TSO
    why = offloads.explain(int(ALL_OFFLOADS & ~(Offload.TUN_GRO | Offload.TUN_UGRO)))
    assert why == {
        "tun-gro": "Linux 6.6.44 refuses good super-packets on a TUN",
        "tun-ugro": "needs tun-gro",
    }


def test_runs_are_off_where_they_are_damaged() -> None:
    """Sockets make no runs on a release that damages them, and do on the next one."""
    assert not Offloads((), "7.1.4").of_sockets() & Offload.UDP_GSO
    assert Offloads((), "7.1.5").of_sockets() & Offload.UDP_GSO


def test_where_forwarders_end_again_and_again_less_is_used() -> None:
    """First goes what joins and cuts packets, then the rest, then there is nothing left; status says so."""
    offloads = Offloads((Offload.TUN_USO,), "6.1")
    assert offloads.warnings() == []
    assert offloads.lower()
    assert Offload(offloads.of_tun) == Offload.TUN_VNET | Offload.TUN_CSUM
    assert Offload(offloads.of_sockets()) == Offload.MMSG
    assert "no tun-tso, udp-gso, udp-gro, tun-gro, tun-ugro any more" in offloads.warnings()[0]
    assert offloads.lower()
    assert (offloads.of_tun, offloads.of_sockets()) == (0, 0)
    assert not offloads.lower()
    why = offloads.explain(0)
    assert why.pop("tun-uso") == "--disable"
    assert set(why.values()) == {"given up: forwarders ended again and again"}


def test_a_switch_is_the_first_reason() -> None:
    """Of what is both switched off and broken, status says that it is switched off."""
    offloads = Offloads((Offload.UDP_GSO,), "7.0.1")
    assert offloads.explain(int(ALL_OFFLOADS & ~Offload.UDP_GSO)) == {"udp-gso": "--disable"}


@pytest.fixture
def selftest(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[int]]:
    """Return a function that sets what self-tests find, one after the other; it returns the wanted masks."""

    def prepare(*results: dict[Offload, int] | KernelError) -> list[int]:
        asked: list[int] = []
        left = iter(results)

        def selftest(wanted: int) -> dict[Offload, int]:
            asked.append(wanted)
            result = next(left)
            if isinstance(result, KernelError):
                raise result
            return result

        monkeypatch.setattr("dataplane.native.selftest", selftest)
        return asked

    return prepare


def test_what_fails_its_test_is_off(selftest: Callable[..., list[int]]) -> None:
    """What fails the self-test is off with what needs it, and the reason is told; it is tried once."""
    asked = selftest({Offload.TUN_GRO: errno.EINVAL, Offload.UDP_GSO: errno.EBADMSG})
    offloads = Offloads((Offload.UDP_GRO,), "6.18")
    offloads.prove()
    offloads.prove()
    assert asked == [int(ALL_OFFLOADS & ~Offload.UDP_GRO)]
    assert offloads.of_tun & (Offload.TUN_GRO | Offload.TUN_UGRO) == 0
    assert not offloads.of_sockets() & Offload.UDP_GSO
    off = Offload.TUN_GRO | Offload.TUN_UGRO | Offload.UDP_GSO | Offload.UDP_GRO
    assert offloads.explain(int(ALL_OFFLOADS & ~off)) == {
        "udp-gso": "self-test: packets came out damaged",
        "udp-gro": "--disable",
        "tun-gro": "self-test: EINVAL",
        "tun-ugro": "needs tun-gro",
    }


def test_a_late_packet_is_no_proof(selftest: Callable[..., list[int]]) -> None:
    """Where packets did not come in time, all is tried once more, and that counts."""
    asked = selftest({Offload.TUN_TSO: errno.ETIMEDOUT}, {})
    offloads = Offloads((), "6.18")
    offloads.prove()
    assert len(asked) == 2
    assert offloads.of_tun & Offload.TUN_TSO


def test_the_kernel_is_believed_where_nothing_can_be_tried(selftest: Callable[..., list[int]]) -> None:
    """Without the right to make scratch devices, everything is on."""
    selftest(KernelError("testing", errno.EPERM))
    offloads = Offloads((), "6.18")
    offloads.prove()
    assert offloads.of_tun & Offload.TUN_USO


def test_a_later_control_relies_on_the_test(selftest: Callable[..., list[int]]) -> None:
    """Who takes over knows what was found, and tries only what was not; nonsense is ignored."""
    selftest({Offload.TUN_USO: errno.EINVAL})
    first = Offloads((Offload.TUN_GRO,), "6.18")
    first.prove()
    found = json.loads(json.dumps(first.remember()))

    asked = selftest({})
    second = Offloads((Offload.TUN_GRO,), "6.18")
    second.recall(found)
    second.prove()
    assert (asked, second.of_tun) == ([], first.of_tun)

    third = Offloads((), "6.18")
    third.recall(found)
    third.prove()
    assert asked == [int(ALL_OFFLOADS & ~Offload.TUN_USO)]
    for nonsense in (None, 3, {"tested": "all"}, {"tested": 511}, {"tested": 511, "failed": ["x"]}):
        fourth = Offloads((), "6.18")
        fourth.recall(nonsense)
        assert fourth.remember() == {"tested": 0, "failed": {}}


def test_a_refusal_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Each offload that the kernel refused in use is logged by its name, once."""
    offloads = Offloads((), "6.18")
    for refused in (0, Offload.UDP_GSO, Offload.UDP_GSO, Offload.UDP_GSO | Offload.TUN_GRO):
        offloads.tell_refused(int(refused))
    told = [getattr(record, "fields", None) for record in caplog.records]
    assert told == [{"offload": "udp-gso"}, {"offload": "tun-gro"}]
