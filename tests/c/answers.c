/* SPDX-License-Identifier: Apache-2.0 */
/*
 * answers.c - pods are told what is wrong, each a little, by whatever way a packet fails.
 *
 *     answers [SCENARIO]               without one, all of them
 */
#include "paths.h"

enum { TIER = DP_TIER_MMSG | DP_TIER_UDP_GSO, NOBODY = 9 };

/**
 * open_rated() - Begin, with a rate of 1000 a second
 */
static void open_rated(void)
{
	paths_open(TIER, 0);
	lab.config.icmp_per_s = 1000;
	lab.config.icmp_burst = 50;
	lab.path.now_ns = 1000000000000;
}

/**
 * carry() - Let a pod send a packet, and carry it
 * @sketch:	The packet
 *
 * Return: ICMP errors that came of it
 */
static uint64_t carry(const struct sketch *sketch)
{
	uint64_t sent = lab.counters.icmp_sent;

	kernel_from_pod(sketch);
	CHECK(tx_run(&lab.path, KERNEL_TUN, PATHS_ALL) > 0);
	kernel.first = kernel.count = kernel.used = 0; /* room for the next */
	return lab.counters.icmp_sent - sent;
}

/**
 * check_said() - Does the last thing for the pods say this, to the pod that sent, about its packet?
 * @sketch:	What it sent
 * @type:	Of ICMP
 * @code:	Of ICMP
 */
static void check_said(const struct sketch *sketch, uint8_t type, uint8_t code)
{
	const struct kernel_bytes *seen = &kernel.log->seen[kernel.log->count];
	const uint8_t *ip, *icmp;
	uint32_t l3len = sketch->family == 4 ? IP4_LEN : IP6_LEN;
	uint8_t sent[4096];
	uint32_t quoted;
	struct pkt pkt;
	struct flow flow;

	do {
		seen--; /* of what left for the underlay, later ones are other packets */
	} while (seen > kernel.log->seen && seen->where);
	CHECK(!seen->where);
	ip = kernel.log->bytes + seen->at;
	icmp = ip + l3len;
	pkt = pkt_init((uint8_t *)ip, seen->len, 0, seen->len);
	CHECK(parse_inner(&pkt, &flow) == DP_DROP_NONE && flow.family == sketch->family);
	CHECK(flow.proto == (sketch->family == 4 ? PROTO_ICMP : PROTO_ICMP6));
	CHECK(icmp[0] == type && icmp[1] == code && !load32(icmp + 4));
	CHECK(sketch_packet(sent, sketch, true) < sizeof(sent));
	quoted = seen->len - l3len - 8;
	CHECK(quoted > l3len + 8 && !memcmp(icmp + 8, sent, l3len)); /* not what was put in front */
	CHECK(!memcmp(icmp + 8 + l3len, sent + l3len, 4));
	CHECK(flow.dst == parse_addr(sketch->family, sent + (sketch->family == 4 ? IP4_SRC : IP6_SRC)));
}

/**
 * no_route() - To nobody: net unreachable, no route
 */
static void no_route(void)
{
	struct sketch sketch = {.family = 4, .proto = PROTO_UDP, .peer = NOBODY, .port = 7, .payload = 100};

	open_rated();
	CHECK(carry(&sketch) == 1);
	check_said(&sketch, 3, 0);
	sketch.family = 6;
	CHECK(carry(&sketch) == 1);
	check_said(&sketch, 1, 0);
	CHECK(lab.counters.drops[DP_TX][DP_DROP_NO_PEER] == 2);
	paths_close(DP_TX);
}

/**
 * unreachable_peer() - What is for a peer that is said to be unreachable is sent, and its sender is told
 */
static void unreachable_peer(void)
{
	struct sketch sketch = {.family = 4, .proto = PROTO_TCP, .peer = 1, .port = 7, .payload = 100};
	struct sketch super = {.family = 4, .proto = PROTO_TCP, .peer = 1, .port = 8, .payload = 3000, .size = 1000};

	paths_unreachable = true;
	open_rated();
	CHECK(carry(&sketch) == 1);
	check_said(&sketch, 3, 1);
	sketch.family = 6;
	CHECK(carry(&sketch) == 1);
	check_said(&sketch, 1, 3);
	CHECK(carry(&super) == 1); /* one for all its segments */
	CHECK(lab.counters.forwarded[DP_TX] == 5);
	kernel.peer_error = EHOSTUNREACH;
	CHECK(carry(&sketch) == 1 && lab.counters.drops[DP_TX][DP_DROP_UNREACHABLE] == 1); /* told once, not twice */
	kernel.peer_error = 0;
	sketch.peer = 2;
	CHECK(!carry(&sketch) && lab.counters.forwarded[DP_TX] == 6); /* nothing is said of that one */
	paths_close(DP_TX);
	paths_unreachable = false;
}

