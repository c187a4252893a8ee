/* SPDX-License-Identifier: Apache-2.0 */
/*
 * judged.c - what deviates in one thing is dropped for that, alone or in a run, and the next good packet passes.
 *
 *     judged [SCENARIO]                without one, all of them
 */
#include <errno.h>

#include "paths.h"

enum { TIER = DP_TIER_MMSG | DP_TIER_TUN_VNET | DP_TIER_TUN_GRO | DP_TIER_TUN_UGRO, RUN = 10, PAYLOAD = 100 };

/**
 * queue_run() - Let a run of TCP packets that can be joined wait, in one message
 * @peer:	Who sends
 * @source:	Whose pod it is, they say
 * @first:	Number of its first packet in the flow
 */
static void queue_run(uint8_t peer, uint8_t source, uint16_t first)
{
	static uint8_t inner[PACKET_ROOM], message[PKT_MAX];
	struct sketch sketch = {.family = 4, .proto = PROTO_TCP, .peer = source, .port = 1, .payload = PAYLOAD};
	uint32_t used = 0, size = 0;

	for (uint16_t i = 0; i < RUN; i++) {
		sketch.id = first + i;
		sketch.seq = sketch.id * sketch.payload;
		size = packet_vxlan(message + used, inner, sketch_packet(inner, &sketch, false));
		used += size;
	}
	kernel_queue(message, used, size, SKETCH_VTEP + peer);
}

/**
 * carry_all() - Carry what waits
 * @slot:	Where
 */
static void carry_all(uint32_t slot)
{
	while (rx_run(&lab.path, slot, PATHS_ALL))
		;
}

/**
 * send_run() - Let a run of TCP packets come from a peer, and carry it
 * @peer:	Who sends
 * @source:	Whose pod it is, they say
 */
static void send_run(uint8_t peer, uint8_t source)
{
	queue_run(peer, source, 0);
	carry_all(DP_FD_UDP4);
}

/**
 * spoofed_run() - A run of forged packets: each is dropped and counted at who sent it, and a good run passes
 */
static void spoofed_run(void)
{
	paths_open(TIER, 0);
	send_run(1, 2);
	CHECK(lab.counters.drops[DP_RX][DP_DROP_SPOOFED] == RUN && lab.peers[1].drops[DP_DROP_SPOOFED] == RUN);
	CHECK(!lab.counters.forwarded[DP_RX] && !lab.counters.observed);
	send_run(1, 1);
	CHECK(paths_drops(DP_RX) == RUN && lab.counters.forwarded[DP_RX] == RUN);
	CHECK(kernel.supers == 1); /* joined, and so looked at once */
	paths_close(DP_RX);
}

/**
 * observed_run() - Where forged packets are let pass, each packet of a run is counted, though they are joined
 */
static void observed_run(void)
{
	paths_open(TIER, 0);
	lab.config.spoof_observe = 1;
	send_run(1, 2);
	CHECK(lab.counters.observed == RUN && lab.counters.forwarded[DP_RX] == RUN && !paths_drops(DP_RX));
	send_run(1, 1);
	CHECK(lab.counters.observed == RUN && lab.counters.forwarded[DP_RX] == 2 * RUN);
	paths_close(DP_RX);
}

/**
 * following_run() - Forged packets that go on where a good flow of another pod ended do not get into it
 */
static void following_run(void)
{
	paths_open(TIER, 0);
	queue_run(1, 1, 0);
	queue_run(1, 2, RUN - 1); /* one is dropped before the next in order comes */
	carry_all(DP_FD_UDP4);
	CHECK(lab.counters.drops[DP_RX][DP_DROP_SPOOFED] == RUN && lab.counters.forwarded[DP_RX] == RUN);
	paths_close(DP_RX);
}

/**
 * tiny_run() - Datagrams too short for any packet, in one message: each is dropped, and a good run passes
 */
