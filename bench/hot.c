/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hot.c - the hot functions of the packet path, called again and again for callgrind.py to count instructions.
 *
 *   hot ROUNDS    prints the vectors of the CPU, then a line "CASE PACKETS" for each case
 *
 * Each case ends in a dump of callgrind that carries its name. Data are the same in every run, so counts are too.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <valgrind/callgrind.h>

#include "../tests/c/packets.h"
#include "csum.h"
#include "dp.h"
#include "encap.h"
#include "fib.h"
#include "icmp.h"
#include "merge.h"
#include "offload.h"
#include "outbox.h"
#include "parse.h"
#include "split.h"

enum { SUBNETS = 10000, LOOKUPS = 100, MERGED = 40, SEGMENT = 1398, HEADERS4 = IP4_LEN + TCP_LEN };

/* What a case works on; made before anything is counted. */
static uint8_t super[PKT_HEADROOM + PKT_MAX];
static uint8_t small[PKT_HEADROOM + PACKET_ROOM];
static uint8_t burst[MERGED][HEADERS4 + SEGMENT], burst_as_came[MERGED][HEADERS4 + SEGMENT];
static struct pkt super_pkt, burst_pkt[MERGED];
static struct flow super_flow, burst_flow[MERGED];
static struct split plan;
static struct merge merge;
static struct fib *fib;
static volatile uint64_t sink; /* keeps the compiler from leaving calls out */

/**
 * must() - End the program unless something holds
 * @holds:	What
 * @what:	In words
 */
static void must(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "hot: %s\n", what);
	exit(1);
}

/**
 * write_tcp() - Write an IPv4 packet with TCP and its right checksum
 * @out:	Room for it
 * @seq:	Sequence number
 * @payload:	Bytes
 *
 * Return: bytes written
 */
static uint32_t write_tcp(uint8_t *out, uint32_t seq, uint32_t payload)
{
	uint32_t len = packet_ip4(out, PROTO_TCP, 0, TCP_LEN + payload);
	uint8_t *tcp = out + IP4_LEN;
	uint64_t sum = csum_pseudo(out + IP4_SRC, out + IP4_DST, 4, PROTO_TCP, TCP_LEN + payload);
	uint16_t folded;

	memset(tcp, 0, TCP_LEN);
	store32(tcp, 0x9c40U << 16 | 443); /* ports */
	store32(tcp + TCP_SEQ, seq);
	tcp[TCP_DOFF] = TCP_LEN / 4 << 4;
	tcp[TCP_FLAGS] = TCP_FLAG_ACK;
	folded = (uint16_t)~csum_fold(csum_add(tcp, TCP_LEN + payload, sum));
	memcpy(tcp + TCP_CHECK, &folded, sizeof(folded));
	return len;
}

/**
 * prepare_packets() - Make the super-packet and the burst
 */
static void prepare_packets(void)
{
	uint32_t len = write_tcp(super + PKT_HEADROOM, 1, PKT_MAX - HEADERS4);
	struct vnet_hdr vnet = {.flags = VNET_NEEDS_CSUM, .gso_type = VNET_GSO_TCP4, .gso_size = SEGMENT};

	super_pkt = pkt_init(super, sizeof(super), PKT_HEADROOM, len);
	must(parse_inner(&super_pkt, &super_flow) == DP_DROP_NONE, "the super-packet is refused");
	must(split_plan(&super_pkt, &super_flow, &vnet, &plan) == DP_DROP_NONE, "the super-packet has no plan");
	for (uint32_t i = 0; i < MERGED; i++) {
		len = write_tcp(burst[i], 1 + i * SEGMENT, SEGMENT);
		burst_pkt[i] = pkt_init(burst[i], sizeof(burst[i]), 0, len);
		must(parse_inner(&burst_pkt[i], &burst_flow[i]) == DP_DROP_NONE, "a packet of the burst is refused");
	}
	memcpy(burst_as_came, burst, sizeof(burst));
}

/**
 * set_addr() - Write an address
 * @out:	Set to it
 * @family:	4 or 6
 * @high:	Its first four bytes
 * @next:	Of IPv6, the four bytes behind; the others are 0
 */
