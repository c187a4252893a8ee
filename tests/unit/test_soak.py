# SPDX-License-Identifier: Apache-2.0
"""The verdict of a soak: what passes, and what does not."""

from __future__ import annotations

import math
import random
import socket
from pathlib import Path

import pytest

from tests.soak import gauge, run
from tests.soak.course import Plan, Seen
from tests.soak.flow import STAMP, Way
from tests.soak.pings import read_answers
from tests.soak.verdict import Finding, Gap, Window, fit, is_passed, judge_flat, judge_gaps, judge_memory

HOUR_S = 3600.0
KILLED = Window("forwarder killed", 100.0, 100.1)


def memory(growth_mib: float, span_s: float = HOUR_S) -> list[tuple[float, float]]:
    """Return the memory of a process that takes and gives back a lot, and grows by so much in the span."""
    rng = random.Random(1)
    return [
        (120 + span_s * n / 500, 40 + growth_mib * n / 500 + abs(rng.gauss(0.0, 2.0))) for n in range(501)
    ]


def test_slope_is_that_of_what_is_not_given_back() -> None:
    """A growth of 6 MiB an hour is found within its error, although figures scatter by a third of it."""
    slope = fit(memory(6.0))
    assert abs(slope.per_hour - 6.0) < slope.error < 1.0


def test_exact_line() -> None:
    """Of figures that lie on a line the slope is exact, and so is its error: none."""
    slope = fit([(n * 36.0, n * 0.5) for n in range(101)])
    assert slope.per_hour == pytest.approx(50.0)
    assert slope.error == pytest.approx(0.0, abs=1e-9)
    assert slope.span_s == HOUR_S


@pytest.mark.parametrize(("growth_mib", "is_good"), [(-3.0, True), (0.0, True), (0.9, True), (3.0, False)])
def test_memory_may_grow_by_a_mib(growth_mib: float, is_good: bool) -> None:
    """Memory that grew for sure by more than 1 MiB fails; what scatters, shrinks or grows less passes."""
    assert judge_memory("x", memory(growth_mib)).is_good is is_good


def test_memory_over_days_may_grow_by_a_mib_a_day() -> None:
    """In a run longer than a day the limit is that of a day."""
    week = 7 * 86400.0
    assert judge_memory("x", memory(5.0, week)).is_good
    assert not judge_memory("x", memory(12.0, week)).is_good


def test_too_few_samples_do_not_pass() -> None:
    """Who has not looked cannot say that all is well."""
    assert fit([]).error == fit([(0.0, 1.0), (9.0, 1.0)]).error == math.inf
    assert not judge_memory("x", [(0.0, 1.0), (9.0, 1.0)]).is_good
    assert not judge_flat("x", []).is_good


