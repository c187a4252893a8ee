/* SPDX-License-Identifier: Apache-2.0 */
/*
 * downgrade_tx.c - whatever the kernel refuses of what is sent: no packet is lost, doubled or overtaken by its flow.
 *
 * The same packets go to a kernel that refuses nothing and to one that does. What comes out must be the same,
 * bit for bit, but for the order of different flows.
 *
 *     downgrade_tx [SCENARIO]          without one, all of them
 */
#include "paths.h"

enum { TIER = DP_TIER_MMSG | DP_TIER_UDP_GSO, ROUNDS = 3 };

/* One round of packets from pods: super-packets and packets to all peers, in turn. */
static const struct sketch flows[] = {
	{.family = 4, .proto = PROTO_TCP, .peer = 1, .port = 1, .payload = 20000, .size = 1398},
	{.family = 4, .proto = PROTO_UDP, .peer = 2, .port = 2, .payload = 100},
	{.family = 4, .proto = PROTO_UDP, .peer = 2, .port = 2, .payload = 100},
	{.family = 4, .proto = PROTO_UDP, .peer = 1, .port = 3, .payload = 64},
	{.family = 6, .proto = PROTO_UDP, .peer = 1, .port = 4, .payload = 9000, .size = 1000},
	{.family = 6, .proto = PROTO_TCP, .peer = 3, .port = 5, .payload = 1378},
	{.family = 6, .proto = PROTO_TCP, .peer = 3, .port = 5, .payload = 1378},
	{.family = 6, .proto = PROTO_TCP, .peer = 3, .port = 5, .payload = 7},
	{.family = 4, .proto = PROTO_TCP, .peer = 2, .port = 6, .payload = 64000, .size = 700},
	{.family = 4, .proto = PROTO_UDP, .peer = 3, .port = 7, .payload = 1000},
};
enum { FLOWS = sizeof(flows) / sizeof(*flows) };

static bool is_v4; /* flows of IPv4 alone */

/**
 * carry_round() - Let pods send one round of packets, and carry them
 * @round:	Which
 */
static void carry_round(uint32_t round)
{
	for (uint32_t repeat = 0; repeat < 3; repeat++) {
		for (uint32_t i = 0; i < FLOWS; i++) {
			struct sketch sketch = flows[i];

			if (is_v4 && sketch.family != 4)
				continue;
			sketch.seq = (round * 3 + repeat) * 100000 + i * 2000;
			sketch.id = (uint16_t)(sketch.seq / 100);
			kernel_from_pod(&sketch);
		}
	}
	while (tx_run(&lab.path, KERNEL_TUN, PATHS_ALL))
		;
}

/**
 * carry_good() - Carry all rounds on a kernel that refuses nothing
 * @tier:	Mask of enum dp_tier
 */
static void carry_good(uint32_t tier)
{
	paths_open(tier, 0);
	for (uint32_t round = 0; round < ROUNDS; round++)
		carry_round(round);
	CHECK(!!kernel.runs == !!(tier & DP_TIER_UDP_GSO) && !kernel.refusals);
	CHECK(!lab.counters.refused_tier && !paths_drops(DP_TX));
	paths_close(DP_TX);
}

/**
 * refuse_runs() - A kernel that cuts no message: runs are given up after one batch, and nothing else changes
 * @err:	Its errno
 */
static void refuse_runs(int err)
{
	uint32_t refusals;

	carry_good(TIER);
	paths_open(TIER, 1);
	carry_round(0);
	CHECK(kernel.runs && !lab.counters.refused_tier);
	kernel.run_error = err;
	kernel.runs = 0;
	carry_round(1);
	refusals = kernel.refusals;
	CHECK(refusals && !kernel.runs);
	CHECK(lab.counters.refused_tier == DP_TIER_UDP_GSO && !lab.path.out.has_runs);
	carry_round(2);
	CHECK(kernel.refusals == refusals); /* it is not asked again */
	CHECK(!paths_drops(DP_TX) && kernel_equal(&paths_logs[0], &paths_logs[1]));
	paths_close(DP_TX);
}

/**
 * runs_eio() - Refused as by a device that computes no checksums
 */
static void runs_eio(void)
{
	refuse_runs(EIO);
}

/**
 * runs_einval() - Refused as what the kernel does not understand
 */
