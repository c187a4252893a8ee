# SPDX-License-Identifier: Apache-2.0
"""The command line. What a command needs is imported by the command, so that `status` starts at once.

Exit status: those of errors.py; 130 when interrupted; 70 for a bug of ours, with the traceback to report,
since nobody can be asked to make it happen again with another log level.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataplane import VERSION, memory
from dataplane.errors import ConfigError, OverlaydError, one_line
from dataplane.grammar import Collect, Parser, list_allowed

if TYPE_CHECKING:
    from dataplane.config import RunConfig

RUN_DIR = "/run/overlayd"
TUN_NAME = "overlay0"
EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130


# --- commands -------------------------------------------------------------------------------------------


def _run(args: argparse.Namespace) -> int:
    from dataplane import config

    run_config = config.parse(args.given, os.environ)
    if run_config.dry_run and not run_config.version:
        from dataplane import rehearsal

        _print(rehearsal.rehearse(run_config))
        return 0
    # Before the version is told: `upgrade` asks for that, to find out whether all of it can be loaded.
    from dataplane import lifetime

    if run_config.version:  # as flanneld says it
        print(f"overlayd {VERSION}", file=sys.stderr)
        return 0
    return lifetime.run(run_config)


def _forwarder(args: argparse.Namespace) -> int:
    from dataplane import forwarder

    return forwarder.run(args.run_dir)


def _ask_status(run_dir: Path) -> dict[str, Any]:
    """Ask control; if it does not answer, look into the forwarder's memory."""
    from dataplane import control
    from dataplane.errors import ControlError, NotRunning

    silence: ControlError | None = None
    try:
        return control.ask(run_dir, {"cmd": "status"})
    except NotRunning:
        pass
    except ControlError as err:  # it is there, but hangs, or is somebody else's
        silence = err
    try:
        answer = control.inspect_status(run_dir)
    except (NotRunning, ControlError) as err:
        if silence is not None:
            raise silence from None
        if not isinstance(err, NotRunning):
            raise
        raise NotRunning(f"overlayd is not running in {run_dir}. Start it with: overlayd run") from None
    if silence is not None:
        print(f"overlayd: {silence}; showing what the forwarder knows", file=sys.stderr)
        answer["reason"] = str(silence)
    return answer


def _print(text: str) -> None:
    """Print, with a ? for each character that the encoding of standard output lacks."""
    encoding = _encoding()
    print(text.encode(encoding, "replace").decode(encoding))


def _encoding() -> str:
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def _show(args: argparse.Namespace, text: Callable[[dict[str, Any]], str]) -> int:
    from dataplane import status

    answer = _ask_status(args.run_dir)
    is_utf8 = _encoding().lower().replace("-", "") == "utf8"
    _print(json.dumps(answer, indent=2, ensure_ascii=not is_utf8) if args.json else text(answer))
    return status.exit_code(answer)


def _status(args: argparse.Namespace) -> int:
    from dataplane import status

    return _show(args, status.status_text)


def _peers(args: argparse.Namespace) -> int:
    from dataplane import control, status

    if args.drop_held:
        answer = control.ask(args.run_dir, {"cmd": "drop-held"})
        _print(json.dumps(answer) if args.json else f"dropped {answer['dropped']} held peers")
        return 0
    return _show(args, lambda answer: status.peers_text(answer, has_all=args.all))


def _log(args: argparse.Namespace) -> int:
    from dataplane import control

    wished = {"level": args.level, "format": args.format}
    request = {"cmd": "log", **{name: value for name, value in wished.items() if value is not None}}
    answer = control.ask(args.run_dir, request)
    _print(json.dumps(answer) if args.json else " ".join(f"{name} {value}" for name, value in answer.items()))
    return 0


def _config(args: argparse.Namespace) -> RunConfig:
    """Return what flags and environment say, of which commands for the store use that part."""
    from dataplane import config

    return config.parse(args.given, os.environ)


def _network_get(args: argparse.Namespace) -> int:
    from dataplane import ledger

    _print(ledger.network_get(_config(args), as_json=args.json))
    return 0


