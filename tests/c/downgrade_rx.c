/* SPDX-License-Identifier: Apache-2.0 */
/*
 * downgrade_rx.c - super-packets that the kernel refuses reach the pods as the packets that came, each once.
 *
 * Peers send packets that can be joined. Whatever the TUN says to super-packets, and however few messages a call
 * returns, pods get what was sent: bit for bit, and each flow in its order.
 *
 *     downgrade_rx [SCENARIO]          without one, all of them
 */
#include "paths.h"

enum { TIER = DP_TIER_MMSG | DP_TIER_TUN_VNET | DP_TIER_TUN_GRO | DP_TIER_TUN_UGRO, ROUNDS = 3 };

/* Bursts of packets from peers; the payload is that of all packets together, the size that of each. */
static const struct sketch bursts[] = {
	{.family = 4, .proto = PROTO_TCP, .peer = 1, .port = 1, .payload = 20000, .size = 1398},
	{.family = 4, .proto = PROTO_UDP, .peer = 2, .port = 2, .payload = 9000, .size = 1000},
	{.family = 6, .proto = PROTO_TCP, .peer = 1, .port = 3, .payload = 13780, .size = 1378},
	{.family = 6, .proto = PROTO_UDP, .peer = 3, .port = 4, .payload = 5001, .size = 555},
	{.family = 4, .proto = PROTO_TCP, .peer = 3, .port = 5, .flags = TCP_FLAG_ECE, .payload = 3001, .size = 300},
	{.family = 4, .proto = PROTO_UDP, .peer = 1, .port = 6, .payload = 64, .size = 64},
	{.family = 4, .proto = PROTO_UDP, .peer = 2, .port = 7, .payload = 9000, .size = 100}, /* more than one holds */
};
enum { BURSTS = sizeof(bursts) / sizeof(*bursts) };

/* How packets come. */
struct arrival {
	uint32_t slot;   /* DP_FD_UDP4, DP_FD_RAW4 or DP_FD_BARE4 */
	uint32_t joined; /* datagrams in one message; 1: each its own */
	bool is_mixed;   /* packets of all bursts in turn */
};
static const struct arrival singles = {.slot = DP_FD_UDP4, .joined = 1};

/**
 * frame() - Make the tunnel packet that a packet of a burst comes in
 * @out:	Room for it
 * @sketch:	The packet
 * @slot:	DP_FD_UDP4, DP_FD_RAW4 or DP_FD_BARE4
 *
 * What is in it is noted as what the pods are to get.
 *
 * Return: its length
 */
static uint32_t frame(uint8_t *out, const struct sketch *sketch, uint32_t slot)
{
	static uint8_t inner[PACKET_ROOM];
	uint32_t len = sketch_packet(inner, sketch, false);

	kernel.log = &paths_logs[0];
	kernel_keep(inner, len, 0);
	kernel.log = &paths_logs[1];
	if (slot == DP_FD_BARE4)
		memcpy(out, inner, len);
	if (slot == DP_FD_BARE4)
		return len;
	if (slot == DP_FD_UDP4)
		return packet_vxlan(out, inner, len);
	len = packet_ipip(out, inner, len);
	store32(out + IP4_SRC, SKETCH_VTEP + sketch->peer);
	store32(out + IP4_DST, SKETCH_OWN);
	packet_repair(out, len);
	return len;
}

/**
 * make_packet() - Make one packet of a burst
 * @burst:	What it is
 * @number:	Which packet of it
 * @seq:	Sequence number of the first one, and from where IDs count
 * @sketch:	Set to the packet
 *
 * Return: true, or false if the burst is shorter
 */
static bool make_packet(const struct sketch *burst, uint32_t number, uint32_t seq, struct sketch *sketch)
{
	uint32_t off = number * burst->size, left;

	if (off >= burst->payload)
		return false;
	left = burst->payload - off;
	*sketch = *burst;
	sketch->seq = seq + off;
	sketch->id = (uint16_t)(seq + number);
	sketch->payload = left < burst->size ? left : burst->size;
	if (sketch->proto == PROTO_TCP && (left <= burst->size || number % 12 == 7))
		sketch->flags |= TCP_FLAG_PSH;
	return true;
}

/**
 * send_burst() - Let one burst wait at the underlay
 * @burst:	What it is
 * @seq:	Its first sequence number
 * @arrival:	How it comes
 */