/**
 * check_no_way() - What the kernel has no way for is dropped, and its sender is told so
 * @encap:	How peers are reached
 * @err:	What the kernel says
 * @code4:	What IPv4 pods are told
 * @code6:	What IPv6 pods are told
 */
static void check_no_way(enum dp_encap encap, int err, uint8_t code4, uint8_t code6)
{
	struct sketch sketch = {.family = 4, .proto = PROTO_UDP, .peer = 1, .port = 7, .payload = 700};

	paths_encap = encap;
	open_rated();
	kernel.peer_error = err;
	CHECK(carry(&sketch) == 1);
	check_said(&sketch, 3, code4);
	CHECK(lab.peers[1].drops[DP_DROP_UNREACHABLE] == 1);
	if (encap == DP_ENCAP_VXLAN) {
		sketch.family = 6;
		CHECK(carry(&sketch) == 1);
		check_said(&sketch, 1, code6);
		sketch.family = 4;
	}
	sketch.peer = 2;
	CHECK(!carry(&sketch) && lab.counters.forwarded[DP_TX] == 1); /* others are sent */
	paths_close(DP_TX);
	paths_encap = DP_ENCAP_VXLAN;
}

/**
 * no_way() - By every encapsulation, for every such error
 */
static void no_way(void)
{
	check_no_way(DP_ENCAP_VXLAN, ENETUNREACH, 0, 0);
	check_no_way(DP_ENCAP_VXLAN, EHOSTUNREACH, 1, 3);
	check_no_way(DP_ENCAP_VXLAN, ENETDOWN, 1, 3);
	check_no_way(DP_ENCAP_IPIP, ENETUNREACH, 0, 0);
	check_no_way(DP_ENCAP_FLANNEL_UDP, EHOSTUNREACH, 1, 3);
}

/**
 * no_way_run() - Of a run that could not be sent the first packet is answered, whole super-packets included
 */
static void no_way_run(void)
{
	struct sketch super = {.family = 4, .proto = PROTO_TCP, .peer = 1, .port = 8, .payload = 9000, .size = 1000};
	struct sketch sketch = {.family = 4, .proto = PROTO_UDP, .peer = 1, .port = 9, .payload = 300};
	const struct kernel_bytes *seen;

	open_rated();
	kernel.peer_error = EHOSTUNREACH;
	CHECK(carry(&super) == 1 && lab.counters.drops[DP_TX][DP_DROP_UNREACHABLE] == 9);
	seen = &kernel.log->seen[kernel.log->count - 1];
	CHECK(seen->len == 576 &&
	      load16(kernel.log->bytes + seen->at + 28 + IP4_TOTAL_LEN) == 1000 + IP4_LEN + TCP_LEN);
	kernel_from_pod(&sketch);
	CHECK(carry(&sketch) == 1 && lab.counters.drops[DP_TX][DP_DROP_UNREACHABLE] == 11); /* two in one run */
	check_said(&sketch, 3, 1);
	paths_close(DP_TX);
}

/**
 * other_errors() - What is this host's own affair is none of the pods'
 */
static void other_errors(void)
{
	static const int errors[] = {EAGAIN, ENOBUFS, EPERM, EINVAL, EMSGSIZE};
	struct sketch sketch = {.family = 4, .proto = PROTO_UDP, .peer = 1, .port = 7, .payload = 700};

	open_rated();
	for (uint32_t i = 0; i < 5; i++) {
		kernel.peer_error = errors[i];
		CHECK(!carry(&sketch));
	}
	CHECK(paths_drops(DP_TX) == 5 && !lab.counters.icmp_limited);
	paths_close(DP_TX);
}

/**
 * not_answered() - What must not be answered is not, on none of the ways, and costs no token
 */
