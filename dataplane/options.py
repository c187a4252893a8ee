# SPDX-License-Identifier: Apache-2.0
"""The flags of `overlayd run`, one table: their names, what is said of them, how their text is read."""

from __future__ import annotations

from dataplane import flags as read
from dataplane.flags import Flag
from dataplane.model import ENCAPSULATE, OFFLOADS, OUTER_TTL

STATE_DIR = "/var/lib/overlayd"
STORES = "sqlite:///path, file:///path, etcd and auto"
QUEUES_MAX, SOURCES_MAX = 15, 16
CHATTY = 2  # flannel's --v from which on it tells what is for developers
ETCD_ENDPOINTS = ("http://127.0.0.1:4001", "http://127.0.0.1:2379")
KUBE = "Kubernetes"

FLAGS = (
    Flag("store", "store", "URL", f"where leases are kept: {STORES} (default: auto)", read.anything),
    Flag(
        *("etcd-endpoints", "etcd_endpoints", "URL"),
        f"etcd servers; repeatable (default: {','.join(ETCD_ENDPOINTS)})",
        read.url,
        is_repeatable=True,
        is_flannels=True,
    ),
    Flag(
        *("etcd-prefix", "etcd_prefix", "KEY", "where flannel's keys are (default: /coreos.com/network)"),
        read.key_prefix,
        is_flannels=True,
    ),
    Flag(
        *("etcd-keyfile", "etcd_keyfile", "PATH", "key of our TLS certificate"),
        read.file,
        is_flannels=True,
    ),
    Flag(
        *("etcd-certfile", "etcd_certfile", "PATH", "our TLS certificate"),
        read.file,
        is_flannels=True,
    ),
    Flag(
        *("etcd-cafile", "etcd_cafile", "PATH", "certificates of those who vouch for the servers"),
        read.file,
        is_flannels=True,
    ),
    Flag(
        *("etcd-username", "etcd_username", "NAME", "user of etcd"),
        read.anything,
        is_flannels=True,
    ),
    Flag(
        *("etcd-password", "etcd_password", "TEXT", "password of that user; better in the environment"),
        read.anything,
        is_flannels=True,
    ),
    Flag(
        *("public-ip", "public_ip", "ADDRESS", "our IPv4 underlay address"),
        read.public_ip,
        is_flannels=True,
    ),
    Flag(
        *("public-ipv6", "public_ip6", "ADDRESS", "our IPv6 underlay address"),
        read.public_ip6,
        is_flannels=True,
    ),
    Flag(
        *("iface", "iface", "NAME|ADDRESS"),
        "underlay interface; repeatable, the first that is there (default: the one with our address)",
        read.device_or_address,
        is_repeatable=True,
        is_flannels=True,
    ),
    Flag(
        *("iface-regex", "iface_regex", "PATTERN"),
        "the interface of which an address matches, or else the name; repeatable, after --iface",
        read.pattern,
        is_repeatable=True,
        has_commas=True,
        is_flannels=True,
    ),
    Flag(
        *("iface-can-reach", "iface_can_reach", "ADDRESS"),
        "the interface by which packets to that address leave, after --iface-regex",
        read.any_address,
        is_flannels=True,
    ),
    Flag("run-dir", "run_dir", "PATH", "sockets and lock (default: /run/overlayd)", read.directory),
    Flag("state-dir", "state_dir", "PATH", f"survives a reboot (default: {STATE_DIR})", read.directory),
    Flag(
        *("subnet-file", "subnet_file", "PATH"),
        "tells CNI plugins our subnet (default: /run/flannel/subnet.env)",
        read.directory,
        is_flannels=True,
    ),
    Flag(
        *("subnet-lease-renew-margin", "renew_margin_min", "MINUTES"),
        "renew the lease when this much of it is left, 1 to 1439 (default: 60)",
        read.number(1, 1439, "minutes"),
        is_flannels=True,
    ),
    Flag(
        *("subnet-lease-ttl", "lease_ttl_s", "SECONDS"),
        "how long our lease lasts without renewal, 2 to 31536000 (default: 86400)",
        read.number(2, 31_536_000, "seconds"),
    ),
    Flag("tun-name", "tun_name", "NAME", "the overlay device (default: overlay0)", read.device),
    Flag(
        *("encap", "encap", "vxlan|ipip|udp|host-gw", "take peers of this type too; repeatable"),
        read.encap,
        is_repeatable=True,
    ),
    Flag(
        *("encapsulate", "encapsulate", "|".join(ENCAPSULATE)),
        "which peers get encapsulated packets: all, those that are not on our link, or none "
        "(default: as the network's DirectRouting says)",
        read.one_of(*ENCAPSULATE),
    ),
    Flag(
        *("allow-source", "allow_source", "CIDR", "accept these inner sources too; repeatable"),
        read.prefix,
        is_repeatable=True,
    ),
    Flag(
        *("spoof", "spoof", "enforce|observe"),
        "drop forged sources, or only count them (default: enforce)",
        read.one_of("enforce", "observe"),
    ),
    Flag(
        *("vxlan-reserved", "vxlan_reserved", "drop|ignore"),
        "packets with reserved VXLAN bits (default: drop)",
        read.one_of("drop", "ignore"),
    ),
    Flag(
        *("dscp", "dscp", "pipe|inherit"),
        "DSCP of outer headers: 0, or that of the inner packet (default: pipe)",
        read.one_of("pipe", "inherit"),
    ),
    Flag(
        *("outer-ttl", "outer_ttl", "NUMBER|inherit"),
        f"TTL of outer headers, 1 to 255, or that of the inner packet (default: {OUTER_TTL})",
        read.word_or("inherit", read.number(1, 255, "")),
    ),
    Flag(
        *("no-route", "no_route", "icmp|drop"),
        "answer packets that no peer takes, or not (default: icmp)",
        read.one_of("icmp", "drop"),
    ),
    Flag(
        *("icmp-rate", "icmp_rate", "PER_SECOND"),
        "ICMP errors to pods, at most (default: 1000)",
        read.number(1, 100_000, "errors a second"),
    ),
    Flag(
        *("disable", "disable", "OFFLOAD"),
        f"do without it; repeatable: all, {', '.join(OFFLOADS)}",
        read.offload,
        is_repeatable=True,
    ),
    Flag(
        *("spin-us", "spin_us", "MICROSECONDS"),
        "look for packets that long before sleeping, where it pays (default: 50; 0: never)",
        read.number(0, 1000, "microseconds"),
    ),
    Flag(
        *("threads", "threads", "COUNT"),
        f"carry packets, 1 to {QUEUES_MAX} (default: half of the processors, 1 to 8)",
        read.number(1, QUEUES_MAX, "threads"),
    ),
    Flag(
        *("queues", "queues", "COUNT"),
        f"keep flows apart, 1 to {QUEUES_MAX}, at least one per thread (default: 4)",
        read.number(1, QUEUES_MAX, "queues"),
    ),
    Flag(
        *("source-ports", "source_ports", "COUNT"),
        f"spread flows over that many, 1 to {SOURCES_MAX} (default: 4 on up to 2 processors, else 16)",
        read.number(1, SOURCES_MAX, "ports"),
    ),
    Flag(
        *("datapath", "datapath", "userspace|kernel|auto"),
        "what carries the packets: our forwarder, VXLAN devices of the kernel, or those if it has any "
        "(default: userspace)",
        read.one_of("userspace", "kernel", "auto"),
    ),
    Flag(
        *("forwarder", "forwarder", "spawn|wait"),
        "start a forwarder, or wait for one that somebody else runs (default: spawn)",
        read.one_of("spawn", "wait"),
    ),
    Flag(
        *("spare", "spare", "true|false"),
        "have a second forwarder wait, to take the place of one that ends (default: true)",
        read.switch,
        is_switch=True,
    ),
    Flag(
        *("replace", "replace", "true|false"),
        "take over from an overlayd run that is there, and stand by when another one does (default: false)",
        read.switch,
        is_switch=True,
    ),
    Flag(
        *("takeover", "takeover", "NAME"),
        "take over from this device of flannel's, with its MAC address; repeatable (flannel.1)",
        read.device,
        is_repeatable=True,
    ),
    Flag(
        *("ip-masq", "ip_masq", "true|false", "masquerade what leaves the overlay network (default: false)"),
        read.switch,
        is_switch=True,
        is_flannels=True,
    ),
    Flag(
        *("ip-masq-fully-random-disable", "masq_plain", "true|false"),
        "masquerade without drawing source ports at random (default: false)",
        read.switch,
        is_switch=True,
        is_flannels=True,
    ),
    Flag(
        *("iptables-resync", "rules_resync_s", "SECONDS"),
        "look whether our firewall rules are still there, 1 to 3600 (default: 5)",
        read.number(1, 3600, "seconds"),
        is_flannels=True,
    ),
    Flag(
        *("iptables-forward-rules", "forward_rules", "true|false"),
        "let the firewall forward packets of pods (default: true)",
        read.switch,
        is_switch=True,
        is_flannels=True,
    ),
    Flag(
        *("ip-blackhole-route", "blackhole_route", "true|false"),
        "drop packets to addresses of our subnet that no pod has (default: false)",
        read.switch,
        is_switch=True,
        is_flannels=True,
    ),
    Flag(
        *("guard", "guard", "true|false"),
        "have the firewall drop tunnel packets that are not ours (default: true)",
        read.switch,
        is_switch=True,
    ),
    Flag(
        *("mss-clamp", "mss_clamp", "true|false"),
        "lower the MSS of TCP connections between pods to what their path takes (default: false)",
        read.switch,
        is_switch=True,
    ),
    Flag(
        *("max-peers", "max_peers", "COUNT"),
        "leases of other nodes that count, 1 to 131072; more are refused (default: 65536)",
        read.number(1, 131072, "leases"),
    ),
    Flag(
        *("withdrawal-share", "withdrawal_share", "PERCENT"),
        "hold peers that leave the store if they are more than that part of all, 0 to 100 (default: 20)",
        read.number(0, 100, "percent"),
    ),
    Flag(
        *("withdrawal-count", "withdrawal_count", "COUNT"),
        "and at least so many, 1 to 131072 (default: 5)",
        read.number(1, 131072, "peers"),
    ),
    Flag(
        *("withdrawal-window", "withdrawal_window_s", "SECONDS"),
        "and leave within that time, 1 to 3600 (default: 10)",
        read.number(1, 3600, "seconds"),
    ),
    Flag(
        *("withdrawal-hold", "withdrawal_hold_s", "SECONDS"),
        "so long, and until the store then says the same, 0 to 86400 (default: 30; 0, they go at once)",
        read.number(0, 86400, "seconds"),
    ),
    Flag(
        *("last-state-age", "last_state_age_h", "HOURS"),
        "start from the state of the last run if the store is out of reach, as long as that is no older, "
        "0 to 8760 (default: 168; 0, never)",
        read.number(0, 8760, "hours"),
    ),
    Flag(
        *("path-probes", "path_probes", "true|false"),
        "find paths that lose large packets in silence, by asking peers that are sent much (default: true)",
        read.switch,
        is_switch=True,
    ),
    Flag(
        *("healthz-ip", "healthz_ip", "ADDRESS", "where /healthz and /readyz are served (default: 0.0.0.0)"),
        read.any_address,
        is_flannels=True,
    ),
    Flag(
        *("healthz-port", "healthz_port", "PORT", "port of it, 0 to 65535 (default: 0, nobody listens)"),
        read.number(0, 65535, ""),
        is_flannels=True,
    ),
    Flag(
        *("metrics-ip", "metrics_ip", "ADDRESS", "where /metrics is served (default: 127.0.0.1)"),
        read.any_address,
    ),
    Flag(
        *("metrics-port", "metrics_port", "PORT", "port of it, 0 to 65535 (default: 0, nobody listens)"),
        read.number(0, 65535, ""),
    ),
    Flag(
        *("dry-run", "dry_run", "true|false", "print what would be done, and do nothing (default: false)"),
        read.switch,
        is_switch=True,
    ),
    Flag(
        *(
            "version",
            "version",
            "true|false",
            "print the version on standard error (default: false)",
        ),
        read.switch,
        is_switch=True,
        is_flannels=True,
    ),
    Flag(
        *("log-level", "log_level", "debug|info|warning|error"),
        "least severe event to log (default: info)",
        read.one_of("debug", "info", "warning", "error"),
    ),
    Flag(*("log-format", "log_format", "text|json"), "(default: text)", read.one_of("text", "json")),
    Flag(
        *("v", "verbosity", "NUMBER", f"flannel's: from {CHATTY} on --log-level debug (default: 0)"),
        read.number(0, 100, ""),
        is_flannels=True,
    ),
    Flag(*("vmodule", "", "TEXT", "flannel's; means nothing here"), read.anything, is_flannels=True),
    Flag(*("log_backtrace_at", "", "TEXT", "flannel's; means nothing here"), read.anything, is_flannels=True),
    Flag(
        *("kube-subnet-mgr", "", "false", "take Kubernetes (not supported yet)"),
        read.not_yet(KUBE, "false"),
        is_switch=True,
        is_flannels=True,
    ),
    *(
        Flag(name, "", metavar, "of Kubernetes (not supported yet)", read.not_yet(KUBE), is_flannels=True)
        for name, metavar in (
            ("kube-api-url", "URL"),
            ("kubeconfig-file", "PATH"),
            ("kube-annotation-prefix", "TEXT"),
            ("net-config-path", "PATH"),
            ("set-node-network-unavailable", "true|false"),
        )
    ),
)
ETCD = tuple(flag.name for flag in FLAGS if flag.name.startswith("etcd-"))