static void send_burst(const struct sketch *burst, uint32_t seq, const struct arrival *arrival)
{
	static uint8_t message[PKT_MAX];
	uint32_t used = 0, datagrams = 0, size = 0, from = SKETCH_VTEP + burst->peer;
	struct sketch sketch;

	for (uint32_t number = 0; make_packet(burst, number, seq, &sketch); number++) {
		uint32_t len = frame(message + used, &sketch, arrival->slot);

		size = datagrams ? size : len;
		used += len;
		if (++datagrams < arrival->joined && (number + 1) * burst->size < burst->payload)
			continue;
		kernel_queue(message, used, datagrams > 1 ? size : 0, from);
		used = datagrams = 0;
	}
}

/**
 * send_mixed() - Let packets of all bursts wait, in turn
 * @seq:	First sequence number of each
 */
static void send_mixed(uint32_t seq)
{
	static uint8_t message[PKT_MAX];
	struct sketch sketch;
	bool is_more = true;

	for (uint32_t number = 0; is_more; number++) {
		is_more = false;
		for (uint32_t i = 0; i < BURSTS; i++) {
			if (!make_packet(&bursts[i], number, seq, &sketch))
				continue;
			kernel_queue(message, frame(message, &sketch, DP_FD_UDP4), 0, SKETCH_VTEP + sketch.peer);
			is_more = true;
		}
	}
}

/**
 * carry_round() - Let peers send one round of bursts, and carry them
 * @round:	Which
 * @arrival:	How they come
 */
static void carry_round(uint32_t round, const struct arrival *arrival)
{
	if (arrival->is_mixed)
		send_mixed(round * 100000);
	for (uint32_t i = 0; i < BURSTS && !arrival->is_mixed; i++)
		if (arrival->slot == DP_FD_UDP4 || bursts[i].family == 4)
			send_burst(&bursts[i], round * 100000, arrival);
	while (rx_run(&lab.path, arrival->slot, PATHS_ALL))
		;
}

/**
 * open_both() - Begin, with nothing expected
 */
static void open_both(void)
{
	paths_open(TIER, 1);
	memset(&paths_logs[0], 0, sizeof(paths_logs[0]));
}

/**
 * close_whole() - Check that pods got all that was sent, and end
 */
static void close_whole(void)
{
	CHECK(!paths_drops(DP_RX) && kernel_equal(&paths_logs[0], &paths_logs[1]));
	paths_close(DP_RX);
}

/**
 * refuse_supers() - A kernel that refuses super-packets of a kind: none are made after one batch
 * @gso:	Which, of VNET_GSO_*
 * @offload:	What must have been given up
 * @arrival:	How packets come
 */
static void refuse_supers(uint8_t gso, uint32_t offload, const struct arrival *arrival)
{
	uint32_t refusals, supers;

	open_both();
	carry_round(0, arrival);
	CHECK(kernel.supers && !lab.counters.refused_tier);
	kernel.super_error = EINVAL;
	kernel.super_refused = gso;
	carry_round(1, arrival);
	refusals = kernel.refusals;
	supers = kernel.supers;
	CHECK(refusals && refusals <= MERGE_FLOWS && lab.counters.refused_tier == offload);
	carry_round(2, arrival);
	CHECK(kernel.refusals == refusals);                               /* it is not asked again */
	CHECK((kernel.supers > supers) == (offload == DP_TIER_TUN_UGRO)); /* TCP is still joined */
	close_whole();
}

/**
 * tcp_refused() - TCP over IPv4 is refused, so no packets are joined any more
 */
static void tcp_refused(void)
{
	refuse_supers(VNET_GSO_TCP4, DP_TIER_TUN_GRO, &singles);
}

/**
 * tcp6_refused() - The same of TCP over IPv6
 */
static void tcp6_refused(void)
{
	refuse_supers(VNET_GSO_TCP6, DP_TIER_TUN_GRO, &singles);
}

/**
 * udp_refused() - UDP is refused, and TCP still joined
 */
static void udp_refused(void)
{
	refuse_supers(VNET_GSO_UDP_L4, DP_TIER_TUN_UGRO, &singles);
}

/**
 * all_refused() - Super-packets of every kind are refused, however the packets came
 */
static void all_refused(void)
{
	static const struct arrival arrivals[] = {
		{.slot = DP_FD_UDP4, .joined = 1},  {.slot = DP_FD_UDP4, .joined = 5},
		{.slot = DP_FD_UDP4, .joined = 64}, {.slot = DP_FD_UDP4, .joined = 1, .is_mixed = true},
		{.slot = DP_FD_RAW4, .joined = 1},  {.slot = DP_FD_BARE4, .joined = 1},
		{.slot = DP_FD_BARE4, .joined = 5}, {.slot = DP_FD_BARE4, .joined = 64},
	};

	for (uint32_t i = 0; i < sizeof(arrivals) / sizeof(*arrivals); i++) {
		open_both();
		kernel.super_error = EINVAL;
		for (uint32_t round = 0; round < ROUNDS; round++)
			carry_round(round, &arrivals[i]);
		CHECK(!kernel.supers && kernel.refusals <= MERGE_FLOWS &&
		      (lab.counters.refused_tier & DP_TIER_TUN_GRO));
		close_whole();
	}
}

