# SPDX-License-Identifier: Apache-2.0
"""The command line: one line for what is wrong, the right exit status, and a `status` that starts at once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dataplane import cli, control
from dataplane.errors import ControlError, KernelError, NotRunning
from dataplane.options import FLAGS

ROOT = Path(__file__).resolve().parents[2]
STATUS: dict[str, Any] = {
    "ready": True,
    "reason": "",
    "node": "node1",
    "tier": None,
    "encap": None,
    "subnet": None,
    "underlay": None,
    "store": None,
    "forwarder": {"alive": False, "restarts": 0, "spare": None},
    "control": {"pid": None},
    "tx": {"offered": 0, "forwarded": 0, "drops": {}, "last": {}},
    "rx": {"offered": 0, "forwarded": 0, "drops": {}, "last": {}},
    "kernel": {"tun_tx_dropped": 0, "rxq_overflow": {}},
    "warnings": ["ü"],
    "peers": [],
}
# Shows a status that no daemon was asked for.
SHOW = """
import sys
from dataplane import cli
cli._ask_status = lambda _: {status}
sys.exit(cli.main(["status"]))
"""


def clean_environment(**more: str) -> dict[str, str]:
    """Return our environment without variables of overlayd, and with output buffered as usual."""
    ours = ("OVERLAYD_", "PYTHONUNBUFFERED")
    return {name: text for name, text in os.environ.items() if not name.startswith(ours)} | more


def overlayd(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "dataplane", *args],
        cwd=ROOT,
        env=clean_environment(**environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def check_one_line(done: subprocess.CompletedProcess[str], text: str, code: int) -> None:
    """Check that a command said one line on standard error, and nothing else."""
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("overlayd: ")
    assert text in done.stderr
    assert done.returncode == code


RUN = ("run", "--store", "file:///x")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        pytest.param((), "the command is missing; allowed are run, forwarder, status", id="nothing"),
        pytest.param(
            ("stauts",),
            'command "stauts" is unknown; allowed are run, forwarder, status, peers, log, network, lease, '
            "cni-conf, bench, upgrade, down (did you mean status?)",
            id="unknown command",
        ),
        pytest.param(("a\nb",), r'command "a\nb" is unknown', id="newline"),
        pytest.param(("--verison",), "(did you mean --version?)", id="unknown flag, no command"),
        pytest.param(
            ("status", "--jsno"),
            "flag --jsno is unknown to overlayd status; allowed are --help, --run-dir, --json"
            " (did you mean --json?)",
            id="unknown flag",
        ),
        pytest.param(("status", "--j"), "flag --j is unknown to overlayd status", id="no abbreviations"),
        pytest.param(
            ("status", "now"), '"now" is one word too many; see overlayd status --help', id="unknown word"
        ),
        pytest.param(("status", "--run-dir"), "argument --run-dir: expected one argument", id="no value"),
        pytest.param(
            ("peers", "--run-dir", "run"), 'argument --run-dir: "run" is no absolute path', id="--run-dir"
        ),
        pytest.param(("down", "--run-dir", ""), 'argument --run-dir: "" is no absolute path', id="down"),
        pytest.param(("forwarder", "--store", "x"), "flag --store is unknown to overlayd f", id="forwarder"),
        pytest.param(("network",), "the following arguments are required: COMMAND", id="no subcommand"),
        pytest.param(
            ("log", "--level", "warn"), '"warn": allowed are debug, info, warning, error', id="log level"
        ),
        pytest.param(("log", "--format", "xml"), '"xml": allowed are text, json', id="log format"),
        pytest.param(("lease", "sl"), "argument COMMAND: invalid choice: 'sl'", id="unknown subcommand"),
        pytest.param(("lease", "put", "x", "--ttl", "0"), '"0" is not allowed; allowed are 1 to', id="--ttl"),
        pytest.param(("lease", "ls", "--store", "x"), '--store: "x" is no store', id="store of lease ls"),
        pytest.param(
            ("lease", "ls", "--store", "file:///x"), "is a file for people to edit", id="file store"
        ),
        pytest.param(("run", "--stoer", "x"), "(did you mean --store?)", id="unknown flag of run"),
        pytest.param(("run", "--stoer=x"), "flag --stoer is unknown to overlayd run", id="and its value"),
        pytest.param(
            ("run", "--store", "x"), '--store: "x" is no store; allowed are sqlite:///path', id="store"
        ),
        pytest.param(("run", "--store", "kube"), "--store: kube is not supported yet; allowed", id="kube"),
        pytest.param((*RUN, "--encap", "ipi"), "(did you mean ipip?)", id="encap"),
        pytest.param((*RUN, "-encap=ipi"), "(did you mean ipip?)", id="one dash"),
        pytest.param(
            (*RUN, "-healthz-port", "x"), '--healthz-port: "x" is not allowed', id="one dash, two words"
        ),
        pytest.param((*RUN, "--ip-masq=maybe"), '--ip-masq: "maybe": allowed are true, false', id="switch"),
        pytest.param((*RUN, "--kube-subnet-mgr"), "Kubernetes is not supported yet", id="kube switch"),
        pytest.param((*RUN, *RUN[1:]), "--store is given 2 times; once is allowed", id="twice"),
        pytest.param(
            (*RUN, "--tun-name", "a\n\x1bb"),
            r'--tun-name: "a\n\x1bb" is no interface name',
            id="control chars",
        ),
    ],
)
def test_wrong_command_line(
    args: tuple[str, ...], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong command line is one line on standard error that says what is wrong, and exit status 2."""
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)
    code = cli.main(args)
    told = capsys.readouterr()
    check_one_line(subprocess.CompletedProcess(args, code, told.out, told.err), text, 2)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        pytest.param(
            "OVERLAYD_SPOOFS", "x", "OVERLAYD_SPOOFS is unknown (did you mean OVERLAYD_SPOOF?)", id="name"
        ),
        pytest.param("OVERLAYD_SPOOF", "x", 'OVERLAYD_SPOOF: "x": allowed are enforce', id="value"),
    ],
)
def test_wrong_environment(name: str, value: str, text: str) -> None:
    """A wrong variable is told of as a wrong flag is."""
    check_one_line(overlayd(*RUN, **{name: value}), text, 2)


