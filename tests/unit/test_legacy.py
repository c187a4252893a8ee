# SPDX-License-Identifier: Apache-2.0
"""What a control leaves with a service manager, what the next one takes from it, and what it refuses."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dataplane import native, notify
from dataplane.backend import legacy
from dataplane.backend.kit import Kit
from dataplane.backend.legacy import Legacy
from dataplane.errors import RuntimeFailure
from dataplane.notify import Notifier, take_kept
from dataplane.slots import Fd, slot_of
from tests.unit.test_control import CONFIG

TAKE = """
import os, sys
from dataplane.notify import take_kept
os.dup2(0, 3)
os.dup2(0, 4)
words = dict(zip(("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"), sys.argv[1:]))
words["LISTEN_PID"] = words["LISTEN_PID"].format(os.getpid())
kept = take_kept(words)
print(kept, [os.get_inheritable(fd) for fd in kept.values()], words, os.path.exists("/proc/self/fd/4"))
"""


class Manager:
    """Hears what is to be kept."""

    def __init__(self, path: Path) -> None:
        """Listen."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(os.fspath(path))
        self._sock.setblocking(False)
        self.notifier = Notifier({"NOTIFY_SOCKET": os.fspath(path)})
        self.kept: dict[str, int] = {}

    def hear(self) -> list[str]:
        """Do what was said, and return it in short: `+name`, `-name`."""
        said: list[str] = []
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, 4096, 4)
            except BlockingIOError:
                return said
            words = dict(line.split("=", 1) for line in data.decode().split("\n"))
            name = words["FDNAME"]
            if words.get("FDSTORE") == "1":
                assert words["FDPOLL"] == "0"
                said.append(f"+{name}")
                self.kept[name] = fds[0]
            else:
                said.append(f"-{name}")
                if name in self.kept:
                    os.close(self.kept.pop(name))

    def close(self) -> None:
        """Let go of it."""
        self._sock.close()
        for fd in self.kept.values():
            os.close(fd)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """Yield a service manager that listens."""
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


@pytest.fixture
def kit() -> Iterator[Kit]:
    """Yield a kit of which a forwarder has been given all; files stand for devices and sockets."""
    fds = {int(role): os.memfd_create(role.name) for role in (Fd.TUN, Fd.COUNTERS, Fd.FIB)}
    made = Kit(fds=fds, config=CONFIG, config_in_force=CONFIG, generation=3)
    yield made
    for fd in made.fds.values():
        os.close(fd)


def test_what_is_left_is_read_again(manager: Manager, kit: Kit) -> None:
    """The next control gets config and descriptors as they were; what is left already is not left again."""
    left = Legacy(manager.notifier)
    left.leave(kit)
    assert [word for word in manager.hear() if word[0] == "+"] == [
        *("+overlayd-0", "+overlayd-1", "+overlayd-2", "+overlayd-config")
    ]
    left.leave(kit)
    assert manager.hear() == []
    config, fds = legacy.read(manager.kept)
    assert config == CONFIG
    for slot, fd in kit.fds.items():
        assert os.path.samestat(os.fstat(fd), os.fstat(fds[slot]))


def test_what_is_new_is_left_anew(manager: Manager, kit: Kit) -> None:
    """Another table, other counters, another config take the place of those before, by the same names."""
    left = Legacy(manager.notifier)
    left.leave(kit)
    manager.hear()
    kit.generation += 1
    left.leave(kit)
    assert manager.hear() == ["-overlayd-2", "+overlayd-2"]
    old, kit.fds[Fd.COUNTERS] = kit.fds[Fd.COUNTERS], os.memfd_create("others")
    os.close(old)
    kit.config_in_force = replace(CONFIG, vni=7)
    kit.fds[slot_of(Fd.TUN, 1)] = os.memfd_create("queue")
    left.leave(kit)
    assert sorted(manager.hear()) == [
        *("+overlayd-1", "+overlayd-10", "+overlayd-config"),
        *("-overlayd-1", "-overlayd-10", "-overlayd-config"),
    ]
    assert legacy.read(manager.kept)[0].vni == 7