def test_flat_is_what_comes_back_to_where_it_was() -> None:
    """Descriptors that come and go are fine; those that only come are not."""
    assert judge_flat("fds", [(float(n), 20.0 + n % 3) for n in range(90)]).is_good
    assert not judge_flat("fds", [(float(n), 20.0 + n // 45) for n in range(90)]).is_good


@pytest.mark.parametrize(
    ("gap", "is_good"),
    [
        (Gap("a to b", 64, 100.0, 100.05), True),
        (Gap("a to b", 1, 99.97, 99.98), True),  # in its hands as it was killed
        (Gap("a to b", 65, 100.0, 100.05), False),  # more than it can have had in hand
        (Gap("a to b", 1, 99.0, 99.5), False),
        (Gap("a to b", 1, 101.0, 101.1), False),
    ],
)
def test_gaps_in_and_outside_of_windows(gap: Gap, is_good: bool) -> None:
    """A kill costs a batch at most, around the time of the kill; nothing else costs anything."""
    found = judge_gaps("x", [gap], [KILLED], "b: tun_full=7")
    assert found.is_good is is_good
    assert ("tun_full=7" in found.text) is not is_good


def test_gaps_of_one_window_add_up() -> None:
    """Two gaps of one flow in one window count together, those of two flows do not."""
    two = [Gap("a to b", 40, 100.0, 100.01), Gap("a to b", 40, 100.05, 100.06)]
    assert not judge_gaps("x", two, [KILLED], "").is_good
    assert judge_gaps("x", [two[0], Gap("b to a", 40, 100.0, 100.01)], [KILLED], "").is_good


def test_passed_is_all_of_them() -> None:
    """One finding that is not good is enough."""
    assert is_passed([Finding("x", True, "")])
    assert not is_passed([Finding("x", True, ""), Finding("y", False, "")])


def test_receiver_sees_what_is_missing_late_or_doubled() -> None:
    """A gap is told with the times around it; what comes late or twice is told, too, and moves nothing."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:
        way = Way(here, there)
        for number, sent_s in ((0, 1.0), (1, 1.1), (4, 1.4), (3, 1.3), (4, 1.4), (5, 1.5)):
            here.send(STAMP.pack(number, sent_s))
        assert way.receive()
    assert way.gaps == [(2, 1.1, 1.4)]
    assert [text.split()[0] for text in way.wrong] == ["3", "4"]
    assert way.came == 6
    way.sent = 8
    way.finish()
    assert [(count, from_s) for count, from_s, _ in way.gaps] == [(2, 1.1), (2, 1.5)]


def test_pings_that_were_not_answered() -> None:
    """What `ping -D` does not show as answered is a gap, also where numbers begin anew; errors are none."""
    answer = "[{:.3f}] 64 bytes from 10.244.3.2: icmp_seq={} ttl=62 time=0.2 ms\n"
    said = answer.format(1000.0, 65534) + answer.format(1000.2, 65535) + answer.format(1000.8, 2)
    said += "[1001.000] From 10.244.1.1 icmp_seq=3 Destination Host Unreachable\n" + answer.format(1001.2, 4)
    assert read_answers("p", answer.format(1.0, 1) + answer.format(1.2, 2), 0.0) == (2, [], [])
    count, gaps, wrong = read_answers("p", said, 900.0)
    assert count == 4
    assert [gap.count for gap in gaps[-2:]] == [2, 1]
    assert gaps[-1].to_s == pytest.approx(101.2)
    _, _, wrong = read_answers("p", answer.format(1.0, 1) * 2, 0.0)
    assert len(wrong) == 1


def healthy() -> Seen:
    """Return what a soak sees in which all is as it should be."""
    seen = Seen(figures={"tcp_sent": 5, "tcp_came": 5})
    for n in range(100):
        row: gauge.Row = {"node": "a", "time_s": float(n), "tx_unaccounted": 0, "rx_unaccounted": 0}
        for process in run.PROCESSES:
            row |= {f"{process}_rss_kib": 40960, f"{process}_fds": 20, f"{process}_threads": 3}
        seen.rows.append(row)
    return seen


def failed(seen: Seen) -> list[str]:
    """Return the names of what a verdict finds wrong."""
    return [found.name for found in run.judge(Plan(minutes=1), seen) if not found.is_good]


def test_verdict_names_what_is_wrong() -> None:
    """A verdict on a healthy soak finds nothing; each thing that is wrong is found, and by its name."""
    assert failed(healthy()) == []
    seen = healthy()
    seen.gaps.append(Gap("a to b", 1, 5.0, 6.0))
    assert failed(seen) == ["numbered datagrams"]
    seen = healthy()
    seen.ping_gaps.append(Gap("ping", 1, 5.0, 6.0))
    assert failed(seen) == ["pings"]
    seen = healthy()
    seen.wrong.append("TCP: other bytes")
    assert failed(seen) == ["order and content"]
    seen = healthy()
    seen.figures["tcp_came"] = 4
    assert failed(seen) == ["TCP connection"]
    seen = healthy()
    seen.rows[50]["rx_unaccounted"] = 1
    assert failed(seen) == ["conservation"]
    seen = healthy()
    seen.misled["a"] = "10.244.7.0/24"
    assert failed(seen) == ["peers at last"]
    seen = healthy()
    for n, row in enumerate(seen.rows):
        row["forwarder_rss_kib"], row["control_fds"] = 40960 + 50 * n, 20 + n
    assert failed(seen) == ["memory of forwarder", "fds of control"]
    assert set(failed(Seen())) >= {"memory of control", "TCP connection", "conservation"}


@pytest.mark.parametrize("flags", [["--minutes", "0"], ["--pps", "x"], ["--pause", "nan"], ["more"]])
def test_bad_input(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A flag out of its bounds ends it with status 2 and a line that names the flag or what is allowed."""
    with pytest.raises(SystemExit) as ended:
        run.main([*flags, "--out", str(Path("/nonexistent"))])
    assert ended.value.code == 2
    assert flags[0] in capsys.readouterr().err
