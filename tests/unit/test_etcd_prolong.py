# SPDX-License-Identifier: Apache-2.0
"""A lease of ours in an etcd that writes nothing: it lives on if it stands there as it is to be."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from dataplane.config import EtcdConfig
from dataplane.store.etcd import EtcdKeyValue
from dataplane.store.etcd_client import Refusal
from dataplane.store.keyvalue import Record

KEY, VALUE, REVISION, LEASE = "subnets/10.244.1.0-24", "{}", 7, 99
LEFT_S, NOW_S = 60, 1000.0
WHOLE = {"value": VALUE.encode(), "create_revision": 5, "mod_revision": REVISION, "lease": LEASE}


class Full(EtcdKeyValue):
    """An etcd that refuses to write, has some keys, and lets leases live on for a while."""

    def __init__(self, *keys: Any, left_s: int = LEFT_S) -> None:
        super().__init__(EtcdConfig(), clock=lambda: NOW_S)
        self._keys, self._left_s = keys, left_s
        self.prolonged = 0

    async def _put(self, *_: Any) -> Record:
        raise Refusal("etcd is full")

    async def _range(self, prefix: bytes, **_: Any) -> Any:
        return SimpleNamespace(kvs=self._keys)

    async def _ask(self, call: Any, **_: Any) -> Any:
        self.prolonged += 1
        return self._left_s

    def kept(self, ttl_s: float | None = 60.0) -> Coroutine[Any, Any, Record]:
        """Write our lease once more."""
        return self.put(KEY, VALUE, ttl_s, REVISION)


def stands(name: str = KEY, **changes: Any) -> Any:
    """Return a key as etcd has it."""
    return SimpleNamespace(key=b"/coreos.com/network/" + name.encode(), **(WHOLE | changes))


def test_what_stands_there_lives_on() -> None:
    """Our key is the same as before, and its lease is as long again; one behind it is another."""
    etcd = Full(stands(KEY + "x", mod_revision=3), stands())
    record = asyncio.run(etcd.kept())
    assert record == Record(KEY, VALUE, 5, REVISION, LEFT_S)
    assert etcd.prolonged == 1


@pytest.mark.parametrize(
    ("keys", "prolonged"),
    [
        pytest.param([], 0, id="gone"),
        pytest.param([stands(KEY + "x")], 0, id="another"),
        pytest.param([stands(mod_revision=8)], 0, id="changed"),
        pytest.param([stands(value=b"{ }")], 0, id="to_be_changed"),
        pytest.param([stands(lease=0)], 0, id="endless"),
    ],
)
def test_what_does_not_stand_there_is_refused(keys: list[Any], prolonged: int) -> None:
    """A key that is gone, or another one, or not as it is to be, is not prolonged: what etcd said is told."""
    etcd = Full(*keys)
    with pytest.raises(Refusal, match="etcd is full"):
        asyncio.run(etcd.kept())
    assert etcd.prolonged == prolonged


def test_lease_that_has_just_ended() -> None:
    """A lease that etcd knows no more is not taken for one that lives; one without end is not asked."""
    etcd = Full(stands(), left_s=0)
    with pytest.raises(Refusal):
        asyncio.run(etcd.kept())
    assert etcd.prolonged == 1
    with pytest.raises(Refusal):
        asyncio.run(etcd.kept(None))
    assert etcd.prolonged == 1