static void set_addr(struct dp_addr *out, uint8_t family, uint32_t high, uint32_t next)
{
	*out = (struct dp_addr){.family = family};
	store32(out->bytes, high);
	if (family == 6)
		store32(out->bytes + 4, next);
}

/**
 * prepare_table() - Open a table of SUBNETS subnets of each family and as many peers
 */
static void prepare_table(void)
{
	static struct dp_subnet subnets[2 * SUBNETS];
	static struct dp_peer peers[SUBNETS];
	struct dp_table_spec spec = {.generation = 1,
				     .peers = peers,
				     .peers_count = SUBNETS,
				     .subnets = subnets,
				     .subnets_count = 2 * SUBNETS};
	int fd;

	for (uint32_t i = 0; i < SUBNETS; i++) {
		struct dp_subnet *subnet4 = &subnets[2 * i], *subnet6 = subnet4 + 1;

		peers[i].id = subnet4->peer_id = subnet6->peer_id = i;
		set_addr(&peers[i].addr4, 4, 0xc6120000 + i, 0);
		set_addr(&subnet4->vtep, 4, 0xc6120000 + i, 0);
		set_addr(&subnet4->prefix.addr, 4, 10U << 24 | i << 8, 0);
		subnet4->prefix.len = 24;
		set_addr(&subnet6->vtep, 6, 0xfd000192, 1 + i);
		set_addr(&subnet6->prefix.addr, 6, 0xfd000244, i);
		subnet6->prefix.len = 64;
		subnet4->encap = subnet6->encap = DP_ENCAP_VXLAN;
	}
	fd = dp_fib_create(&spec);
	must(fd >= 0 && !dp_fib_open(fd, &fib), "the table is refused");
	close(fd);
	must(fib_subnet(fib, 4, 10U << 24 | 7 << 8 | 1) && fib_peer(fib, 4, 0xc6120007) == 7, "the table is wrong");
}

/* --- cases: a round each; they return how many packets it is ----------------- */

/**
 * csum_header() - An IPv4 header
 *
 * Return: packets
 */
static uint32_t csum_header(void)
{
	sink += csum_add(super + PKT_HEADROOM, IP4_LEN, 0);
	return 1;
}

/**
 * csum_packet() - A packet of the usual size
 *
 * Return: packets
 */
static uint32_t csum_packet(void)
{
	sink += csum_add(super + PKT_HEADROOM + 2, 1460, 0);
	return 1;
}

/**
 * csum_super() - A super-packet
 *
 * Return: packets
 */
static uint32_t csum_super(void)
{
	sink += csum_add(super + PKT_HEADROOM + 2, 65000, 0);
	return 1;
}

/**
 * parse() - One of the good packets, as it arrives
 * @which:	For packet_good()
 *
 * Return: packets
 */
static uint32_t parse(int which)
{
	static uint32_t lens[2];
	static uint8_t good[2][PACKET_ROOM];
	int slot = which > 1;
	struct pkt pkt;
	struct flow flow;

	if (!lens[slot])
		lens[slot] = packet_good(good[slot], which);
	pkt = pkt_init(good[slot], PACKET_ROOM, 0, lens[slot]);
	sink += (uint64_t)parse_inner(&pkt, &flow) + parse_flow_hash(&pkt, &flow);
	return 1;
}

/**
 * parse_tcp4() - TCP in IPv4, with its flow's hash
 *
 * Return: packets
 */
static uint32_t parse_tcp4(void)
{
	return parse(1);
}

/**
 * parse_udp6() - UDP in IPv6, with its flow's hash
 *
 * Return: packets
 */
static uint32_t parse_udp6(void)
{
	return parse(3);
}

/**
 * vxlan_push() - VXLAN headers in front of a packet
 *
 * Return: packets
 */
static uint32_t vxlan_push(void)
{
	struct pkt pkt = pkt_init(small, sizeof(small), PKT_HEADROOM, 100);

	sink += encap_vxlan_push(&pkt, 4, PACKET_VNI, packet_config.vtep_mac4, packet_peer_mac);
	return 1;
}

