# SPDX-License-Identifier: Apache-2.0
"""The run directory and its two sockets, with a real forwarder process behind one of them."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from dataplane import VERSION, control, native
from dataplane.backend.process import wait_listening
from dataplane.control import ForwarderClient, StaleEpoch
from dataplane.errors import ConfigError, ControlError, NotRunning, RuntimeFailure
from dataplane.message import BUILD, BYTES_MAX, BYTES_MIN, Message
from dataplane.model import Encap, MacAddress, Peer, SubnetEntry, Table
from dataplane.native import MessageType, State
from dataplane.rundir import RunDir
from dataplane.slots import BARE_MAX, Fd, slot_of

ROOT = Path(__file__).resolve().parents[2]
MAC = MacAddress(bytes.fromhex("02aabbccddee"))
CONFIG = native.ForwarderConfig(vni=1, vxlan_port=8472, underlay_ifindex=1, tun_mtu=1450)
VTEP = IPv4Address("192.0.2.9")
TABLE = Table((Peer(3, (VTEP,)),), (SubnetEntry(IPv4Network("10.244.9.0/24"), 3, Encap.VXLAN, VTEP, MAC),))
OWNER = """
import pathlib, sys
from dataplane.rundir import RunDir
lock = RunDir(pathlib.Path(sys.argv[1])).lock()
print(flush=True)
input()
"""
FORWARDER = (
    "import sys, pathlib; from dataplane.forwarder import run; sys.exit(run(pathlib.Path(sys.argv[1])))"
)


def start_forwarder(path: Path) -> subprocess.Popen[bytes]:
    """Start a forwarder as `overlayd forwarder` does."""
    return subprocess.Popen([sys.executable, "-c", FORWARDER, path], cwd=ROOT, stderr=subprocess.PIPE)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process whatever it does."""
    process.kill()
    process.communicate(timeout=10)


@pytest.fixture
def forwarder(where: RunDir) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a forwarder that listens."""
    process = start_forwarder(where.path)
    try:
        asyncio.run(wait_listening(where, 0, process)).close()
        yield process
    finally:
        end(process)


@pytest.fixture
def fds() -> Iterator[dict[int, int]]:
    """Yield the descriptors a forwarder needs; a pipe that stays empty stands for the device."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    opened: dict[int, int] = {
        Fd.TUN: read_end,
        Fd.COUNTERS: native.counters_create(),
        Fd.FIB: native.fib_create(TABLE, 5),
    }
    yield opened
    for fd in (*opened.values(), write_end):
        os.close(fd)


def close_all(fds: dict[int, int]) -> None:
    """Close descriptors that were received."""
    for fd in fds.values():
        os.close(fd)


# --- commands to the forwarder ----------------------------------------------------------------------


def test_forwarder_hands_back_what_it_was_given(
    where: RunDir, forwarder: subprocess.Popen[bytes], fds: dict[int, int]
) -> None:
    """A control that takes over gets config, table and duplicates of the very same descriptors."""
    with ForwarderClient(where.forwarder_socket, epoch=1) as client:
        assert client.pid == forwarder.pid
        assert client.hello().state == State.EMPTY
        client.go(CONFIG, fds)
    with ForwarderClient(where.forwarder_socket, epoch=2) as client:
        hello = client.hello()
        assert (hello.state, hello.config, hello.generation) == (State.RUNNING, CONFIG, 5)
        config, taken = client.take()
        try:
            assert config == CONFIG
            assert taken.keys() == fds.keys()
            for role, fd in taken.items():
                assert os.path.samestat(os.fstat(fd), os.fstat(fds[role]))
                assert not os.get_inheritable(fd)
        finally:
            close_all(taken)


def test_forwarder_publishes_parks_and_stops(
    where: RunDir, forwarder: subprocess.Popen[bytes], fds: dict[int, int]
) -> None:
    """PUBLISH, QUIESCE, RESUME and STOP do what they say; after STOP the process is gone, nobody answers."""
    with ForwarderClient(where.forwarder_socket, epoch=1) as client:
        client.hello()
        client.go(CONFIG, fds)
        newer = native.fib_create(TABLE, 6)
        client.publish(newer)
        os.close(newer)
        client.quiesce()
        reply, received = client.inspect()
        close_all(received)
        assert (reply.state, reply.generation) == (State.QUIESCED, 6)
        assert received.keys() == {Fd.COUNTERS, Fd.FIB}
        client.resume()
        client.stop()
        assert not client.is_open
    assert forwarder.wait(timeout=10) == 0
    with pytest.raises(NotRunning):
        ForwarderClient(where.forwarder_socket)


