# SPDX-License-Identifier: Apache-2.0
"""When repairs become a fight, and when that is over."""

from __future__ import annotations

from dataplane.repairs import PAUSE_S, REPAIRS_MAX, WINDOW_S, Repairs


def test_few_repairs_are_no_fight() -> None:
    """Different things, or the same one now and then, are put right at once, without a word."""
    repairs = Repairs()
    for turn in range(10):
        assert repairs.note([f"thing {turn}"], float(turn)) == []
        assert repairs.note(["now and then"], turn * WINDOW_S / (REPAIRS_MAX - 1)) == []
        assert repairs.wait_s(turn * WINDOW_S) == 0
    assert repairs.count == 20


def test_fight_is_told_once_and_slowed_down() -> None:
    """The third repair of one thing in a minute is an alarm; the next ones have to wait, and say nothing."""
    repairs = Repairs()
    assert repairs.note(["route", "other"], 0.0) == []
    assert repairs.note(["route"], 1.0) == []
    assert repairs.wait_s(1.0) == 0
    (alarm,) = repairs.note(["route"], 2.0)
    assert "(route): put right 3 times" in alarm
    assert repairs.warnings(2.0) == ("something on this host undoes what we set up: route",)
    assert repairs.wait_s(2.0) == PAUSE_S
    assert repairs.wait_s(2.0 + PAUSE_S) == 0
    assert repairs.note(["route"], 2.0 + PAUSE_S) == []
    assert repairs.wait_s(3.0 + PAUSE_S) == PAUSE_S - 1


def test_fight_ends() -> None:
    """A minute after the last repair of it everything is as before, and a new fight is told anew."""
    repairs = Repairs()
    for now in (0.0, 1.0, 2.0):
        repairs.note(["route"], now)
    assert repairs.warnings(59.0) != ()
    later = 2.0 + WINDOW_S
    assert repairs.warnings(later) == ()
    assert repairs.wait_s(later) == 0
    for now in (later, later + 1):
        assert repairs.note(["route"], now) == []
    assert len(repairs.note(["route"], later + 2)) == 1
