# SPDX-License-Identifier: Apache-2.0
"""What is run: loads, conditions and systems by name, and the plans that are made of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dataplane.errors import ConfigError

BASELINE = "kernel-vxlan"  # what ratios are to
SYSTEMS = ("none", BASELINE, "overlayd-vxlan", "overlayd-ipip", "overlayd-plain")
MORE_SYSTEMS = ("overlayd-udp",)  # only where they are asked for by name
PROFILES = ("veth", "wire")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that a load yields."""

    name: str
    title: str
    unit: str
    is_more_better: bool = True


@dataclass(frozen=True, slots=True)
class Load:
    """What two pods do to each other, and the figures it yields; loads.py carries it out."""

    name: str
    figures: tuple[Figure, ...]
    group: str  # of the plot it is in


def _tcp(name: str, title: str) -> Load:
    return Load(name, (Figure("gbit_s", title, "Gbit/s"),), "throughput")


def _udp(name: str, title: str) -> Load:
    return Load(name, (Figure("kpps", title, "kpps"),), "packets")


def _latency(name: str, title: str) -> Load:
    figures = (
        Figure("p50_us", f"half trip p50, {title}", "us", is_more_better=False),
        Figure("p99_us", f"half trip p99, {title}", "us", is_more_better=False),
    )
    return Load(name, figures, "latency")


_ALL = (
    _tcp("tcp-1", "TCP 1 stream"),
    _tcp("tcp-1-back", "TCP 1 stream, b to a"),
    _tcp("tcp-4", "TCP 4 streams"),
    _tcp("tcp-4-back", "TCP 4 streams, b to a"),
    _udp("udp-64", "UDP 64 B, loss-free"),
    _udp("udp-512", "UDP 512 B, loss-free"),
    _udp("udp-1400", "UDP 1400 B, loss-free"),
    _udp("udp-64-runs", "UDP 64 B in runs, loss-free"),
    _latency("latency-idle", "idle"),
    _latency("latency-awake", "kept awake"),
    _latency("latency-loaded", "beside TCP"),
    Load("cpu", (Figure("s_per_gb", "CPU at 2 Gbit/s TCP", "s/GB", is_more_better=False),), "cpu"),
)
LOADS = {load.name: load for load in _ALL}


@dataclass(frozen=True, slots=True)
class Condition:
    """How the underlay behaves, and what else is on the hosts."""

    profile: str
    variant: str = ""  # moderated, masquerade

    @property
    def name(self) -> str:
        """Return the name that rows carry."""
        return f"{self.profile}+{self.variant}" if self.variant else self.profile


@dataclass(frozen=True, slots=True)
class Block:
    """Loads that are run in one condition."""

    condition: Condition
    loads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A named choice of all there is."""

    name: str
    blocks: tuple[Block, ...]
    systems: tuple[str, ...] = SYSTEMS
    repetitions: int = 5
    seconds: int = 2  # of a throughput or latency run
    trial_s: float = 1.0  # of one step in the search for a packet rate
    limit_s: float | None = None  # no round begins that would probably end after this

    def count_samples(self) -> int:
        """Return how many samples it takes in all."""
        return self.repetitions * len(self.systems) * sum(len(block.loads) for block in self.blocks)

    def estimate_s(self) -> float:
        """Return about how long it takes, within its limit if it has one."""
        lasts_s = {"packets": 10 * self.trial_s + 0.5, "latency": self.seconds + 2.2}
        round_s = sum(
            lasts_s.get(LOADS[load].group, self.seconds + 0.4)
            for block in self.blocks
            for load in block.loads
        )
        whole_s = 5.0 * len(self.blocks) + self.repetitions * len(self.systems) * round_s
        return whole_s if self.limit_s is None else min(whole_s, self.limit_s)


FULL = Plan(
    "full",
    (
        Block(Condition("veth"), tuple(LOADS)),
        Block(Condition("wire"), tuple(LOADS)),
        Block(Condition("wire", "moderated"), ("tcp-1", "tcp-4", "udp-64", "latency-idle", "cpu")),
        Block(Condition("wire", "masquerade"), ("tcp-1", "udp-64", "latency-idle")),
    ),
)
QUICK = Plan(
    "quick",
    (Block(Condition("wire"), ("tcp-1", "udp-64", "latency-idle", "cpu")),),
    repetitions=2,
    seconds=1,
    trial_s=0.15,
    limit_s=84.0,
)
PLANS = {plan.name: plan for plan in (FULL, QUICK)}


def _check(kind: str, names: Sequence[str], allowed: Sequence[str]) -> None:
    for name in names:
        if name not in allowed:
            raise ConfigError(f'{kind} "{name}" is unknown; allowed are {", ".join(allowed)}')


def select(
    plan: Plan, profiles: Sequence[str] = (), systems: Sequence[str] = (), loads: Sequence[str] = ()
) -> Plan:
    """Return the part of a plan with these; an empty choice is all of a kind.

    A profile is that of a condition, or the name of one condition. Loads and systems that the plan leaves out
    come in where they are asked for by name. The baseline stays in: without it there are no ratios.
    """
    conditions = [block.condition for block in plan.blocks]
    _check("profile", profiles, list(dict.fromkeys([*PROFILES, *(c.name for c in FULL_CONDITIONS)])))
    known = (*plan.systems, *MORE_SYSTEMS)
    _check("system", systems, known)
    _check("load", loads, tuple(LOADS))
    if profiles:
        named = [c for c in FULL_CONDITIONS if c.name in profiles]
        conditions = [c for c in conditions if c.name in profiles]
        conditions += [c for c in named if c not in conditions]
    planned = {block.condition: block.loads for block in plan.blocks}
    default = plan.blocks[0].loads
    chosen = tuple(
        Block(condition, tuple(loads) or planned.get(condition, default)) for condition in conditions
    )
    kept = tuple(name for name in known if name in systems or name == BASELINE) if systems else plan.systems
    return replace(plan, blocks=chosen, systems=kept)


FULL_CONDITIONS = tuple(block.condition for block in FULL.blocks)
