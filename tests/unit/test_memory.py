# SPDX-License-Identifier: Apache-2.0
"""Control has one heap: its process begins anew with that, once, and is the same process to everybody."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dataplane import anew, memory

TELL = (
    "import os, sys\n"
    "from dataplane import memory\n"
    "print(os.getpid(), sys.argv[1:], os.environ.get(memory.TUNABLES), flush=True)\n"
    "if 'secure' in sys.argv:\n"
    "    os.environ.pop(memory.TUNABLES, None)\n"
    "memory.share_heap()\n"
    "print('on', memory.BEGUN in os.environ, flush=True)\n"
)


def run(word: str = "a b", **environ: str) -> list[str]:
    """Return the lines of a process that has its heap shared, and its pid as `pid`."""
    command = [sys.executable, "-c", TELL, word]
    given = {key: value for key, value in os.environ.items() if key != memory.TUNABLES} | environ
    with subprocess.Popen(command, env=given, stdout=subprocess.PIPE, text=True) as process:
        said, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        return said.replace(f"{process.pid} ", "pid ").splitlines()


def test_a_process_begins_anew_with_one_heap() -> None:
    """It does so once, under its pid, with its arguments, and goes on."""
    assert run() == ["pid ['a b'] None", f"pid ['a b'] {memory.ONE_HEAP}", "on False"]


def test_who_has_told_glibc_about_its_heap_is_left_alone() -> None:
    """What an operator told glibc about memory stays, and nothing begins anew."""
    told = {memory.TUNABLES: "glibc.malloc.arena_max=2"}
    assert run(**told) == ["pid ['a b'] glibc.malloc.arena_max=2", "on False"]


def test_what_else_glibc_was_told_stays() -> None:
    """What an operator told glibc about other things is joined by what we tell it."""
    told = {memory.TUNABLES: "glibc.pthread.rseq=0"}
    both = f"glibc.pthread.rseq=0:{memory.ONE_HEAP}"
    assert run(**told) == ["pid ['a b'] glibc.pthread.rseq=0", f"pid ['a b'] {both}", "on False"]


def test_it_begins_anew_but_once() -> None:
    """Where glibc keeps what it is told from a process that has more rights than its user, it goes on."""
    assert run("secure") == ["pid ['secure'] None", f"pid ['secure'] {memory.ONE_HEAP}", "on False"]


def test_what_cannot_begin_anew_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the program that it was started from a process says why, and is what it was."""
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert anew.begin({}).strerror == "No such file or directory"
