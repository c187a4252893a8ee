# SPDX-License-Identifier: Apache-2.0
"""What `overlayd status` and `overlayd peers` show people, letter by letter."""

from __future__ import annotations

from typing import Any

import pytest

from dataplane.status import exit_code, peers_text, span, status_text


def peer(**changes: object) -> dict[str, Any]:
    """Return a peer of the status with some fields changed."""
    return {
        "id": 0,
        "subnet": "10.244.2.0/24",
        "public_ip": "192.0.2.2",
        "vtep_mac": "02:00:00:00:00:02",
        "encap": "vxlan",
        "refused": None,
        "tx_packets": 12,
        "tx_bytes": 1200,
        "rx_packets": 3456,
        "rx_bytes": 345600,
        "drops": {},
        **changes,
    }


REFUSED = peer(
    id=None,
    subnet="10.244.3.0/24&fd00:244:0:3::/64",
    public_ip="192.0.2.3",
    vtep_mac=None,
    refused="it has no VtepMAC",
    tx_packets=0,
    rx_packets=0,
)


def way(forwarded: int = 0, **drops: tuple[int, str | None, float] | int) -> dict[str, Any]:
    """Return the counters of a direction; a drop is a count, or a count, an address and its age."""
    counts = {name: drop if isinstance(drop, int) else drop[0] for name, drop in drops.items()}
    return {
        "offered": forwarded + sum(counts.values()),
        "forwarded": forwarded,
        "bytes": 0,
        "drops": counts,
        "last": {
            name: {"address": drop[1], "age_s": drop[2]}
            for name, drop in drops.items()
            if not isinstance(drop, int)
        },
    }


def status(**changes: object) -> dict[str, Any]:
    """Return the status of a healthy node with some fields changed."""
    return {
        "ready": True,
        "reason": "",
        "node": "node1",
        "tier": "full but tun-csum, tun-uso",
        "offloads": {"tun-csum": "off: --disable", "tun-uso": "off: needs tun-csum", "mmsg": "on"},
        "encap": "vxlan",
        "vni": 1,
        "port": 8472,
        "subnet": "10.244.1.0/24",
        "mtu": 1450,
        "tun": "overlay0",
        "underlay": {"iface": "eth0", "address": "192.0.2.1", "mtu": 1500},
        "store": {"url": "file:///etc/overlayd/peers.json", "revision": 7, "age_s": 42.0, "error": None},
        "forwarder": {
            "pid": 10,
            "alive": True,
            "uptime_s": 11220.0,
            "restarts": 0,
            "state": "running",
            "spare": None,
        },
        "control": {"pid": 9, "uptime_s": 240.0},
        "tx": way(12),
        "rx": way(3456),
        "spoof_observed": 0,
        "icmp": {"sent": 0, "limited": 0},
        "kernel": {"tun_tx_dropped": 0, "rxq_overflow": {"udp4": 0, "udp6": 0, "raw4": 0, "bare4": 0}},
        "warnings": [],
        "peers": [peer()],
        **changes,
    }


HEAD = (
    "node1 READY  userspace vxlan vni 1 port 8472"
    " · tier full but tun-csum, tun-uso (--disable)"
    " · forwarder 3h07 · control 4 min · store file rev 7, 42 s ago"
)
NETWORK = "subnet 10.244.1.0/24 · eth0 192.0.2.1 mtu 1500 → pods 1450 · peers 1/1 · refused 0"
TRAFFIC = "tx 12 = 12 forwarded + 0 · rx 3456 = 3456 forwarded + 0"


def test_ready() -> None:
    """A healthy node is three lines."""
    assert status_text(status()) == "\n".join((HEAD, NETWORK, TRAFFIC))


