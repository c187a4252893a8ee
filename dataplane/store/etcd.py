# SPDX-License-Identifier: Apache-2.0
"""keyvalue.KeyValue on etcd v3, under flannel's prefix.

A lease lives by an etcd lease of its own: put() grants it, and what it replaces is revoked once nothing hangs
on it any more. Everything is written by a transaction that relies on a revision. When a key of another node
ends, etcd does not say unless asked, key by key; so nobody asks, and its time is "some".
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
from aetcd import rpc

from dataplane.alloc import overlap
from dataplane.config import EtcdConfig
from dataplane.errors import StoreError
from dataplane.flannel import parse_key
from dataplane.model import Network
from dataplane.store.etcd_client import (
    CALL_S,
    EtcdClient,
    Line,
    Metadata,
    Refusal,
    explain_dropped,
    is_ending,
)
from dataplane.store.keyvalue import Compacted, Conflict, Record, Snapshot

SUBNETS = "subnets/"
FIRST_S = 5.0  # for a watch to begin
QUIET_S = 10.0  # after which a server that says nothing is asked whether it is there
Result = TypeVar("Result")


def range_end(prefix: bytes) -> bytes:
    """Return the end of the range of all keys that begin like this; the last byte is no 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def subnets_of(name: str) -> tuple[Network, ...]:
    """Return what a key claims; nothing if it is none of flannel's."""
    try:
        return parse_key(name).subnets()
    except ValueError:
        return ()


async def _keep_alive(line: Line, said: Metadata, lease_id: int) -> int:
    """Let a lease live as long again; return how many seconds that is, 0 if it is gone."""
    stream = line.lease.LeaseKeepAlive(timeout=CALL_S, metadata=said)
    try:
        await stream.write(rpc.LeaseKeepAliveRequest(ID=lease_id))
        return int(getattr(await stream.read(), "TTL", 0))
    finally:
        stream.cancel()


class OldToken(StoreError):
    """The server has forgotten who we are; the next call tells it again."""