static void not_answered(void)
{
	static uint8_t room[KERNEL_VNET + 256];
	struct sketch sketch = {.family = 4, .proto = PROTO_UDP, .peer = 1, .port = 7, .payload = 100};
	uint32_t len;

	paths_unreachable = true;
	open_rated();
	len = sketch_packet(room + KERNEL_VNET, &sketch, true);
	store16(room + KERNEL_VNET + IP4_FRAG, 1); /* a later fragment */
	packet_repair(room + KERNEL_VNET, len);
	for (uint32_t i = 0; i < 100; i++) {
		kernel.peer_error = i % 2 ? EHOSTUNREACH : 0;
		kernel_queue(room, KERNEL_VNET + len, 0, 0);
		CHECK(tx_run(&lab.path, KERNEL_TUN, PATHS_ALL) > 0);
	}
	CHECK(!lab.counters.icmp_sent && !lab.counters.icmp_limited && lab.counters.forwarded[DP_TX] == 50);
	kernel.peer_error = 0;
	CHECK(carry(&sketch) == 1);
	paths_close(DP_TX);
	paths_unreachable = false;
}

/**
 * flood_of_a_pod() - A pod that floods is told seldom, and another pod at once; all is counted
 */
static void flood_of_a_pod(void)
{
	struct sketch flood = {.family = 4, .proto = PROTO_UDP, .peer = 1, .port = 7, .payload = 1300};
	struct sketch single = {.family = 4, .proto = PROTO_UDP, .peer = 1, .port = 8, .payload = 1300, .pod = 1};
	uint64_t sent = 0;

	paths_mtu = 1300;
	open_rated();
	for (uint32_t i = 0; i < 10000; i++, lab.path.now_ns += 100000) /* a second */
		sent += carry(&flood);
	CHECK(sent >= 100 && sent <= 105 && lab.counters.icmp_limited == 10000 - sent);
	CHECK(carry(&single) == 1); /* case 141: about the same peer */
	single.peer = NOBODY;
	single.pod = 2;
	CHECK(carry(&single) == 1);
	paths_close(DP_TX);
	paths_mtu = 0;
}

/**
 * flood_of_pods() - Pods that flood one peer together leave others what is about other peers; all stay in bounds
 */
static void flood_of_pods(void)
{
	struct sketch flood = {.family = 4, .proto = PROTO_UDP, .peer = 1, .port = 7, .payload = 1300};
	struct sketch single = {.family = 4, .proto = PROTO_UDP, .peer = NOBODY, .port = 8, .payload = 1300, .pod = 99};
	uint64_t sent = 0;

	paths_mtu = 1300;
	open_rated();
	for (uint32_t i = 0; i < 10000; i++, lab.path.now_ns += 100000) {
		flood.pod = (uint8_t)(i % 50);
		sent += carry(&flood);
	}
	CHECK(sent >= 500 && sent <= 525);
	CHECK(carry(&single) == 1);
	for (uint32_t i = 0; i < 20000; i++, lab.path.now_ns += 50000) { /* everybody to everybody */
		flood.pod = (uint8_t)(i % 50);
		flood.peer = i & 1 ? NOBODY : 1;
		sent += carry(&flood);
	}
	CHECK(sent >= 1400 && sent <= 2 * 1000 + 50);
	paths_close(DP_TX);
	paths_mtu = 0;
}

/**
 * silent() - With a rate of 0 nobody is told anything
 */
static void silent(void)
{
	struct sketch sketch = {.family = 4, .proto = PROTO_UDP, .peer = NOBODY, .port = 7, .payload = 100};

	paths_unreachable = true;
	open_rated();
	lab.config.icmp_per_s = 0;
	CHECK(!carry(&sketch));
	sketch.peer = 1;
	CHECK(!carry(&sketch));
	kernel.peer_error = ENETUNREACH;
	CHECK(!carry(&sketch) && !lab.counters.icmp_limited);
	paths_close(DP_TX);
	paths_unreachable = false;
}

int main(int argc, char **argv)
{
	static const struct scenario scenarios[] = {
		{"no_route", no_route},
		{"unreachable_peer", unreachable_peer},
		{"no_way", no_way},
		{"no_way_run", no_way_run},
		{"other_errors", other_errors},
		{"not_answered", not_answered},
		{"flood_of_a_pod", flood_of_a_pod},
		{"flood_of_pods", flood_of_pods},
		{"silent", silent},
	};

	return paths_run(scenarios, sizeof(scenarios) / sizeof(*scenarios), argc > 1 ? argv[1] : NULL);
}
