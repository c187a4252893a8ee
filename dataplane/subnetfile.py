# SPDX-License-Identifier: Apache-2.0
"""subnet.env: tells CNI plugins which subnet is ours, and the next run which one was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dataplane import journal
from dataplane.flannel import format_subnet_env, parse_subnet_env
from dataplane.model import NetworkConfig, SubnetKey
from dataplane.rundir import Lock, failure, write_atomically

MODE = 0o644  # whatever the umask is: plugins of other users read it

log = journal.Journal("subnetfile")


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Be the one that writes the file; another daemon of this host, with another network, has its own."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError:
        pass
    if not os.access(path.parent, os.W_OK):  # who cannot write it need not be kept from it
        yield
        return
    with Lock(lock, "overlayd run", f"writes {path}. Choose another --subnet-file"):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def read_previous(path: Path) -> SubnetKey | None:
    """Return the subnet of the last run; None, with a word in the log, if the file does not tell."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as err:
        log.warning("cannot read the subnet file", path=path, error=err.strerror)
        return None
    key = parse_subnet_env(text)
    if key is None:
        log.warning("the subnet file names no subnet", path=path)
    return key


def write(path: Path, network: NetworkConfig, key: SubnetKey, mtu: int, *, has_masq: bool = False) -> bool:
    """Let the file say what is; return whether it said something else. `mtu` in bytes, for pods."""
    text = format_subnet_env(network, key, mtu, has_masq=has_masq)
    try:
        if path.exists() and path.read_bytes() == text.encode():
            return False
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as err:
        raise failure("write", path, err) from None
    write_atomically(path, text, MODE)
    return True
