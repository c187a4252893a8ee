# SPDX-License-Identifier: Apache-2.0
"""Where mutants are looked for, and which tests are the likeliest to kill them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What needs minutes, and finds nothing that others do not find: the probe again under sanitizers, the
# checksum, the wheel, the benches, and what the sources look like.
NEVER = (
    *("--deselect", "tests/c/test_c.py::test_probe_under_sanitizers"),
    *("--ignore", "tests/unit/test_source.py", "--ignore", "tests/unit/test_docs.py"),
    *("--ignore", "tests/unit/test_bench_callgrind.py", "--ignore", "tests/unit/test_mutants.py"),
    *("--ignore", "tests/e2e/test_wheel.py", "--ignore", "tests/e2e/test_bench.py"),
    *("--ignore", "tests/e2e/test_demo.py", "--ignore", "tests/fuzz"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """A source file, the functions in it that check something, and the tests nearest to it."""

    file: str
    functions: str = ""  # a pattern; "": all
    quick: str = ""  # under tests/unit and tests/property: names without test_ and .py
    e2e: str = ""  # under tests/e2e
    c: str = ""  # expressions for pytest -k, of tests in tests/c, apart by semicolons


DECAP = "decap_vxlan or decap_ipip or decap_bare"
JOINED = "is_run and judged; is_run and (downgrade_rx or between)"
RUNS = "is_run and judged; is_run and (downgrade_tx or too_big or answers or between)"
RX = "vxlan_decap ipip bare checks ecn rare_drops queues"
TX = "encap checks ipip conservation rare_drops flannel_udp kernel_peer"
STORE = "store_database store_sqlite store_registry leasing"
LEASE = "lessee lease leasing_told leasing_undo leasing"
PEERS = "gate in_order reconcile_peers peers reconcile"
FORWARDERS = "keeper hung seats turns relay legacy control versions"
KILLED = "forwarder_killed kept upgrade"
PLACES = (
    Place("csrc/rx.c", "^(?!rx_run)", "", f"{RX} exact_count integrity", JOINED),
    Place("csrc/deliver.c", "", "", f"{RX} conservation integrity", JOINED),
    Place("csrc/tx.c", "^(?!tx_run)", "", f"{TX} {RX} exact_count integrity", RUNS),
    Place(
        "csrc/answer.c", "", "icmp icmp_too_big", f"{TX} host", "is_run and (judged or answers or too_big)"
    ),
    Place("dataplane/gate.py", "", PEERS),
    Place("dataplane/store/database.py", "", f"sqlite_follow {STORE}", "lease_life lease_race"),
    Place("dataplane/pace.py", "", "pace peers reconcile_peers", "lease_flood"),
    Place("csrc/ctl.c", "", "control_refusals control native turns versions", "two_processes start_fails"),
    Place("csrc/parcel.c", "", "control_refusals control versions native", "two_processes"),
    Place("csrc/worker.c", "^stand_still$", "turns", "two_processes", "address-engine_threads"),
    Place("dataplane/store/sqlite.py", "", f"sqlite_follow {STORE}", "lease_life"),
    Place("dataplane/store/registry.py", "", f"sqlite_follow {STORE}", "lease_life"),
    Place("dataplane/message.py", "", "control native layout versions"),
    Place(
        "dataplane/control.py",
        "",
        "control_client control versions seats control_ends turns status",
        "two_processes",
    ),
    Place(
        "csrc/split.c",
        "",
        "split supers offload",
        "rare_drops integrity",
        "is_run and (downgrade_tx or too_big)",
    ),
    Place(
        "csrc/offload.c",
        "",
        "offload supers split",
        "rare_drops integrity exact_count",
        "address-offload; is_run and downgrade_rx",
    ),
    Place("csrc/icmp.c", "", "icmp icmp_too_big", TX, "address-icmp"),
    Place(
        "csrc/fib.c",
        "^(?!lookup|dp_fib_close|fib_enter)",
        "fib_behind fib native",
        "tiers checks",
        "fib_damage",
    ),
    Place("dataplane/peerids.py", "", PEERS),
    Place("dataplane/peers.py", "", f"peers_waiting {PEERS} withdrawal", "lease_table"),
    Place("dataplane/lease.py", "", LEASE, "lease_life lease_race"),
    Place("dataplane/leasing.py", "", LEASE, "lease_life start_fails"),
    Place(
        "dataplane/store/etcd.py",
        "",
        "etcd_prolong leasing store_registry",
        "etcd_store etcd_watch etcd_access",
    ),
    Place("dataplane/known.py", "", f"known {LEASE}"),
    Place("dataplane/alloc.py", "", f"alloc {LEASE} {PEERS}"),
    Place("dataplane/moving.py", "", "moving"),
    Place("dataplane/pathmtu.py", "", "pathmtu"),
    Place("dataplane/softstate.py", "", "softstate hearing", "unreachable"),
    Place("dataplane/probing.py", "", "loads probing"),
    Place("dataplane/icmp.py", "", "icmp_heard"),
    Place("dataplane/paths.py", "", "paths pathmtu"),
    Place("dataplane/hearing.py", "", "hearing icmp_heard paths"),
    Place(
        "csrc/engine.c",
        "check_config|has_all|engine_create|publish|turn|engine_(go|start)",
        "engine_create native turns",
        "two_processes",
        "address-engine_threads",
    ),
    Place(
        "csrc/counters.c",
        "dp_counters_(open|create|peer)|take_turn",
        "counters_open engine_create native turns",
        "two_processes",
    ),
    Place("dataplane/withdrawal.py", "", "withdrawal", "withdrawal"),
    Place("dataplane/holding.py", "", "holding withdrawal", "withdrawal"),
    Place("dataplane/laststate.py", "", "laststate recall", "cold_start"),
    Place("dataplane/recall.py", "", "recall recall_write laststate", "cold_start withdrawal"),
    Place("dataplane/notify.py", "", "notify legacy", "watched kept"),
    Place("dataplane/rundir.py", "", "rundir seats control logsetting"),
    Place("dataplane/seats.py", "", "seats turns", KILLED),
    Place("dataplane/succession.py", "", "seats turns", KILLED),
    Place("dataplane/grip.py", "", "hung relay", KILLED),
    Place("dataplane/backend/hung.py", "", "hung fence", KILLED),
    Place("dataplane/backend/crashes.py", "", "hung", KILLED),
    Place("dataplane/backend/keeper.py", "", FORWARDERS, f"{KILLED} two_processes"),
    Place("dataplane/backend/reserve.py", "", FORWARDERS, KILLED),
    Place("dataplane/backend/relay.py", "", "keeper relay turns", "upgrade"),
    Place("dataplane/backend/legacy.py", "", "legacy notify", "kept"),
    Place("dataplane/backend/kit.py", "", f"legacy {FORWARDERS}", KILLED),
    Place("dataplane/backend/process.py", "", "children seats control turns", f"{KILLED} two_processes"),
    Place("dataplane/renewal.py", "", "renewal", "upgrade"),
    Place("dataplane/upgrade.py", "", "upgrade_told", "upgrade"),
    Place("csrc/lpm.c", "valid|is_behind", "lpm fib_behind fib", "", "fib_damage"),
    Place("csrc/fib_build.c", "", "fib_behind fib native", "", "fib_damage"),
    Place("csrc/encap.c", "", "encap parse", RX, DECAP),
    Place("csrc/parse.c", "^(?!parse_is_bare_ack)", "parse encap icmp offload merge", RX, "address-parse"),
)
# Checks that no pattern finds: (file, function, text, what is made of it).
BY_HAND = (
    ("dataplane/store/etcd.py", "EtcdKeyValue._transact", "compare=[compare]", "compare=[]"),
    (
        "csrc/counters.c",
        "counters_take_turn",
        "!__atomic_compare_exchange_n(word, &turn, turn + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)",
        "(__atomic_store_n(word, turn + 1, __ATOMIC_SEQ_CST), 0)",
    ),
    (
        "csrc/worker.c",
        "round_trip",
        "__atomic_load_n(worker->turn, __ATOMIC_ACQUIRE)",
        "__atomic_load_n(worker->our_turn, __ATOMIC_ACQUIRE)",
    ),
    ("dataplane/succession.py", "put_in_use", "run_dir.spare_socket.exists()", "False"),
    ("dataplane/succession.py", "connect", "reply.state != State.EMPTY", "True"),
)


def _existing(directories: tuple[str, ...], names: str) -> list[str]:
    paths = [f"{directory}/test_{name}.py" for name in names.split() for directory in directories]
    return [path for path in dict.fromkeys(paths) if (ROOT / path).is_file()]


def list_stages(place: Place) -> list[tuple[str, list[list[str]], float]]:
    """Return name, pytest runs and their time limit of each stage, the quickest and likeliest first."""
    near = [[path] for path in _existing(("tests/unit", "tests/property"), place.quick)]
    c_tests = [["tests/c/test_c.py", "-k", name] for name in place.c.split(";") if name]
    e2e = [[path] for path in _existing(("tests/e2e",), place.e2e)]
    return [
        ("near", near, 200.0),
        ("c", c_tests, 300.0),
        ("e2e", e2e, 200.0),
        ("quick", [["tests/unit", "tests/property", "tests/c", *NEVER]], 900.0),
        ("all", [["tests", "-m", "not soak and not alone", *NEVER]], 3000.0),
    ]