def test_nothing_known() -> None:
    """While both processes are dead, what is not known is left out."""
    text = status_text(
        status(
            ready=False,
            reason="control is not running",
            node=None,
            tier=None,
            encap=None,
            subnet=None,
            underlay=None,
            store=None,
            forwarder={"pid": None, "alive": False, "uptime_s": None, "restarts": 0, "state": "none"},
            control={"pid": None, "uptime_s": None},
            tx=way(),
            rx=way(),
            peers=[],
        )
    )
    assert text == (
        "this node NOT READY (control is not running) · forwarder dead · control dead\n"
        "peers 0/0 · refused 0\n"
        "tx 0 = 0 forwarded + 0 · rx 0 = 0 forwarded + 0"
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        pytest.param(
            {"ready": False, "reason": "waiting for the store"},
            "node1 NOT READY (waiting for the store)  userspace vxlan vni 1 port 8472" + HEAD[44:],
            id="not ready",
        ),
        pytest.param({"node": None}, HEAD.replace("node1", "this node"), id="no name"),
        pytest.param(
            {"encap": "ipip"},
            HEAD.replace("vxlan vni 1 port 8472", "ipip"),
            id="ipip has neither VNI nor port",
        ),
        pytest.param(
            {"encap": "flannel-udp", "port": 8285},
            HEAD.replace("vxlan vni 1 port 8472", "flannel-udp port 8285"),
            id="udp has a port",
        ),
        pytest.param(
            {"vni": None, "port": None},
            HEAD.replace("vxlan vni 1 port 8472", "vxlan"),
            id="no forwarder was told VNI and port yet",
        ),
        pytest.param(
            {"forwarder": {"alive": True, "uptime_s": 1.25, "restarts": 2}},
            HEAD.replace("forwarder 3h07", "forwarder 1.2 s (2 restarts)"),
            id="restarts",
        ),
        pytest.param(
            {"forwarder": {"alive": False, "uptime_s": None, "restarts": 0}},
            HEAD.replace("forwarder 3h07", "forwarder dead"),
            id="forwarder dead",
        ),
        pytest.param(
            {"control": {"pid": None, "uptime_s": None}},
            HEAD.replace("control 4 min", "control dead"),
            id="control dead",
        ),
        pytest.param(
            {"store": {"url": "file:///x", "revision": None}},
            HEAD.removesuffix(" · store file rev 7, 42 s ago"),
            id="no revision yet",
        ),
        pytest.param(
            {"store": {"url": "file:///x", "revision": 1}},
            HEAD.replace("rev 7, 42 s ago", "rev 1, ? ago"),
            id="age unknown",
        ),
    ],
)
def test_head(changes: dict[str, object], line: str) -> None:
    """The first line says whether the node is ready, and how old its parts are."""
    assert status_text(status(**changes)).splitlines()[0] == line


def test_refused_peers_are_counted() -> None:
    """The second line tells how many leases became peers."""
    text = status_text(status(peers=[peer(), REFUSED, REFUSED]))
    assert text.splitlines()[1].endswith("peers 1/3 · refused 2")


@pytest.mark.parametrize(
    ("tx", "rx", "line"),
    [
        pytest.param(
            way(5, no_route=(2, "10.244.9.9", 3.0)),
            way(7, spoof=(1, "203.0.113.9", 95.0)),
            "tx 7 = 5 forwarded + 2: no_route 2 (last to 10.244.9.9, 3.0 s ago)"
            " · rx 8 = 7 forwarded + 1: spoof 1 (last from 203.0.113.9, 1 min ago)",
            id="last offender",
        ),
        pytest.param(
            way(),
            way(0, short=(4, None, 10.4), other=1),
            "tx 0 = 0 forwarded + 0 · rx 5 = 0 forwarded + 5: short 4 (last 10 s ago), other 1",
            id="offender without address",
        ),
        pytest.param(
            way(),
            way(0, a=(1, "192.0.2.1", 1.0), b=(4, "192.0.2.2", 2.0), c=(3, "::1", 3.0), d=(2, "::2", 4.0)),
            "tx 0 = 0 forwarded + 0 · rx 10 = 0 forwarded + 10: b 4 (last from 192.0.2.2, 2.0 s ago),"
            " c 3 (last from ::1, 3.0 s ago), d 2 (last from ::2, 4.0 s ago), a 1",
            id="most frequent first, three offenders",
        ),
    ],
)
def test_drops(tx: dict[str, Any], rx: dict[str, Any], line: str) -> None:
    """The third line tells of each packet what became of it, and who caused most of the drops last."""
    assert status_text(status(tx=tx, rx=rx)).splitlines()[2] == line


def test_warnings() -> None:
    """What needs attention follows, a line each, marked."""
    text = status_text(
        status(
            kernel={"tun_tx_dropped": 3, "rxq_overflow": {"udp4": 5, "udp6": 0, "raw4": 1, "bare4": 0}},
            spoof_observed=9,
            store={"url": "file:///x", "revision": 7, "age_s": 42.0, "error": "peers.json line 3: bad"},
            warnings=["ip_forward is off", "second"],
        )
    )
    assert text.splitlines()[3:] == [
        "!  TUN queue was full: the kernel dropped 3 packets before we saw them",
        "!  udp4 socket buffer was full: the kernel dropped 5 packets before we saw them",
        "!  raw4 socket buffer was full: the kernel dropped 1 packets before we saw them",
        "!  9 forged packets let pass (--spoof observe)",
        "!  store: peers.json line 3: bad",
        "!  ip_forward is off",
        "!  second",
    ]


def test_guard() -> None:
    """What the firewall dropped is told, each reason with its name; what it did not, is not."""
    lines = status_text(status(guard={"laundered": 3, "strangers": 0})).splitlines()
    assert (
        lines[-1]
        == "!  the firewall dropped 3 tunnel packets: neither from the underlay nor from us (laundered)"
    )
    assert "firewall" not in status_text(status(guard={}))


def test_store_error_is_said_once() -> None:
    """Control puts the error of its store among the warnings too; people read it once."""
    store = {"url": "file:///x", "revision": 7, "age_s": 42.0, "error": "peers.json line 3: bad"}
    text = status_text(status(store=store, warnings=["store: peers.json line 3: bad", "second"]))
    assert text.splitlines()[3:] == ["!  store: peers.json line 3: bad", "!  second"]


