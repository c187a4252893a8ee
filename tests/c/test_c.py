# SPDX-License-Identifier: Apache-2.0
"""Compiles the C test programs of this directory with sanitizers and runs them: each must end well.

The first line of each program says what must hold. Objects are kept in build/c.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.c.objects import Objects, digest_of

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "c"

FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-pthread", "-g", f"-I{CSRC}", f"-I{HERE}"]
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wmissing-declarations", "-Werror"]
FLAVOURS = {
    "address": [
        "-O1",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ],
    "thread": ["-O1", "-fsanitize=thread"],
    "plain": ["-O2"],
}
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_string_checks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}
PURE = ["decap_vxlan", "decap_ipip", "decap_bare", "parse", "checksum", "offload", "icmp", "fib_damage"]
PURE += ["corners_pure", "corners_cpu", "corners_fib", "corners_calls"]
THREADED = ["fib_threads", "engine_threads", "rate"]
RUNS = [("address", name) for name in (*PURE, "rate")] + [("thread", "rate")]
SCENARIOS = {
    "downgrade_tx": [
        *("runs_eio", "runs_einval", "runs_emsgsize", "refused_apart"),
        *("narrow_path", "peer_refused"),
        *("partial_sends", "part_then_refused", "part_then_runs_refused"),
        *("without", "bare"),
    ],
    "downgrade_rx": [
        *("tcp_refused", "tcp6_refused", "udp_refused", "all_refused", "refused_apart"),
        "device_fails",
        *("partial_receives", "peer_super_refused", "peer_super_cut", "bare_runs", "bare_super"),
    ],
    "refused_options": ["unknown_offloads", "gro_refused", "small_buffers", "any_refused"],
    "between": ["sent", "received", "acknowledgements", "bulk", "refusal"],
    "offload_faults": [
        *("nothing", "super_refused", "super_damaged", "run_refused", "run_damaged"),
        *("read_damaged", "read_nothing", "unprivileged"),
    ],
    "too_big": ["told", "short_super", "others", "path_probes", "bounded"],
    "answers": [
        *("no_route", "unreachable_peer", "no_way", "no_way_run", "other_errors", "not_answered"),
        *("flood_of_a_pod", "flood_of_pods", "silent"),
    ],
    "corners_path": [
        *("no_way", "errors", "sockets", "strange", "portions", "refused"),
        *("uncuttable", "unsent", "of_kernel_peers"),
    ],
    "worker_faults": ["matrix", "orders", "buffers"],
    "judged": [
        "spoofed_run",
        "observed_run",
        "following_run",
        "tiny_run",
        "received",
        "delivered",
        "sent",
        "silent",
    ],
}
BUILT = {
    "address": [*PURE, *THREADED, *SCENARIOS],
    "thread": THREADED,
    "plain": ["worker_calls", "confine"],
}
DEADLINE_S = 60
PROBE_S = 180  # thousands of tests in Python


def link(flavour: str, name: str) -> Path:
    """Build the engine and a program against it, as far as they are not current; return the program."""
    where = BUILD / flavour
    command = ["gcc", *FLAGS, *WARNINGS, *FLAVOURS[flavour]]
    objects = Objects(where, command, [*CSRC.glob("*.h"), *HERE.glob("*.h")])
    units = [path for path in sorted(CSRC.glob("*.c")) if path.stem != "probe"]
    # A program may include a unit, to reach into it.
    program = Objects(where, command, [*CSRC.glob("*.[ch]"), *HERE.glob("*.h")])
    parts = program.compile([(HERE / f"{name}.c", name)])
    engine = objects.compile((path, f"unit_{path.stem}") for path in units)
    wanted = digest_of([*parts, *engine])
    target, stamp = where / name, where / f"{name}.linked"
    if target.is_file() and stamp.is_file() and stamp.read_text(encoding="ascii") == wanted:
        return target
    library = where / "libengine.a"
    library.unlink(missing_ok=True)
    subprocess.run(["ar", "rcsT", library, *engine], check=True)
    # The library comes last: what a program includes takes precedence.
    subprocess.run(["gcc", "-pthread", *FLAVOURS[flavour], "-o", target, *parts, library], check=True)
    stamp.write_text(wanted, encoding="ascii")
    return target


@pytest.fixture(scope="session")
def program() -> Callable[[str, str], Path]:
    """Return a function that builds a program in a flavour, once, and returns its path."""
    return cache(link)


def run(*command: str | Path, deadline_s: float = DEADLINE_S, **environment: str) -> str:
    """Run a program to its end; return what it printed."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=deadline_s,
        check=False,
    )
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(("flavour", "name"), RUNS)
def test_program(program: Callable[[str, str], Path], flavour: str, name: str) -> None:
    """What the first line of the program says holds, and no sanitizer has anything to add."""
    run(program(flavour, name))


