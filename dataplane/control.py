# SPDX-License-Identifier: Apache-2.0
"""The two sockets of the run directory: commands to the forwarder, and the status of it all.

forwarder.sock   SOCK_SEQPACKET, struct dp_msg, descriptors by SCM_RIGHTS: ForwarderClient (spare.sock too)
control.sock     stream, one line of JSON each way: serve_requests() and ask()

`overlayd status` runs through here, so asyncio is imported by those who serve, not by those who ask.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dataplane import VERSION, figures, native
from dataplane.errors import ControlError, NotRunning, RuntimeFailure
from dataplane.grip import Grip
from dataplane.message import BUILD, BYTES_MAX, OLDEST, Message
from dataplane.native import Counters, ForwarderConfig, MessageType, State, read_fib
from dataplane.rundir import RunDir, listen
from dataplane.slots import SLOTS, Fd, Fds

if TYPE_CHECKING:
    import asyncio

Request = dict[str, object]
Reply = dict[str, object]

REQUEST_MAX = 4096  # bytes of one line
REQUEST_TIMEOUT_S = 2.0
REPLY_MAX = 64 << 20  # bytes; 131072 peers are about 40 MiB
FORWARDER_TIMEOUT_S = 2.0
FD_BYTES = struct.calcsize("i")


class StaleEpoch(ControlError):
    """The forwarder obeys a newer control."""


class Silent(ControlError):
    """The forwarder does not answer in time: it hangs, or was stopped."""


class HungUp(ControlError):
    """The forwarder closed the connection instead of answering."""


def peer_pid(sock: socket.socket) -> int:
    """Return the pid of who listens at the other end, as seen from here; 0 if it cannot be seen."""
    creds = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", creds)[0])


# --- commands to the forwarder ----------------------------------------------------------------------


class ForwarderClient:
    """A connection to the forwarder. Calls block, for a short time at most.

    When a call fails half-way the connection is closed: what comes next would be the answer to something
    else. A closed connection harms no packet.
    """

    def __init__(self, path: Path, epoch: int = 0, timeout_s: float = FORWARDER_TIMEOUT_S) -> None:
        """Connect, or raise NotRunning if nobody listens."""
        self._path = path
        self._epoch = epoch
        self.timeout_s = timeout_s
        self._seq = 0
        self._abi = native.ABI
        self.said = Message(MessageType.INSPECT)  # its latest answer
        self._connect()

    def _connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(self.timeout_s)
        try:
            self.sock.connect(os.fspath(self._path))
        except (FileNotFoundError, ConnectionRefusedError):
            self.close()
            raise NotRunning(f"no forwarder listens on {self._path}") from None
        except OSError as err:
            self.close()
            raise ControlError(f"cannot connect to {self._path}: {err.strerror}") from None
        self.pid = peer_pid(self.sock)

    def __enter__(self) -> ForwarderClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. May be called again."""
        self.sock.close()

    @property
    def is_confined(self) -> bool:
        """Whether it is under its filter of system calls."""
        return self.said.is_confined

    @property
    def is_of_our_build(self) -> bool:
        """Whether what runs there is what we would start."""
        return (self.said.version, self.said.build) == (VERSION, BUILD)

    @property
    def is_open(self) -> bool:
        """Whether requests may still be made."""
        return self.sock.fileno() >= 0

    def request(
        self,
        kind: MessageType,
        config: ForwarderConfig | None = None,
        fds: Mapping[int, int] | None = None,
        turn: int = 0,
    ) -> tuple[Message, Fds]:
        """Send one message and wait for its answer; descriptors received are the caller's."""
        try:
            self.begin(kind, config, fds, turn)
            return self.finish(kind)
        except HungUp:
            if self._seq > 1:  # it has understood us before
                raise
        self._speak_older()
        self.begin(kind, config, fds, turn)
        return self.finish(kind)

    def begin(
        self,
        kind: MessageType,
        config: ForwarderConfig | None = None,
        fds: Mapping[int, int] | None = None,
        turn: int = 0,
    ) -> None:
        """Send one message; finish() waits for its answer."""
        ordered = sorted((fds or {}).items())
        self._seq += 1
        mask = sum(1 << slot for slot, _ in ordered)
        message = Message(kind, epoch=self._epoch, seq=self._seq, fd_mask=mask, config=config, turn=turn)
        with self._closing_on_failure(kind):
            socket.send_fds(self.sock, [message.pack(self._abi)], [fd for _, fd in ordered])

    @contextmanager
    def _closing_on_failure(self, kind: MessageType) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            self.close()
            raise Silent(f"forwarder (pid {self.pid}) does not answer {kind.name}") from None
        except OSError as err:
            self.close()
            raise ControlError(f"forwarder (pid {self.pid}) hung up on {kind.name}: {err}") from None
        except ControlError:
            self.close()
            raise

    def finish(self, kind: MessageType) -> tuple[Message, Fds]:
        """Wait for the answer to what begin() sent; descriptors received are the caller's."""
        with self._closing_on_failure(kind):
            reply, received = self._receive()
            self.said = reply
        if (reply.type, reply.seq) != (kind, self._seq) or reply.error:
            for fd in received.values():
                os.close(fd)
        if (reply.type, reply.seq) != (kind, self._seq):
            self.close()
            raise ControlError(f"forwarder answered {reply.type.name} to {kind.name}")
        if reply.error:
            self._raise_refusal(kind, reply)
        return reply, received

    def _speak_older(self) -> None:
        """Begin anew in the words of version 5, which hangs up on any other."""
        self._abi = OLDEST
        self._connect()

    def _receive(self) -> tuple[Message, Fds]:
        # Not socket.recv_fds(): it ignores its flags (CPython 3.11), and children would inherit these.
        space = socket.CMSG_SPACE(len(SLOTS) * FD_BYTES)
        data, ancillary, flags, _ = self.sock.recvmsg(BYTES_MAX + 1, space, socket.MSG_CMSG_CLOEXEC)
        fds = [
            fd
            for level, kind, payload in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            for (fd,) in struct.iter_unpack("i", payload[: len(payload) // FD_BYTES * FD_BYTES])
        ]
        try:
            if not data:
                raise HungUp(f"forwarder (pid {self.pid}) closed the connection")
            reply = Message.unpack(data)
            slots = [slot for slot in SLOTS if reply.fd_mask & (1 << slot)]
            if flags & socket.MSG_CTRUNC or len(slots) != len(fds):
                raise ControlError("forwarder announced other descriptors than it sent")
        except ControlError:
            for fd in fds:
                os.close(fd)
            raise
        return reply, dict(zip(slots, fds, strict=True))

    def _raise_refusal(self, kind: MessageType, reply: Message) -> None:
        why = reply.text or os.strerror(-reply.error)
        if reply.error == -errno.ESTALE:
            raise StaleEpoch(f"forwarder (pid {self.pid}) obeys a newer overlayd run: {why}")
        raise ControlError(f"forwarder (pid {self.pid}) refused {kind.name}: {why}")

    def hello(self) -> Message:
        """Become the forwarder's control; learn its state, config and generation."""
        return self.request(MessageType.HELLO)[0]

    def take(self) -> tuple[ForwarderConfig, Fds]:
        """Get what the forwarder works with."""
        reply, fds = self.request(MessageType.TAKE)
        assert reply.config is not None  # a message that was received has one
        return reply.config, fds

    def go(self, config: ForwarderConfig, fds: Mapping[int, int], turn: int = 0) -> None:
        """(Re)start the workers with these; if a turn is told, only if nobody took it meanwhile."""
        self.request(MessageType.GO, config, fds, turn)

    def publish(self, fib_fd: int) -> None:
        """Put a table in force."""
        self.request(MessageType.PUBLISH, fds={Fd.FIB: fib_fd})

    def quiesce(self) -> None:
        """Park the workers; answered when no packet is in flight."""
        self.request(MessageType.QUIESCE)

    def resume(self, turn: int = 0) -> None:
        """Let parked workers go on; if a turn is told, only if nobody took it meanwhile."""
        self.request(MessageType.RESUME, turn=turn)

    def inspect(self) -> tuple[Message, Fds]:
        """Look at state, config, counters and table without becoming its control."""
        return self.request(MessageType.INSPECT)

    def stop(self) -> None:
        """End the forwarder; returns when it has hung up, a moment before it is gone."""
        self.request(MessageType.STOP)
        try:
            while self.sock.recv(1):
                pass
        except OSError:
            pass  # it hung up, or takes its time
        self.close()


def inspect(path: Path) -> Message | None:
    """Return what a forwarder says of itself, None if there is none; what it holds is let go of."""
    try:
        with ForwarderClient(path) as client:
            reply, fds = client.inspect()
    except NotRunning:
        return None
    for fd in fds.values():
        os.close(fd)
    return reply


def newest_epoch(run_dir: RunDir) -> int:
    """Return the newest epoch that a forwarder met, 0 if there is none.

    For a new control, which owns the run directory: files may be lost, a living forwarder does not forget.
    """
    newest = 0
    for path in (run_dir.forwarder_socket, run_dir.spare_socket):
        with suppress(Silent):  # then the file has to do
            reply = inspect(path)
            newest = max(newest, 0 if reply is None else reply.epoch)
    return newest


def connect_in_use(run_dir: RunDir) -> ForwarderClient:
    """Connect to the forwarder that carries packets; NotRunning if there is none.

    That is the spare, if control has died while it took the spare into use.
    """
    try:
        return ForwarderClient(run_dir.forwarder_socket)
    except NotRunning as err:
        reply = inspect(run_dir.spare_socket)
        if reply is None or reply.state == State.EMPTY:
            raise err from None
    return ForwarderClient(run_dir.spare_socket)


def stop_forwarders(run_dir: RunDir, epoch: int) -> bool:
    """End the forwarder in use and the spare; return whether there was any."""
    has_ended = False
    for path in (run_dir.forwarder_socket, run_dir.spare_socket):
        with suppress(NotRunning), ForwarderClient(path, epoch) as client:
            has_ended = True
            grip = Grip(client.pid, client.sock)
            try:
                client.hello()
                client.stop()
            except Silent:
                if not grip.end():
                    raise
            finally:
                grip.close()
    return has_ended


# --- status of a running control --------------------------------------------------------------------


def ask(run_dir: Path, request: Request, timeout_s: float = REQUEST_TIMEOUT_S) -> Reply:
    """Put one request to `overlayd run` and return its answer."""
    path = RunDir(run_dir).control_socket
    chunks = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(os.fspath(path))
            sock.sendall(json.dumps(request).encode() + b"\n")
            while chunk := sock.recv(1 << 16):
                chunks.append(chunk)
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunning(f"no overlayd run answers in {run_dir}") from None
        except TimeoutError:
            raise ControlError(f"overlayd run in {run_dir} does not answer within {timeout_s:g} s") from None
        except OSError as err:
            raise ControlError(f"cannot ask overlayd run through {path}: {err.strerror}") from None
    try:
        reply = json.loads(b"".join(chunks))
    except ValueError:
        raise ControlError(f"overlayd run in {run_dir} hung up") from None
    if not isinstance(reply, dict):
        raise ControlError(f"overlayd run in {run_dir} answered nonsense")
    if "error" in reply and len(reply) == 1:
        raise ControlError(str(reply["error"]))
    return reply


async def serve_requests(path: Path, answer: Callable[[Request], Awaitable[Reply]]) -> asyncio.AbstractServer:
    """Answer the requests of ask(): one line each, at most REQUEST_MAX bytes, then hang up."""
    import asyncio

    async def read_request(reader: asyncio.StreamReader) -> Request:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            request = json.loads(await reader.readline())
        if not isinstance(request, dict):
            raise ValueError("a request is a JSON object")
        return request

    async def reply_to(request: Request) -> Reply:
        try:
            return await answer(request)
        except RuntimeFailure as err:
            return {"error": str(err)}
        except OSError as err:
            return {"error": f"overlayd run cannot answer: {err.strerror or err}"}

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            try:
                request = await read_request(reader)
            except (ValueError, RecursionError, TimeoutError):
                reply: Reply = {"error": f"a request is one line of JSON, at most {REQUEST_MAX} bytes"}
            else:
                reply = await reply_to(request)
            writer.write(json.dumps(reply).encode() + b"\n")
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await writer.drain()
        except (OSError, TimeoutError):
            pass  # who asked went away
        except asyncio.CancelledError:
            pass  # we end; if it were passed on, asyncio would log a traceback (CPython 3.11)
        finally:
            writer.close()

    return await asyncio.start_unix_server(handle, sock=listen(path, socket.SOCK_STREAM), limit=REQUEST_MAX)


# --- status when control is dead --------------------------------------------------------------------


def inspect_status(run_dir: Path) -> Reply:
    """Build the status from the forwarder's own memory; NotRunning if there is no forwarder either."""
    where = RunDir(run_dir)
    with connect_in_use(where) as client:
        reply, fds = client.inspect()
        pid = client.pid or reply.pid
    node = figures.Node(
        ready=False,
        reason="overlayd run is not running; the forwarder carries on without it",
        facts=where.read_facts(),
        control={"pid": None, "uptime_s": None, "pass_s": None, "version": None, "build": None},
    )
    dataplane = figures.Dataplane(
        pid=pid,
        is_alive=True,
        state=reply.state.name.lower(),
        version=reply.version,
        build=reply.build,
    )
    try:
        if Fd.COUNTERS not in fds or Fd.FIB not in fds:
            return figures.describe(replace(node, reason="overlayd run is not running"), dataplane)
        _, table = read_fib(fds[Fd.FIB])
        with Counters(fds[Fd.COUNTERS]) as counters:
            return figures.describe(
                replace(node, rows=figures.list_peers(table)),
                replace(dataplane, config=reply.config, counters=counters),
            )
    finally:
        for fd in fds.values():
            os.close(fd)