static void tiny_run(void)
{
	static const uint8_t message[2 * VXLAN_PUSH];

	paths_open(TIER, 0);
	for (uint32_t size = 1; size < VXLAN_PUSH; size++) {
		uint64_t before = lab.counters.drops[DP_RX][DP_DROP_SHORT];

		kernel_queue(message, 2 * size, size, SKETCH_VTEP + 1);
		carry_all(DP_FD_UDP4);
		CHECK(lab.counters.drops[DP_RX][DP_DROP_SHORT] == before + 2);
	}
	send_run(1, 1);
	CHECK(lab.counters.drops[DP_RX][DP_DROP_SHORT] == paths_drops(DP_RX));
	CHECK(lab.counters.forwarded[DP_RX] == RUN && paths_drops(DP_RX) == lab.peers[1].drops[DP_DROP_SHORT]);
	paths_close(DP_RX);
}

/* --- one packet after the other ------------------------------------------------------- */

enum { PATCH = 14, V = VXLAN_PUSH, I = IP4_LEN };

/* A good packet of peer 1, how it deviates, and what must become of it. */
struct bad {
	enum dp_drop drop;
	uint32_t slot;    /* where it comes from */
	uint32_t at, len; /* which bytes differ: of a message, or of a packet of a pod */
	uint8_t bytes[PATCH];
	uint32_t cut;    /* its length; 0: whole */
	uint32_t from;   /* which peer's address it comes from; 0: the right one */
	uint32_t family; /* of the inner packet; 0: 4 */
	bool is_empty;
	bool is_unrepaired; /* the inner checksum is left wrong */
};

