# SPDX-License-Identifier: Apache-2.0
"""Builds the C engine: every csrc/*.c plus glue that cffi writes from csrc/dp.h, into dataplane/_native.

python csrc/build_native.py                     dataplane/_native*.so, in place
python csrc/build_native.py --probe             tests/_probe*.so: the pure units as csrc/probe.h shows them
python csrc/build_native.py --probe --sanitize=address|thread
                                                tests/_probe_address*.so or tests/_probe_thread*.so

pip uses only the class BuildNative. By hand, a module is built again when a source or a flag has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
from pathlib import Path

from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
NATIVE = "dataplane._native"

# Debian's, and what the architecture has against jumps and returns to where none should lead. What they cost
# the hot functions, bench/instructions.json counts: 3 % at most, or an instruction or two of a short one.
HARDENING = [
    *("-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"),
    *("-fstack-protector-strong", "-fstack-clash-protection"),
    *{"x86_64": ["-fcf-protection"], "aarch64": ["-mbranch-protection=standard"]}.get(platform.machine(), []),
]
# No -march=native: the module may be copied to another machine.
COMPILE_ARGS = ["-std=gnu11", "-O2", "-fvisibility=hidden", "-pthread", *HARDENING]
LINK_ARGS = ["-pthread", "-Wl,-z,relro,-z,now,-z,noexecstack"]
if platform.machine() == "x86_64":
    # What the C library adds to each module is not marked, but keeps to it: it only calls and returns.
    LINK_ARGS.append("-Wl,-z,shstk")
SANITIZERS = {"address": "address,undefined", "thread": "thread"}

# What a probe links: layers 0 to 2, and probe.c where a unit needs an adapter that cffi can call.
PROBE_UNITS = (
    *("csum", "parse", "encap", "offload", "split", "merge", "spin", "icmp", "rate", "lpm"),
    *("fib", "fib_build", "counters", "sys", "probe", "probe_super", "probe_spin", "probe_table"),
)
GLUE_INCLUDES = ("<stdbool.h>", "<stddef.h>", "<stdint.h>")


def read_build() -> int:
    """Return what tells this build of the engine from others: a digest of its sources."""
    digest = hashlib.sha256()
    for path in sorted(CSRC.glob("*.[ch]")):
        if not path.stem.startswith("probe"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return int.from_bytes(digest.digest()[:8], "big") | 1  # never 0


MACROS: list[tuple[str, str | None]] = [("_GNU_SOURCE", "1"), ("DP_BUILD", f"{read_build():#x}ULL")]


def read_types(header: str) -> str:
    """Return dp.h without its function prototypes: a probe links only a part of them."""
    return re.sub(r"^\w[^;{}#]*\([^;{}]*\);\n", "", header, flags=re.MULTILINE)


def read_declarations(name: str) -> tuple[str, str]:
    """Return what cffi is told and what the glue includes, for the extension called `name`."""
    # cffi warns about every #pragma; this one concerns C alone.
    header = (CSRC / "dp.h").read_text(encoding="utf-8").replace("#pragma once\n", "")
    includes = [*GLUE_INCLUDES, '"dp.h"']
    if name != NATIVE:
        header = read_types(header) + (CSRC / "probe.h").read_text(encoding="utf-8")
        includes.append('"probe.h"')
    return header, "".join(f"#include {include}\n" for include in includes)


def list_sources(name: str) -> list[str]:
    """Return the C files of the extension, relative to the project."""
    paths = sorted(CSRC.glob("*.c"))
    if name == NATIVE:
        paths = [path for path in paths if not path.stem.startswith("probe")]
    else:
        paths = [path for path in paths if path.stem in PROBE_UNITS]
    return [str(path.relative_to(ROOT)) for path in paths]


class BuildNative(build_ext):
    """build_ext that finds our sources and adds cffi's glue."""

    def finalize_options(self) -> None:
        """Fill in what pyproject.toml leaves out, for the build and for the source distribution."""
        super().finalize_options()
        for ext in self.extensions:
            ext.sources = list_sources(ext.name)
            ext.depends = sorted(str(path.relative_to(ROOT)) for path in CSRC.glob("*.h"))
            ext.depends.append("csrc/build_native.py")
            ext.include_dirs = ["csrc"]
            ext.define_macros = MACROS
            ext.extra_compile_args = [*COMPILE_ARGS, *ext.extra_compile_args]
            ext.extra_link_args = [*LINK_ARGS, *ext.extra_link_args]

    def build_extension(self, ext: Extension) -> None:
        """Write the glue beside the object files and compile it with the rest."""
        # Imported here, so that finding a module up to date stays quick.
        from cffi import FFI

        declarations, includes = read_declarations(ext.name)
        ffi = FFI()
        ffi.cdef(declarations)
        ffi.set_source(ext.name, includes)
        glue = Path(self.build_temp) / f"{ext.name}_glue.c"
        glue.parent.mkdir(parents=True, exist_ok=True)
        ffi.emit_c_code(str(glue))
        ext.sources = [*ext.sources, str(glue)]
        super().build_extension(ext)


def fingerprint(flags: list[str]) -> str:
    """Return a digest of everything that goes into a build."""
    digest = hashlib.sha256(repr(flags).encode())
    for path in sorted([*CSRC.glob("*.[ch]"), Path(__file__)]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def build_in_place(name: str, flags: list[str]) -> None:
    """Build the extension `name` into the source tree, unless it is there and current."""
    os.chdir(ROOT)
    package, _, stem = name.rpartition(".")
    stamp = ROOT / "build" / f"{stem}.stamp"
    wanted = fingerprint(flags)
    built = list((ROOT / package).glob(f"{stem}.*.so"))
    if built and stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    ext = Extension(name, [], extra_compile_args=flags, extra_link_args=flags, py_limited_api=True)
    for old in built:  # one of another name would be imported in place of the new one
        old.unlink()
    command = BuildNative(Distribution({"name": "overlayd", "ext_modules": [ext]}))
    command.inplace = True
    command.force = True
    command.build_temp = str(ROOT / "build" / stem)
    command.build_lib = str(ROOT / "build" / "lib")
    command.ensure_finalized()
    command.run()
    stamp.write_text(wanted, encoding="utf-8")
    print(f"built {name}")


def main() -> None:
    """Parse the command line and build what it asks for."""
    parser = argparse.ArgumentParser(description="Build the C engine in place.")
    parser.add_argument("--probe", action="store_true", help="build the test-only module over the pure units")
    parser.add_argument("--sanitize", choices=sorted(SANITIZERS), help="compile the probe with sanitizers")
    args = parser.parse_args()
    if args.sanitize and not args.probe:
        parser.error("--sanitize needs --probe: Python itself is not built with sanitizers")
    if args.sanitize:
        checks = SANITIZERS[args.sanitize]
        flags = [
            "-O1",
            "-g",
            "-fno-omit-frame-pointer",
            "-U_FORTIFY_SOURCE",
            f"-fsanitize={checks}",
            "-fno-sanitize-recover=all",
        ]
        build_in_place(f"tests._probe_{args.sanitize}", flags)
    else:
        build_in_place("tests._probe" if args.probe else NATIVE, [])


if __name__ == "__main__":
    main()
