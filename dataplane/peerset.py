# SPDX-License-Identifier: Apache-2.0
"""The sets of peers' addresses in our nftables table, changed by messages to the kernel.

nft takes 4 ms to change one element, and 50 ms on a busy machine: more than all else that a changed lease
costs. The messages are of one kind (linux/netfilter/nf_tables.h), so they are packed here. A change of a set
is a transaction: all of it, or none. Whole rulesets are nft's.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from itertools import islice

from dataplane.entries import NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, attribute, message, split
from dataplane.errors import RuntimeFailure
from dataplane.model import Address
from dataplane.netbatch import NLMSG_ERROR
from dataplane.ruleset import PROTOCOLS, peers_set

NETLINK_NETFILTER, SUBSYSTEM = 12, 10
NFGENMSG = struct.Struct("!BBH")  # family, version, resource
NFPROTO_INET = 1
BATCH_BEGIN, BATCH_END = 16, 17
NEWSETELEM, DELSETELEM = 12, 14
TABLE, SET, ELEMENTS = 1, 2, 3
FIRST = 1  # the type of whatever is alone in what holds it: an element, its key, its value
NESTED = 0x8000
ELEMENTS_MAX = 1000  # of a message, whose attributes have 16 bits of length
RECEIVE_BYTES = 1 << 16
TIMEOUT_S = 30.0


def pack(number: int, table: str, version: int, addresses: Iterable[Address]) -> bytes:
    """Return the transaction that adds addresses of an IP version to a set, or deletes them."""
    keys = (attribute(FIRST | NESTED, attribute(FIRST, address.packed)) for address in addresses)
    elements = b"".join(attribute(FIRST | NESTED, key) for key in keys)
    body = NFGENMSG.pack(NFPROTO_INET, 0, 0)
    body += attribute(TABLE, table.encode() + b"\0") + attribute(SET, peers_set(version).encode() + b"\0")
    body += attribute(ELEMENTS | NESTED, elements)
    edge = NFGENMSG.pack(0, 0, SUBSYSTEM)
    flags = NLM_F_REQUEST | NLM_F_ACK | (NLM_F_CREATE if number == NEWSETELEM else 0)
    change = message(SUBSYSTEM << 8 | number, flags, body)
    return message(BATCH_BEGIN, NLM_F_REQUEST, edge) + change + message(BATCH_END, NLM_F_REQUEST, edge)


class PeerSets:
    """Changes the sets, and knows its own changes when the kernel tells of them."""

    def __init__(self) -> None:
        """Be ready; nothing is opened before there is something to change."""
        self._sock: socket.socket | None = None
        self._port = 0

    def add(self, table: str, addresses: Iterable[Address]) -> None:
        """Have addresses in the sets of a table, whether they are there or not."""
        self._change(NEWSETELEM, table, addresses)

    def delete(self, table: str, addresses: Iterable[Address]) -> None:
        """Take addresses out of the sets of a table; all of them are there."""
        self._change(DELSETELEM, table, addresses)

    def has_told(self, kind: int, port: int) -> bool:
        """Tell whether it was us who made a change that the kernel tells of."""
        is_element = kind in (SUBSYSTEM << 8 | NEWSETELEM, SUBSYSTEM << 8 | DELSETELEM)
        return is_element and port != 0 and port == self._port

    def _change(self, number: int, table: str, addresses: Iterable[Address]) -> None:
        found = list(addresses)
        for version in PROTOCOLS:
            some = (address for address in found if address.version == version)
            while batch := list(islice(some, ELEMENTS_MAX)):
                self._ask(pack(number, table, version, batch))

    def _ask(self, transaction: bytes) -> None:
        """Have the kernel carry out a transaction; RuntimeFailure if it does not."""
        try:
            if self._sock is None:
                kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
                self._sock = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
                self._sock.settimeout(TIMEOUT_S)
                self._sock.bind((0, 0))
                self._port = self._sock.getsockname()[0]
            self._sock.sendall(transaction)
            code = self._read_answer(self._sock)
        except OSError as err:
            self.close()  # an answer that comes later would be taken for that to the next question
            raise RuntimeFailure(f"telling the firewall of peers: {err.strerror or err}") from None
        if code:
            self.close()
            raise RuntimeFailure(f"telling the firewall of peers: {os.strerror(code)}")

    @staticmethod
    def _read_answer(sock: socket.socket) -> int:
        while True:
            for kind, body in split(sock.recv(RECEIVE_BYTES)):
                if kind == NLMSG_ERROR:
                    return -int(struct.unpack_from("=i", body)[0])

    def close(self) -> None:
        """Close what is open; the next change opens it anew."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