@pytest.mark.parametrize("name", ["fib_threads", "engine_threads"])
@pytest.mark.parametrize("flavour", ["address", "thread"])
def test_case_105_tables_change_under_threads(
    program: Callable[[str, str], Path], flavour: str, name: str
) -> None:
    """Threads that look up and carry while tables are replaced: none is misled, no sanitizer complains."""
    run(program(flavour, name))


def test_worker_calls(program: Callable[[str, str], Path]) -> None:
    """A worker under traffic and publishes makes only the system calls it promises, and allocates nothing."""
    assert "packets out" in run(program("plain", "worker_calls"), "1500")


@pytest.mark.parametrize("scenario", ["forbidden", "refused", "allowed"])
def test_case_145_calls_of_a_forwarder(program: Callable[[str, str], Path], scenario: str) -> None:
    """Under the forwarder's filter each call that is not its own kills; those that are its own work."""
    run(program("plain", "confine"), scenario)


def test_case_145_arm64_and_no_filters(tmp_path: Path) -> None:
    """The filter compiles for arm64; where the kernel has no filters, as the emulator, that is told."""
    target: list[str | Path] = ["-O2", "-static", "-o", tmp_path / "confine"]
    sources = [HERE / "confine.c", CSRC / "confine.c"]
    subprocess.run(["aarch64-linux-gnu-gcc", *FLAGS, *WARNINGS, *target, *sources], check=True)
    run("qemu-aarch64-static", tmp_path / "confine", "without")


@pytest.mark.parametrize("scenario", ["runs_eio", "runs_einval", "runs_emsgsize", "refused_apart"])
def test_case_092_runs_refused(program: Callable[[str, str], Path], scenario: str) -> None:
    """A kernel that cuts no message is asked no more; what it refused leaves by itself, once, in order.

    The kernel is a made-up one: from Linux 6.11 on, devices without checksum offload are no reason to refuse.
    """
    run(program("address", "downgrade_tx"), scenario)


@pytest.mark.parametrize("scenario", ["narrow_path", "peer_refused"])
def test_one_peer_refused(program: Callable[[str, str], Path], scenario: str) -> None:
    """Errors on the way to one peer are counted there, and take no offload from the others."""
    run(program("address", "downgrade_tx"), scenario)


@pytest.mark.parametrize(
    "scenario", ["partial_sends", "part_then_refused", "part_then_runs_refused", "partial_receives"]
)
def test_case_138_partial_calls(program: Callable[[str, str], Path], scenario: str) -> None:
    """Calls that take or return a part of a batch lose nothing and double nothing."""
    name = "downgrade_rx" if scenario == "partial_receives" else "downgrade_tx"
    run(program("address", name), scenario)


@pytest.mark.parametrize(
    "scenario", ["tcp_refused", "tcp6_refused", "udp_refused", "all_refused", "refused_apart"]
)
def test_super_packet_refused(program: Callable[[str, str], Path], scenario: str) -> None:
    """A super-packet that the TUN refuses enters as the packets that came, and no more are made."""
    run(program("address", "downgrade_rx"), scenario)


def test_super_packet_of_a_kernel_peer_refused(program: Callable[[str, str], Path]) -> None:
    """A super-packet that a kernel peer sent as one is cut here if the TUN refuses it."""
    run(program("address", "downgrade_rx"), "peer_super_refused")


def test_super_packet_of_a_dead_device(program: Callable[[str, str], Path]) -> None:
    """Another error than EINVAL is counted for each packet of a super-packet, and no offload is given up."""
    run(program("address", "downgrade_rx"), "device_fails")


@pytest.mark.parametrize("scenario", SCENARIOS["refused_options"])
def test_option_refused(program: Callable[[str, str], Path], scenario: str) -> None:
    """A socket option that is refused is done without, or no socket is opened and none is left."""
    run(program("address", "refused_options"), scenario)


def test_without_offloads(program: Callable[[str, str], Path]) -> None:
    """Without runs, or without batches too, the same packets leave."""
    run(program("address", "downgrade_tx"), "without")


@pytest.mark.parametrize("scenario", SCENARIOS["worker_faults"])
def test_case_132_and_case_136_calls_of_a_worker(program: Callable[[str, str], Path], scenario: str) -> None:
    """A call that fails once, 10 or 1000 times, with any errno, is counted, and the next packet passes."""
    run(program("address", "worker_faults"), scenario)