def _network_set(args: argparse.Namespace) -> int:
    from dataplane import ledger

    text = sys.stdin.read() if args.config == "-" else args.config
    _print(ledger.network_set(_config(args), text, is_forced=args.force))
    return 0


def _lease_ls(args: argparse.Namespace) -> int:
    from dataplane import ledger

    _print(ledger.lease_ls(_config(args), as_json=args.json))
    return 0


def _lease_put(args: argparse.Namespace) -> int:
    from dataplane import ledger

    wish = ledger.Wish(args.subnet, args.public_ip, args.public_ip6, args.backend, args.vtep_mac, args.ttl)
    _print(ledger.lease_put(_config(args), wish, is_forced=args.force, as_json=args.json))
    return 0


def _lease_rm(args: argparse.Namespace) -> int:
    from dataplane import ledger

    _print(ledger.lease_rm(_config(args), args.subnet, as_json=args.json))
    return 0


def _lease_release(args: argparse.Namespace) -> int:
    from dataplane import ledger

    _print(ledger.lease_release(args.run_dir, _config(args), as_json=args.json))
    return 0


def _upgrade(args: argparse.Namespace) -> int:
    from dataplane import upgrade

    _print(upgrade.upgrade(args.run_dir, as_json=args.json))
    return 0


def _down(args: argparse.Namespace) -> int:
    from dataplane import teardown

    return teardown.down(args.run_dir, args.tun_name, tuple(args.hand_over))


def _cni_conf(args: argparse.Namespace) -> int:
    from dataplane import cniconf

    _print(cniconf.make(args, _config(args).subnet_file))
    return 0


def _bench(args: argparse.Namespace) -> int:
    root = Path(__file__).resolve().parent.parent
    if not (root / "bench" / "run.py").is_file():
        raise ConfigError(
            "the bench is not installed with overlayd: run it from a checkout, with `make bench`"
        )
    sys.path.insert(0, str(root))
    from bench import run

    return run.main(args)


# --- the grammar -------------------------------------------------------------------------------------------


def _path(text: str) -> Path:
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f'"{text}" is no absolute path')
    return Path(text)


def _read_as(name: str) -> Callable[[str], str]:
    """Return a reader of what a flag of `run` takes."""

    def read(text: str) -> str:
        from dataplane.options import FLAGS

        (flag,) = (flag for flag in FLAGS if flag.name == name)
        try:
            return str(flag.parse(text))
        except ValueError as err:
            raise argparse.ArgumentTypeError(str(err)) from None

    return read


_device = _read_as("tun-name")


def _add_command(
    commands: Any, name: str, text: str, function: Callable[[argparse.Namespace], int]
) -> Parser:
    parser: Parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(function=function)
    return parser


def _add_run_dir(parser: Parser) -> None:
    told = os.environ.get("OVERLAYD_RUN_DIR", RUN_DIR)
    if not told.startswith("/"):
        raise ConfigError(f'OVERLAYD_RUN_DIR: "{told}" is no absolute path')
    text = f"(default: {RUN_DIR}) [OVERLAYD_RUN_DIR]"
    parser.add_argument("--run-dir", type=_path, default=Path(told), metavar="PATH", help=text)


def _add_flags(parser: Parser, argv: Sequence[str], command: str, names: Sequence[str] = ()) -> None:
    """Add flags of config's one table, all if none are named; other commands do not wait for its import."""
    if command not in argv:
        return
    from dataplane.options import FLAGS

    parser.set_defaults(given={})
    for flag in FLAGS:
        if names and flag.name not in names:
            continue
        value: dict[str, Any] = {"nargs": "?", "const": "true"} if flag.is_switch else {}
        parser.add_argument(
            f"--{flag.name}",
            **value,
            dest=flag.name,
            action=Collect,
            default=argparse.SUPPRESS,
            metavar=flag.metavar,
            help=f"{flag.help} [{flag.variable}]",
        )


def _seconds(text: str) -> float:
    if not text.isascii() or not text.isdigit() or len(text) > 12 or not 1 <= int(text) <= 31_536_000:
        raise argparse.ArgumentTypeError(f'"{text[:20]}" is not allowed; allowed are 1 to 31536000 seconds')
    return float(text)


