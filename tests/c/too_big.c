/* SPDX-License-Identifier: Apache-2.0 */
/*
 * too_big.c - what is larger than a peer's path is dropped, and its sender told how large it may be.
 *
 * Of a super-packet what counts is the length of its segments. The path to peer 1 takes 1300 bytes.
 *
 *     too_big [SCENARIO]               without one, all of them
 */
#include "paths.h"

enum { TIER = DP_TIER_MMSG | DP_TIER_UDP_GSO, PATH_MTU = 1300 };

/**
 * open_narrow() - Begin, with a narrow path to peer 1
 * @burst:	ICMP errors that may be sent
 */
static void open_narrow(uint32_t burst)
{
	paths_mtu = PATH_MTU;
	paths_open(TIER, 0);
	lab.config.icmp_per_s = 10; /* of which a pod gets one */
	lab.config.icmp_burst = burst;
	lab.path.now_ns = 1000000000000;
}

/**
 * carry_waiting() - Carry what waits at the TUN
 * @segments:	As how many packets it counts
 *
 * Return: the drop reason that was counted, DP_DROP_NONE if it was forwarded
 */
static enum dp_drop carry_waiting(uint64_t segments)
{
	uint64_t before[DP_DROP_COUNT], forwarded = lab.counters.forwarded[DP_TX], dropped = 0;
	enum dp_drop found = DP_DROP_NONE;

	memcpy(before, lab.counters.drops[DP_TX], sizeof(before));
	CHECK(tx_run(&lab.path, KERNEL_TUN, PATHS_ALL) > 0);
	for (enum dp_drop drop = 0; drop < DP_DROP_COUNT; drop++) {
		if (lab.counters.drops[DP_TX][drop] != before[drop])
			found = drop;
		dropped += lab.counters.drops[DP_TX][drop] - before[drop];
	}
	CHECK(dropped || lab.counters.forwarded[DP_TX] > forwarded);
	CHECK(!dropped || lab.counters.forwarded[DP_TX] == forwarded); /* all of it or nothing */
	CHECK(!dropped || dropped == segments);
	return found;
}

/**
 * carry() - Let a pod send a packet, and carry it
 * @sketch:	The packet
 *
 * Return: as carry_waiting()
 */
static enum dp_drop carry(const struct sketch *sketch)
{
	kernel_from_pod(sketch);
	return carry_waiting(sketch->size ? (sketch->payload + sketch->size - 1) / sketch->size : 1);
}

/**
 * carry_plain() - Let a packet larger than the path be sent to peer 1, and carry it
 * @family:	4 or 6
 * @proto:	What it says it carries
 * @last:	Last byte of its destination
 *
 * Return: as carry_waiting()
 */
static enum dp_drop carry_plain(uint8_t family, uint8_t proto, uint8_t last)
{
	struct sketch sketch = {.family = family, .proto = PROTO_UDP, .peer = 1, .payload = PATH_MTU};
	uint8_t room[KERNEL_VNET + 2 * PATH_MTU] = {0}, *ip = room + KERNEL_VNET;
	uint32_t len = sketch_packet(ip, &sketch, true);

	if (family == 4) {
		ip[IP4_PROTO] = proto;
		ip[IP4_DST + 3] = last;
		packet_repair(ip, len);
	} else {
		ip[IP6_NEXT] = proto;
		ip[IP6_DST + 15] = last;
	}
	kernel_queue(room, KERNEL_VNET + len, 0, 0);
	return carry_waiting(1);
}

/**
 * check_told() - Is the last thing that came out an error with the MTU, to the pod that sent?
 * @sketch:	What it sent
 */
static void check_told(const struct sketch *sketch)
{
	const struct kernel_bytes *seen = &kernel.log->seen[kernel.log->count - 1];
	const uint8_t *ip = kernel.log->bytes + seen->at;
	uint32_t l3len = sketch->family == 4 ? IP4_LEN : IP6_LEN;
	const uint8_t *icmp = ip + l3len, *quote = icmp + 8;
	struct pkt pkt = pkt_init((uint8_t *)ip, seen->len, 0, seen->len);
	struct flow flow;

	CHECK(!seen->where && seen->len > l3len + 8 + l3len + 4);
	CHECK(parse_inner(&pkt, &flow) == DP_DROP_NONE && flow.family == sketch->family);
	if (sketch->family == 4) {
		CHECK(flow.proto == PROTO_ICMP && icmp[0] == 3 && icmp[1] == 4 && load32(icmp + 4) == PATH_MTU);
		CHECK(flow.dst == parse_addr(4, quote + IP4_SRC));
	} else {
		CHECK(flow.proto == PROTO_ICMP6 && icmp[0] == 2 && !icmp[1] && load32(icmp + 4) == PATH_MTU);
		CHECK(flow.dst == parse_addr(6, quote + IP6_SRC));
	}
	CHECK(load16(quote + l3len) == sketch->port);
}