static const struct bad received[] = {
	{.drop = DP_DROP_UNKNOWN_VTEP, .slot = DP_FD_UDP4, .from = 9},
	{.drop = DP_DROP_SHORT, .slot = DP_FD_UDP4, .cut = VXLAN_PUSH - 1},
	{.drop = DP_DROP_VXLAN_FLAGS, .slot = DP_FD_UDP4, .at = 0, .len = 1, .bytes = {0}},
	{.drop = DP_DROP_VXLAN_FLAGS, .slot = DP_FD_UDP4, .at = 1, .len = 1, .bytes = {1}},
	{.drop = DP_DROP_VXLAN_FLAGS, .slot = DP_FD_UDP4, .at = 7, .len = 1, .bytes = {1}},
	{.drop = DP_DROP_VNI, .slot = DP_FD_UDP4, .at = 6, .len = 1, .bytes = {0xff}},
	{.drop = DP_DROP_ETHERTYPE, .slot = DP_FD_UDP4, .at = 20, .len = 2, .bytes = {0x08, 0x06}},
	{.drop = DP_DROP_INNER_MAC, .slot = DP_FD_UDP4, .at = 8, .len = 1, .bytes = {0x06}},
	{.drop = DP_DROP_INNER_MAC, .slot = DP_FD_UDP4, .at = 8, .len = 6, .bytes = {0x02, 0x4f, 0, 0, 6, 1}},
	{.drop = DP_DROP_INNER_MAC, .slot = DP_FD_UDP4, .at = 14, .len = 1, .bytes = {0x03}},
	{.drop = DP_DROP_INNER_MAC, .slot = DP_FD_UDP4, .at = 14, .len = 6, .bytes = {0}},
	{.drop = DP_DROP_INNER_MAC, .slot = DP_FD_UDP4, .at = 14, .len = 6, .bytes = {0x02, 0x4f, 0, 0, 4, 1}},
	{.drop = DP_DROP_INNER_VERSION,
	 .slot = DP_FD_UDP4,
	 .at = 8,
	 .len = 14,
	 .bytes = {0x02, 0x4f, 0, 0, 6, 1, 0x02, 0x4f, 0, 0, 4, 2, 0x86, 0xdd}},
	{.drop = DP_DROP_INNER_VERSION, .slot = DP_FD_UDP4, .at = V, .len = 1, .bytes = {0x55}},
	{.drop = DP_DROP_INNER_HEADER, .slot = DP_FD_UDP4, .at = V, .len = 1, .bytes = {0x44}},
	{.drop = DP_DROP_INNER_LENGTH, .slot = DP_FD_UDP4, .at = V + 2, .len = 1, .bytes = {0x40}},
	{.drop = DP_DROP_INNER_CSUM,
	 .slot = DP_FD_UDP4,
	 .at = V + 4,
	 .len = 2,
	 .bytes = {0xab, 0xcd},
	 .is_unrepaired = true},
	{.drop = DP_DROP_INNER_TTL, .slot = DP_FD_UDP4, .at = V + 8, .len = 1, .bytes = {0}},
	{.drop = DP_DROP_MARTIAN, .slot = DP_FD_UDP4, .at = V + 12, .len = 4, .bytes = {127, 0, 0, 1}},
	{.drop = DP_DROP_MULTICAST, .slot = DP_FD_UDP4, .at = V + 16, .len = 4, .bytes = {224, 0, 0, 1}},
	{.drop = DP_DROP_SPOOFED, .slot = DP_FD_UDP4, .at = V + 12, .len = 4, .bytes = {10, 0, 2, 5}},
	{.drop = DP_DROP_SPOOFED, .slot = DP_FD_UDP4, .at = V + 12, .len = 4, .bytes = {192, 0, 2, 102}},
	{.drop = DP_DROP_SPOOFED, .slot = DP_FD_UDP4, .at = V + 12, .len = 4, .bytes = {10, 244, 1, 9}},
	{.drop = DP_DROP_SPOOFED, .slot = DP_FD_UDP4, .at = V + 12, .len = 4, .bytes = {198, 51, 100, 1}},
	{.drop = DP_DROP_NOT_OURS, .slot = DP_FD_UDP4, .at = V + 16, .len = 4, .bytes = {10, 0, 2, 5}},
	{.drop = DP_DROP_UNKNOWN_VTEP, .slot = DP_FD_RAW4, .from = 9},
	{.drop = DP_DROP_OUTER_DST, .slot = DP_FD_RAW4, .at = 19, .len = 1, .bytes = {2}},
	{.drop = DP_DROP_SHORT, .slot = DP_FD_RAW4, .cut = IP4_LEN - 1},
	{.drop = DP_DROP_SHORT, .slot = DP_FD_RAW4, .cut = IP4_LEN},
	{.drop = DP_DROP_SHORT, .slot = DP_FD_RAW4, .at = 0, .len = 1, .bytes = {0x44}},
	{.drop = DP_DROP_SHORT, .slot = DP_FD_RAW4, .at = 0, .len = 1, .bytes = {0x4f}, .cut = 40},
	{.drop = DP_DROP_ECN, .slot = DP_FD_RAW4, .at = 1, .len = 1, .bytes = {3}},
	{.drop = DP_DROP_NESTED, .slot = DP_FD_RAW4, .at = I + 9, .len = 1, .bytes = {4}},
	{.drop = DP_DROP_NESTED, .slot = DP_FD_RAW4, .at = I + 9, .len = 1, .bytes = {41}},
	{.drop = DP_DROP_INNER_VERSION, .slot = DP_FD_RAW4, .family = 6},
	{.drop = DP_DROP_SPOOFED, .slot = DP_FD_RAW4, .at = I + 12, .len = 4, .bytes = {10, 0, 2, 5}},
	{.drop = DP_DROP_SHORT, .slot = DP_FD_BARE4, .is_empty = true},
	{.drop = DP_DROP_INNER_VERSION, .slot = DP_FD_BARE4, .family = 6},
	{.drop = DP_DROP_SPOOFED, .slot = DP_FD_BARE4, .at = 12, .len = 4, .bytes = {10, 0, 2, 5}},
	/* and good ones */
	{.drop = DP_DROP_NONE, .slot = DP_FD_UDP4, .at = V + 12, .len = 4, .bytes = {192, 0, 2, 101}},
	{.drop = DP_DROP_NONE, .slot = DP_FD_UDP4, .at = V + 12, .len = 4, .bytes = {203, 0, 113, 7}},
	{.drop = DP_DROP_NONE, .slot = DP_FD_RAW4, .at = 1, .len = 1, .bytes = {2}},
};