/**
 * vxlan_pull() - VXLAN headers checked and taken off
 *
 * Return: packets
 */
static uint32_t vxlan_pull(void)
{
	struct pkt pkt = pkt_init(small, sizeof(small), PKT_HEADROOM - VXLAN_PUSH, VXLAN_PUSH + 100);
	uint8_t family;

	sink += encap_vxlan_pull(&pkt, &packet_config, &family);
	return 1;
}

/**
 * ipip_pull() - The outer IPv4 header of IPIP taken off
 *
 * Return: packets
 */
static uint32_t ipip_pull(void)
{
	struct pkt pkt = pkt_init(super, sizeof(super), PKT_HEADROOM, HEADERS4 + 100);
	struct outer outer;

	sink += encap_ip4_pull(&pkt, &outer);
	return 1;
}

/**
 * decap_ecn() - A congestion mark moved from the outer to the inner header
 *
 * Return: packets
 */
static uint32_t decap_ecn(void)
{
	static const uint8_t inner_tos[] = {ECN_ECT0};
	struct flow flow = super_flow;

	flow.tos = inner_tos[0];
	super[PKT_HEADROOM + 1] = inner_tos[0];
	sink += encap_decap_ecn(&super_pkt, &flow, ECN_CE);
	super[PKT_HEADROOM + 1] = 0;
	return 1;
}

/**
 * split_super() - The headers of each segment of a super-packet of 64 KiB
 *
 * Return: packets
 */
static uint32_t split_super(void)
{
	uint8_t out[SPLIT_HEADERS];

	for (uint32_t i = 0; i < plan.count; i++)
		sink += split_header(&super_pkt, &plan, i, out);
	return plan.count;
}

/**
 * merge_burst() - A burst of one flow joined and described
 *
 * Return: packets
 */
static uint32_t merge_burst(void)
{
	struct vnet_hdr vnet;
	uint32_t index = 0;

	memcpy(burst, burst_as_came, sizeof(burst)); /* counted as libc's */
	for (uint32_t i = 0; i < MERGED; i++) {
		enum merge_verdict verdict = merge_add(&merge, &burst_pkt[i], &burst_flow[i], 1, &index);

		must(verdict == (i ? MERGE_JOINED : MERGE_BEGUN), "the burst is not joined");
	}
	merge_describe(&merge.supers[index], &vnet);
	merge_take(&merge, index);
	return MERGED;
}

/**
 * merge_run() - The same burst as it comes in one message, joined without a look at what it has in common
 *
 * Return: packets
 */
static uint32_t merge_run(void)
{
	struct vnet_hdr vnet;
	uint32_t index = 0;

	memcpy(burst, burst_as_came, sizeof(burst)); /* counted as libc's */
	must(merge_add(&merge, &burst_pkt[0], &burst_flow[0], 1, &index) == MERGE_BEGUN, "the run does not begin");
	for (uint32_t i = 1; i < MERGED; i++)
		must(merge_follow(&merge, &burst_pkt[i - 1], &burst_pkt[i], 0), "the run is not joined");
	merge_describe(&merge.supers[index], &vnet);
	merge_take(&merge, index);
	return MERGED;
}

static struct outbox outbox;
static const struct dp_subnet peer_subnet = {.vtep = {.family = 4, .bytes = {192, 0, 2, 2}}};

/**
 * queue() - Queue datagrams of one size to one peer
 * @tos:	TOS byte of every other one; the others have 0
 *
 * Return: packets
 */
static uint32_t queue(uint8_t tos)
{
	outbox_clear(&outbox);
	outbox.has_runs = true;
	for (uint32_t i = 0; i < MERGED; i++) {
		struct outbox_item item = {.subnet = &peer_subnet,
					   .head = burst[i],
					   .head_len = HEADERS4 + SEGMENT,
					   .bytes = HEADERS4 + SEGMENT,
					   .fd = 1,
					   .port = 8472,
					   .tos = i % 2 ? tos : 0,
					   .family = 4};

		sink += (uint64_t)outbox_add(&outbox, &item);
	}
	outbox_finish(&outbox);
	return MERGED;
}

/**
 * outbox_run() - Datagrams that become one run
 *
 * Return: packets
 */