/**
 * bare_runs() - In a run of bare packets flows alternate, and some packets join none: all are whole
 *
 * Nothing stands between two of them, so a virtio header is written over the end of the one before.
 */
static void bare_runs(void)
{
	static const struct sketch mixed[] = {
		{.family = 4, .proto = PROTO_TCP, .peer = 1, .port = 1, .payload = 300},
		{.family = 4, .proto = PROTO_TCP, .peer = 1, .port = 2, .payload = 300},
		{.family = 4, .proto = PROTO_UDP, .peer = 1, .port = 3, .payload = 312},
		{.family = 4, .proto = PROTO_TCP, .peer = 1, .port = 4, .flags = TCP_FLAG_FIN, .payload = 300},
	};
	static uint8_t message[PKT_MAX];

	for (uint32_t is_refused = 0; is_refused < 2; is_refused++) {
		uint32_t used = 0, size = 0;

		open_both();
		kernel.super_error = is_refused ? EINVAL : 0;
		for (uint32_t i = 0; i < 40; i++) {
			struct sketch sketch = mixed[i % 4];

			sketch.seq = i / 4 * sketch.payload;
			sketch.id = (uint16_t)(i / 4);
			size = frame(message + used, &sketch, DP_FD_BARE4);
			used += size;
		}
		kernel_queue(message, used, size, SKETCH_VTEP + 1);
		while (rx_run(&lab.path, DP_FD_BARE4, PATHS_ALL))
			;
		CHECK(is_refused ? kernel.refusals > 0 : kernel.supers > 0);
		close_whole();
	}
}

/**
 * receive_bare_super() - Let the kernel of this machine send a bare UDP packet that is yet to be cut, into five
 */
static void receive_bare_super(void)
{
	static uint8_t message[PKT_MAX];
	struct sketch sketch = {.family = 4, .proto = PROTO_UDP, .peer = 1, .port = 9, .payload = 5000};
	uint32_t len = sketch_packet(message, &sketch, false);
	uint16_t unfinished;

	unfinished = csum_fold(csum_pseudo(message + IP4_SRC, message + IP4_DST, 4, PROTO_UDP, len - IP4_LEN));
	memcpy(message + IP4_LEN + UDP_CHECK, &unfinished, sizeof(unfinished));
	kernel_queue(message, len, 1000, SKETCH_VTEP + 1);
	CHECK(rx_run(&lab.path, DP_FD_BARE4, PATHS_ALL));
	CHECK(kernel.log->count == 5 && !paths_drops(DP_RX));
}

/**
 * bare_super() - A bare UDP packet that is yet to be cut is one datagram, and no run
 */
static void bare_super(void)
{
	open_both();
	receive_bare_super();
	CHECK(kernel.supers == 1);
	paths_close(DP_RX);
}

/**
 * refused_apart() - Of a super-packet that is refused, one packet is refused too: it alone is lost
 */
static void refused_apart(void)
{
	for (uint32_t after = 0; after < 20; after += 3) {
		open_both();
		kernel.super_error = EINVAL;
		kernel.once_error = ENOBUFS;
		kernel.once_after = after;
		carry_round(0, &singles);
		CHECK(lab.counters.drops[DP_RX][DP_DROP_TUN_FULL] == 1 && paths_drops(DP_RX) == 1);
		CHECK(paths_logs[1].count + 1 == paths_logs[0].count);
		CHECK(kernel_follows(&paths_logs[0], &paths_logs[1]));
		paths_close(DP_RX);
	}
}

/**
 * device_fails() - Another error of a super-packet is that of all its packets, and says nothing about super-packets
 */
static void device_fails(void)
{
	static const struct {
		int err;
		enum dp_drop drop;
	} errors[] = {{EIO, DP_DROP_TUN_DOWN}, {ENOMEM, DP_DROP_TUN_FULL}, {EAGAIN, DP_DROP_TUN_FULL}};

	for (uint32_t i = 0; i < sizeof(errors) / sizeof(*errors); i++) {
		uint64_t lost;

		open_both();
		kernel.super_error = errors[i].err;
		carry_round(0, &singles);
		lost = lab.counters.drops[DP_RX][errors[i].drop];
		CHECK(lost && lost == paths_drops(DP_RX) && paths_logs[1].count + lost == paths_logs[0].count);
		CHECK(!lab.counters.refused_tier && !kernel.supers);
		kernel.super_error = 0;
		carry_round(1, &singles);
		CHECK(kernel.supers && lost == paths_drops(DP_RX));
		CHECK(kernel_follows(&paths_logs[0], &paths_logs[1]));
		paths_close(DP_RX);
	}
}

