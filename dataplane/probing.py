# SPDX-License-Identifier: Apache-2.0
"""Which paths lose large packets in silence: echo requests of chosen sizes find out. Sans-IO, after RFC 8899.

Routers tell of packets that are too big for their next link, unless somebody filters ICMP: then such packets
vanish, and connections hang. So each peer that we send much to is sent an echo request now and then, as large
as a packet of pods may be, to its address in the overlay, which every kind of peer answers. One that is not
answered is the first attempt of a trial:

    attempts 1, 2, 3     the same size again; from the second on with a small request beside it
    any is answered      it passes
    only the small are   the path takes less: a black hole. BASE is in force at once, and a search begins for
                         the most that passes: first what should (so that loss alone does no harm for long),
                         then the middle of what is left, a trial each
    none is              the peer does not answer, which says nothing; it is asked less and less often

What was found holds for Pace.raise_s; then it is tried whether the path takes more. Peers that are not sent
anything are left alone, and what was found of them stays. All peers together get no more than Pace.per_s.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import inf
from typing import NamedTuple

from dataplane.flannel import OVERHEAD
from dataplane.model import BARE_ENCAPS, PLAIN_ENCAPS, Address, Encap, Table

BASE = {
    4: 1200,
    6: 1280,
}  # bytes of a packet of pods; smaller paths are not looked for (RFC 8899 section 5.1.2)
TOKEN_BYTES = 8
URGENT, USUAL = 0, 1


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is asked how often; times in seconds."""

    confirm_s: float = 3.0  # between requests to a peer that answers
    silent_s: float = 60.0  # at most, to one that does not
    attempts: int = 3
    attempt_s: float = 0.3  # between attempts
    answer_s: float = 1.0  # for the answer to the last of them (RFC 8899 section 5.1.1)
    raise_s: float = 600.0  # as section 5.1.1 has it
    active_s: float = 10.0  # that a peer is asked after we have sent it much
    per_s: float = 100.0  # requests, to all peers
    burst: float = 20.0


@dataclass(frozen=True, slots=True)
class Path:
    """A path that may be probed."""

    peer: Address  # underlay
    target: Address  # overlay, of the same node
    most: int  # bytes of the largest packet of pods, if nothing is found
    base: int = BASE[4]  # of one that is taken to pass
    overhead: int = 0  # bytes of encapsulation


@dataclass(frozen=True, slots=True)
class Probe:
    """An echo request."""

    peer: Address
    target: Address
    size: int  # bytes of the IP packet
    token: int  # known to whoever got it


class Finding(NamedTuple):
    """What probes say of a path."""

    path: Path
    mtu: int | None  # bytes of the largest packet of pods; None: nothing


class Answers(NamedTuple):
    """What is told of the answers of a peer that was asked; both are None if it has not answered yet."""

    age_s: float | None  # of the last one
    rtt_ms: float | None


@dataclass(slots=True)
class _Trial:
    """Attempts at one size."""

    size: int
    attempts: int = 0
    answers: int = 0  # to the small requests beside it


@dataclass(slots=True, eq=False)
class _State:
    """What is known of a path."""

    path: Path
    good: int  # bytes that are in force
    active_s: float  # until then
    low: int = 0  # of a search: passes
    high: int = 0  # does not; 0: nothing is searched for
    trial: _Trial | None = None
    told: int | None = None  # as Finding.mtu
    raise_s: float = inf
    asked_s: float = -inf  # when the last trial began
    silent: int = 0  # trials in a row without any answer
    due_s: float = inf  # inf: it rests
    heard_s: float | None = None  # when it answered last
    rtt_s: float = 0.0  # and how long that took


@dataclass(frozen=True, slots=True)
class _Sent:
    state: _State
    size: int
    at_s: float
    trial: _Trial


# --- who is sent much ---------------------------------------------------------------------------------------


class Loads:
    """How much peers are sent, from look to look; probes of ours do not count.

    Answers to probes of a peer do, since nobody can tell them from others. But they are too few to make two
    nodes that are idle probe each other for ever: what was sent counts half with the look that follows, and
    not at all after one in which nothing was.
    """

    def __init__(self, much: float) -> None:
        """Take so many bytes for much."""
        self._much = much
        self._tx: list[int] = []
        self._rx: list[int] = []
        self._loads: dict[int, float] = {}

    def note(self, tx: list[int], rx: list[int], own: Mapping[int, int]) -> list[tuple[int, bool]]:
        """Take what went to and came from each peer, by id, until now, and of it our own since the last look.

        Return the ids of those that were sent much, and whether nothing came from them.
        """
        loads = {}
        for peer_id, (now, was) in enumerate(zip(tx, self._tx, strict=False)):
            if now != was:
                rise = now - was - own.get(peer_id, 0)
                loads[peer_id] = max(0.0, self._loads.get(peer_id, 0.0) / 2 + rise)
        much = [peer_id for peer_id, load in loads.items() if load > self._much]
        found = [(peer_id, rx[peer_id] == self._rx[peer_id]) for peer_id in much]
        self._tx, self._rx, self._loads = tx, rx, loads
        return found

    def rest(self) -> None:
        """Take that nobody was sent anything since the last look."""
        self._loads = {}