/**
 * receive_one() - Let a tunnel packet come, and carry it
 * @bad:	How it deviates from a good one
 */
static void receive_one(const struct bad *bad)
{
	static uint8_t inner[PACKET_ROOM], message[PACKET_ROOM];
	struct sketch sketch = {.family = bad->family ? (uint8_t)bad->family : 4, .proto = PROTO_UDP, .peer = 1};
	uint32_t at = bad->slot == DP_FD_UDP4 ? V : bad->slot == DP_FD_RAW4 ? I : 0, len;

	sketch.payload = 100;
	len = sketch_packet(inner, &sketch, false);
	if (bad->slot == DP_FD_BARE4) {
		memcpy(message, inner, len);
	} else if (bad->slot == DP_FD_UDP4) {
		len = packet_vxlan(message, inner, len);
	} else {
		len = packet_ipip(message, inner, len);
		store32(message + IP4_SRC, SKETCH_VTEP + 1);
		store32(message + IP4_DST, SKETCH_OWN);
	}
	memcpy(message + bad->at, bad->bytes, bad->len);
	len = bad->is_empty ? 0 : bad->cut ? bad->cut : len;
	if (!bad->is_unrepaired && len > at)
		packet_repair(message + at, len - at);
	kernel_queue(message, len, 0, SKETCH_VTEP + (bad->from ? bad->from : 1));
	carry_all(bad->slot);
}

/**
 * check_received() - What deviates is dropped for that, and a good one then passes
 * @bad:	How it deviates
 * @drop:	For what
 */
static void check_received(const struct bad *bad, enum dp_drop drop)
{
	const struct bad good = {.slot = bad->slot};
	bool is_good = drop == DP_DROP_NONE;

	receive_one(bad);
	CHECK(lab.counters.offered[DP_RX] == 1 && lab.counters.forwarded[DP_RX] == is_good);
	CHECK(paths_drops(DP_RX) == !is_good && (is_good || lab.counters.drops[DP_RX][drop] == 1));
	lab.config.underlay_ifindex = KERNEL_IFINDEX;
	lab.config.underlay4.bytes[3] = 1;
	kernel.is_cut = false;
	receive_one(&good);
	CHECK(lab.counters.forwarded[DP_RX] == 1U + is_good && kernel.log->count == 1U + is_good);
	paths_close(DP_RX);
}

/**
 * judged_received() - Tunnel packets that deviate in one thing each
 */
static void judged_received(void)
{
	static const struct bad good = {.slot = DP_FD_UDP4};

	for (uint32_t i = 0; i < sizeof(received) / sizeof(*received); i++) {
		paths_open(TIER, 0);
		check_received(&received[i], received[i].drop);
	}
	paths_open(TIER, 0);
	lab.config.underlay_ifindex++;
	check_received(&good, DP_DROP_WRONG_IFACE);
	paths_open(TIER, 0);
	lab.config.underlay4.bytes[3]++;
	check_received(&good, DP_DROP_OUTER_DST);
	paths_open(TIER, 0);
	kernel.is_cut = true;
	check_received(&good, DP_DROP_TRUNCATED);
}

/* What a system call may say, and as what it is counted. */
struct failure {
	int err;
	enum dp_drop drop;
};

/**
 * judged_delivered() - Errors of the write to the TUN are told apart
 */
