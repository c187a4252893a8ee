# SPDX-License-Identifier: Apache-2.0
"""overlayd: a userspace VXLAN, IPIP and UDP overlay dataplane. This file is the map of both its halves.

Two processes. CONTROL (`overlayd run`, Python, privileged) reads the lease store, decides, opens the TUN
and the sockets, builds the table and sets up the host. The FORWARDER (`overlayd forwarder`, C behind a few
lines of Python, no privilege at all) gets those descriptors and carries packets. They share the table (a
sealed memfd, read-only over there) and the counters (a memfd that outlives either). The forwarder needs
control for nothing once it runs. A second one, the spare, waits and was given nothing: it takes the place of
one that ends or hangs.

Layers. A file may import or include from its own layer or a lower one, never from a higher one, and there
are no cycles. tests/unit/test_source.py reads the two lists below and holds every file to them; a file that
is not listed fails that test.

C, csrc/ (a unit is x.c and x.h):
    L0 wire pkt csum dp               | formats, the only door to packet bytes, the surface Python sees
    L1 parse encap offload icmp lpm   | pure: no descriptor, clock, log, allocation or global
    L1 split merge                    | the same, of super-packets
    L1 spin                           | the same, of time: look again, or sleep?
    L2 fib fib_build fib_layout       | immutable table in a memfd: built by control, looked up by workers
    L2 counters                       | counters in a memfd: one writer a word
    L2 rate                           | token buckets that all workers share; time is an argument
    L3 sys tun underlay underlay_open | system calls of the packet path, feature ladders
    L3 steer                          | which queue of the TUN a flow goes to
    L3 outbox                         | datagrams joined into runs
    L4 scratch proof selftest         | a network of our own, and each offload used once there
    L4 path tx rx                     | one batch each way, functions in the order a packet meets them
    L4 answer deliver                 | what goes to the TUN: ICMP errors, and what came by the underlay
    L5 worker engine                  | threads; start, publish, park, stop
    L6 parcel                         | messages between processes, with descriptors
    L6 ctl confine privilege api      | the forwarder process, what it obeys, its limits, the names of things
    L6 slice                          | how long a thread runs at a time
    L6 probe probe_super probe_spin   | for tests only: lets Python call the pure units
    L6 probe_table                    | the same, of tables

Python, dataplane/ (x/ is a package, with all in it):
    P0 errors model slots             | the exception tree; frozen values; descriptors by number
    P1 flags options config           | parse at the edge: our flags
    P1 flannel alloc                  | flannel's JSON; which subnets are free
    P1 icmp                           | ICMP errors about tunnel packets, read strictly
    P1 kernels cni                    | which kernels are known to be broken; CNI's plugins, from subnet.env
    P2 known lease underlay           | sans-IO: all leases; our own; our addresses
    P2 gate peerids peers             | sans-IO: which leases become peers, under which ids
    P2 pace progress                  | how often a node takes changes up; does it get on?
    P2 withdrawal                     | peers that leave all at once
    P2 reach                          | how they are reached: by a plain route, or encapsulated
    P2 entries choose                 | what the kernel must know of peers, as messages; which datapath
    P2 ruleset clamp                  | what we want of nftables; of it, the MSS of connections
    P2 convergence                    | how long changes take
    P2 rivals                         | IPIP devices of the kernel beside ours
    P2 reconcile repairs              | sans-IO: (events, host facts, now) -> actions; do others undo them?
    P2 softstate                      | sans-IO: what the underlay says of peers, for a while
    P2 moving                         | sans-IO: which change of our addresses is believed, and when
    P2 pathmtu probing                | sans-IO: how much the paths to peers take; what to ask to find out
    P3 store/ netlink native layout   | thin shells: the store, pyroute2, the C engine and its byte layouts
    P3 engine                         | the workers in this process, without a forwarder
    P3 privilege footing              | what a process gives up, and what it stands on
    P3 step                           | wakes that fall together
    P3 grip                           | how another process is ended for sure
    P3 rundir message figures control | the run directory, the two sockets in it, what they carry
    P3 seats succession               | which forwarder is in use and which one waits, and how that changes
    P3 netwatch                       | hears what the kernel tells of changes, and of those that were lost
    P3 vxlan netbatch                 | devices of the kernel, as flannel sets them up
    P3 sysctls devconf                | kernel settings, by /proc/sys or by netlink
    P3 ways routemtu                  | the routes of this host; how much they take
    P3 peerset firewall               | nftables: its sets by messages, the rest by its command
    P3 icmpsocket echo                | hears ICMP errors of the underlay; asks peers by the overlay device
    P3 journal vtep subnetfile        | structured logs; the VTEP MAC address; subnet.env
    P3 laststate                      | what a node knew last, in a file
    P3 memory anew                    | how control does not grow; how a process begins anew
    P3 notify web                     | systemd's protocol; pages by HTTP
    P4 backend/                       | carries out actions: userspace, kernel, plain routes; keeps forwarders
    P5 forwarder daemon lifetime      | the two processes, and one after the other
    P5 leasing                        | what keeps our lease
    P5 endure                         | parts of the daemon that never end
    P5 settings                       | what a backend is to work with
    P5 holding recall                 | what withdrawal and laststate ask for
    P5 hearing                        | which ICMP errors are heard
    P5 paths probes                   | what finds out how much paths to peers take: by listening, by asking
    P5 takeover handover              | where flannel was before us, or will be after us
    P5 hearsay                        | what the underlay says of peers, into the table
    P5 traffic                        | firewall rules and reserved ports of a node
    P5 renewal upgrade                | how one control follows another; `upgrade`
    P5 report health metrics          | what control says of itself, to whom
    P5 reload logsetting rehearsal    | SIGHUP; what is logged; `run --dry-run`
    P5 teardown status ledger         | their end, what is shown of them; `network` and `lease`
    P5 cniconf                        | `cni-conf`
    P6 grammar cli __main__           | the command line

No asyncio, clock, socket or randomness below P3. native.py alone imports _native, netlink.py alone pyroute2.
csrc/dp.h is included by C and fed to cffi as it is: there is no second copy of any constant or struct.

Life of a packet, tx (overlay to underlay; tx.c):
    pod -> kernel route for the whole network -> TUN -> tun_read(), virtio header, placed behind headroom
    -> parse_inner() -> source ours? foreign_source -> fib_subnet(inner destination)? no_peer, ICMP to the pod
       -> larger than the table says that peer takes? too_big, ICMP to the pod
       -> is that peer said to be unreachable? ICMP to the pod, and on
    -> offload_complete() finishes the checksum that the kernel left to us; of a super-packet, split_header()
       writes the headers of each segment, and the payload stays where it was read
    -> encap_vxlan_push() (IPIP and bare UDP need nothing: the socket writes the outer header)
    -> outbox_add(): equal datagrams of one peer become a run that the kernel cuts -> underlay_send()
Life of a packet, rx (underlay to overlay; rx.c):
    underlay_receive(), whose messages may be runs of datagrams; each one:
    -> arrived on the underlay interface, for our address? wrong_iface, outer_dst
    -> fib_peer(outer source)? unknown_vtep
    -> encap_vxlan_pull(): flags, VNI, MACs, ethertype, or a named drop; bare UDP has nothing to take off
    -> parse_inner() -> encap_decap_ecn(), RFC 6040
    -> inner source is that peer's? spoofed -> inner destination is ours? not_ours
    -> deliver_packet(): packets that could have been cut from one are that again -> tun_write_pieces()
    -> others: offload_describe(), if a kernel peer on this machine left checksum or cutting to us
       -> tun_write(), or write_cut() where the TUN takes no super-packets
    -> kernel -> pod

Life of a lease (where nodes take their subnets themselves):
    store (revisions, compare-and-swap) -> registry: flannel's keys and values, or a reason -> events
    -> Lessee: what is ours? one operation at a time, which relies on a revision -> leasing -> store
    -> refuse(), find_collisions(): which of the others may be peers -> Reconciler -> table, host, subnet.env

Conservation. Offered is counted where the read returned, forwarded where the write succeeded, and every
packet in between ends in exactly one value of `enum dp_drop`: offered = forwarded + drops, exactly, in each
direction. docs/counters.md says what each reason means and what to do.
"""

VERSION = "0.1.0"