def test_forwarder_refuses_a_bad_go_and_carries_on(
    where: RunDir, forwarder: subprocess.Popen[bytes], fds: dict[int, int]
) -> None:
    """What cannot work is refused in words; the old state stays and the connection lives."""
    with ForwarderClient(where.forwarder_socket, epoch=1) as client:
        client.hello()
        client.go(CONFIG, fds)
        with pytest.raises(ControlError, match="refused GO: configuration or descriptors"):
            client.go(replace(CONFIG, tun_mtu=1), fds)
        with pytest.raises(ControlError, match="refused GO"):
            client.go(CONFIG, {Fd.TUN: fds[Fd.TUN]})
        with pytest.raises(ControlError, match="refused GO"):
            client.go(CONFIG, {**fds, slot_of(Fd.BARE4, BARE_MAX): fds[Fd.TUN]})
        with pytest.raises(ControlError, match="refused PUBLISH"):
            client.publish(fds[Fd.COUNTERS])
        assert client.hello().state == State.RUNNING


def test_forwarder_obeys_nobody_before_hello(where: RunDir, forwarder: subprocess.Popen[bytes]) -> None:
    """Without HELLO there is only INSPECT."""
    assert forwarder.poll() is None
    with ForwarderClient(where.forwarder_socket, epoch=1) as client:
        with pytest.raises(ControlError, match="say HELLO first"):
            client.quiesce()
        assert client.inspect()[0].state == State.EMPTY


def test_forwarder_refuses_a_stale_epoch(where: RunDir, forwarder: subprocess.Popen[bytes]) -> None:
    """A control woken up after a newer one took over cannot command, neither anew nor where it was known."""
    assert forwarder.poll() is None
    with (
        ForwarderClient(where.forwarder_socket, epoch=7) as old,
        ForwarderClient(where.forwarder_socket, epoch=8) as new,
        ForwarderClient(where.forwarder_socket, epoch=7) as late,
    ):
        old.hello()
        new.hello()
        with pytest.raises(StaleEpoch, match="newer"):
            old.quiesce()
        with pytest.raises(StaleEpoch, match="newer"):
            late.hello()
        assert new.hello().epoch == 8


GOOD = Message(MessageType.HELLO, epoch=1).pack()
MALFORMED = {
    "short": (GOOD[: BYTES_MIN - 1], 0),
    "one_byte": (b"x", 0),
    "oversized": (GOOD.ljust(BYTES_MAX + 1, b"x"), 0),
    "huge": (bytes(200_000), 0),
    "magic": (b"\0\0\0\0" + GOOD[4:], 0),
    "descriptor_not_announced": (GOOD, 1),
    "descriptor_with_junk": (b"junk", 1),
    "too_many_descriptors": (GOOD, 20),
    "more_descriptors_than_slots": (GOOD, 170),
    "descriptor_missing": (Message(MessageType.HELLO, fd_mask=1).pack(), 0),
    "descriptor_of_no_role": (Message(MessageType.HELLO, fd_mask=1 << 160).pack(), 1),
}