def test_what_is_let_go_of_is_dropped(manager: Manager, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor that we close is dropped first, and only if it was left; and once is enough."""
    monkeypatch.setattr(notify, "SETTLE_S", 0.01)
    monkeypatch.setattr(Notifier, "settle", lambda _: None)
    left = Legacy(manager.notifier)
    left.drop([Fd.TUN])
    assert manager.hear() == []
    left.leave(kit)
    manager.hear()
    left.drop([Fd.TUN, Fd.UDP4])
    left.drop([Fd.TUN])
    assert manager.hear() == ["-overlayd-0"]
    left.drop_all()
    assert sorted(manager.hear()) == ["-overlayd-1", "-overlayd-2"]
    left.leave(kit)
    assert "+overlayd-0" in manager.hear()


def test_what_could_not_be_dropped_is_dropped_later(
    manager: Manager, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody keeps and nobody reads swallows packets: its end is asked for until it is heard."""
    monkeypatch.setattr(Notifier, "settle", lambda _: None)
    left = Legacy(manager.notifier)
    left.leave(kit)
    manager.hear()
    with monkeypatch.context() as patch:
        patch.setattr(Notifier, "drop", lambda *_: False)
        left.drop([Fd.TUN])
        left.leave(replace(kit, fds={}))
        assert manager.hear() == []
    left.leave(replace(kit, fds={}))
    assert manager.hear() == ["-overlayd-0"]
    left.leave(replace(kit, fds={}))
    assert manager.hear() == []


def test_manager_that_does_not_read_is_asked_again(
    manager: Manager, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be left in time is left the next time, so that in the end all is."""
    monkeypatch.setattr(notify, "SETTLE_S", 0.01)
    kit.fds |= {slot_of(Fd.UDP4, index): os.memfd_create("socket") for index in range(12)}
    left = Legacy(manager.notifier)
    for _ in range(40):
        left.leave(kit)
        manager.hear()
    assert set(legacy.read(manager.kept)[1]) == set(kit.fds)


def test_manager_that_does_not_read_the_config_is_asked_again(
    manager: Manager, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Descriptors without what they are for are of no use: that is left the next time, too."""
    keep = Notifier.keep
    refused: list[str] = []

    def refuse(self: Notifier, name: str, fd: int) -> bool:
        if name == legacy.CONFIG and not refused:
            refused.append(name)
            return False
        return keep(self, name, fd)

    monkeypatch.setattr(Notifier, "keep", refuse)
    left = Legacy(manager.notifier)
    for _ in range(2):
        left.leave(kit)
        manager.hear()
    assert refused
    assert legacy.read(manager.kept)[0] == CONFIG


def test_nobody_listens(kit: Kit) -> None:
    """Without a service manager nothing is said, and nothing waited for."""
    left = Legacy(Notifier({}))
    left.leave(kit)
    left.drop_all()


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("overlayd-config", None, "says what for"),
        ("overlayd-0", None, "a part is missing"),
        ("overlayd-config", b"overlayd 0\n" + bytes(200), "another version"),
        ("overlayd-config", b"overlayd 0\n" + bytes(native.CONFIG_BYTES), "another version"),
        ("overlayd-config", b"", "another version"),
        ("overlayd-config", legacy.HEAD, "another version"),
    ],
    ids=["no_config", "no_device", "version", "version_alone", "empty", "short"],
)
def test_what_makes_no_sense_is_refused(
    manager: Manager, kit: Kit, name: str, text: bytes | None, why: str
) -> None:
    """A control that finds a part of what is needed, or what another version left, does without."""
    Legacy(manager.notifier).leave(kit)
    manager.hear()
    os.close(manager.kept.pop(name))
    if text is not None:
        manager.kept[name] = os.memfd_create("config")
        os.write(manager.kept[name], text)
    with pytest.raises(RuntimeFailure, match=why):
        legacy.read(manager.kept)


@pytest.mark.parametrize(
    ("pid", "count", "names", "kept"),
    [
        ("{}", "1", "a", "{'a': 3} [False] {} True"),
        ("{}", "2", "a:b", "{'a': 3, 'b': 4} [False, False] {} True"),
        ("{}", "2", "a:a", "{'a': 3} [False] {} False"),
        ("{}", "2", "a", "{'a': 3} [False] {} False"),
        ("{}", "9", "a:b:c:d:e:f:g:h:i", "{'a': 3, 'b': 4} [False, False] {} True"),
        ("{}", "1", "a:b", "{'a': 3} [False] {} True"),
        ("1", "2", "a:b", "{} [] {} True"),
        ("{}", "x", "a", "{} [] {} True"),
        ("{}", "99999", "a", "{} [] {} True"),
    ],
    ids=["one", "two", "twice", "nameless", "too_few", "too_many_names", "not_ours", "no_number", "too_many"],
)
def test_what_is_handed_down(pid: str, count: str, names: str, kept: str) -> None:
    """Descriptors are taken by name if they are for us; children get neither those nor the variables."""
    words = [sys.executable, "-c", TAKE, pid, count, names]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    assert done.stdout.strip() == kept, done.stderr


def test_nothing_is_handed_down() -> None:
    """A start by hand has nothing to take."""
    assert take_kept({}) == {}


def test_nothing_is_left_before_a_forwarder_works(manager: Manager, kit: Kit) -> None:
    """What no forwarder was told yet is left by nobody; it is as soon as one works with it."""
    kit.config_in_force = None
    left = Legacy(manager.notifier)
    left.leave(kit)
    assert manager.hear() == []
    kit.config_in_force = CONFIG
    left.leave(kit)
    manager.hear()
    assert legacy.read(manager.kept)[0] == CONFIG


@pytest.mark.parametrize("missing", [Fd.TUN, Fd.COUNTERS, Fd.FIB, None])
def test_kit_is_whole(kit: Kit, missing: int | None) -> None:
    """A forwarder can work with a config and the three descriptors, and with nothing less."""
    assert kit.is_whole
    part = Kit(fds={slot: fd for slot, fd in kit.fds.items() if slot != missing}, config=CONFIG)
    assert part.is_whole == (missing is None)
    assert not replace(part, config=None).is_whole
