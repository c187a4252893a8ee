# SPDX-License-Identifier: Apache-2.0
"""Calls to etcd: which of its servers, over TLS or not, as which user; and what went wrong, in one line.

The messages are aetcd's generated ones; aetcd's own client knows one server, no TLS and no second token. A
channel that fails is thrown away, and the next one reads the TLS files anew: so certificates are replaced on
disk, and nothing else has to be told.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it would write to standard error what we tell in one line

import grpc
from aetcd import rpc

from dataplane.config import EtcdConfig
from dataplane.errors import StoreError, one_line

CALL_S = 5.0
SYSTEM_CAS = Path("/etc/ssl/certs/ca-certificates.crt")
DETAIL_MAX = 200  # characters of what a server says
OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),  # etcd takes one in 5 s; one that hangs is noticed in 15
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 256 << 20),  # 10 000 leases are 3 MiB, more than its own limit
    ("grpc.use_local_subchannel_pool", 1),  # another channel is another connection
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
)
Metadata = tuple[tuple[str, str], ...]
Result = TypeVar("Result")

# What another server, or the same one a moment later, may do.
TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
FULL = "database space exceeded"
OLD_TOKEN = (
    "invalid auth token",
    "revision of auth store is old",
    "token is not provided",
    "user name is empty",
)


def _explain_tls(said: str, detail: str, etcd: EtcdConfig, host: str | None) -> str | None:
    """Say what is wrong with the encryption; None if nothing is."""
    if "certificate_verify_failed" in said or "certificate verify failed" in said:
        reason = "it has expired" if "expired" in said else "nobody we trust vouches for it"
        return f"its certificate is refused, {reason}. Check --etcd-cafile and its certificate"
    if "hostname verification" in said:
        return f"its certificate is refused, it is not for {host}. Check --etcd-endpoints and its certificate"
    if "unwrap failed" in said:  # behind the handshake: where a server of TLS 1.3 refuses us
        wish = "it refuses our certificate. Check" if etcd.certfile else "it wants a certificate of us. Give"
        return f"{wish} --etcd-certfile and --etcd-keyfile"
    if "handshake" in said or "ssl" in said or "tls" in said:
        return f"no TLS ({detail}). Check --etcd-cafile, --etcd-certfile and --etcd-keyfile"
    return None


def explain(err: grpc.aio.AioRpcError, server: str, etcd: EtcdConfig) -> str:
    """Say in one line why a server did not do what it was asked, and what to do about it."""
    said = one_line(err.details() or "").lower()
    detail = one_line(err.details() or "")[:DETAIL_MAX]
    who = f"user {etcd.username}" if etcd.username else "nobody"
    if err.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"etcd {server} does not answer within {CALL_S:g} s"
    if (tls := _explain_tls(said, detail, etcd, urlsplit(server).hostname)) is not None:
        return f"etcd {server}: {tls}"
    if "invalid user id or password" in said:
        return f"etcd {server} refuses user {etcd.username}: check --etcd-username and --etcd-password"
    if err.code() is grpc.StatusCode.PERMISSION_DENIED or "permission denied" in said:
        return f"etcd {server}: {who} may not do that; grant readwrite on {etcd.prefix}/ as a prefix"
    if FULL in said:
        return f"etcd {server} is full ({FULL}): compact and defragment it, then etcdctl alarm disarm"
    if "user name is empty" in said:
        return f"etcd {server} wants a user: give --etcd-username and --etcd-password"
    if "no leader" in said or "request timed out" in said:
        return f"etcd {server} has no leader: most of its members are down"
    if err.code() is grpc.StatusCode.UNAVAILABLE:
        if "refused" in said:
            detail = "connection refused"
        return f"etcd {server} cannot be reached: {detail}"
    return f"etcd {server}: {detail or err.code().name.lower()}"


class Refusal(StoreError):
    """A server that is well, with all who talk to it, said no."""


def is_refusal(err: grpc.aio.AioRpcError) -> bool:
    """Return whether a server said no although it is well: its connection stays."""
    return err.code() is grpc.StatusCode.PERMISSION_DENIED or FULL in (err.details() or "")


def is_ending() -> bool:
    """Return whether a CancelledError is for the task itself.

    grpc raises one in each call on a channel that is closed, and another task may have closed this one.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def explain_dropped(server: str) -> str:
    """Say why a call was given up that did not fail itself."""
    return f"etcd {server} cannot be reached: another call gave its connection up"


def read_file(path: Path) -> bytes:
    """Return a TLS file."""
    try:
        return path.read_bytes()
    except OSError as err:
        raise StoreError(f"cannot read {path}: {err.strerror}") from None


def credentials(etcd: EtcdConfig) -> grpc.ChannelCredentials:
    """Read the TLS files as they are now."""
    cas = etcd.cafile or (SYSTEM_CAS if SYSTEM_CAS.exists() else None)
    try:
        return grpc.ssl_channel_credentials(
            None if cas is None else read_file(cas),
            None if etcd.keyfile is None else read_file(etcd.keyfile),
            None if etcd.certfile is None else read_file(etcd.certfile),
        )
    except ValueError as err:
        raise StoreError(f"the TLS files of etcd are unusable: {err}") from None