static void judged_delivered(void)
{
	static const struct failure failures[] = {
		{EIO, DP_DROP_TUN_DOWN},     {EBADFD, DP_DROP_TUN_DOWN}, {EAGAIN, DP_DROP_TUN_FULL},
		{ENOBUFS, DP_DROP_TUN_FULL}, {ENOMEM, DP_DROP_TUN_FULL}, {EINVAL, DP_DROP_TUN_ERROR},
	};
	static const struct bad good = {.slot = DP_FD_UDP4};

	for (uint32_t i = 0; i < sizeof(failures) / sizeof(*failures); i++) {
		paths_open(TIER, 0);
		kernel.once_error = failures[i].err;
		check_received(&good, failures[i].drop);
	}
}

static const struct bad sent[] = {
	{.drop = DP_DROP_INNER_VERSION, .len = 1, .bytes = {0x55}},
	{.drop = DP_DROP_INNER_TTL, .at = 8, .len = 1, .bytes = {0}},
	{.drop = DP_DROP_MULTICAST, .at = 16, .len = 4, .bytes = {224, 0, 0, 1}},
	{.drop = DP_DROP_FOREIGN_SOURCE, .at = 12, .len = 4, .bytes = {10, 0, 2, 5}},
	{.drop = DP_DROP_NO_PEER, .at = 16, .len = 4, .bytes = {10, 0, 99, 5}},
	{.drop = DP_DROP_LOOP, .at = 16, .len = 4, .bytes = {192, 0, 2, 103}},
	{.drop = DP_DROP_NONE, .at = 16, .len = 4, .bytes = {10, 0, 3, 5}},
};

/**
 * send_one() - Let a pod send a packet, and carry it
 * @bad:	How it deviates from a good one
 * @vnet:	What the kernel says of it
 */
static void send_one(const struct bad *bad, struct vnet_hdr vnet)
{
	static uint8_t room[KERNEL_VNET + PACKET_ROOM];
	struct sketch sketch = {.family = bad->family ? (uint8_t)bad->family : 4, .proto = PROTO_UDP, .peer = 1};
	uint32_t len;

	sketch.payload = 100;
	len = sketch_packet(room + KERNEL_VNET, &sketch, true);
	memcpy(room + KERNEL_VNET + bad->at, bad->bytes, bad->len);
	packet_repair(room + KERNEL_VNET, len);
	memcpy(room, &vnet, sizeof(vnet));
	kernel_queue(room, KERNEL_VNET + len, 0, 0);
	CHECK(tx_run(&lab.path, KERNEL_TUN, PATHS_ALL) > 0);
}

/**
 * check_sent() - What deviates is dropped for that, a pod told if it is to be told, and a good one then passes
 * @bad:	How it deviates
 * @vnet:	What the kernel says of it
 * @drop:	For what it is dropped
 */
static void check_sent(const struct bad *bad, struct vnet_hdr vnet, enum dp_drop drop)
{
	static const struct bad good;
	bool is_good = drop == DP_DROP_NONE, is_told = drop == DP_DROP_NO_PEER || drop == DP_DROP_NO_ENCAP;

	lab.config.icmp_per_s = lab.config.icmp_burst = 100;
	lab.path.now_ns = 1000000000000;
	send_one(bad, vnet);
	CHECK(lab.counters.offered[DP_TX] == 1 && lab.counters.forwarded[DP_TX] == is_good);
	CHECK(paths_drops(DP_TX) == !is_good && (is_good || lab.counters.drops[DP_TX][drop] == 1));
	if (drop == DP_DROP_UNREACHABLE)
		is_told = lab.counters.icmp_sent; /* answers.c knows when */
	CHECK(lab.counters.icmp_sent == is_told);
	lab.config.encaps = packet_config.encaps;
	lab.fds[DP_FD_UDP4_TX] = KERNEL_UDP_TX;
	kernel.peer_error = 0;
	send_one(&good, (struct vnet_hdr){0});
	CHECK(lab.counters.forwarded[DP_TX] == 1U + is_good && kernel.log->count == 1U + is_good + is_told);
	paths_close(DP_TX);
}