@pytest.mark.parametrize(("data", "count"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_message_closes_only_its_connection(
    where: RunDir, forwarder: subprocess.Popen[bytes], fds: dict[int, int], data: bytes, count: int
) -> None:
    """Whoever breaks the protocol is hung up on; others, workers and descriptors are left alone."""
    with ForwarderClient(where.forwarder_socket, epoch=1) as client:
        client.hello()
        client.go(CONFIG, fds)
        held = len(list(Path(f"/proc/{forwarder.pid}/fd").iterdir()))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.settimeout(5)
            stranger.connect(os.fspath(where.forwarder_socket))
            socket.send_fds(stranger, [data], [fds[Fd.FIB]] * count)
            try:
                assert stranger.recv(1) == b""
            except ConnectionResetError:
                pass  # hung up with something unread
        assert client.hello().state == State.RUNNING
        assert len(list(Path(f"/proc/{forwarder.pid}/fd").iterdir())) == held


def test_message_of_another_version_is_told_so(where: RunDir, forwarder: subprocess.Popen[bytes]) -> None:
    """A control of another build gets an answer that says why, and is hung up on."""
    assert forwarder.poll() is None
    data = bytearray(GOOD)
    data[4] ^= 0xFF
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(5)
        sock.connect(os.fspath(where.forwarder_socket))
        sock.send(data)
        reply = Message.unpack(sock.recv(4096))
        assert (reply.error, reply.text) == (
            -errno.EPROTO,
            "this forwarder speaks another version of the protocol",
        )
        assert sock.recv(1) == b""


def test_forwarder_has_no_privileges(where: RunDir, forwarder: subprocess.Popen[bytes]) -> None:
    """A forwarder that answers and waits has no capability, no way to get one, and a filter around it."""
    with ForwarderClient(where.forwarder_socket, epoch=1) as client:
        assert client.hello().is_confined
    assert client.is_confined
    status = dict(
        line.split(":\t")
        for line in Path(f"/proc/{forwarder.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_forwarder_replaces_a_dead_ones_socket(where: RunDir, forwarder: subprocess.Popen[bytes]) -> None:
    """After SIGKILL the socket is there and nobody answers; the next forwarder takes its place."""
    forwarder.send_signal(signal.SIGKILL)
    forwarder.wait()
    assert where.forwarder_socket.exists()
    with pytest.raises(NotRunning):
        ForwarderClient(where.forwarder_socket)
    successor = start_forwarder(where.path)
    try:
        asyncio.run(wait_listening(where, 0, successor)).close()
    finally:
        end(successor)


def test_forwarder_that_says_nothing_is_given_up(where: RunDir) -> None:
    """A forwarder that takes a request and never answers costs two seconds, not for ever."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(where.forwarder_socket))
        listener.listen(1)
        with ForwarderClient(where.forwarder_socket, timeout_s=0.05) as client:
            with pytest.raises(ControlError, match="does not answer HELLO"):
                client.hello()
            assert not client.is_open


@pytest.mark.parametrize(
    ("reply", "what"),
    [
        (Message(MessageType.GO, seq=1), "answered GO to HELLO"),
        (Message(MessageType.HELLO, seq=9), "answered HELLO to HELLO"),
        (Message(MessageType.HELLO, seq=1, fd_mask=1), "other descriptors"),
    ],
    ids=["type", "seq", "descriptors"],
)
def test_nonsense_from_a_forwarder_is_refused(where: RunDir, reply: Message, what: str) -> None:
    """An answer to something else ends the connection with an error that says so."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(where.forwarder_socket))
        listener.listen(1)
        with ForwarderClient(where.forwarder_socket) as client:
            accepted, _ = listener.accept()
            with accepted:
                accepted.send(reply.pack())
                with pytest.raises(ControlError, match=what):
                    client.hello()
            assert not client.is_open


# --- status when control is dead --------------------------------------------------------------------


def test_status_comes_from_the_forwarder_when_control_is_dead(
    where: RunDir, forwarder: subprocess.Popen[bytes], fds: dict[int, int]
) -> None:
    """The dataplane's figures are shown without control, with the facts that it left behind."""
    where.write_facts({"node": "n1", "encap": "vxlan", "subnet": "10.244.1.0/24", "tun": "none0"})
    with ForwarderClient(where.forwarder_socket, epoch=1) as client:
        client.hello()
        client.go(CONFIG, fds)
    status = json.loads(json.dumps(control.inspect_status(where.path)))
    assert (status["ready"], status["node"], status["subnet"]) == (False, "n1", "10.244.1.0/24")
    assert (status["vni"], status["port"], status["mtu"], status["tier"]) == (1, 8472, 1450, "plain")
    assert status["forwarder"]["pid"] == forwarder.pid
    assert (status["forwarder"]["alive"], status["forwarder"]["state"]) == (True, "running")
    assert status["tx"] == {"offered": 0, "forwarded": 0, "bytes": 0, "drops": {}, "last": {}}
    (peer,) = status["peers"]
    assert (peer["id"], peer["subnet"], peer["public_ip"]) == (3, "10.244.9.0/24", "192.0.2.9")
    assert (peer["vtep_mac"], peer["encap"], peer["tx_packets"]) == (str(MAC), "vxlan", 0)


def test_status_of_an_empty_forwarder(where: RunDir, forwarder: subprocess.Popen[bytes]) -> None:
    """A forwarder that was never given anything is shown as that."""
    status = control.inspect_status(where.path)
    assert status["forwarder"] == {
        "pid": forwarder.pid,
        "alive": True,
        "uptime_s": None,
        "restarts": 0,
        "state": "empty",
        "faults": 0,
        "spare": None,
        "version": VERSION,
        "build": f"{BUILD:016x}",
        "hand_over": None,
    }


def test_status_without_anybody(where: RunDir) -> None:
    """With neither process there is nothing to show."""
    with pytest.raises(NotRunning):
        control.inspect_status(where.path)
    with pytest.raises(NotRunning):
        control.ask(where.path, {"cmd": "status"})


# --- questions to control ---------------------------------------------------------------------------


async def _answer(request: control.Request) -> control.Reply:
    if request.get("cmd") == "fail":
        raise RuntimeFailure("it broke")
    if request.get("cmd") == "fail below":
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return {"you_said": request}


async def _exchange(path: Path, data: bytes) -> object:
    """Serve, send `data`, and return what comes back."""
    server = await control.serve_requests(path, _answer)
    async with server:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(data)
        writer.write_eof()
        reply = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        return json.loads(reply)


def test_request_is_answered(where: RunDir) -> None:
    """ask() gets the answer; a failure on the other side arrives as an error here."""

    async def talk() -> tuple[control.Reply, int, list[str]]:
        failures = []
        server = await control.serve_requests(where.control_socket, _answer)
        async with server:
            mode = stat.S_IMODE(where.control_socket.stat().st_mode)
            good = await asyncio.to_thread(control.ask, where.path, {"cmd": "status"})
            for cmd in ("fail", "fail below"):
                with pytest.raises(ControlError) as caught:
                    await asyncio.to_thread(control.ask, where.path, {"cmd": cmd})
                failures.append(str(caught.value))
        return good, mode, failures

    good, mode, failures = asyncio.run(talk())
    assert good == {"you_said": {"cmd": "status"}}
    assert mode == 0o600
    assert failures == ["it broke", "overlayd run cannot answer: Too many open files"]


@pytest.mark.parametrize(
    "data",
    [b"\n", b"junk\n", b"[]\n", b"x" * 5000 + b"\n", b'{"cmd": ' + b"[" * 4000, b"\xff\xfe\n", b""],
    ids=["empty", "junk", "no_object", "too_long", "nested", "not_utf8", "nothing"],
)
def test_malformed_request_is_refused(where: RunDir, data: bytes) -> None:
    """Whatever is not one line of JSON gets one line that says what is."""
    assert asyncio.run(_exchange(where.control_socket, data)) == {
        "error": "a request is one line of JSON, at most 4096 bytes"
    }


# --- the run directory ------------------------------------------------------------------------------


def test_lock_excludes_and_names_its_owner(where: RunDir) -> None:
    """There is one owner; the next one is told its pid, and gets the lock when it is gone."""
    with where.lock(), pytest.raises(RuntimeFailure) as caught:
        where.lock()
    assert str(caught.value) == f"another overlayd run (pid {os.getpid()}) owns {where.path}"
    where.lock().close()


def test_lock_dies_with_its_owner(where: RunDir) -> None:
    """SIGKILL releases the lock."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, where.path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert owner.stdout is not None
        owner.stdout.readline()
        with pytest.raises(RuntimeFailure, match=f"pid {owner.pid}"):
            where.lock()
    finally:
        end(owner)
    where.lock().close()


def test_epoch_grows(where: RunDir) -> None:
    """Every control is newer than all before it."""
    assert [where.next_epoch() for _ in range(3)] == [1, 2, 3]
    (where.path / "epoch").write_text("garbage")
    with pytest.raises(RuntimeFailure, match="epoch"):
        where.next_epoch()


def test_facts_survive_and_bad_ones_are_ignored(where: RunDir) -> None:
    """What was left behind is read back; a damaged file is as good as none."""
    assert where.read_facts() == {}
    where.write_facts({"tun": "overlay0"})
    assert where.read_facts() == {"tun": "overlay0"}
    for text in ("{", "[]", ""):
        (where.path / "run.json").write_text(text)
        assert where.read_facts() == {}


def test_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """A file in the way is one line of error."""
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeFailure, match=r"cannot make run directory .*: Not a directory"):
        RunDir(tmp_path / "file" / "run").prepare()


def test_run_directory_with_a_long_name_is_refused() -> None:
    """A path that no socket could lie in is a mistake of the user, told before anything is done."""
    RunDir(Path("/" + "x" * 86))
    with pytest.raises(ConfigError, match="at most 87 bytes"):
        RunDir(Path("/" + "x" * 87))


def test_remove_leaves_foreign_files_alone(where: RunDir) -> None:
    """Only our files go; the directory goes with them if nothing else is in it. Twice is fine."""
    where.next_epoch()
    where.write_facts({})
    (where.path / "mine").touch()
    where.remove()
    assert [path.name for path in where.path.iterdir()] == ["mine"]
    (where.path / "mine").unlink()
    where.remove()
    where.remove()
    assert not where.path.exists()


def test_peer_pid_is_that_of_the_listener() -> None:
    """SO_PEERCRED tells who listens."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        assert control.peer_pid(left) == os.getpid()