def test_peers() -> None:
    """Peers are a table whose columns are as wide as need be, numbers to the right."""
    rows = [
        peer(),
        peer(id=11, public_ip="2001:db8::4", encap="ipip", vtep_mac=None, drops={"spoof": 2, "ttl": 1}),
    ]
    assert peers_text(status(peers=[*rows, REFUSED])) == (
        "ID  SUBNET                           PUBLIC IP    VTEP MAC           ENCAP  TX    RX  DROPS\n"
        " 0  10.244.2.0/24                    192.0.2.2    02:00:00:00:00:02  vxlan  12  3456  -\n"
        "11  10.244.2.0/24                    2001:db8::4  -                  ipip   12  3456"
        "  spoof 2, ttl 1\n"
        " -  10.244.3.0/24&fd00:244:0:3::/64  192.0.2.3    -                  vxlan   0     0"
        "  refused: it has no VtepMAC"
    )


def test_no_peers() -> None:
    """Without peers there is only the head of the table."""
    assert peers_text(status(peers=[])) == "ID  SUBNET  PUBLIC IP  VTEP MAC  ENCAP  TX  RX  DROPS"


def test_peers_all() -> None:
    """Unreadable leases are counted, and shown with our own by --all; a peer past its time is stale."""
    unreadable = peer(
        id=None, subnet="node-b", public_ip=None, vtep_mac=None, encap=None, refused="no subnet"
    )
    stale = peer(expires_in_s=-61.0, drops={"spoof": 2})
    found = status(peers=[peer(expires_in_s=60.0), stale, unreadable])
    lines = peers_text(found).splitlines()
    assert [line.rpartition("  ")[2] for line in lines[1:3]] == ["-", "stale: expired 1 min ago, spoof 2"]
    assert lines[3:] == ["1 unreadable: overlayd peers --all"]
    assert [line.split() for line in peers_text(found, has_all=True).splitlines()[1:]] == [
        *(["-", "10.244.1.0/24", "192.0.2.1", "-", "vxlan", "-", "-", "our", "own"], lines[1].split()),
        *(lines[2].split(), ["-", "node-b", "-", "-", "-", "12", "3456", "refused:", "no", "subnet"]),
    ]


def test_path_mtu() -> None:
    """A path that takes less is shown, with who says so, before anything else of that peer."""
    path = {"mtu": 1300, "source": "icmp", "expires_in_s": 9.0}
    text = peers_text(status(peers=[peer(path=path, drops={"too_big": 2}), peer(path=None)]))
    assert [line.rpartition("  ")[2] for line in text.splitlines()[1:]] == [
        "path MTU 1300 (icmp), too_big 2",
        "-",
    ]


@pytest.mark.parametrize(
    ("expires_in_s", "renews_in_s", "text"),
    [
        pytest.param(86399.0, 82799.0, " (lease renews in 22h59, expires in 23h59)", id="held"),
        pytest.param(3000.0, -600.0, " (lease to be renewed, expires in 50 min)", id="due"),
        pytest.param(-5.0, -3605.0, " (lease expired 5.0 s ago)", id="expired"),
        pytest.param(None, None, " (reserved)", id="reserved"),
    ],
)
def test_lease(expires_in_s: float | None, renews_in_s: float | None, text: str) -> None:
    """The life of our lease stands behind our subnet."""
    lease = {"key": "x", "revision": 1, "expires_in_s": expires_in_s, "renews_in_s": renews_in_s}
    line = status_text(status(lease=lease)).splitlines()[1]
    assert line == NETWORK.replace("10.244.1.0/24", f"10.244.1.0/24{text}")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"),
        (0, "0.0 s"),
        (0.14, "0.1 s"),
        (9.94, "9.9 s"),
        (10.9, "10 s"),
        (10, "10 s"),
        (59.4, "59 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1h00"),
        (11220, "3h07"),
        (86399, "23h59"),
        (86400, "1d00h"),
        (360000, "4d04h"),
    ],
)
def test_span(seconds: float | None, text: str) -> None:
    """A time span is short; from 10 s on what is not shown is cut off."""
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("limited", "text"),
    [(0, "7 ICMP errors to pods"), (12, "7 ICMP errors to pods, 12 more were too many (--icmp-rate)")],
)
def test_icmp(limited: int, text: str) -> None:
    """What pods were told of is counted, as is what they were not."""
    assert status_text(status(icmp={"sent": 7, "limited": limited})).splitlines()[3:] == [text]


def test_unreachable_peer() -> None:
    """A peer that is said to be unreachable has a word about who said it, and when."""
    said = {"by": "198.51.100.9", "says": "host unreachable", "age_s": 3.4}
    line = peers_text(status(peers=[peer(unreachable=said)])).splitlines()[1]
    assert "  unreachable, as 198.51.100.9 said 3.4 s ago: host unreachable" in line


@pytest.mark.parametrize(("ready", "code"), [(True, 0), (False, 1)])
def test_exit_code(ready: bool, code: int) -> None:
    """`overlayd status` succeeds when the node is ready."""
    assert exit_code(status(ready=ready)) == code