def test_run_dir_of_the_environment(tmp_path: Path) -> None:
    """The variable of --run-dir counts for every command that has the flag; a flag beats it."""
    found = overlayd("status", OVERLAYD_RUN_DIR=str(tmp_path))
    assert f"not running in {tmp_path}." in found.stderr
    found = overlayd("peers", "--run-dir", "/nowhere", OVERLAYD_RUN_DIR=str(tmp_path))
    assert "not running in /nowhere." in found.stderr
    check_one_line(overlayd("down", OVERLAYD_RUN_DIR="x"), 'OVERLAYD_RUN_DIR: "x" is no absolute path', 2)


@pytest.mark.parametrize("command", [("status",), ("status", "--json"), ("peers",), ("peers", "--json")])
@pytest.mark.parametrize("is_there", [pytest.param(True, id="empty"), pytest.param(False, id="missing")])
def test_nothing_runs(command: tuple[str, ...], is_there: bool, tmp_path: Path) -> None:
    """Where nothing runs, one line says where, and how to start it; exit status 3."""
    run_dir = tmp_path if is_there else tmp_path / "none"
    text = f"overlayd is not running in {run_dir}. Start it with: overlayd run"
    check_one_line(overlayd(*command, "--run-dir", str(run_dir)), text, 3)
    assert run_dir.exists() == is_there