/**
 * partial_receives() - A call returns fewer messages than there are: the others come later, each once
 */
static void partial_receives(void)
{
	static const struct arrival joined = {.slot = DP_FD_UDP4, .joined = 4};

	for (uint32_t most = 1; most < 40; most += most / 2 + 1) {
		open_both();
		kernel.most = most;
		for (uint32_t round = 0; round < ROUNDS; round++)
			carry_round(round, round % 2 ? &joined : &singles);
		CHECK(!!kernel.supers && !lab.counters.refused_tier);
		close_whole();
	}
}

/**
 * receive_super() - Let a kernel peer on this machine send a super-packet, which nobody has cut or finished
 * @family:	4 or 6
 */
static void receive_super(uint8_t family)
{
	static uint8_t inner[PKT_MAX], message[PKT_MAX];
	struct sketch sketch = {.family = family, .proto = PROTO_TCP, .peer = 1, .port = 7, .payload = 20000};
	uint32_t len = sketch_packet(inner, &sketch, false), l3len = family == 4 ? IP4_LEN : IP6_LEN;
	const uint8_t *addrs = inner + (family == 4 ? (int)IP4_SRC : (int)IP6_SRC);
	uint32_t addr_len = family == 4 ? 4 : 16;
	uint16_t unfinished = csum_fold(csum_pseudo(addrs, addrs + addr_len, addr_len, PROTO_TCP, len - l3len));

	memcpy(inner + l3len + TCP_CHECK, &unfinished, sizeof(unfinished));
	kernel_queue(message, packet_vxlan(message, inner, len), 0, SKETCH_VTEP + 1);
	CHECK(rx_run(&lab.path, DP_FD_UDP4, PATHS_ALL));
}

/**
 * peer_super_refused() - A super-packet that came as one enters as its packets where the TUN refuses it
 */
static void peer_super_refused(void)
{
	for (uint32_t is_refused = 0; is_refused < 2; is_refused++) {
		paths_open(TIER, is_refused);
		kernel.super_error = is_refused ? EINVAL : 0;
		receive_super(4);
		receive_super(6);
		CHECK(kernel.supers == (is_refused ? 0 : 2) && kernel.refusals == (is_refused ? 2 : 0));
		CHECK(!lab.counters.refused_tier && kernel.log->count > 20);
		paths_close(DP_RX);
	}
	CHECK(kernel_equal(&paths_logs[0], &paths_logs[1]));
}

/**
 * peer_super_cut() - Where the TUN takes no super-packets, or none of UDP, it is not asked to
 */
static void peer_super_cut(void)
{
	paths_open(TIER & ~(uint32_t)DP_TIER_TUN_UGRO, 0);
	receive_bare_super();
	CHECK(!kernel.supers && !kernel.refusals);
	receive_super(4);
	CHECK(kernel.supers == 1);
	paths_close(DP_RX);
	paths_open(DP_TIER_MMSG | DP_TIER_TUN_VNET, 0);
	receive_super(4);
	CHECK(!kernel.supers && !kernel.refusals && kernel.log->count > 10);
	paths_close(DP_RX);
	paths_open(TIER, 0);
	lab.config.vnet_hdr_len = 0;
	kernel.is_plain = true;
	receive_super(4);
	receive_super(6);
	CHECK(kernel.log->count > 20 && lab.counters.offered[DP_RX] == kernel.log->count);
	paths_close(DP_RX);
}

int main(int argc, char **argv)
{
	static const struct scenario scenarios[] = {
		{"tcp_refused", tcp_refused},
		{"tcp6_refused", tcp6_refused},
		{"udp_refused", udp_refused},
		{"all_refused", all_refused},
		{"refused_apart", refused_apart},
		{"device_fails", device_fails},
		{"partial_receives", partial_receives},
		{"peer_super_refused", peer_super_refused},
		{"peer_super_cut", peer_super_cut},
		{"bare_runs", bare_runs},
		{"bare_super", bare_super},
	};

	return paths_run(scenarios, sizeof(scenarios) / sizeof(*scenarios), argc > 1 ? argv[1] : NULL);
}