/**
 * judged_sent() - Packets of pods that deviate in one thing each, and sends that fail
 */
static void judged_sent(void)
{
	static const struct failure failures[] = {
		{EAGAIN, DP_DROP_SEND_FULL},        {ENOBUFS, DP_DROP_SEND_FULL},
		{ENOMEM, DP_DROP_SEND_FULL},        {EMSGSIZE, DP_DROP_TOO_BIG},
		{ENETUNREACH, DP_DROP_UNREACHABLE}, {EHOSTUNREACH, DP_DROP_UNREACHABLE},
		{ENETDOWN, DP_DROP_UNREACHABLE},    {EHOSTDOWN, DP_DROP_UNREACHABLE},
		{ENODEV, DP_DROP_UNREACHABLE},      {EPERM, DP_DROP_SEND_DENIED},
		{EACCES, DP_DROP_SEND_DENIED},      {EBADF, DP_DROP_SEND_ERROR},
	};
	static const struct vnet_hdr none, contradiction = {.flags = VNET_NEEDS_CSUM, .csum_start = 4};
	static const struct bad good;

	for (uint32_t i = 0; i < sizeof(sent) / sizeof(*sent); i++) {
		paths_open(TIER, 0);
		check_sent(&sent[i], none, sent[i].drop);
	}
	for (uint32_t i = 0; i < sizeof(failures) / sizeof(*failures); i++) {
		paths_open(TIER, 0);
		kernel.peer_error = failures[i].err;
		check_sent(&good, none, failures[i].drop);
	}
	paths_open(TIER, 0);
	check_sent(&good, contradiction, DP_DROP_VNET_HEADER);
	paths_open(TIER, 0);
	lab.config.encaps = 1 << DP_ENCAP_IPIP;
	check_sent(&good, none, DP_DROP_NO_ENCAP);
	paths_open(TIER, 0);
	lab.fds[DP_FD_UDP4_TX] = -1;
	check_sent(&good, none, DP_DROP_NO_ENCAP);
	paths_encap = DP_ENCAP_FLANNEL_UDP;
	paths_open(TIER, 0);
	check_sent(&(struct bad){.family = 6}, none, DP_DROP_NO_ENCAP);
	paths_is_far6 = true; /* and no socket is tried that could not carry it */
	paths_open(TIER, 0);
	lab.fds[DP_FD_UDP6_TX] = lab.fds[DP_FD_UDP4_TX];
	send_one(&good, none);
	CHECK(lab.counters.drops[DP_TX][DP_DROP_NO_ENCAP] == 1 && !lab.counters.forwarded[DP_TX]);
	send_one(&sent[6], none);
	CHECK(lab.counters.forwarded[DP_TX] == 1);
	paths_close(DP_TX);
	paths_is_far6 = false;
	paths_encap = DP_ENCAP_VXLAN;
}

/**
 * judged_silent() - Where no ICMP errors are to be sent, none are, and the drop is counted
 */
static void judged_silent(void)
{
	paths_open(TIER, 0);
	lab.path.now_ns = 1000000000000;
	send_one(&sent[4], (struct vnet_hdr){0});
	CHECK(lab.counters.drops[DP_TX][DP_DROP_NO_PEER] == 1 && !lab.counters.icmp_sent && !kernel.log->count);
	paths_close(DP_TX);
}

int main(int argc, char **argv)
{
	static const struct scenario scenarios[] = {
		{"spoofed_run", spoofed_run}, {"observed_run", observed_run}, {"following_run", following_run},
		{"tiny_run", tiny_run},       {"received", judged_received},  {"delivered", judged_delivered},
		{"sent", judged_sent},        {"silent", judged_silent},
	};

	return paths_run(scenarios, sizeof(scenarios) / sizeof(*scenarios), argc > 1 ? argv[1] : NULL);
}
