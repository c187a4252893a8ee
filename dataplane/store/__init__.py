# SPDX-License-Identifier: Apache-2.0
"""Where leases come from: two small protocols, and the store that a URL names."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import unquote_to_bytes

from dataplane.config import RunConfig
from dataplane.errors import ConfigError
from dataplane.model import Entry, Event, Heard, Lease, Listed


class Store(Protocol):
    """A lease store as `overlayd run` sees it."""

    def events(self) -> AsyncIterator[Event | Heard]:
        """Yield a complete list (Listed), then every change for ever.

        Raises StoreError if the store cannot be used; may be called again then. It may go on from where it
        was instead of listing, and says so (Heard). Revisions only grow.
        """
        ...

    @property
    def is_remote(self) -> bool:
        """Whether it is elsewhere, and may be out of reach when we start."""
        ...

    async def reopen(self) -> None:
        """Read anew what was read once, such as TLS files, and let the next events() begin with a list.

        Raises, with all as before, what is wrong with it.
        """
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...


@runtime_checkable
class LeaseStore(Store, Protocol):
    """A store in which nodes choose their subnet, instead of finding it there.

    What is written names the revision it relies on; keyvalue.Conflict says what is there instead.
    """

    async def read(self) -> Listed:
        """Return all there is now."""
        ...

    async def read_config(self) -> tuple[str | None, int]:
        """Return the network config as it is written, and the revision of that; (None, 0) for none."""
        ...

    async def put_config(self, text: str, expected: int) -> None:
        """Write the network config in place of that of revision `expected`, 0 for none."""
        ...

    async def put(self, lease: Lease, ttl_s: float | None, expected: int) -> Entry:
        """Write a lease in place of that of revision `expected`, 0 for a new one; None: it never expires."""
        ...

    async def delete(self, name: str, expected: int) -> int:
        """Delete a lease of revision `expected`; return the revision of that."""
        ...


def open_store(config: RunConfig, *, may_create: bool = True) -> Store:
    """Open the store that a configuration names; nothing is read or made before the first call."""
    url = config.store
    if url == "etcd":
        from dataplane.store.etcd import EtcdKeyValue
        from dataplane.store.registry import Registry

        return Registry(EtcdKeyValue(config.etcd), is_remote=True)
    scheme, _, rest = url.partition("://")
    path = Path(os.fsdecode(unquote_to_bytes(rest)))
    if scheme not in ("sqlite", "file") or not path.is_absolute():
        raise ConfigError(f'store "{url}": allowed are sqlite:///path and file:///path')
    if scheme == "file":
        from dataplane.store.file import FileStore

        return FileStore(path)
    from dataplane.store.registry import Registry
    from dataplane.store.sqlite import SqliteKeyValue

    return Registry(SqliteKeyValue(path, may_create=may_create))