def test_version() -> None:
    """The version is that of the package."""
    done = overlayd("--version")
    declared = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared
    text = f"overlayd {declared[1]}\n"
    assert (done.stdout, done.stderr, done.returncode) == (text, "", 0)
    assert overlayd("-version").stdout == text
    for flag in ("--version", "-version", "--version=true"):  # as flanneld says it
        done = overlayd("run", flag)
        assert (done.stdout, done.stderr, done.returncode) == ("", text, 0)


def test_help() -> None:
    """The help names every command, and that of `run` every flag with its variable."""
    commands = overlayd("--help").stdout
    for name in ("run", "forwarder", "status", "peers", "network", "lease", "down"):
        assert re.search(rf"^    {name}\b", commands, re.MULTILINE)
    flags = " ".join(overlayd("run", "--help", COLUMNS="200").stdout.split())
    for flag in FLAGS:
        value = f"[{flag.metavar}]" if flag.is_switch else flag.metavar
        assert f"--{flag.name} {value} " in flags
        assert f"[{flag.variable}]" in flags


def test_status_starts_at_once(tmp_path: Path) -> None:
    """`overlayd status` loads nothing that it does not need."""
    done = overlayd("status", "--run-dir", str(tmp_path), PYTHONPROFILEIMPORTTIME="1")
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    loaded = {line.rpartition("|")[2].strip() for line in lines}
    assert "dataplane.control" in loaded
    tops = {name.partition(".")[0] for name in loaded}
    assert not tops & {"asyncio", "uvloop", "pyroute2", "inotify_simple", "logging"}
    assert not loaded & {"dataplane.daemon", "dataplane.netlink", "dataplane.config"}


def test_status_of_a_file_in_the_way(tmp_path: Path) -> None:
    """A run directory that is none is said to be unusable in one line, not taken for a bug."""
    path = tmp_path / "file"
    path.touch()
    done = overlayd("status", "--run-dir", str(path))
    assert done.returncode in (1, 2, 3)
    assert all(line.startswith("overlayd: ") for line in done.stderr.splitlines())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding(encoding: str) -> None:
    """A terminal that lacks a character gets a ? for it and not a traceback; JSON stays what it is."""
    more = {"PYTHONIOENCODING": encoding}
    script = SHOW.format(status={**STATUS, "warnings": ["ü→"]})
    outputs = []
    for code in (script, script.replace('["status"]', '["status", "--json"]')):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=clean_environment(**more),
            capture_output=True,
            timeout=60,
        )
        assert (done.stderr, done.returncode) == (b"", 0)
        outputs.append(done.stdout.decode(encoding))
    shown = {"ascii": "??", "latin-1": "ü?", "utf-8": "ü→"}[encoding]
    assert f"!  {shown}\n" in outputs[0]
    assert json.loads(outputs[1])["warnings"] == ["ü→"]


# --- in this process ------------------------------------------------------------------------------------