@pytest.mark.parametrize("scenario", SCENARIOS["too_big"])
def test_case_103_too_big_for_the_peer(program: Callable[[str, str], Path], scenario: str) -> None:
    """A super-packet with segments too long for its peer is dropped whole, and the pod told what fits."""
    run(program("address", "too_big"), scenario)


@pytest.mark.parametrize("scenario", SCENARIOS["corners_path"])
def test_corner_of_the_path(program: Callable[[str, str], Path], scenario: str) -> None:
    """What is odd about a packet, peer or call is counted for its one reason, and the next packet passes."""
    run(program("address", "corners_path"), scenario)


@pytest.mark.parametrize("scenario", SCENARIOS["judged"])
def test_judged(program: Callable[[str, str], Path], scenario: str) -> None:
    """What deviates in one thing is dropped for that, alone or in a run, and the next good packet passes."""
    run(program("address", "judged"), scenario)


@pytest.mark.parametrize("scenario", SCENARIOS["between"])
def test_carried_between(program: Callable[[str, str], Path], scenario: str) -> None:
    """Between the steps of a long batch those are served who have little and do not only acknowledge."""
    run(program("address", "between"), scenario)


@pytest.mark.parametrize("scenario", SCENARIOS["offload_faults"])
def test_self_test_finds(program: Callable[[str, str], Path], scenario: str) -> None:
    """The self-test of offloads finds those that fail or damage packets, and only those, within a second."""
    run(program("address", "offload_faults"), scenario)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_is_run(program: Callable[[str, str], Path], name: str) -> None:
    """No scenario is forgotten, and a name that is none fails."""
    where = program("address", name)
    assert sorted(run(where).split()) == sorted(SCENARIOS[name])
    assert subprocess.run([where, "nonsense"], check=False).returncode == 2


CHECKSUMS = ["csum_add", "csum_add_any", "csum_add_avx2", "csum_add_avx512"]
CANNOT = 77  # the program's way to say that the CPU lacks what it needs


@pytest.mark.parametrize("variant", CHECKSUMS)
def test_checksum_variant(program: Callable[[str, str], Path], variant: str) -> None:
    """Each way to sum is that of a naive loop, for every length, alignment and kind of data."""
    command: list[str | Path] = [program("address", "checksum"), variant]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    if done.returncode == CANNOT:
        pytest.skip(f"this CPU has no instructions for {variant}")
    assert (done.returncode, done.stdout) == (0, f"{variant}: checked\n"), done.stderr


def emulate_checksum(where: Path, compiler: str, emulator: list[str]) -> str:
    """Compile the checksum and its test for a CPU, run them on an emulated one; return what they printed."""
    sources = [HERE / "checksum.c", CSRC / "csum.c"]
    target: list[str | Path] = ["-O2", "-static", "-o", where / "checksum"]
    subprocess.run([compiler, *FLAGS, *WARNINGS, *target, *sources], check=True)
    return run(*emulator, where / "checksum")


def test_checksum_on_arm64(tmp_path: Path) -> None:
    """On arm64, where the vectors are NEON's, sums are those of a naive loop too."""
    printed = emulate_checksum(tmp_path, "aarch64-linux-gnu-gcc", ["qemu-aarch64-static"])
    assert printed == "csum_add: checked\ncsum_add_any: checked\n"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for this machine, as an x86-64")
def test_checksum_on_a_cpu_without_avx(tmp_path: Path) -> None:
    """What was built on a CPU with wide vectors runs on one without, and sums right there."""
    printed = emulate_checksum(tmp_path, "gcc", ["qemu-x86_64-static", "-cpu", "Nehalem"])
    assert "csum_add: checked\n" in printed
    assert "csum_add_avx2: not on this CPU\n" in printed


def test_every_program_is_run() -> None:
    """No program of this directory is forgotten."""
    assert {path.stem for path in HERE.glob("*.c")} == {name for names in BUILT.values() for name in names}


PROBED = [
    *("csum", "pkt", "parse", "encap", "offload", "split"),
    *("merge", "merge_rows", "icmp", "icmp_too_big", "fib"),
]


@pytest.mark.timeout(PROBE_S + 120)
def test_probe_under_sanitizers() -> None:
    """The tests in Python find the same with the units compiled with sanitizers: nothing."""
    command = [sys.executable, "csrc/build_native.py", "--probe", "--sanitize=address"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    library = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    # Python never frees all it has, so leaks are none of this test's business.
    printed = run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        *(f"tests/unit/test_{name}.py" for name in PROBED),
        *(f"tests/property/test_{name}.py" for name in ("csum", "lpm", "parse", "encap", "fib")),
        deadline_s=PROBE_S,
        LD_PRELOAD=library,
        ASAN_OPTIONS="detect_leaks=0",
        PROBE="tests._probe_address",
    )
    assert " passed" in printed