def list_paths(table: Table, encaps: Container[Encap], most: int) -> dict[int, list[Path]]:
    """Return the paths that can be probed, by id of the peer: those by which something is encapsulated.

    `most` is what all of them are to take.
    """
    found: dict[int, dict[Address, Path]] = {}
    for entry in table.subnets:
        version, vtep, encap = entry.prefix.version, entry.vtep, entry.encap
        can_carry = encap in encaps and (encap not in PLAIN_ENCAPS or version == vtep.version == 4)
        if entry.is_direct or encap in BARE_ENCAPS or not can_carry:
            continue
        paths = found.setdefault(entry.peer_id, {})
        target = entry.prefix.network_address
        path = paths.setdefault(vtep, Path(vtep, target, most, 0, OVERHEAD[encap, vtep.version]))
        paths[vtep] = replace(path, base=max(path.base, BASE[version]))
    return {peer_id: list(paths.values()) for peer_id, paths in found.items()}


def limit(path: Path, usual: int, told: int | None) -> Path:
    """Return a path that takes `usual` bytes of pods, or what others say: `told` bytes of an outer packet."""
    return replace(path, most=usual if told is None else min(usual, told - path.overhead))


# --- what is asked ------------------------------------------------------------------------------------------


class Prober:
    """Decides what is asked, and what the answers mean."""

    def __init__(self, draw: Callable[[int], int], pace: Pace | None = None) -> None:
        """`draw` returns a number below another, which nobody can guess."""
        self._draw = draw
        self._pace = pace or Pace()
        self._states: dict[Address, _State] = {}
        self._queues: tuple[list[tuple[float, int, _State]], ...] = ([], [])
        self._count = 0  # so that states need no order
        self._sent: dict[int, _Sent] = {}
        self._tokens, self._filled_s = self._pace.burst, -inf
        self._found: list[Finding] = []

    # --- what is told -------------------------------------------------------------------------------

    def note_traffic(self, path: Path, now: float, *, is_silent: bool) -> None:
        """Take that much was sent to a peer since the last time, and whether nothing came from it."""
        state = self._states.get(path.peer)
        if state is None:
            if path.most <= path.base:
                return
            state = self._states[path.peer] = _State(path, path.most, now)
        elif state.path != path:
            self._move(state, path, now)
        state.active_s = now + self._pace.active_s
        if state.due_s == inf:
            self._schedule(state, max(now, state.asked_s + self._pace.confirm_s), USUAL)
        is_free = state.trial is None and not state.silent and not state.high
        if is_silent and is_free and now >= state.asked_s + self._pace.answer_s:
            self._schedule(state, now, URGENT)

    def note_word(self, peer: Address, usual: int, told: int | None, now: float) -> None:
        """Take that others say something else than before of how much a path takes, or nothing any more.

        A trial under way asked the path as it was, which proves nothing of what it is now: it ends.
        """
        state = self._states.get(peer)
        if state is not None:
            self._move(state, limit(state.path, usual, told), now)

    def _move(self, state: _State, path: Path, now: float) -> None:
        """Take over what changed of a path."""
        before, state.path = state.path, path
        state.trial, state.high = None, 0
        if state.good == before.most or state.good >= path.most or path.most <= path.base:
            self._set(state, path.most)
        else:
            state.raise_s = now

    def keep(self, peers: Container[Address]) -> None:
        """Forget all others."""
        for peer in [peer for peer in self._states if peer not in peers]:
            state = self._states.pop(peer)
            state.active_s, state.trial = -inf, None

    def answered(self, token: int, size: int, now: float) -> None:
        """Take an answer; one that nobody asked for, or not in this size, is none."""
        sent = self._sent.get(token)
        if sent is None or sent.size != size:
            return
        del self._sent[token]
        state, trial = sent.state, sent.trial
        state.heard_s, state.rtt_s = now, now - sent.at_s
        if state.trial is not trial:
            return
        if size >= trial.size:
            self._pass(state, size, now)
        else:
            trial.answers += 1

    # --- what follows -------------------------------------------------------------------------------

    def take_found(self) -> list[Finding]:
        """Return what was found since the last time."""
        found, self._found = self._found, []
        return found

    def answers(self, peer: Address, now: float) -> Answers | None:
        """Return how a peer answers; None if it was never asked."""
        state = self._states.get(peer)
        if state is None or state.asked_s == -inf:
            return None
        if state.heard_s is None:
            return Answers(None, None)
        return Answers(round(now - state.heard_s, 3), round(1000 * state.rtt_s, 3))

    def due(self, now: float) -> list[Probe]:
        """Return what is to be sent now."""
        self._fill(now)
        probes: list[Probe] = []
        for queue in self._queues:
            while queue and queue[0][0] <= now:
                state = queue[0][2]
                if queue[0][0] != state.due_s:  # it is due at another time by now
                    heappop(queue)
                    continue
                if self._tokens < 2:
                    return probes
                heappop(queue)
                probes += self._step(state, now)
        return probes

    def wake_s(self, now: float) -> float:
        """Return when something is to be sent, or an answer overdue; inf: not by itself."""
        due_s = min((queue[0][0] for queue in self._queues if queue), default=inf)
        missing = max(0.0, 2 - self._tokens)
        return max(due_s, now + missing / self._pace.per_s) if missing else due_s

    def _fill(self, now: float) -> None:
        pace = self._pace
        self._tokens = min(pace.burst, self._tokens + max(0.0, now - self._filled_s) * pace.per_s)
        self._filled_s = now
        end = now - pace.attempts * pace.attempt_s - pace.answer_s
        while self._sent and next(iter(self._sent.values())).at_s < end:  # the oldest
            del self._sent[next(iter(self._sent))]

    # --- trials ---------------------------------------------------------------------------------------

    def _schedule(self, state: _State, due_s: float, rank: int) -> None:
        state.due_s = due_s
        self._count += 1
        heappush(self._queues[rank], (due_s, self._count, state))

    def _step(self, state: _State, now: float) -> list[Probe]:
        """Make the next attempt, or end the trial after the last."""
        state.due_s = inf
        if now >= state.active_s or state.path.most <= state.path.base:
            state.trial = None
            return []
        pace, trial = self._pace, state.trial
        if trial is None:
            trial = state.trial = _Trial(self._choose(state, now))
            state.asked_s = now
        elif trial.attempts == pace.attempts:
            self._fail(state, trial, now)
            return []
        sizes = [trial.size]
        if trial.attempts and trial.size > state.path.base:
            sizes.append(state.path.base)
        trial.attempts += 1
        pause_s = pace.attempt_s if trial.attempts < pace.attempts else pace.answer_s
        self._schedule(state, now + pause_s, URGENT)
        return [self._ask(state, trial, size, now) for size in sizes]

    def _choose(self, state: _State, now: float) -> int:
        """Return the size of the next trial."""
        if not state.high and now >= state.raise_s:
            state.low, state.high = state.good, state.path.most + 1
        if not state.high:
            return state.good
        if state.high > state.path.most:
            return state.path.most
        return (state.low + state.high) // 2

    def _ask(self, state: _State, trial: _Trial, size: int, now: float) -> Probe:
        self._tokens -= 1
        token = self._draw(1 << (8 * TOKEN_BYTES))
        self._sent[token] = _Sent(state, size, now, trial)
        return Probe(state.path.peer, state.path.target, size, token)

    def _pass(self, state: _State, size: int, now: float) -> None:
        state.trial, state.silent = None, 0
        state.low = size
        self._go_on(state, now)

    def _fail(self, state: _State, trial: _Trial, now: float) -> None:
        """End a trial of which no attempt was answered."""
        state.trial = None
        if trial.answers < self._pace.attempts - 1:  # of so many: nothing is sure
            state.silent += 1
            pause_s = min(self._pace.confirm_s * 2.0**state.silent, self._pace.silent_s)
            self._schedule(state, now + pause_s, USUAL)
            return
        state.silent = 0
        if state.high:
            state.high = trial.size
        else:
            state.low, state.high = state.path.base, state.path.most + 1
            self._set(state, state.path.base)
        self._go_on(state, now)

    def _go_on(self, state: _State, now: float) -> None:
        """Go on with the search, if there is one and it is not at its end."""
        if state.high > state.low + 1:
            self._schedule(state, now, URGENT)
            return
        if state.high:
            state.high = 0
            self._set(state, state.low)
            state.raise_s = now + self._pace.raise_s if state.good < state.path.most else inf
        self._schedule(state, now + self._pace.confirm_s, USUAL)

    def _set(self, state: _State, mtu: int) -> None:
        """Put a size in force."""
        state.good = mtu
        told = mtu if mtu < state.path.most else None
        if told != state.told:
            state.told = told
            self._found.append(Finding(state.path, told))