STORE_FLAGS = (
    *("store", "state-dir", "etcd-endpoints", "etcd-prefix", "etcd-keyfile", "etcd-certfile"),
    *("etcd-cafile", "etcd-username", "etcd-password"),
)


def _add_log(commands: Any) -> None:
    log = _add_command(commands, "log", "what the running daemon logs, and how, until it ends", _log)
    levels, formats = "debug|info|warning|error", "text|json"
    log.add_argument("--level", type=_read_as("log-level"), metavar=levels, help="least severe event to log")
    log.add_argument("--format", type=_read_as("log-format"), metavar=formats, help="one line an event")
    _add_run_dir(log)
    log.add_argument("--json", action="store_true", help="for programs")


def _add_group(commands: Any, name: str, text: str) -> Any:
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    return parser.add_subparsers(metavar="COMMAND", parser_class=Parser, required=True)


def _add_network(commands: Any, argv: Sequence[str]) -> None:
    group = _add_group(commands, "network", "the network config in the store")
    get = _add_command(group, "get", "print the network config", _network_get)
    get.add_argument("--json", action="store_true", help="with its revision")
    put = _add_command(group, "set", "write the network config; nodes take it up at once", _network_set)
    put.add_argument("config", metavar="JSON", help="flannel's, - reads it from standard input")
    put.add_argument("--force", action="store_true", help="even if it cuts nodes off that work")
    for parser in (get, put):
        _add_flags(parser, argv, "network", STORE_FLAGS)


def _add_lease(commands: Any, argv: Sequence[str]) -> None:
    group = _add_group(commands, "lease", "the leases in the store")
    ls = _add_command(group, "ls", "list the leases", _lease_ls)
    put = _add_command(group, "put", "write a lease for a node that runs no overlayd", _lease_put)
    rm = _add_command(group, "rm", "delete a lease; a node that runs takes it again", _lease_rm)
    release = _add_command(group, "release", "give back the lease of this node, which leaves", _lease_release)
    for parser in (put, rm):
        parser.add_argument("subnet", metavar="SUBNET", help="10.244.3.0/24, or the key as `ls` shows it")
    put.add_argument("--public-ip", metavar="ADDRESS", help="the node's underlay address")
    put.add_argument("--public-ipv6", dest="public_ip6", metavar="ADDRESS", help="the same, IPv6")
    put.add_argument("--backend", metavar="vxlan|ipip|udp", help="(default: the network's)")
    put.add_argument("--vtep-mac", metavar="MAC", help="of the node's VXLAN device")
    put.add_argument("--ttl", type=_seconds, metavar="SECONDS", help="(default: it never expires)")
    put.add_argument("--force", action="store_true", help="even if another node has this subnet")
    for parser in (ls, put, rm, release):
        _add_flags(parser, argv, "lease", STORE_FLAGS)
    _add_run_dir(release)
    for parser in (ls, put, rm, release):
        parser.add_argument("--json", action="store_true", help="for programs")


def _add_cni_conf(commands: Any, argv: Sequence[str]) -> None:
    text = "write the network config that CNI's bridge plugin needs, from subnet.env"
    command = _add_command(commands, "cni-conf", text, _cni_conf)
    _add_flags(command, argv, "cni-conf", ("subnet-file",))
    if "cni-conf" in argv:
        from dataplane import cniconf

        cniconf.add_arguments(command)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 4 or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f'"{text[:20]}" is not allowed; allowed are 1 to 1000')
    return int(text)


