# SPDX-License-Identifier: Apache-2.0
"""When the addresses of a running node change: what is believed at once, and what has to last. Sans-IO.

An interface that is set up anew loses its addresses one by one, and gets them back the same way. Whoever
followed each step would rewrite his lease, and have all others follow, for nothing.
"""

from __future__ import annotations

from dataclasses import replace

from dataplane.lease import Identity
from dataplane.model import Address, Lease

SETTLE_S = 0.25  # until another address is believed
LOSS_S = 10.0  # until it is believed that there is none of a family any more


class Mover:
    """Holds what is to be believed, and since when it is so."""

    def __init__(self) -> None:
        """Nothing moves."""
        self._seen: Identity | None = None
        self._since_s = 0.0
        self.due_s: float | None = None  # when to ask again; None: nothing moves

    def forget(self) -> None:
        """Take that there is no address at all: what comes then is new."""
        self._seen = self.due_s = None

    def judge(self, found: Identity, own: Lease | None, held: frozenset[Address], now: float) -> Identity:
        """Return who we are: as found, or, while that may pass, with the addresses of our own lease."""
        if own is None or held.issuperset(own.public_ips()):
            self.forget()
            return found
        if self._seen is None or _addresses(self._seen) != _addresses(found):
            self._seen, self._since_s = found, now
        has_lost = (own.public_ip and not found.public_ip) or (own.public_ip6 and not found.public_ip6)
        self.due_s = self._since_s + (LOSS_S if has_lost else SETTLE_S)
        if now >= self.due_s:
            self.forget()
            return found
        return replace(found, public_ip=own.public_ip, public_ip6=own.public_ip6)


def _addresses(identity: Identity) -> tuple[Address | None, Address | None]:
    return identity.public_ip, identity.public_ip6