static uint32_t outbox_run(void)
{
	return queue(0);
}

/**
 * outbox_apart() - Datagrams that become a message each, half of them with a congestion mark
 *
 * Return: packets
 */
static uint32_t outbox_apart(void)
{
	return queue(ECN_ECT0);
}

/**
 * offload_packet() - The checksum that the kernel left to us, of a packet of the usual size
 *
 * Return: packets
 */
static uint32_t offload_packet(void)
{
	struct vnet_hdr vnet = {.flags = VNET_NEEDS_CSUM, .csum_start = IP4_LEN, .csum_offset = TCP_CHECK};

	sink += offload_complete(&burst_pkt[1], &burst_flow[1], &vnet);
	return 1;
}

/**
 * icmp_error() - "No route" to the sender of a packet
 *
 * Return: packets
 */
static uint32_t icmp_error(void)
{
	uint8_t out[ICMP_MAX];

	sink += icmp_no_route(out, &burst_pkt[0], &burst_flow[0]);
	return 1;
}

/**
 * lookup_subnet4() - Where packets to IPv4 addresses go
 *
 * Return: packets
 */
static uint32_t lookup_subnet4(void)
{
	for (uint32_t i = 0; i < LOOKUPS; i++)
		sink += fib_subnet(fib, 4, 10U << 24 | i * 97 << 8 | 5)->peer_id;
	return LOOKUPS;
}

/**
 * lookup_subnet6() - Where packets to IPv6 addresses go
 *
 * Return: packets
 */
static uint32_t lookup_subnet6(void)
{
	for (uint32_t i = 0; i < LOOKUPS; i++)
		sink += fib_subnet(fib, 6, (addr_t)0xfd000244 << 96 | (addr_t)(i * 97) << 64 | 5)->peer_id;
	return LOOKUPS;
}

/**
 * lookup_peer4() - Who sends from underlay addresses
 *
 * Return: packets
 */
static uint32_t lookup_peer4(void)
{
	for (uint32_t i = 0; i < LOOKUPS; i++)
		sink += fib_peer(fib, 4, 0xc6120000 + i * 97);
	return LOOKUPS;
}

static const struct hot_case {
	const char *name;
	uint32_t (*round)(void);
} cases[] = {
	{"csum_header", csum_header},   {"csum_packet", csum_packet},       {"csum_super", csum_super},
	{"parse_tcp4", parse_tcp4},     {"parse_udp6", parse_udp6},         {"vxlan_push", vxlan_push},
	{"vxlan_pull", vxlan_pull},     {"ipip_pull", ipip_pull},           {"decap_ecn", decap_ecn},
	{"split_super", split_super},   {"merge_burst", merge_burst},       {"merge_run", merge_run},
	{"outbox_run", outbox_run},     {"outbox_apart", outbox_apart},     {"offload_packet", offload_packet},
	{"icmp_error", icmp_error},     {"lookup_subnet4", lookup_subnet4}, {"lookup_subnet6", lookup_subnet6},
	{"lookup_peer4", lookup_peer4},
};

/**
 * name_vectors() - Which vectors the compiler's and the CPU's choice leads to
 *
 * Return: their name
 */
static const char *name_vectors(void)
{
#ifdef __x86_64__
	return __builtin_cpu_supports("avx512f") ? "avx512" : __builtin_cpu_supports("avx2") ? "avx2" : "sse2";
#else
	return "plain";
#endif
}

int main(int argc, char **argv)
{
	unsigned long rounds = argc == 2 ? strtoul(argv[1], NULL, 10) : 0;

	must(rounds > 0, "usage: hot ROUNDS");
	prepare_packets();
	prepare_table();
	printf("%s\n", name_vectors());
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		unsigned long packets = 0;

		(void)cases[i].round(); /* the first time also finds symbols */
		CALLGRIND_ZERO_STATS;
		for (unsigned long n = 0; n < rounds; n++)
			packets += cases[i].round();
		CALLGRIND_DUMP_STATS_AT(cases[i].name);
		printf("%s %lu\n", cases[i].name, packets);
	}
	return 0;
}