def open_channel(endpoint: str, etcd: EtcdConfig) -> grpc.aio.Channel:
    """Open a channel to one server; it connects with the first call."""
    where = urlsplit(endpoint)
    host = f"[{where.hostname}]" if ":" in str(where.hostname) else where.hostname
    target = f"{host}:{where.port or 2379}"
    if where.scheme == "https":
        return grpc.aio.secure_channel(target, credentials(etcd), options=OPTIONS)
    return grpc.aio.insecure_channel(target, options=OPTIONS)


@dataclass(slots=True)
class Line:
    """A channel to one server, with the calls that it takes."""

    server: str
    channel: grpc.aio.Channel
    kv: Any = field(init=False)
    lease: Any = field(init=False)
    watch: Any = field(init=False)
    auth: Any = field(init=False)

    def __post_init__(self) -> None:
        """Make the stubs."""
        self.kv = rpc.KVStub(self.channel)
        self.lease = rpc.LeaseStub(self.channel)
        self.watch = rpc.WatchStub(self.channel)
        self.auth = rpc.AuthStub(self.channel)


async def _retire(channel: grpc.aio.Channel) -> None:
    """Close a channel when its calls are over, or after some time; at once when cancelled."""
    try:
        await channel.close(CALL_S)
    except asyncio.CancelledError:
        await channel.close()
        raise


class EtcdClient:
    """One of the servers at a time; the next one when that fails."""

    def __init__(self, etcd: EtcdConfig) -> None:
        """Connect to nothing yet."""
        self._etcd = etcd
        self._turn = 0
        self._line: Line | None = None
        self._token: str | None = None
        self._closing: asyncio.Task[None] | None = None

    def line(self) -> Line:
        """Return a line to the server in use."""
        if self._line is None:
            endpoint = self._etcd.endpoints[self._turn % len(self._etcd.endpoints)]
            self._line = Line(endpoint, open_channel(endpoint, self._etcd))
        return self._line

    async def drop(self, line: Line) -> None:
        """Use another server from now on, if that one is still in use."""
        if self._line is line:
            self._line, self._token = None, None
            self._turn += 1
        await line.channel.close()

    async def _authenticate(self, line: Line) -> None:
        request = rpc.AuthenticateRequest(name=self._etcd.username, password=self._etcd.password)
        try:
            self._token = (await line.auth.Authenticate(request, timeout=CALL_S)).token
        except grpc.aio.AioRpcError as err:
            if "authentication is not enabled" not in (err.details() or ""):
                raise
            self._token = ""  # as etcd's own client has it: nobody asks for one

    async def metadata(self, line: Line) -> Metadata:
        """Return what is to be said with each call: who we are, which is asked for once."""
        if self._etcd.username and self._token is None:
            await self._authenticate(line)
        return (("token", self._token),) if self._token else ()

    def explain(self, err: grpc.aio.AioRpcError, line: Line) -> str:
        """Say what went wrong on a line."""
        return explain(err, line.server, self._etcd)

    def forget_token(self, said: str | None) -> bool:
        """Return whether a server said that our token is old; the next metadata() has another."""
        is_old = bool(self._etcd.username) and any(text in (said or "").lower() for text in OLD_TOKEN)
        if is_old:
            self._token = None
        return is_old

    async def ask(self, call: Callable[[Line, Metadata], Awaitable[Result]], *, is_safe: bool) -> Result:
        """Make a call; one that may be made twice (`is_safe`) is tried with every server.

        Raises StoreError that says what the last server had to say. What was not safe may have been done.
        """
        tries = len(self._etcd.endpoints) if is_safe else 1
        has_new_token = False
        why: dict[str, str] = {}
        while tries:
            line = self.line()
            try:
                return await call(line, await self.metadata(line))
            except grpc.aio.AioRpcError as err:
                if not has_new_token and self.forget_token(err.details()):
                    has_new_token = True
                    continue
                why[line.server] = explain(err, line.server, self._etcd)
                if is_refusal(err):
                    raise Refusal(why[line.server]) from None
                await self.drop(line)
                if err.code() not in TRANSIENT:
                    break
            except asyncio.CancelledError:
                if is_ending():
                    raise
                why[line.server] = explain_dropped(line.server)
            tries -= 1
        raise StoreError("; ".join(why[server] for server in self._etcd.endpoints if server in why))

    async def reopen(self, call: Callable[[Line, Metadata], Awaitable[object]]) -> None:
        """Connect anew, and use that if a call succeeds there; StoreError, with all as before, if not."""
        endpoint = self._etcd.endpoints[self._turn % len(self._etcd.endpoints)]
        line = Line(endpoint, open_channel(endpoint, self._etcd))
        token, self._token = self._token, None
        try:
            await call(line, await self.metadata(line))
        except grpc.aio.AioRpcError as err:
            self._token = token
            await line.channel.close()
            raise StoreError(self.explain(err, line)) from None
        old, self._line = self._line, line
        if old is not None:  # calls that are under way come to their end
            self._closing = asyncio.create_task(_retire(old.channel))

    async def close(self) -> None:
        """Let go of the server."""
        if self._closing is not None:
            self._closing.cancel()
            await asyncio.gather(self._closing, return_exceptions=True)
        if self._line is not None:
            await self.drop(self._line)