static void runs_einval(void)
{
	refuse_runs(EINVAL);
}

/**
 * runs_emsgsize() - Refused as too long, though each datagram passes
 */
static void runs_emsgsize(void)
{
	refuse_runs(EMSGSIZE);
}

/**
 * narrow_path() - One peer's path takes no full packet: short ones pass, other peers keep their runs
 */
static void narrow_path(void)
{
	uint32_t expected = 0;

	carry_good(TIER);
	for (uint32_t i = 0; i < paths_logs[0].count; i++) {
		const struct kernel_bytes *seen = &paths_logs[0].seen[i];

		expected += seen->where == SKETCH_VTEP + 1 && seen->len > 1200;
	}
	paths_open(TIER, 1);
	kernel.longest = 1200;
	for (uint32_t round = 0; round < ROUNDS; round++)
		carry_round(round);
	CHECK(expected > 100 && lab.counters.drops[DP_TX][DP_DROP_TOO_BIG] == expected);
	CHECK(paths_drops(DP_TX) == expected && lab.peers[1].drops[DP_DROP_TOO_BIG] == expected);
	CHECK(kernel.log->count == paths_logs[0].count - expected);
	CHECK(kernel.refusals && kernel.runs && !lab.counters.refused_tier && lab.path.out.has_runs);
	paths_close(DP_TX);
}

/**
 * peer_refused() - What goes to one peer is refused, run or not: that says nothing about runs
 */
static void peer_refused(void)
{
	carry_good(TIER);
	paths_open(TIER, 1);
	kernel.peer_error = EINVAL; /* as of a route of type blackhole */
	for (uint32_t round = 0; round < ROUNDS; round++)
		carry_round(round);
	CHECK(lab.counters.drops[DP_TX][DP_DROP_SEND_ERROR] == paths_drops(DP_TX));
	CHECK(paths_drops(DP_TX) == lab.peers[1].drops[DP_DROP_SEND_ERROR]);
	CHECK(kernel.log->count + paths_drops(DP_TX) == paths_logs[0].count);
	CHECK(kernel.refusals && kernel.runs && !lab.counters.refused_tier && lab.path.out.has_runs);
	paths_close(DP_TX);
}

/**
 * partial_sends() - A call takes fewer messages than it is given: the others follow
 */
static void partial_sends(void)
{
	for (uint32_t most = 1; most < 20; most += most / 2 + 1) {
		carry_good(TIER);
		paths_open(TIER, 1);
		kernel.most = most;
		for (uint32_t round = 0; round < ROUNDS; round++)
			carry_round(round);
		CHECK(!paths_drops(DP_TX) && kernel_equal(&paths_logs[0], &paths_logs[1]));
		paths_close(DP_TX);
	}
}

/**
 * part_then_refused() - A call sends a part and then meets an error: that message is lost, all others leave once
 */
static void part_then_refused(void)
{
	carry_good(TIER);
	for (uint32_t after = 0; after < 12; after++) {
		uint32_t lost;

		paths_open(TIER, 1);
		kernel.once_error = ENOBUFS;
		kernel.once_after = after;
		for (uint32_t round = 0; round < ROUNDS; round++)
			carry_round(round);
		lost = (uint32_t)lab.counters.drops[DP_TX][DP_DROP_SEND_FULL];
		CHECK(!kernel.once_error && lost && lost == paths_drops(DP_TX) && lost <= OUTBOX_RUN);
		CHECK(kernel.log->count == paths_logs[0].count - lost);
		CHECK(kernel_follows(&paths_logs[0], &paths_logs[1]));
		CHECK(!lab.counters.refused_tier && lab.path.out.has_runs);
		paths_close(DP_TX);
	}
}

/**
 * part_then_runs_refused() - A call sends a part and then meets a run that it refuses for good
 */
static void part_then_runs_refused(void)
{
	for (uint32_t most = 0; most < 3; most++) {
		carry_good(TIER);
		paths_open(TIER, 1);
		kernel.run_error = EIO;
		kernel.most = most;
		for (uint32_t i = 0; i < 5; i++) { /* single messages in front of the first run, and behind */
			struct sketch sketch = {.family = 4,
						.proto = PROTO_UDP,
						.peer = (uint8_t)(1 + i % 3),
						.port = (uint16_t)(100 + i),
						.payload = 9};

			kernel_from_pod(&sketch);
		}
		for (uint32_t round = 0; round < ROUNDS; round++)
			carry_round(round);
		CHECK(lab.counters.refused_tier == DP_TIER_UDP_GSO && !paths_drops(DP_TX));
		CHECK(kernel.log->count == paths_logs[0].count + 5);
		CHECK(kernel_follows(&paths_logs[1], &paths_logs[0]));
		paths_close(DP_TX);
	}
}

