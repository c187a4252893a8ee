# SPDX-License-Identifier: Apache-2.0
"""`overlayd cni-conf`: reads subnet.env, writes one file, and says what on this host does not fit it."""

from __future__ import annotations

import argparse
import select
import signal
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NoReturn

from dataplane import cni, flags
from dataplane.cni import SubnetEnv, Wish
from dataplane.errors import ConfigError, RuntimeFailure, one_line
from dataplane.model import Address
from dataplane.rundir import failure, write_atomically
from dataplane.store.watch import PathWatch, explain

MODE = 0o644  # as subnet.env: container runtimes of any user read it
OUTPUT = "/etc/cni/net.d/10-overlayd.conflist"
USUAL = Wish()
LOOK_S = 10.0


# --- the command line ------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    masq = "the bridge plugin masquerades (default: if subnet.env says that nobody does)"
    for name, parse, default, metavar, what in (
        ("--output", _output, Path(OUTPUT), "PATH", f"- prints it (default: {OUTPUT})"),
        ("--name", cni.name, USUAL.name, "NAME", "of the network (default: cbr0, as flannel's)"),
        ("--bridge", flags.device, USUAL.bridge, "NAME", "device that joins the pods (default: cni0)"),
        ("--data-dir", flags.directory, USUAL.data_dir, "PATH", f"of host-local (default: {cni.DATA_DIR})"),
        ("--plugin-masq", flags.switch, None, "true|false", masq),
        ("--cni-version", flags.one_of(*cni.VERSIONS), USUAL.version, "VERSION", "(default: 1.0.0)"),
    ):
        parser.add_argument(name, type=_telling(parse), default=default, metavar=metavar, help=what)
    parser.add_argument("--no-portmap", action="store_true", help="without ports of the host")
    parser.add_argument(
        "--no-hairpin", action="store_true", help="no pod reaches itself by a port of the host"
    )
    parser.add_argument("--force", action="store_true", help="even over a file that somebody else wrote")
    parser.add_argument("--follow", action="store_true", help="write it again whenever subnet.env changes")


def _output(text: str) -> Path | None:
    return None if text == "-" else flags.file(text)


def _telling(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return the same reader, whose ValueError argparse shows as it is."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as err:
            raise argparse.ArgumentTypeError(str(err)) from None

    return read


def make(args: argparse.Namespace, subnet_file: Path) -> str:
    """Do what the command line says; return what is to be printed. Warnings go to standard error."""
    if args.follow:
        follow(args, subnet_file)
    said, warnings = _make(args, subnet_file)
    for line in warnings:
        print(f"overlayd: warning: {line}", file=sys.stderr)
    return said


def _make(args: argparse.Namespace, subnet_file: Path) -> tuple[str, list[str]]:
    """Write the file; return what is to be said, and warnings."""
    wish = Wish(
        *(args.name, args.bridge, args.cni_version, args.data_dir),
        *(not args.no_portmap, not args.no_hairpin, args.plugin_masq),
    )
    env = read(subnet_file)
    said = text = cni.format_conf(cni.build(env, wish))
    if args.output is not None:
        is_new = write(args.output, text, is_forced=args.force)
        subnets = ", ".join(map(str, env.subnets))
        said = f"{'wrote' if is_new else 'nothing to change in'} {args.output}: {subnets}, MTU {env.mtu}"
    return said.removesuffix("\n"), find_trouble(env, wish, args.output)


def follow(args: argparse.Namespace, subnet_file: Path) -> NoReturn:
    """Write the file again and again, until SIGTERM; say what is different from the last time."""
    if args.output is None:
        raise ConfigError("--follow writes a file: give another --output than -")
    # The first process of a container is not ended by a signal that it does not expect.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    before: list[str] = []
    watch: PathWatch | None = None
    while True:
        watch = _watch(watch, subnet_file)
        try:
            said, warnings = _make(args, subnet_file)
            said = said.replace("nothing to change in", "wrote")
            lines = [said, *(f"warning: {text}" for text in warnings)]
        except RuntimeFailure as err:
            lines = [one_line(str(err))]
        for line in lines:
            if line not in before:
                print(f"overlayd: {line}", file=sys.stderr, flush=True)
        before = lines
        # Now and then in any case: somebody may have removed it.
        select.select([watch], [], [], LOOK_S)
        watch.drain()


def _watch(watch: PathWatch | None, path: Path) -> PathWatch:
    """Watch the way to a file as it is now: on as before, or anew."""
    if watch is not None and watch.has_failed:
        watch.close()
        watch = None
    try:
        watch = watch or PathWatch(path)
        watch.follow()
    except OSError as err:
        if watch is not None:
            watch.close()
        raise RuntimeFailure(f"cannot watch {path}: {explain(err)}") from None
    return watch


# --- files -----------------------------------------------------------------------------------------------


def read(path: Path) -> SubnetEnv:
    """Read the subnet file, or say why there is none to go by."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise RuntimeFailure(
            f"there is no subnet file {path} yet: overlayd run writes it, once it is ready"
        ) from None
    except OSError as err:
        raise failure("read", path, err) from None
    try:
        return cni.parse_subnet_env(text)
    except ValueError as err:
        raise RuntimeFailure(
            f"the subnet file {path} is no good, overlayd run writes a right one: {one_line(str(err))}"
        ) from None


def write(path: Path, text: str, *, is_forced: bool) -> bool:
    """Let the file say this; return whether it said something else. What is not ours stays, unless forced."""
    try:
        found = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
        if found == text:
            return False
        if found is not None and not is_forced and not cni.is_ours(found):
            raise RuntimeFailure(
                f"{path} was not written by {cni.WRITER}: move it away, give another --output, "
                "or replace it by --force"
            )
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as err:
        raise failure("write", path, err) from None
    write_atomically(path, text, MODE)
    return True


def find_trouble(env: SubnetEnv, wish: Wish, output: Path | None) -> list[str]:
    """Return a line on each thing on this host that does not fit, and what to do about it."""
    found = [
        cni.warn_of_addresses(env, wish, _list_held(wish.data_dir / wish.name)),
        cni.warn_of_mtu(env, wish, _list_mtus(wish.bridge)),
        None if output is None else cni.warn_of_others(output, _list_names(output.parent)),
    ]
    return [line for line in found if line is not None]


def _list_names(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir()]
    except OSError:
        return []  # not there: nothing is in it


def _list_held(records: Path) -> list[Address]:
    """Return the addresses that host-local has given out: it keeps a file of that name for each."""
    held = []
    for name in _list_names(records):
        try:
            held.append(ip_address(name))
        except ValueError:
            pass  # its lock, and what it gave out last
    return held


def _list_mtus(bridge: str) -> list[int]:
    """Return the MTU of each port of a bridge."""
    ports = Path("/sys/class/net") / bridge / "brif"
    mtus = []
    for name in _list_names(ports):
        try:
            mtus.append(int((ports.parent.parent / name / "mtu").read_text(encoding="ascii")))
        except (OSError, ValueError):
            pass  # it has just gone
    return mtus