def _add_bench(commands: Any) -> None:
    text = "measure overlayd beside kernel VXLAN in a lab of its own; needs root and a checkout"
    bench = _add_command(commands, "bench", text, _bench)
    bench.add_argument("--quick", action="store_true", help="a small part, within 90 seconds")
    for name, metavar, what in (
        ("--profile", "NAME", "only this profile (veth, wire) or condition; repeatable"),
        ("--system", "NAME", "only this system, and kernel VXLAN; repeatable"),
        ("--load", "NAME", "only this load; repeatable"),
        ("--against", "EXECUTABLE", "another overlay, see docs/bench.md; repeatable"),
    ):
        bench.add_argument(name, action="append", default=[], metavar=metavar, help=what)
    bench.add_argument("--repetitions", type=_count, metavar="N", help="(default: 5)")
    bench.add_argument(
        "--seconds", type=_count, metavar="N", help="of one throughput or latency run (default: 2)"
    )
    bench.add_argument(
        "--output", metavar="PATH", help="folder (default: bench-results/TIME in the checkout)"
    )
    bench.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two result files; nothing is measured")


def _build_parser(argv: Sequence[str]) -> tuple[Parser, Sequence[str]]:
    """Return the parser and the names of the commands."""
    parser = Parser(
        prog="overlayd",
        description="A userspace VXLAN and IPIP overlay dataplane for pod networks.",
        allow_abbrev=False,
    )
    parser.add_argument("-version", "--version", action="version", version=f"overlayd {VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    run = _add_command(commands, "run", "follow the store and carry this node's pod packets", _run)
    _add_flags(run, argv, "run")
    _add_run_dir(_add_command(commands, "forwarder", "carry packets; `run` starts it by itself", _forwarder))
    for name, text, function in (
        ("status", "is this node ready, and what became of its packets", _status),
        ("peers", "the other nodes, with their counters", _peers),
    ):
        command = _add_command(commands, name, text, function)
        _add_run_dir(command)
        command.add_argument("--json", action="store_true", help="for programs")
        if name == "peers":
            command.add_argument("--all", action="store_true", help="our own and unreadable leases too")
            command.add_argument("--drop-held", action="store_true", help="let those go that are held")
    _add_log(commands)
    _add_network(commands, argv)
    _add_lease(commands, argv)
    _add_cni_conf(commands, argv)
    _add_bench(commands)
    upgrade = _add_command(commands, "upgrade", "have a running node become what is installed now", _upgrade)
    _add_run_dir(upgrade)
    upgrade.add_argument("--json", action="store_true", help="for programs")
    down = _add_command(commands, "down", "stop both processes and remove everything of ours", _down)
    _add_run_dir(down)
    down.add_argument(
        "--tun-name",
        type=_device,
        default=TUN_NAME,
        metavar="NAME",
        help=f"if no overlayd run left word of it (default: {TUN_NAME})",
    )
    down.add_argument(
        "--hand-over",
        type=_device,
        action="append",
        default=[],
        metavar="NAME",
        help="leave this VXLAN device of the kernel to carry on, as flannel would make it (flannel.1); "
        "twice with pods of both IP versions",
    )
    return parser, tuple(commands.choices)


def _double_dashes(words: Sequence[str]) -> list[str]:
    """Write flags with two dashes: programs in Go, such as flannel, take one as well."""
    from dataplane.options import FLAGS

    names = {flag.name for flag in FLAGS}
    return [f"-{word}" if word[:1] == "-" and word[1:].partition("=")[0] in names else word for word in words]


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser, commands = _build_parser(words)
    command = next((word for word in words if not word.startswith("-")), None)
    if command == "run":
        words = _double_dashes(words)
    if command is not None and command not in commands:
        raise ConfigError(f'command "{command}" is unknown; {list_allowed(command, commands)}')
    args = parser.parse_args(words)
    if command is None:
        raise ConfigError(f"the command is missing; {list_allowed('', commands)}")
    return args


def _report_bug() -> int:
    import traceback

    print("overlayd: internal error, please report it with what follows", file=sys.stderr)
    traceback.print_exc()
    return EXIT_BUG


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status (errors.py)."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        if argv is None and words[:1] == ["run"]:
            memory.share_heap()  # before anything takes time
        args = _parse(words)
        code = int(args.function(args))
        print(end="", flush=True)  # here, where a broken pipe is dealt with
        return code
    except OverlaydError as err:
        print(f"overlayd: {one_line(str(err))}", file=sys.stderr)
        return err.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except MemoryError:
        print("overlayd: out of memory", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        return _report_bug()
