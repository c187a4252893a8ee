/* SPDX-License-Identifier: Apache-2.0 */
/* paths.h - a worker's path without its thread, between the pods and peers of sketch.h, on the kernel of kernel.h. */
#ifndef PATHS_H
#define PATHS_H

#include <unistd.h>

#include "kernel.h"
#include "path.h"

enum { PATHS_MTU = 1450, PATHS_ALL = 1 << 20 };

static struct {
	struct path path;
	struct rates icmp;
	struct dp_config config;
	int fds[DP_FD_SLOTS];
	struct dp_thread_counters counters;
	struct dp_peer_counters peers[SKETCH_PEERS + 1];
	dp_fib *fib;
} lab;

/* Largest inner packet that the path to peer 1 takes; 0: any. */
static uint32_t paths_mtu;

/* Peer 1 is said to be unreachable. */
static bool paths_unreachable;

/* Whether peer 1 has an IPv6 address instead of its IPv4 address. */
static bool paths_is_far6;

/* How all peers are reached. */
static enum dp_encap paths_encap = DP_ENCAP_VXLAN;

/* What one side of a comparison saw. */
static struct kernel_log paths_logs[2];

/**
 * paths_table() - Put the subnets of all peers, and ours, into a table
 *
 * Return: the table
 */
static inline dp_fib *paths_table(void)
{
	struct dp_subnet subnets[2 * SKETCH_PEERS + 1] = {0};
	struct dp_peer peers[SKETCH_PEERS] = {0};
	struct dp_prefix own[2] = {
		{.addr = {.family = 4, .bytes = {10, 244, 1}}, .len = 24},
		{.addr = {.family = 6, .bytes = {0xfd, 0, 2, 0x44, 0, 0, 0, 1}}, .len = 64},
	};
	struct dp_prefix allowed = {.addr = {.family = 4, .bytes = {203, 0, 113}}, .len = 24};
	struct dp_table_spec spec = {.generation = 1,
				     .subnets = subnets,
				     .subnets_count = 2 * SKETCH_PEERS + 1,
				     .allowed = &allowed,
				     .allowed_count = 1,
				     .peers = peers,
				     .peers_count = SKETCH_PEERS,
				     .own = own,
				     .own_count = 2,
				     .sources = own,
				     .sources_count = 2};
	dp_fib *fib;
	int fd;

	for (uint8_t i = 0; i < SKETCH_PEERS; i++) {
		struct dp_addr vtep = {.family = 4, .bytes = {192, 0, 2, (uint8_t)(101 + i)}};
		uint8_t peer = i + 1;

		peers[i] = (struct dp_peer){.id = peer, .addr4 = vtep};
		subnets[i] = (struct dp_subnet){.prefix = {.addr = {.family = 4, .bytes = {10, 0, peer}}, .len = 24},
						.encap = (uint8_t)paths_encap,
						.vtep_mac = {2, 0, 0, 0, 4, peer},
						.vtep = vtep,
						.peer_id = peer};
		subnets[SKETCH_PEERS + i] = subnets[i];
		subnets[SKETCH_PEERS + i].prefix = (struct dp_prefix){
			.addr = {.family = 6, .bytes = {0xfd, 0, 0, 0x10, 0, 0, 0, peer}}, .len = 64};
		subnets[SKETCH_PEERS + i].vtep_mac[4] = 6;
	}
	/* the last peer's own address lies in its subnets: a packet to it would go round */
	subnets[2 * SKETCH_PEERS] = subnets[SKETCH_PEERS - 1];
	subnets[2 * SKETCH_PEERS].prefix = (struct dp_prefix){.addr = subnets[SKETCH_PEERS - 1].vtep, .len = 32};
	if (paths_is_far6)
		subnets[0].vtep = (struct dp_addr){.family = 6, .bytes = {0xfd, 0, 1, 0x92, [15] = 101}};
	subnets[0].mtu = subnets[SKETCH_PEERS].mtu = paths_mtu;
	subnets[0].is_unreachable = subnets[SKETCH_PEERS].is_unreachable = paths_unreachable;
	fd = dp_fib_create(&spec);
	CHECK(fd >= 0 && !dp_fib_open(fd, &fib));
	close(fd);
	return fib;
}

/**
 * paths_open() - Begin with an empty path, and a kernel that refuses nothing
 * @tier:	Mask of enum dp_tier
 * @side:	Which log takes what comes out, 0 or 1
 */
