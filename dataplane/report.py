# SPDX-License-Identifier: Apache-2.0
"""What a running control says of itself: whether the node is ready, its store, its peers, its warnings."""

from __future__ import annotations

import os
import socket
import time

from dataplane import VERSION
from dataplane.backend import Backend, Settings
from dataplane.config import RunConfig
from dataplane.convergence import Convergence
from dataplane.errors import ControlError, RuntimeFailure
from dataplane.figures import Node, PeerRow, describe, name_build
from dataplane.holding import Holding
from dataplane.journal import Journal, Trouble
from dataplane.leasing import Leasing
from dataplane.message import BUILD
from dataplane.model import Encap, SubnetEntry
from dataplane.native import ENCAP_NAMES
from dataplane.netlink import Host
from dataplane.pace import Pace
from dataplane.pathmtu import Paths
from dataplane.peers import PeerView
from dataplane.probes import PathProbes
from dataplane.progress import Progress
from dataplane.reach import is_unreached
from dataplane.recall import Recall
from dataplane.reconcile import Reconciler
from dataplane.repairs import Repairs
from dataplane.rundir import RunDir
from dataplane.softstate import SoftState, describe_said
from dataplane.traffic import Traffic

PARTS = ("store", "lease", "host", "forwarder")  # what a node needs, in the order in which they come to be

log = Journal("report")