class EtcdKeyValue:
    """The keys below one prefix of one cluster."""

    def __init__(self, etcd: EtcdConfig, clock: Callable[[], float] = time.monotonic) -> None:
        """Connect to nothing yet."""
        self._root = f"{etcd.prefix}/".encode()
        self._client = EtcdClient(etcd)
        self._clock = clock
        self._cluster = self._term = 0  # whose revisions we know; the term of its last leader
        self._ends: dict[int, float] = {}  # of the etcd leases that we granted: when, by our clock

    # --- keys and records ---------------------------------------------------------------------------

    def _key(self, name: str) -> bytes:
        return self._root + name.encode()

    def _record(self, kv: Any, *, is_gone: bool = False) -> Record | None:
        """Read a key; None if its name is nothing we could have written."""
        try:
            name = bytes(kv.key)[len(self._root) :].decode()
        except UnicodeDecodeError:
            return None
        if is_gone:
            return Record(name, None, 0, kv.mod_revision)
        value = bytes(kv.value).decode("utf-8", "replace")
        return Record(name, value, kv.create_revision, kv.mod_revision, self._ttl_s(kv.lease))

    def _ttl_s(self, lease_id: int) -> float | None:
        if lease_id == 0:
            return None
        return self._ends[lease_id] - self._clock() if lease_id in self._ends else math.inf

    async def _range(self, prefix: bytes, **more: Any) -> Any:
        request = rpc.RangeRequest(key=prefix, range_end=range_end(prefix), **more)
        return await self._ask(lambda line, said: line.kv.Range(request, timeout=CALL_S, metadata=said))

    async def _ask(
        self, call: Callable[[Line, Metadata], Awaitable[Result]], *, is_safe: bool = True
    ) -> Result:
        return await self._client.ask(call, is_safe=is_safe)

    # --- keyvalue.KeyValue --------------------------------------------------------------------------

    async def snapshot(self) -> Snapshot:
        """Return all keys, as one revision has them."""
        found = await self._range(self._root)
        records = [record for kv in found.kvs if (record := self._record(kv)) is not None]
        self._cluster, self._term = found.header.cluster_id, found.header.raft_term
        return Snapshot(found.header.revision, tuple(records), f"{found.header.cluster_id:x}")

    async def revision(self) -> int:
        """Return the revision of the last change of the cluster, whoever's keys it was."""
        revision: int = (await self._range(self._root, count_only=True)).header.revision
        return revision

    async def watch(self, after: int) -> AsyncGenerator[Record, None]:
        """Yield every change after a revision."""
        has_new_token = False
        while True:
            try:
                async for record in self._watch(after):
                    after = record.changed
                    yield record
            except OldToken:
                if has_new_token:
                    raise
                has_new_token = True

    async def _watch(self, after: int) -> AsyncGenerator[Record, None]:
        # Not from the next one: an etcd that was compacted at exactly the revision that a watch begins with
        # leaves out, without a word, a key that was deleted there (etcd-io/etcd#18089; Debian's 3.4.23).
        begin = max(after, 1)
        create = rpc.WatchCreateRequest(
            key=self._root, range_end=range_end(self._root), start_revision=begin, progress_notify=True
        )
        line = self._client.line()
        try:
            stream = await self._begin(line, create, after)
            try:
                while (response := await self._hear(line, stream)) is not grpc.aio.EOF:
                    for record in self._read_changes(response):
                        if record.changed > after:
                            yield record
            finally:
                stream.cancel()
            raise StoreError(f"etcd {line.server} ended the watch")
        except grpc.aio.AioRpcError as err:
            why = self._client.explain(err, line)
            if self._client.forget_token(err.details()):
                raise OldToken(why) from None
            await self._client.drop(line)
            raise StoreError(why) from None
        except asyncio.CancelledError:
            if is_ending():
                raise
            raise StoreError(explain_dropped(line.server)) from None

    async def _begin(self, line: Line, create: Any, after: int) -> Any:
        """Return a watch that the server has begun; one that hangs is left."""
        try:
            async with asyncio.timeout(FIRST_S):
                said = await self._client.metadata(line)
                stream = line.watch.Watch(metadata=(*said, ("hasleader", "true")))
                await stream.write(rpc.WatchRequest(create_request=create))
                first = await stream.read()
        except TimeoutError:
            await self._client.drop(line)
            raise StoreError(f"etcd {line.server} does not begin to watch within {FIRST_S:g} s") from None
        if first is grpc.aio.EOF:
            raise StoreError(f"etcd {line.server} ended the watch")
        self._read_changes(first)  # which says whether it may be had
        self._check_history(first.header, after)
        return stream

    async def _hear(self, line: Line, stream: Any) -> Any:
        """Return what the server says next. It may be frozen, and its connection stand for hours."""
        reading = asyncio.ensure_future(stream.read())  # to give read() up ends the watch
        try:
            while not (await asyncio.wait({reading}, timeout=QUIET_S))[0]:
                await stream.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
                if not (await asyncio.wait({reading}, timeout=CALL_S))[0]:
                    await self._client.drop(line)
                    raise StoreError(f"etcd {line.server} does not answer within {CALL_S:g} s")
            return reading.result()
        finally:
            reading.cancel()
            del reading  # what it raised knows this frame: neither would go before somebody looks for cycles

    def _check_history(self, header: Any, after: int) -> None:
        """See whether this is still the history that we know. Terms only grow, as revisions do."""
        if self._cluster and header.cluster_id != self._cluster:
            raise Compacted("another etcd cluster is in its place")
        if header.revision < after or header.raft_term < self._term:
            raise Compacted("etcd is an older copy of what it was")
        self._term = header.raft_term

    def _read_changes(self, response: Any) -> list[Record]:
        if response.compact_revision:
            raise Compacted(f"etcd has forgotten what was before revision {response.compact_revision}")
        if response.canceled:
            is_old = self._client.forget_token(response.cancel_reason)
            raise (OldToken if is_old else StoreError)(f"etcd ended the watch: {response.cancel_reason}")
        changes = []
        for event in response.events:
            record = self._record(event.kv, is_gone=event.type == event.DELETE)
            if record is not None:
                changes.append(record)
        return changes

    async def put(self, key: str, value: str, ttl_s: float | None, expected: int) -> Record:
        """Write a key, for `ttl_s` seconds from now. One that says the same may stay there, and lives on."""
        try:
            return await self._put(key, value, ttl_s, expected)
        except Refusal:  # an etcd that is full writes nothing, and would let our lease run out
            record = None if ttl_s is None else await self._prolong(key, value, expected)
            if record is None:
                raise
            return record

    async def _put(self, key: str, value: str, ttl_s: float | None, expected: int) -> Record:
        lease_id = 0 if ttl_s is None else await self._grant(ttl_s)
        try:
            done = await self._write(key, value, lease_id, expected)
        except BaseException:
            await self._revoke(lease_id)
            raise
        put = done.responses[0].response_put
        revision: int = done.header.revision
        if expected == 0 and key.startswith(SUBNETS):
            await self._check_alone(key, revision, lease_id)
        if expected and put.prev_kv.lease:
            await self._revoke(put.prev_kv.lease)
        created = put.prev_kv.create_revision if expected else revision
        return Record(key, value, created, revision, self._ttl_s(lease_id))

    async def _prolong(self, key: str, value: str, expected: int) -> Record | None:
        """Let a key that stands there as it is to be live as long again; None if that is not so."""
        found = await self._range(self._key(key))
        kv = next((kv for kv in found.kvs if bytes(kv.key) == self._key(key)), None)
        if kv is None or kv.mod_revision != expected or bytes(kv.value) != value.encode() or not kv.lease:
            return None
        begun_s = self._clock()
        left_s = await self._ask(lambda line, said: _keep_alive(line, said, kv.lease))
        if not left_s:
            return None
        self._ends[kv.lease] = begun_s + left_s
        return self._record(kv)

    async def _grant(self, ttl_s: float) -> int:
        request = rpc.LeaseGrantRequest(TTL=max(1, math.ceil(ttl_s)))
        begun_s = self._clock()
        granted = await self._ask(
            lambda line, said: line.lease.LeaseGrant(request, timeout=CALL_S, metadata=said)
        )
        now = self._clock()
        self._ends = {known: end for known, end in self._ends.items() if end > now}
        self._ends[granted.ID] = begun_s + granted.TTL
        lease_id: int = granted.ID
        return lease_id

    async def _write(self, key: str, value: str, lease_id: int, expected: int) -> Any:
        put = rpc.PutRequest(key=self._key(key), value=value.encode(), lease=lease_id, prev_kv=expected != 0)
        return await self._transact(key, expected, rpc.RequestOp(request_put=put))

    async def _transact(self, key: str, expected: int, operation: Any) -> Any:
        """Do it if the key is as expected; Conflict with what is there otherwise."""
        # A key that is not there has mod_revision 0.
        compare = rpc.Compare(
            result=rpc.Compare.EQUAL,
            target=rpc.Compare.MOD,
            key=self._key(key),
            mod_revision=expected,
        )
        look = rpc.RequestOp(request_range=rpc.RangeRequest(key=self._key(key)))
        request = rpc.TxnRequest(compare=[compare], success=[operation], failure=[look])
        done = await self._ask(
            lambda line, said: line.kv.Txn(request, timeout=CALL_S, metadata=said), is_safe=False
        )
        if not done.succeeded:
            found = [self._record(kv) for kv in done.responses[0].response_range.kvs]
            raise Conflict(key, tuple(record for record in found if record is not None))
        return done

    async def _check_alone(self, key: str, revision: int, lease_id: int) -> None:
        """Take a new lease back if an older one, by another name, has one of its subnets."""
        ours = subnets_of(key.removeprefix(SUBNETS))
        found = await self._range(self._key(SUBNETS), revision=revision, keys_only=True)
        others = []
        for kv in found.kvs:
            record = self._record(kv)
            if record is None or record.key == key or record.created > revision:
                continue
            theirs = subnets_of(record.key.removeprefix(SUBNETS))
            if any(overlap(one, other) for one in ours for other in theirs):
                others.append(record)
        if others:
            await self.delete(key, revision)
            await self._revoke(lease_id)
            raise Conflict(key, await self._read(others))

    async def _read(self, records: list[Record]) -> tuple[Record, ...]:
        """Return the same keys with their values."""
        found = {record.key: record for record in (await self.snapshot()).records}
        return tuple(found[record.key] for record in records if record.key in found)

    async def delete(self, key: str, expected: int) -> int:
        """Delete a key."""
        operation = rpc.RequestOp(
            request_delete_range=rpc.DeleteRangeRequest(key=self._key(key), prev_kv=True)
        )
        done = await self._transact(key, expected, operation)
        for kv in done.responses[0].response_delete_range.prev_kvs:
            await self._revoke(kv.lease)
        revision: int = done.header.revision
        return revision

    async def _revoke(self, lease_id: int) -> None:
        """End an etcd lease that nothing hangs on any more; where that fails, it ends by itself."""
        if lease_id == 0:
            return
        self._ends.pop(lease_id, None)
        look = rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True)
        end = rpc.LeaseRevokeRequest(ID=lease_id)
        try:
            left = await self._ask(
                lambda line, said: line.lease.LeaseTimeToLive(look, timeout=CALL_S, metadata=said)
            )
            if left.TTL > 0 and not left.keys:
                await self._ask(lambda line, said: line.lease.LeaseRevoke(end, timeout=CALL_S, metadata=said))
        except StoreError:
            pass

    async def reopen(self) -> None:
        """Connect anew, with the TLS files as they are now, once that is known to work."""
        request = rpc.RangeRequest(key=self._root, range_end=range_end(self._root), count_only=True)
        await self._client.reopen(lambda line, said: line.kv.Range(request, timeout=CALL_S, metadata=said))

    async def close(self) -> None:
        """Let go of the server."""
        await self._client.close()