/**
 * refused_apart() - Of a run that is refused, one datagram is refused too: it alone is lost
 */
static void refused_apart(void)
{
	carry_good(TIER);
	paths_open(TIER, 1);
	kernel.run_error = EIO;
	kernel.once_error = ENOBUFS;
	kernel.once_after = 3;
	for (uint32_t round = 0; round < ROUNDS; round++)
		carry_round(round);
	CHECK(lab.counters.drops[DP_TX][DP_DROP_SEND_FULL] == 1 && paths_drops(DP_TX) == 1);
	CHECK(lab.counters.refused_tier == DP_TIER_UDP_GSO && kernel_follows(&paths_logs[0], &paths_logs[1]));
	paths_close(DP_TX);
}

/**
 * without() - Without runs, or without batches too, the same comes out
 */
static void without(void)
{
	static const uint32_t tiers[] = {DP_TIER_MMSG, DP_TIER_UDP_GSO, 0};

	for (uint32_t i = 0; i < sizeof(tiers) / sizeof(*tiers); i++) {
		carry_good(TIER);
		paths_open(tiers[i], 1);
		for (uint32_t round = 0; round < ROUNDS; round++)
			carry_round(round);
		CHECK(!paths_drops(DP_TX) && kernel_equal(&paths_logs[0], &paths_logs[1]));
		CHECK((tiers[i] & DP_TIER_UDP_GSO) || !kernel.runs);
		paths_close(DP_TX);
	}
}

/**
 * bare() - Bare packets in UDP are what VXLAN carries, without its headers: in runs, in runs refused, and one by one
 */
static void bare(void)
{
	static const uint32_t tiers[] = {TIER, TIER, 0};

	is_v4 = true;
	for (uint32_t i = 0; i < sizeof(tiers) / sizeof(*tiers); i++) {
		paths_encap = DP_ENCAP_VXLAN;
		carry_good(TIER);
		for (uint32_t n = 0; n < paths_logs[0].count; n++) {
			paths_logs[0].seen[n].at += VXLAN_PUSH;
			paths_logs[0].seen[n].len -= VXLAN_PUSH;
		}
		paths_encap = DP_ENCAP_FLANNEL_UDP;
		paths_open(tiers[i], 1);
		kernel.run_error = i == 1 ? EIO : 0;
		for (uint32_t round = 0; round < ROUNDS; round++)
			carry_round(round);
		CHECK(!!kernel.runs == !i && !!kernel.refusals == (i == 1));
		CHECK(!paths_drops(DP_TX) && kernel_equal(&paths_logs[0], &paths_logs[1]));
		paths_close(DP_TX);
	}
	paths_open(TIER, 1);
	kernel_from_pod(&(struct sketch){.family = 6, .proto = PROTO_UDP, .peer = 1, .port = 4, .payload = 9});
	CHECK(tx_run(&lab.path, KERNEL_TUN, PATHS_ALL));
	CHECK(lab.counters.drops[DP_TX][DP_DROP_NO_ENCAP] == 1 && !kernel.log->count);
	paths_close(DP_TX);
	paths_encap = DP_ENCAP_VXLAN;
	is_v4 = false;
}

int main(int argc, char **argv)
{
	static const struct scenario scenarios[] = {
		{"runs_eio", runs_eio},
		{"runs_einval", runs_einval},
		{"runs_emsgsize", runs_emsgsize},
		{"narrow_path", narrow_path},
		{"peer_refused", peer_refused},
		{"partial_sends", partial_sends},
		{"part_then_refused", part_then_refused},
		{"part_then_runs_refused", part_then_runs_refused},
		{"refused_apart", refused_apart},
		{"without", without},
		{"bare", bare},
	};

	return paths_run(scenarios, sizeof(scenarios) / sizeof(*scenarios), argc > 1 ? argv[1] : NULL);
}