class Report:
    """Holds how far the daemon is; the daemon writes it, and whoever asks reads it here."""

    def __init__(
        self, config: RunConfig, run_dir: RunDir, host: Host, backend: Backend, traffic: Traffic
    ) -> None:
        """Know nothing yet but where to look."""
        self._config = config
        self._run_dir = run_dir
        self._host = host
        self._backend = backend
        self._traffic = traffic
        self._started_s = time.monotonic()
        self._facts: dict[str, object] = {
            "node": socket.gethostname(),
            "tun": config.tun_name,
            "store": {"url": config.store},
        }
        former = run_dir.read_facts().get("tun")
        self.former_tun = former if isinstance(former, str) else config.tun_name  # of the last run
        self.former_networks = run_dir.read_networks()  # of which routes may be left
        self.reconciler: Reconciler | None = None
        self.leasing: Leasing | None = None  # None: a person wrote down who has which subnet
        self.paths = Paths()
        self.probes: PathProbes | None = None
        self.repairs = Repairs()
        self.peers_said = SoftState()
        self.convergence = Convergence()
        self.pace = Pace()
        self.progress = Progress()
        self.holding = Holding(config)
        self.recall: Recall | None = None
        self._told: list[str] = []
        self.is_carrying = False
        self.trouble: str | None = None  # why the last pass failed
        self.trouble_part = "host"
        self._troubles = Trouble(log, "not as it must be")
        self.unwritten: str | None = None  # why the facts are not left
        self.revision: int | None = None  # of the store, in force
        self.store_error: str | None = None
        self.network_problem: str | None = None
        self.store_heard_s: float | None = None

    def leave_facts(self, settings: Settings) -> None:
        """Write down what `status` and `down` must know when nobody answers."""
        own = None if self.reconciler is None else self.reconciler.own
        facts: dict[str, object] = {
            **self._facts,
            "encap": ENCAP_NAMES[settings.network.encap],
            "subnet": None if own is None else str(own.key),
            "datapath_reason": self._config.datapath_reason,
            "networks": [
                str(n) for n in dict.fromkeys((*settings.network.networks(), *self.former_networks))
            ],
            "vni": settings.network.vni,
            "port": settings.network.port,
            "mtu": settings.mtu,
            "underlay": {
                "iface": settings.underlay.name,
                "address": str(settings.underlay4 or settings.underlay6),
                "mtu": settings.underlay.mtu,
            },
            "tier_wanted": self._backend.tier_wanted,
            "selftest": self._backend.selftest,
            "offloads_off": self._backend.offloads_off,
            **self._traffic.facts(),
        }
        if self.is_carrying and facts["underlay"] != self._facts.get("underlay"):
            log.info("underlay", iface=settings.underlay.name, mtu=settings.underlay.mtu, pods=settings.mtu)
        if facts != self._facts or self.unwritten is not None:
            self._facts = facts
            self._write()

    def _write(self) -> None:
        """Write the facts; that they cannot be written keeps nothing from a node that works already."""
        try:
            self._run_dir.write_facts(self._facts)
            self.unwritten = None
        except RuntimeFailure as err:
            if not self.is_carrying:
                raise
            self.unwritten = str(err)

    def fail(self, err: Exception) -> None:
        """Take that the last pass failed."""
        self.trouble = str(err)
        self.trouble_part = "forwarder" if isinstance(err, ControlError) else "host"
        self._troubles.failed(self.trouble)

    def succeed(self) -> None:
        """Take that the last pass did all there was to do."""
        self.trouble = None
        if self.unwritten is None:
            self._troubles.over()
        else:
            self._troubles.failed(self.unwritten)

    def tell_warnings(self) -> None:
        """Log what keeps packets from flowing on this host, or secrets from being some, when that is new."""
        found = [*self._host.warnings(), *self._config.exposed]
        for warning in found:
            if warning not in self._told:
                log.warning(warning)
        self._told = found

    def readiness(self) -> tuple[bool, str]:
        """Return whether everything is as it must be, and what is not."""
        return self._readiness(self._stand_in())

    def _readiness(self, stand_in: str | None) -> tuple[bool, str]:
        if self.trouble is not None:
            return False, self.trouble
        if self.reconciler is None:
            return False, "starting"
        problem = self.reconciler.reason
        if problem is None and self.leasing is not None:
            problem = self.leasing.reason()
        if problem is not None:
            is_deaf = self.store_heard_s is None and self.store_error is not None
            return False, f"{problem}: {self.store_error}" if is_deaf else problem
        problem = self._forwarder_problem()
        return (True, stand_in or "ok") if problem is None else (False, problem)

    def _stand_in(self) -> str | None:
        return None if self.recall is None else self.recall.note()

    def parts(self) -> dict[str, str | None]:
        """Return what is wrong with each part of what this node needs; None: nothing.

        A store that is lost later, when its leases are known, is no reason for not being ready.
        """
        return self._parts(self._stand_in())

    def _parts(self, stand_in: str | None) -> dict[str, str | None]:
        reconciler = self.reconciler
        if reconciler is None:
            return dict.fromkeys(PARTS, "starting")
        found: dict[str, str | None] = dict.fromkeys(PARTS)
        found["forwarder"] = self._forwarder_problem()
        found["store"] = stand_in
        if not self.is_carrying:
            found["host"] = "not set up yet"
        if self.leasing is not None:
            found["lease"] = self.leasing.reason()
        if reconciler.reason is not None:
            found[reconciler.reason_part] = reconciler.reason
        if self.trouble is not None:
            found[self.trouble_part] = self.trouble
        return found

    def _forwarder_problem(self) -> str | None:
        dataplane = self._backend.describe()
        if not dataplane.is_alive:
            return "waiting for a forwarder" if self._config.forwarder == "wait" else "no forwarder"
        if not self.is_carrying or dataplane.state != "running":
            return f"starting, forwarder is {dataplane.state}"
        return None

    async def measure(self) -> dict[str, object]:
        """Return describe(), with what the guard has counted until now."""
        return self.describe(await self._traffic.count())

    def describe(self, guarded: dict[str, int]) -> dict[str, object]:
        """Return what `overlayd status --json` shows; `guarded` is what the guard has counted."""
        note = self._stand_in()  # once: it says how old the state is
        ready, reason = self._readiness(note)
        age_s = None if self.store_heard_s is None else round(time.monotonic() - self.store_heard_s, 3)
        store = {
            "url": self._config.store,
            "revision": self.revision,
            "age_s": age_s,
            "error": self.store_error,
        }
        warnings = [
            *self._backend.warnings(),
            *self._host.warnings(),
            *self._traffic.warnings(),
            *self.repairs.warnings(time.monotonic()),
            *self.pace.warnings(time.monotonic()),
            *self.holding.warnings(),
            *self.paths.warnings(),
            *self._config.exposed,
        ]
        if self.reconciler is not None:
            warnings[:0] = self.reconciler.warnings()
        if self.leasing is not None:
            warnings[:0] = self.leasing.warnings()
        for problem in (self.network_problem, self.store_error):
            if problem is not None:
                warnings.insert(0, f"store: {problem}")
        if self.unwritten is not None:
            warnings.insert(0, self.unwritten)
        if self.recall is not None:
            warnings[:0] = self.recall.warnings()
        if note is not None:
            warnings.insert(0, note)
        taken_s = self.progress.taken_s(time.monotonic())
        node = Node(
            ready=ready,
            reason=reason,
            facts={**self._facts, "store": store, "guard": guarded},
            lease=None if self.leasing is None else self.leasing.describe(),
            parts=self._parts(note),
            convergence=self.convergence.describe(),
            control={
                "pid": os.getpid(),
                "uptime_s": round(time.monotonic() - self._started_s, 3),
                "pass_s": None if taken_s is None else round(taken_s, 3),
                "version": VERSION,
                "build": name_build(BUILD),
            },
            warnings=tuple(warnings),
            rows=self._rows(),
        )
        return describe(node, self._backend.describe())

    def _rows(self) -> tuple[PeerRow, ...]:
        if self.reconciler is None:
            return ()
        now = time.monotonic()
        return tuple(self._row(view, now) for view in self.reconciler.peers())

    def _row(self, view: PeerView, now: float) -> PeerRow:
        entry, lease, said = view.entry, view.entry.lease, self.peers_said.said(view.id)
        nodes = tuple(subnet.vtep for subnet in view.subnets)
        return PeerRow(
            view.id,
            entry.title if lease is None else str(lease.key),
            None if lease is None else lease.public_ips()[0],
            None if lease is None else lease.vtep_mac or lease.vtep_mac6,
            None if lease is None else ENCAP_NAMES[lease.encap],
            view.refused,
            "/".join(dict.fromkeys(map(_name_reach, view.subnets))) or None,
            None if view.refused is None else view.refused.kind,
            expires_in_s=entry.left_s(now),
            unreachable=None if said is None else describe_said(said, now),
            path=self.paths.describe(nodes, now),
            answers=None if self.probes is None else self.probes.answers(nodes, now),
            held_for_s=self.holding.held_for_s(entry.name),
        )


def _name_reach(entry: SubnetEntry) -> str:
    if is_unreached(entry):
        return ENCAP_NAMES[Encap.NONE]
    return ENCAP_NAMES[Encap.DIRECT if entry.is_direct else entry.encap]