/**
 * told() - Super-packets and packets, TCP and UDP, over IPv4 and IPv6
 */
static void told(void)
{
	static const uint8_t protos[] = {PROTO_TCP, PROTO_UDP}, families[] = {4, 6};

	open_narrow(1000);
	for (uint32_t i = 0; i < 8; i++) {
		bool is_super = i & 4;
		struct sketch sketch = {
			.family = families[i & 1], .proto = protos[i >> 1 & 1], .peer = 1, .port = (uint16_t)(100 + i)};
		uint32_t headers = (sketch.family == 4 ? IP4_LEN : IP6_LEN) +
				   (sketch.proto == PROTO_TCP ? (uint32_t)TCP_LEN : (uint32_t)UDP_LEN);

		sketch.size = is_super ? PATH_MTU + 1 - headers : 0;
		sketch.payload = is_super ? 40000 : PATH_MTU + 1 - headers;
		CHECK(carry(&sketch) == DP_DROP_TOO_BIG && lab.counters.icmp_sent == i + 1);
		check_told(&sketch);
		sketch.size -= is_super;
		sketch.payload -= !is_super;
		CHECK(carry(&sketch) == DP_DROP_NONE && lab.counters.icmp_sent == i + 1); /* a byte less fits */
	}
	CHECK(lab.peers[1].drops[DP_DROP_TOO_BIG] == lab.counters.drops[DP_TX][DP_DROP_TOO_BIG]);
	paths_close(DP_TX);
}

/**
 * short_super() - A super-packet of a single segment is as long as it is, whatever its size says
 */
static void short_super(void)
{
	struct sketch sketch = {.family = 4, .proto = PROTO_TCP, .peer = 1, .port = 1, .payload = 1000, .size = 1400};

	open_narrow(1000);
	CHECK(carry(&sketch) == DP_DROP_NONE && !lab.counters.icmp_sent);
	paths_close(DP_TX);
}

/**
 * others() - Paths to other peers are as wide as before
 */
static void others(void)
{
	struct sketch sketch = {.family = 4, .proto = PROTO_TCP, .peer = 2, .port = 1, .payload = 40000, .size = 1400};

	open_narrow(1000);
	CHECK(carry(&sketch) == DP_DROP_NONE && !lab.counters.icmp_sent);
	paths_close(DP_TX);
}

/**
 * path_probes() - Pings of a node's own overlay address may be larger than the path is believed to take
 */
static void path_probes(void)
{
	open_narrow(100);
	for (uint8_t family = 4; family <= 6; family += 2) {
		uint8_t icmp = family == 4 ? PROTO_ICMP : PROTO_ICMP6, other = family == 4 ? PROTO_ICMP6 : PROTO_ICMP;

		CHECK(carry_plain(family, icmp, 0) == DP_DROP_NONE);
		CHECK(carry_plain(family, icmp, 1) == DP_DROP_TOO_BIG); /* of a pod */
		CHECK(carry_plain(family, other, 0) == DP_DROP_TOO_BIG);
		CHECK(carry_plain(family, PROTO_UDP, 0) == DP_DROP_TOO_BIG);
	}
	paths_close(DP_TX);
}

/**
 * bounded() - Errors have a rate; what is dropped without one is counted all the same
 */
static void bounded(void)
{
	struct sketch sketch = {.family = 4, .proto = PROTO_TCP, .peer = 1, .port = 1, .payload = 40000, .size = 1400};

	open_narrow(30);
	for (uint32_t i = 0; i < 10; i++)
		CHECK(carry(&sketch) == DP_DROP_TOO_BIG && lab.counters.icmp_sent == (i < 3 ? i + 1 : 3));
	lab.path.now_ns += 1000000000;
	CHECK(carry(&sketch) == DP_DROP_TOO_BIG && lab.counters.icmp_sent == 4);
	paths_close(DP_TX);
}

int main(int argc, char **argv)
{
	static const struct scenario scenarios[] = {
		{"told", told},       {"short_super", short_super}, {"others", others}, {"path_probes", path_probes},
		{"bounded", bounded},
	};

	return paths_run(scenarios, sizeof(scenarios) / sizeof(*scenarios), argc > 1 ? argv[1] : NULL);
}
