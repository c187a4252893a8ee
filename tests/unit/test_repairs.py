# SPDX-License-Identifier: Apache-2.0
"""When repairs become a fight, and when that is over."""

from __future__ import annotations

from dataplane.repairs import PAUSE_S, REPAIRS_MAX, WINDOW_S, Changes, Repairs


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
    assert (repairs.wait_s(2.0), repairs.paused(2.0)) == (PAUSE_S, frozenset({"route"}))
    assert (repairs.wait_s(2.0 + PAUSE_S), repairs.paused(2.0 + PAUSE_S)) == (0, frozenset())
    assert repairs.note(["route"], 2.0 + PAUSE_S) == []
    assert repairs.wait_s(3.0 + PAUSE_S) == PAUSE_S - 1


def test_others_do_not_wait() -> None:
    """What is fought over waits alone: all else is put right at once."""
    repairs = Repairs()
    for now in (0.0, 1.0, 2.0):
        repairs.note(["route"], now)
    changes = Changes(repairs.paused(3.0))
    assert [changes.may(change) for change in ("mtu", "route", "up")] == [True, False, True]
    assert (changes.made, changes.waiting) == (["mtu", "up"], ["route"])


def test_two_fights() -> None:
    """Each thing that is fought over has a pause of its own; the next turn is that of the first to end."""
    repairs = Repairs()
    for now in (0.0, 1.0, 2.0):
        repairs.note(["route"], now)
        repairs.note(["mtu"], now + 1)
    assert repairs.paused(2.0 + PAUSE_S) == {"mtu"}
    assert repairs.wait_s(3.0) == PAUSE_S - 1


def test_a_device_made_again_is_one_repair() -> None:
    """All that a new device gets is no repair of its own."""
    repairs = Repairs()
    for now in (0.0, 1.0):
        assert repairs.note(["device overlay0", "overlay0 up", "overlay0 mtu 1450"], now) == []
    (alarm,) = repairs.note(["device overlay0", "overlay0 up"], 2.0)
    assert "(device overlay0): put right 3 times" in alarm
    assert repairs.count == 3
    assert repairs.paused(2.0) == {"device overlay0"}


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
