# SPDX-License-Identifier: Apache-2.0
"""Settings of a device by netlink, where /proc/sys is read-only: in containers that are not privileged."""

from __future__ import annotations

import os
import socket
import struct

RTM_SETLINK, NLM_F_REQUEST, NLM_F_ACK = 19, 1, 4
IFLA_AF_SPEC = 26
IFLA_INET_CONF, RP_FILTER = 1, 8  # linux/if_link.h, linux/ip.h
IFLA_INET6_ADDR_GEN_MODE = 8
HEADER = struct.Struct("=IHHII")
LINK = struct.Struct("=BxHiII")
NAMES = ("rp_filter", "addr_gen_mode")  # all that the kernel lets be set so


def _attribute(kind: int, body: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(body), kind) + body + bytes(-len(body) % 4)


def message(index: int, name: str, value: int) -> bytes:
    """Return the message that sets one of NAMES of a device."""
    if name == "rp_filter":
        setting = _attribute(RP_FILTER, struct.pack("=I", value))
        family, spec = socket.AF_INET, _attribute(IFLA_INET_CONF, setting)
    else:
        family, spec = socket.AF_INET6, _attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([value]))
    body = LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    body += _attribute(IFLA_AF_SPEC, _attribute(family, spec))
    return HEADER.pack(HEADER.size + len(body), RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0) + body


def put(device: str, name: str, value: int) -> None:
    """Set one of NAMES of a device; OSError if the kernel does not."""
    request = message(socket.if_nametoindex(device), name, value)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.bind((0, 0))
        sock.sendall(request)
        code = -struct.unpack_from("=i", sock.recv(4096), HEADER.size)[0]
    if code:
        raise OSError(code, os.strerror(code))