def show(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    """Let status find this answer, or this error."""

    def ask(_: Path) -> object:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(cli, "_ask_status", ask)


@pytest.mark.parametrize(("ready", "code"), [(True, 0), (False, 1)])
def test_status_tells_by_exit_status(
    ready: bool, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status says whether the node is ready, and with --json the output is one JSON value."""
    show(monkeypatch, {**STATUS, "ready": ready})
    assert cli.main(["status"]) == code
    assert capsys.readouterr().out.startswith("node1 READY" if ready else "node1 NOT READY")
    assert cli.main(["status", "--json"]) == code
    shown = capsys.readouterr().out
    assert json.loads(shown) == {**STATUS, "ready": ready}
    assert "ü" in shown
    assert cli.main(["peers"]) == code


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        pytest.param(NotRunning("nobody"), 3, "overlayd: nobody\n", id="not running"),
        pytest.param(ControlError("refused"), 1, "overlayd: refused\n", id="refused"),
        pytest.param(KernelError("open x", 13), 1, "overlayd: open x: Permission denied\n", id="kernel"),
        pytest.param(KeyboardInterrupt(), 130, "", id="interrupted"),
    ],
)
def test_errors(
    error: BaseException,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each family of errors has its exit status."""
    show(monkeypatch, error)
    assert cli.main(["status"]) == code
    assert capsys.readouterr() == ("", text)


def test_wrong_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`overlayd down` removes nothing when the device it is told of cannot be one."""
    monkeypatch.setattr(cli, "_down", lambda _: pytest.fail("it went on"))
    assert cli.main(["down", "--tun-name", "a/b"]) == 2
    assert capsys.readouterr().err.startswith(
        'overlayd: argument --tun-name: "a/b" is no interface name; allowed'
    )


SILENCE = ControlError("overlayd run in /x does not answer within 2 s")


def let_answer(monkeypatch: pytest.MonkeyPatch, asked: object, inspected: object) -> None:
    """Let control and forwarder answer this, or raise it."""

    def answer(value: object) -> Any:
        if isinstance(value, BaseException):
            raise value
        return value

    monkeypatch.setattr(control, "ask", lambda *_: answer(asked))
    monkeypatch.setattr(control, "inspect_status", lambda _: answer(inspected))


def test_hung_control(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """When control hangs, the forwarder's figures are shown, and the reason is not that nothing runs."""
    dead = {**STATUS, "ready": False, "reason": "overlayd run is not running"}
    let_answer(monkeypatch, SILENCE, dead)
    assert cli.main(["status", "--json"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out) == {**dead, "reason": str(SILENCE)}
    assert told.err == f"overlayd: {SILENCE}; showing what the forwarder knows\n"


@pytest.mark.parametrize(
    ("asked", "inspected", "text", "code"),
    [
        pytest.param(SILENCE, NotRunning("no forwarder"), str(SILENCE), 1, id="hangs, no forwarder"),
        pytest.param(
            ControlError("cannot ask"), ControlError("cannot connect"), "cannot ask", 1, id="no permission"
        ),
        pytest.param(NotRunning("no run"), ControlError("refused"), "refused", 1, id="only a bad forwarder"),
        pytest.param(
            NotRunning("no run"), NotRunning("no forwarder"), "overlayd is not running in", 3, id="neither"
        ),
    ],
)
def test_no_status(
    asked: object,
    inspected: object,
    text: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """When there is nothing to show, one line says why; a control that hangs is not said not to run."""
    let_answer(monkeypatch, asked, inspected)
    assert cli.main(["status"]) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith(f"overlayd: {text}")


def test_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What must not happen is said to be a bug of ours, with the traceback to report; exit status 70."""
    show(monkeypatch, ZeroDivisionError("a bug"))
    assert cli.main(["status"]) == 70
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "overlayd: internal error, please report it with what follows"
    assert told[1] == "Traceback (most recent call last):"
    assert told[-1] == "ZeroDivisionError: a bug"


def test_out_of_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """That there is no memory is no bug of ours: one line, exit status 1."""
    show(monkeypatch, MemoryError())
    assert cli.main(["status"]) == 1
    assert capsys.readouterr().err == "overlayd: out of memory\n"


@pytest.mark.parametrize("warnings", [1, 10_000], ids=["short", "long"])
def test_nobody_reads(warnings: int) -> None:
    """When who reads the output goes away, the command ends without a word, however much there was to say."""
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        status = {**STATUS, "warnings": ["x"] * warnings}
        done = subprocess.run(
            [sys.executable, "-c", SHOW.format(status=status)],
            cwd=ROOT,
            env=clean_environment(),
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(theirs)
    assert (done.stderr, done.returncode) == ("", 1)


def test_no_standard_output() -> None:
    """A command that is started without standard output works all the same."""
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", SHOW.format(status=STATUS)]
    done = subprocess.run(
        command, cwd=ROOT, env=clean_environment(), stderr=subprocess.PIPE, text=True, timeout=60
    )
    assert (done.stderr, done.returncode) == ("", 0)