static inline void paths_open(uint32_t tier, uint32_t side)
{
	memset(&lab, 0, sizeof(lab));
	memset(&kernel, 0, sizeof(kernel));
	memset(&paths_logs[side], 0, sizeof(paths_logs[side]));
	sys = &kernel_calls;
	kernel.log = &paths_logs[side];
	kernel.push = paths_encap == DP_ENCAP_VXLAN ? VXLAN_PUSH : 0;
	lab.config = packet_config;
	lab.config.tier = tier;
	lab.config.tun_mtu = PATHS_MTU;
	lab.config.vnet_hdr_len = KERNEL_VNET;
	lab.config.vxlan_port = 8472;
	lab.config.bare_port = 8285;
	lab.config.underlay_ifindex = KERNEL_IFINDEX;
	lab.config.underlay4 = (struct dp_addr){.family = 4, .bytes = {192, 0, 2, 1}};
	memset(lab.fds, -1, sizeof(lab.fds));
	lab.fds[DP_FD_TUN] = KERNEL_TUN;
	lab.fds[DP_FD_UDP4] = KERNEL_UDP;
	lab.fds[DP_FD_UDP4_TX] = KERNEL_UDP_TX;
	lab.fds[DP_FD_BARE4] = KERNEL_UDP;
	lab.fds[DP_FD_RAW4] = KERNEL_RAW;
	lab.fds[DP_FD_RAW4_TX] = KERNEL_RAW_TX;
	lab.fib = paths_table();
	lab.path.config = &lab.config;
	lab.path.fds = lab.fds;
	lab.path.tun_fd = KERNEL_TUN;
	lab.path.counters = &lab.counters;
	lab.path.icmp = &lab.icmp;
	lab.path.peers = lab.peers;
	lab.path.max_peers = SKETCH_PEERS + 1;
	lab.path.fib = lab.fib;
	lab.path.out.has_runs = tier & DP_TIER_UDP_GSO;
	lab.path.merge.is_off = !(tier & DP_TIER_TUN_GRO);
	lab.path.merge.has_udp = tier & DP_TIER_TUN_UGRO;
	outbox_clear(&lab.path.out);
	lab.path.tx_buffers = calloc(PATH_BATCH, PATH_STRIDE);
	lab.path.rx_buffers = calloc(PATH_BATCH, PATH_STRIDE);
	CHECK(lab.path.tx_buffers && lab.path.rx_buffers);
}

/**
 * paths_drops() - How many packets were dropped?
 * @dir:	Direction
 *
 * Return: packets, for whatever reason
 */
static inline uint64_t paths_drops(enum dp_dir dir)
{
	uint64_t drops = 0;

	for (int drop = 0; drop < DP_DROP_COUNT; drop++)
		drops += lab.counters.drops[dir][drop];
	return drops;
}

/**
 * paths_check() - Check the books
 * @dir:	Direction that packets went
 *
 * All that was offered is accounted for, as a whole and by peer, and nothing waits anywhere.
 */
static inline void paths_check(enum dp_dir dir)
{
	uint64_t packets = 0, bytes = 0, seen = 0, seen_bytes = 0;

	for (uint32_t i = 0; i <= SKETCH_PEERS; i++) {
		packets += lab.peers[i].packets[dir];
		bytes += lab.peers[i].bytes[dir];
	}
	for (uint32_t i = 0; i < kernel.log->count; i++) {
		if (dir == DP_TX && !kernel.log->seen[i].where)
			continue; /* an ICMP error, which is counted by itself */
		seen++;
		seen_bytes += kernel.log->seen[i].len - (dir == DP_TX ? kernel.push : 0);
	}
	CHECK(lab.counters.offered[dir] == lab.counters.forwarded[dir] + paths_drops(dir));
	CHECK(lab.counters.forwarded[dir] == seen && lab.counters.icmp_sent == kernel.log->count - seen);
	CHECK(packets == lab.counters.forwarded[dir] && bytes == seen_bytes && lab.counters.bytes[dir] == seen_bytes);
	CHECK(kernel.first == kernel.count && !lab.path.merge.count && !lab.path.out.count);
}

/**
 * paths_close() - Check the books, and end
 * @dir:	Direction that packets went
 */
static inline void paths_close(enum dp_dir dir)
{
	paths_check(dir);
	dp_fib_close(lab.fib);
	free(lab.path.tx_buffers);
	free(lab.path.rx_buffers);
}

/**
 * paths_again() - Begin again with the same table, empty books, and a kernel that refuses nothing
 * @tier:	Mask of enum dp_tier
 *
 * Far quicker than to close and open.
 */
static inline void paths_again(uint32_t tier)
{
	memset(&lab.counters, 0, sizeof(lab.counters));
	memset(lab.peers, 0, sizeof(lab.peers));
	memset(&lab.icmp, 0, sizeof(lab.icmp));
	lab.config.tier = tier;
	lab.path.out.has_runs = tier & DP_TIER_UDP_GSO;
	lab.path.merge.is_off = !(tier & DP_TIER_TUN_GRO);
	lab.path.merge.has_udp = tier & DP_TIER_TUN_UGRO;
	lab.path.message_bytes = 0;
	kernel.run_error = kernel.super_error = 0;
	kernel.refusals = kernel.runs = kernel.supers = 0;
	kernel.first = kernel.count = kernel.used = 0;
	kernel.log->count = kernel.log->used = 0;
}

/* One thing to be tried. */
struct scenario {
	const char *name;
	void (*run)(void);
};

/**
 * paths_run() - Run a scenario, or all
 * @scenarios:	All
 * @count:	How many
 * @name:	Which; NULL: all
 *
 * Return: 0, or 2 if there is none of that name
 */
static inline int paths_run(const struct scenario *scenarios, size_t count, const char *name)
{
	uint32_t ran = 0;

	for (size_t i = 0; i < count; i++) {
		if (name && strcmp(name, scenarios[i].name) != 0)
			continue;
		printf("%s\n", scenarios[i].name);
		fflush(stdout);
		scenarios[i].run();
		ran++;
	}
	return ran ? 0 : 2;
}

#endif
