# SPDX-License-Identifier: Apache-2.0
"""Where leases come from: one small protocol, and the store that a URL names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from dataplane.errors import ConfigError
from dataplane.model import Event


class Store(Protocol):
    """A lease store as `overlayd run` sees it."""

    @property
    def is_preassigned(self) -> bool:
        """Whether nodes find their subnet in the store, instead of choosing one."""
        ...

    def events(self) -> AsyncIterator[Event]:
        """Yield a complete list (Listed), then every change for ever.

        Raises StoreError if the store cannot be used; may be called again then. Revisions only grow.
        """
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...


def open_store(url: str) -> Store:
    """Open the store that a URL names; nothing is read before events()."""
    scheme, _, path = url.partition("://")
    if scheme != "file" or not path.startswith("/"):
        raise ConfigError(f'store "{url}": allowed is file:///path')
    from dataplane.store.file import FileStore

    return FileStore(Path(unquote(path)))
