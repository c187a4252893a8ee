# SPDX-License-Identifier: Apache-2.0
"""When paths are probed, and what the answers mean."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address

import pytest

from dataplane.probing import BASE, Finding, Pace, Path, Prober
from tests.paths import MOST, PEER, RTT_S, TARGET, World

PACE = Pace()
TRIAL_S = 2 * PACE.attempt_s + PACE.answer_s
PEER6, TARGET6 = ip_address("2001:db8::2"), ip_address("fd00:244:0:2::")


def sizes(world: World) -> list[int]:
    """Return the sizes of what was sent."""
    return [probe.size for _, probe in world.sent]


def test_healthy() -> None:
    """A path that takes all gets one large request every few seconds, and nothing is said of it."""
    world = World()
    world.run(60)
    assert set(sizes(world)) == {MOST}
    assert 60 / PACE.confirm_s <= len(world.sent) <= 60 / PACE.confirm_s + 1
    assert world.news == []
    answers = world.prober.answers(PEER, world.now)
    assert answers is not None
    assert answers.age_s is not None
    assert 0 <= answers.age_s <= PACE.confirm_s
    assert answers.rtt_ms == pytest.approx(1000 * RTT_S)


def test_idle() -> None:
    """Where nothing is sent, nothing is asked: not at first, and not when traffic has ended."""
    world = World()
    world.is_busy = False
    world.run(3600)
    assert world.sent == []
    world.is_busy = True
    world.run(5)
    world.is_busy = False
    world.run(PACE.active_s)
    count = len(world.sent)
    world.run(3600)
    assert len(world.sent) == count > 1
    assert world.prober.wake_s(world.now) == float("inf")


@pytest.mark.parametrize("mtu", [1200, 1201, 1250, 1326, 1449])
def test_black_hole(mtu: int) -> None:
    """A path that gets smaller is at BASE within 5 s, and then at what it takes, to the byte."""
    world = World()
    world.run(20)
    world.mtu, since_s = mtu, world.now
    world.run(60)
    assert world.news[0][1] == BASE[4]
    assert world.news[0][0] - since_s <= PACE.confirm_s + TRIAL_S + 0.1
    assert world.in_force == mtu
    assert len(world.news) <= 2
    assert max(sizes(world)) <= MOST
    assert min(sizes(world)) >= BASE[4]


def test_silence_is_looked_into_at_once() -> None:
    """A peer of which nothing comes, while much is sent to it, is asked before its time."""
    world = World(replace(PACE, confirm_s=30.0))
    world.run(5)
    world.mtu, world.is_silent, since_s = 1250, True, world.now
    world.run(10)
    assert world.news[0][0] - since_s <= 1 + TRIAL_S + 0.1


def test_peer_that_never_answered() -> None:
    """It is not down, and its path is not taken to be small: it is only asked less often."""
    world = World()
    world.is_answering, world.is_silent = False, True
    world.run(3600)
    assert world.news == []
    assert world.prober.answers(PEER, world.now) == (None, None)
    assert len(world.sent) <= 3600 / PACE.silent_s * 5 + 50
    world.is_answering, world.mtu = True, 1300
    world.run(PACE.silent_s + 60)
    assert world.in_force == 1300


def test_answers_without_small_ones_say_nothing() -> None:
    """Only a path on which small requests are answered, and large ones are not, is a black hole."""
    world = World()
    smalls = iter([True, False] * 5000)  # one of two small answers of each trial is lost
    world.is_lost = lambda probe: probe.size > BASE[4] or next(smalls)
    world.run(600)
    assert world.news == []


def test_raised_again() -> None:
    """After ten minutes it is tried whether the path takes more; pods keep what passes until then."""
    world = World()
    world.mtu = 1300
    world.run(60)
    assert (world.in_force, world.news[-1][1]) == (1300, 1300)
    found_s = world.news[-1][0]
    world.mtu = MOST
    world.run(found_s + PACE.raise_s - world.now - 1)
    assert world.in_force == 1300
    world.run(10)
    assert world.news[-1][1] is None
    world.mtu = 1400
    world.run(60)
    assert world.in_force == 1400


def test_raise_fails() -> None:
    """A path that takes no more after ten minutes stays as it is all the time: pods notice nothing."""
    world = World()
    world.mtu = 1300
    world.run(60)
    news = list(world.news)
    world.run(2 * PACE.raise_s)
    assert world.news == news
    assert sizes(world).count(MOST) >= 3 * PACE.attempts


def test_rests_and_goes_on() -> None:
    """A search that is left because nothing is sent any more goes on when something is, and ends."""
    world = World(replace(PACE, active_s=1.0))
    world.run(5)
    world.mtu = 1300
    world.run(6)
    assert world.in_force == BASE[4]
    world.is_busy = False
    world.run(3600)
    assert world.in_force == BASE[4]
    world.is_busy = True
    world.run(60)
    assert world.in_force == 1300


def test_what_counts_as_an_answer() -> None:
    """An answer that nobody asked for, of another size, or the second to one request, is none."""
    prober = Prober(lambda below: 77)
    prober.note_traffic(Path(PEER, TARGET, MOST), 0.0, is_silent=False)
    (probe,) = prober.due(0.0)
    for token, size in ((78, MOST), (77, MOST - 1), (77, 28)):
        prober.answered(token, size, 0.1)
        assert prober.answers(PEER, 1.0) == (None, None)
    prober.answered(probe.token, probe.size, 0.2)
    prober.answered(probe.token, probe.size, 0.3)
    assert prober.answers(PEER, 1.0) == (0.8, 200)
    assert prober.answers(PEER6, 1.0) is None


def test_late_answer_is_heard_but_ends_nothing() -> None:
    """What comes when its trial is over shows that the peer lives, and is no proof of anything else."""
    world = World()
    world.is_answering = False
    world.run(TRIAL_S - 0.01)
    probe = world.sent[0][1]
    world.run(0.02)
    world.prober.answered(probe.token, probe.size, world.now)
    assert world.prober.answers(PEER, world.now) != (None, None)
    count = len(world.sent)
    world.run(PACE.confirm_s)
    assert len(world.sent) == count


def test_late_answer_ends_no_other_trial() -> None:
    """A large request that is answered after all, when something smaller is tried, is no answer to that."""
    world = World()
    world.mtu = 1300
    world.run(TRIAL_S + 0.1)
    assert world.in_force == BASE[4]
    world.prober.answered(max(world.sent, key=lambda sent: sent[1].size)[1].token, MOST, world.now)
    world.run(0.2)
    assert world.in_force == BASE[4]
    world.run(60)
    assert world.in_force == 1300


def test_rate() -> None:
    """Ten thousand peers get no more requests together than the pace allows, each its turn."""
    prober = Prober(random.Random(0).randrange)
    paths = [Path(ip_address(0x0A000000 + n), TARGET, MOST) for n in range(10_000)]
    asked: list[object] = []
    for tick in range(200):
        now = tick / 10
        if tick % 10 == 0:
            for path in paths:
                prober.note_traffic(path, now, is_silent=False)
        probes = prober.due(now)
        for probe in probes:  # all healthy
            prober.answered(probe.token, probe.size, now)
        asked += probes
        assert prober.wake_s(now) >= now
    assert len(asked) <= 20 * PACE.per_s + PACE.burst
    assert len(asked) >= 0.9 * 20 * PACE.per_s
    assert sum(prober.answers(path.peer, 20.0) is not None for path in paths) == len(asked)


def test_path_changes() -> None:
    """What a path takes at most may change: what was found holds if it is less, and is forgotten if not."""
    world = World()
    world.mtu = 1300
    world.run(60)
    world.path = replace(world.path, most=1280)
    world.run(10)
    assert world.news[-1][1] is None  # that is known by other means
    world.path = replace(world.path, most=8950)
    world.mtu = 8950
    world.run(10)
    assert (world.news[-1][1], max(sizes(world))) == (None, 8950)
    world.mtu = 1300
    world.run(60)
    assert world.in_force == 1300
    world.path, world.mtu = replace(world.path, most=1450), 1450
    world.run(10)
    assert world.news[-1][1] is None
    assert world.in_force == 1450


@pytest.mark.parametrize("most", [1250, MOST])
def test_word_of_others_ends_a_trial(most: int) -> None:
    """What was lost before others said something of a path is not held against it; what is after, is."""
    world = World()
    world.mtu = 1300
    world.run(TRIAL_S - 0.1)
    assert len(world.sent) > PACE.attempts  # all of them, of which no large one was answered
    world.mtu, world.path = most, replace(world.path, most=most)
    world.prober.note_word(PEER, MOST, most, world.now)
    world.run(60)
    assert world.news == []
    world.mtu = 1240
    world.run(60)
    assert world.in_force == 1240


def test_word_of_a_stranger() -> None:
    """What others say of a peer that is not probed is not taken down."""
    world = World()
    world.prober.note_word(PEER, MOST, 1300, world.now)
    assert world.prober.due(world.now) == []
    world.prober.note_traffic(world.path, world.now, is_silent=False)
    assert [probe.size for probe in world.prober.due(world.now)] == [MOST]


def test_nothing_to_find() -> None:
    """A path that is not to take more than BASE is not probed; nor one any more that comes to that."""
    world = World()
    world.path = replace(world.path, most=BASE[4])
    world.run(10)
    assert world.sent == []
    world.path = replace(world.path, most=MOST)
    world.run(10)
    count = len(world.sent)
    assert count
    world.path = replace(world.path, most=1000)
    world.run(60)
    assert len(world.sent) == count


def test_ipv6_base() -> None:
    """Pods of IPv6 are never given less than 1280."""
    world = World()
    world.path, world.mtu = Path(PEER6, TARGET6, 1430, BASE[6]), 1290
    world.run(60)
    assert min(sizes(world)) == 1280
    assert world.in_force == 1290
    assert world.prober.take_found() == []


def test_gone_peer() -> None:
    """A peer that is none any more is not asked, and nothing is said of it."""
    world = World()
    world.mtu = 1300
    world.run(PACE.attempt_s / 2)
    (_, probe), world.is_busy = world.sent[0], False
    world.prober.keep(())
    world.prober.answered(probe.token, probe.size, world.now)
    world.run(60)
    assert (len(world.sent), world.news, world.prober.answers(PEER, 0.0)) == (1, [], None)
    world.prober.note_traffic(world.path, world.now, is_silent=False)
    world.prober.keep({PEER})
    assert len(world.prober.due(world.now)) == 1


def test_finding_names_its_path() -> None:
    """What is found is said of the path as it was probed."""
    prober, path = Prober(lambda below: 1), Path(PEER, TARGET, MOST)
    prober.note_traffic(path, 0.0, is_silent=False)
    prober.note_traffic(replace(path, most=1400), 1.0, is_silent=False)
    assert prober.take_found() == []
    assert Finding(path, None).path.base == BASE[4]
