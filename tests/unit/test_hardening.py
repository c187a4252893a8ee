# SPDX-License-Identifier: Apache-2.0
"""The native module as it was built has what the compiler and the linker can do against being taken over."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest

from csrc.build_native import HARDENING, LINK_ARGS
from dataplane import _native


def read(*options: str) -> str:
    """Return what readelf says of the module."""
    command = ["readelf", "--wide", *options, str(Path(_native.__file__))]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def segment(name: str) -> str:
    """Return the line of a program header."""
    found = re.search(rf"^ +{name} .*$", read("--segments"), flags=re.MULTILINE)
    assert found is not None
    return found[0]


def test_addresses_of_functions_are_read_only() -> None:
    """All symbols are bound when the module is loaded, and what they lead to cannot be written after that."""
    assert re.search(r"\(FLAGS_1\) +Flags:.*\bNOW\b", read("--dynamic"))
    assert segment("GNU_RELRO")
    assert "TEXTREL" not in read("--dynamic")


def test_no_memory_is_writable_and_executable() -> None:
    """Neither the stack nor any segment may be written and executed."""
    assert re.search(r" RW +0x\w+$", segment("GNU_STACK"))
    loads = re.findall(r"^ +LOAD(?: +0x\w+){5} ([RWE ]{3}) ", read("--segments"), flags=re.MULTILINE)
    assert "R E" in loads
    assert not {"RWE", " WE"} & set(loads)


@pytest.mark.parametrize("name", ["__stack_chk_fail", "__memcpy_chk", "__memset_chk"])
def test_overflows_are_found(name: str) -> None:
    """The checks of stack and buffers are in the code, not only in the flags."""
    assert re.search(rf"FUNC +GLOBAL +DEFAULT +UND {name}\b", read("--dyn-syms"))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="marks of x86")
def test_returns_and_jumps_are_marked() -> None:
    """The module may run with a shadow stack, and its functions begin with the mark of a jump's end."""
    assert re.search(r"x86 feature:.*\bSHSTK\b", read("--notes"))
    entry = re.search(r"\w+: (\w+) +\d+ FUNC +GLOBAL +DEFAULT +\d+ PyInit__native\b", read("--dyn-syms"))
    assert entry is not None
    assert Path(_native.__file__).read_bytes()[int(entry[1], 16) :][:4] == bytes.fromhex("f30f1efa")


def test_flags_are_those_of_the_documentation() -> None:
    """What cannot be seen in the module is asked for."""
    assert "-fstack-clash-protection" in HARDENING
    assert "-D_FORTIFY_SOURCE=3" in HARDENING
    assert "-Wl,-z,relro,-z,now,-z,noexecstack" in LINK_ARGS
