# SPDX-License-Identifier: Apache-2.0
"""Which directory is taken for a run directory."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from dataplane.errors import RuntimeFailure
from dataplane.rundir import Lock, LockHeld, RunDir


def test_run_directory_is_private(tmp_path: Path) -> None:
    """One that others could have used is refused with the fix; an empty one of ours is closed."""
    where = RunDir(tmp_path / "a" / "run")
    where.prepare()
    assert stat.S_IMODE(where.path.stat().st_mode) == 0o700
    where.path.chmod(0o755)  # as a kubelet makes it
    where.check()
    assert stat.S_IMODE(where.path.stat().st_mode) == 0o755
    where.prepare()
    assert stat.S_IMODE(where.path.stat().st_mode) == 0o700
    for mode, name in ((0o777, None), (0o755, "lock")):
        where.path.chmod(mode)
        if name is not None:
            (where.path / name).touch()
        for refuses in (where.check, where.prepare):
            with pytest.raises(RuntimeFailure, match=r"Fix: chown 0 .* chmod 700"):
                refuses()


def test_lock_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose lock it is cannot be written down then: who asks is not told, and does not get it."""

    def is_full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(Path, "write_text", is_full)
    with Lock(tmp_path / "lock", "overlayd forwarder"), pytest.raises(LockHeld, match="pid unknown"):
        Lock(tmp_path / "lock", "overlayd forwarder")


def test_run_directory_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that belongs to another user is refused and stays as it is; ours is taken."""
    path = tmp_path / "run"
    path.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
        for mode in (0o755, 0o700):
            path.chmod(mode)
            with pytest.raises(RuntimeFailure, match="is open to others"):
                RunDir(path).prepare()
            assert path.stat().st_mode & 0o777 == mode
    RunDir(path).prepare()
