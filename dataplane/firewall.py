# SPDX-License-Identifier: Apache-2.0
"""nftables: puts a ruleset in force in one step, and hears of it when somebody changes it.

nft reads JSON from its standard input, whole transactions of it; no shell, no file. The kernel tells of every
change of a table, so that an idle daemon does nothing. What we want and what nft lists look different, and
differ between versions of nft: so the list is compared with the one that was read when the rules were new.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from operator import is_
from pathlib import Path

from dataplane import entries, ruleset
from dataplane.errors import RuntimeFailure
from dataplane.journal import Journal, Trouble
from dataplane.model import Address, Peer
from dataplane.netwatch import Watch
from dataplane.peerset import NETLINK_NETFILTER, SUBSYSTEM, PeerSets
from dataplane.ruleset import FAMILY, Json, Masquerade, Ruleset

log = Journal("firewall")

SBIN = "/usr/sbin:/sbin"
TIMEOUT_S = 30.0
MISSING = ("No such file or directory", "rotocol not supported", "peration not supported")
DENIED = "Operation not permitted"

# linux/netfilter/nfnetlink.h and nf_tables.h; the first attribute of each message is the name of the table
NFNLGRP_NFTABLES = 7
NFGENMSG_BYTES = 4
NEWGEN = 15
CHAINS, RULES = (3, 5), (6, 8)  # new, deleted
TABLE, RULE_CHAIN, CHAIN_NAME = 1, 2, 3

LEGACY = (("iptables-legacy", "ip_tables_names"), ("ip6tables-legacy", "ip6_tables_names"))


# --- programs ---------------------------------------------------------------------------------------------


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:{SBIN}"


def _find(program: str) -> str | None:
    return shutil.which(program, path=_path())


def _call(words: list[str], text: str = "") -> str:
    """Run a program; return what it printed. RuntimeFailure if it is not there, or fails."""
    path = _find(words[0])
    if path is None:
        raise RuntimeFailure(f"{words[0]} is not installed here (Debian: apt-get install nftables)")
    try:
        done = subprocess.run(
            [path, *words[1:]],
            input=text,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env={"PATH": _path(), "LC_ALL": "C"},  # nothing of ours: a password may be there
        )
    except subprocess.TimeoutExpired:
        raise RuntimeFailure(f"{words[0]} did not end within {TIMEOUT_S:g} s") from None
    except OSError as err:
        raise RuntimeFailure(f"cannot run {words[0]}: {err.strerror}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        if DENIED in done.stderr:
            raise RuntimeFailure("overlayd run needs CAP_NET_ADMIN to set up firewall rules")
        raise RuntimeFailure(f"{' '.join(words)}: {lines[0]}")
    return done.stdout


def run(commands: list[Json]) -> None:
    """Carry out commands, all of them or none."""
    if commands:
        _call(["nft", "-j", "-f", "-"], json.dumps({"nftables": commands}))


def show(*what: str) -> list[Json] | None:
    """Return what `nft -j list` says of something; None if it is not there."""
    try:
        text = _call(["nft", "-j", "list", *what])
    except RuntimeFailure as err:
        if any(text in str(err) for text in MISSING):
            return None
        raise
    found: list[Json] = json.loads(text)["nftables"] if text.strip() else []
    return found


def _show_chains() -> list[Json]:
    return show("chains") or []


# --- what is removed --------------------------------------------------------------------------------------


FAMILIES = tuple(ruleset.PROTOCOLS.values())


def _find_removals(
    chains: list[Json], named: Iterable[tuple[str, str]], families: Iterable[str] = FAMILIES
) -> list[Json]:
    """Return the commands that remove chains of tables of iptables, each as (table, chain)."""
    commands = []
    for table, name in named:
        for family in families:
            if ruleset.has_chain(chains, family, table, name):
                rules = show("table", family, table) or []
                commands += ruleset.remove_chain(family, table, name, rules)
    return commands


def remove(table: str) -> None:
    """Remove our rules."""
    if _find("nft") is not None:
        run(_find_removals(_show_chains(), [("filter", table)]) + _remove_table(table))


def hand_over(table: str, masquerade: Masquerade | None) -> None:
    """Leave what our rules do to rules that flannel calls its own."""
    if _find("nft") is None:
        return
    commands = _remove_table(table)
    chains = _show_chains()
    for family in FAMILIES:
        if ruleset.has_chain(chains, family, "filter", ruleset.FLANNEL_FORWARD):
            commands += _find_removals(chains, [("filter", table)], [family])
        elif ruleset.has_chain(chains, family, "filter", table):
            commands.append(ruleset.rename_chain(family, "filter", table, ruleset.FLANNEL_FORWARD))
    run(commands + (ruleset.flannels(masquerade) if masquerade is not None else []))


def _remove_table(table: str) -> list[Json]:
    return ruleset.remove_table(FAMILY, table) if show("table", FAMILY, table) is not None else []


def clean_flannel() -> list[str]:
    """Remove the rules that flannel left behind; return what was removed."""
    chains, removed = _show_chains(), []
    commands = _find_removals(chains, ruleset.FLANNEL_CHAINS)
    removed += [
        name for _, name in ruleset.FLANNEL_CHAINS if any(_names(command, name) for command in commands)
    ]
    for family, table in ruleset.FLANNEL_TABLES:
        if show("table", family, table) is not None:
            commands += ruleset.remove_table(family, table)
            removed.append(table)
    run(commands)
    return removed + _clean_legacy()


def _names(command: Json, chain: str) -> bool:
    return bool(command.get("delete", {}).get("chain", {}).get("name") == chain)


def _clean_legacy() -> list[str]:
    """Do the same in the tables of old, which nftables does not know."""
    removed = []
    for tool, tables in LEGACY:
        try:
            used = Path("/proc/net", tables).read_text(encoding="ascii").split()
        except OSError:
            continue
        for table, name in ruleset.FLANNEL_CHAINS:
            if table not in used or _find(f"{tool}-save") is None:
                continue
            text = ruleset.legacy_removal(_call([f"{tool}-save", "-t", table]), table, name)
            if text:
                _call([f"{tool}-restore", "--noflush", "--wait"], text)
                removed.append(f"{name} ({tool})")
    return removed


# --- what is kept -----------------------------------------------------------------------------------------


class Firewall:
    """Our rules, in force for as long as nobody removes them, and then soon again."""

    def __init__(self, resync_s: float) -> None:
        """Look at most every so many seconds."""
        self._resync_s = resync_s
        # Held while nft runs: until it is nft, our child holds all that we do, also devices and ports that we
        # close meanwhile. Whoever wants to have them free at once holds it too.
        self.lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self._wanted: Ruleset | None = None
        self._sets = PeerSets()
        self._told_of: tuple[Peer, ...] = ()
        self._peers: set[Address] = set()  # in our sets
        self._leaving: set[Address] = set()  # of these, those that settle() is to remove
        self._new: list[Json] | None = None  # how nft listed the table when it was new; None: not sure
        self._looked_s = -resync_s
        self._is_new: bool | None = None  # no such table was there before
        self._counted = dict.fromkeys(ruleset.COUNTERS, 0)
        self.trouble: str | None = None
        self._told: str | None = None  # in the log, which says nothing of a start that fails
        self._uncounted = Trouble(log, "counters of the firewall are not read")

    async def put(self, wanted: Ruleset, peers: tuple[Peer, ...] = ()) -> None:
        """Put rules in force; what is in force already is not touched. `trouble` says why they are not.

        Who is a peer no longer stays in until settle(): nobody whom the forwarder takes is refused here.
        """
        async with self.lock:
            new = self._take_peers(peers if wanted.has_peers else ())
            if wanted == self._wanted:
                await self._tell(self._sets.add, new)
                return
            try:
                await asyncio.to_thread(self._replace, wanted)
            except RuntimeFailure as err:
                self._wanted, self._looked_s = wanted, time.monotonic()
                self._doubt(str(err))

    async def _tell(self, change: Callable[[str, set[Address]], None], addresses: set[Address]) -> None:
        """Change our sets, also in trouble: what nft cannot do now may be in force from before."""
        if self._wanted is None or not addresses:
            return
        try:
            await asyncio.to_thread(change, self._wanted.table, addresses)
        except RuntimeFailure as err:
            self._doubt(self.trouble or str(err))

    def _take_peers(self, peers: tuple[Peer, ...]) -> set[Address]:
        """Know who has come and who is to leave; return who has come."""
        if peers is self._told_of:
            return set()
        were, are = _differ(self._told_of, peers)
        gone = {ip for peer in were for ip in peer.addresses}
        come = {ip for peer in are for ip in peer.addresses}
        self._told_of = peers
        self._leaving = (self._leaving | gone) - come
        new = come - self._peers
        self._peers |= new
        return new

    async def settle(self) -> None:
        """Remove who is a peer no longer, now that nothing else takes packets from there."""
        if self._leaving:
            async with self.lock:
                leaving, self._leaving = self._leaving, set()
                self._peers -= leaving
                await self._tell(self._sets.delete, leaving)

    def _doubt(self, trouble: str) -> None:
        """Be not sure what is in force; it is looked at again."""
        self._new, self.trouble = None, trouble
        self._changed.set()

    def _replace(self, wanted: Ruleset) -> None:
        if wanted.is_empty and _find("nft") is None:
            return
        found = show("counters", "table", FAMILY, wanted.table)
        if self._is_new is None:
            self._is_new = found is None
        self._counted |= ruleset.read_counters(found or [])
        run(ruleset.build(wanted, self._peers, self._counted) + self._forward(wanted))
        self._wanted, self.trouble = wanted, None
        self._new = ruleset.strip(show("table", FAMILY, wanted.table) or [])

    def _forward(self, wanted: Ruleset) -> list[Json]:
        """Return what is to be done in FORWARD of iptables."""
        chains = _show_chains()
        if not wanted.forward:
            return _find_removals(chains, [("filter", wanted.table)])
        commands = []
        for family in ruleset.dropping(chains):
            commands += ruleset.open_forward(wanted, family, show("table", family, "filter") or [])
        return commands

    async def undo(self) -> None:
        """Remove what we have put where nothing of ours was."""
        if self._wanted is not None and self._is_new:
            await asyncio.to_thread(remove, self._wanted.table)

    # --- what somebody else does

    async def run(self) -> None:
        """Put right what somebody changes: the first time at once, then every few seconds at most."""
        with ExitStack() as stack:
            # without nftables in the kernel, or the right: nothing is in force anyway
            with suppress(OSError):
                watch = Watch(NETLINK_NETFILTER, 1 << (NFNLGRP_NFTABLES - 1), self._hear)
                stack.callback(watch.close)
                watch.start()
            stack.callback(self._sets.close)
            while True:
                await self._changed.wait()
                await asyncio.sleep(self._looked_s + self._resync_s - time.monotonic())
                self._changed.clear()
                await self._look()

    def _hear(self, data: bytes) -> None:
        if not data:  # some were lost, so look
            self._changed.set()
        if self._wanted is not None and not self._changed.is_set():
            table = self._wanted.table
            if any(
                matters(kind, body, table)
                for kind, port, body in entries.split_ports(data)
                if not self._sets.has_told(kind, port)
            ):
                self._changed.set()

    async def _look(self) -> None:
        async with self.lock:
            self._looked_s = time.monotonic()
            if self._wanted is None:
                return
            try:
                await asyncio.to_thread(self._put_right, self._wanted)
            except RuntimeFailure as err:
                self._doubt(str(err))
                if self.trouble != self._told:
                    log.error("firewall rules are not in force", error=err)
                self._told = self.trouble

    def _put_right(self, wanted: Ruleset) -> None:
        listing = show("table", FAMILY, wanted.table) or []
        is_whole = ruleset.read_peers(listing) == set(map(str, self._peers))
        if not is_whole or ruleset.strip(listing) != self._new:
            self._replace(wanted)
            log.warning("firewall rules put right", table=wanted.table)
        elif commands := self._forward(wanted):
            run(commands)
            log.info("packets of pods are accepted in FORWARD", table=wanted.table)

    async def count(self) -> dict[str, int]:
        """Return what our counters say, or said last if something else is being done; {} while in trouble."""
        wanted = self._wanted
        if wanted is None or wanted.guard is None or self.trouble is not None:
            return {}
        if not self.lock.locked():
            async with self.lock:
                try:
                    found = await asyncio.to_thread(show, "counters", "table", FAMILY, wanted.table)
                    self._counted = ruleset.read_counters(found or [])
                    self._uncounted.over()
                except RuntimeFailure as err:
                    self._uncounted.failed(str(err))
        return self._counted


def _differ(were: tuple[Peer, ...], are: tuple[Peer, ...]) -> tuple[tuple[Peer, ...], tuple[Peer, ...]]:
    """Return what is left of two tables without what both begin and end with: the very same peers."""
    for step in (1, -1):
        same = bytes(map(is_, were[::step], are[::step]))
        count = same.find(0) if 0 in same else len(same)
        were, are = (left[count:] if step == 1 else left[: len(left) - count] for left in (were, are))
    return were, are


def matters(kind: int, body: bytes, table: str) -> bool:
    """Tell whether a message of the kernel's is about our table, or about FORWARD of iptables."""
    subsystem, number = divmod(kind, 256)
    if subsystem != SUBSYSTEM or number == NEWGEN:
        return False
    found = {key: text.rstrip(b"\0").decode(errors="replace") for key, text in _names_of(body).items()}
    if found.get(TABLE) == table:
        return True
    attribute = RULE_CHAIN if number in RULES else CHAIN_NAME
    is_rule_or_chain = number in RULES or number in CHAINS
    return (
        is_rule_or_chain and found.get(TABLE) == "filter" and found.get(attribute) in (ruleset.FORWARD, table)
    )


def _names_of(body: bytes) -> dict[int, bytes]:
    found = entries.attributes(body, NFGENMSG_BYTES)
    return {key: found[key] for key in (TABLE, RULE_CHAIN, CHAIN_NAME) if key in found}
