/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever datagrams arrive, alone or as runs, what is delivered is valid and for us, and all else is counted once.
 *
 * An input is one byte that says how (the socket, tiers, a kernel that refuses super-packets), then messages: one byte
 * that says from whom, two bytes of segment size, two of length, and the bytes. They go through all of rx.c, on the
 * kernel of kernel.h.
 */
#include "mutate.h"
#include "paths.h"

enum { HOW_SOCKET = 3, HOW_BATCHES = 4, HOW_GRO = 8, HOW_UGRO = 0x10, HOW_REFUSED = 0x20, HOW_OBSERVE = 0x40 };
enum { MESSAGES_MAX = 24, FRAME = 5 };

static const uint32_t slots[] = {DP_FD_UDP4, DP_FD_RAW4, DP_FD_BARE4, DP_FD_UDP4};

/**
 * check_packet() - Is what was delivered a valid packet for us, from who may send it?
 * @seen:	The packet
 */
static void check_packet(const struct kernel_bytes *seen)
{
	uint8_t *ip = kernel.log->bytes + seen->at;
	struct pkt pkt = pkt_init(ip, seen->len, 0, seen->len);
	struct flow flow;

	CHECK(!seen->where && !parse_inner(&pkt, &flow) && flow.total_len == seen->len);
	if (flow.family == 4)
		CHECK(flow.dst >> 8 == 0x0af401);
	else
		CHECK(flow.dst >> 64 == 0xfd00024400000001);
	if (lab.config.spoof_observe)
		return;
	if (flow.family == 4)
		CHECK((flow.src >> 8 > 0x0a0000 && flow.src >> 8 <= 0x0a0000 + SKETCH_PEERS) ||
		      (flow.src > SKETCH_VTEP && flow.src <= SKETCH_VTEP + SKETCH_PEERS));
	else
		CHECK(flow.src >> 64 > 0xfd00001000000000 && flow.src >> 64 <= 0xfd00001000000000 + SKETCH_PEERS);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint32_t count = 0, slot;
	uint8_t how;

	if (!size || size > PKT_MAX)
		return 0;
	how = data[0];
	if (!lab.fib)
		paths_open(0, 0);
	paths_again((how & HOW_BATCHES ? DP_TIER_MMSG : 0) | (how & HOW_GRO ? DP_TIER_TUN_GRO : 0) |
		    (how & HOW_UGRO ? DP_TIER_TUN_UGRO : 0));
	kernel.super_error = how & HOW_REFUSED ? EINVAL : 0;
	lab.config.spoof_observe = (how & HOW_OBSERVE) != 0;
	slot = slots[how & HOW_SOCKET];
	for (size_t at = 1; at + FRAME < size && count < MESSAGES_MAX; count++) {
		size_t left = size - at - FRAME, len = load16(data + at + 3);

		if (len > left || !len)
			len = left;
		kernel_queue(data + at + FRAME, (uint32_t)len, slot == DP_FD_RAW4 ? 0 : load16(data + at + 1),
			     SKETCH_VTEP + data[at] % (SKETCH_PEERS + 1));
		at += FRAME + len;
	}
	while (rx_run(&lab.path, slot, PATHS_ALL))
		;
	paths_check(DP_RX);
	for (uint32_t i = 0; i < kernel.log->count; i++)
		check_packet(&kernel.log->seen[i]);
	return fuzz_count(lab.counters.forwarded[DP_RX]);
}

/**
 * repair_message() - Make a message one packet from a peer, with right headers
 * @at:		The bytes
 * @len:	How many
 * @slot:	Where it arrives
 * @peer:	From whom
 * @how:	Dice
 */
static void repair_message(uint8_t *at, uint32_t len, uint32_t slot, uint8_t peer, uint32_t how)
{
	struct sketch sketch = {.peer = peer};
	uint8_t headers[VXLAN_PUSH + 1], *ip = at;
	uint32_t l3len;

	if (slot == DP_FD_UDP4) {
		if (len <= VXLAN_PUSH)
			return;
		ip += VXLAN_PUSH;
	} else if (slot == DP_FD_RAW4) {
		at[0] = 0x45;
		if (!mutate_ip(at, len))
			return;
		store32(at + IP4_DST, SKETCH_OWN);
		ip += IP4_LEN;
	}
	len -= (uint32_t)(ip - at);
	l3len = mutate_ip(ip, len);
	if (!l3len)
		return;
	sketch.family = ip[0] >> 4;
	sketch_addresses(ip, &sketch, false);
	if (how % 4 && mutate_ports(ip, l3len, len))
		mutate_l4(ip, l3len, len, how % 4 == 1);
	packet_repair(ip, len);
	if (slot == DP_FD_UDP4) {
		packet_vxlan(headers, ip, 1);
		memcpy(at, headers, VXLAN_PUSH);
	}
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned int seed)
{
	uint64_t dice = seed | 1;

	size = LLVMFuzzerMutate(data, size, room);
	for (size_t at = 1; at + FRAME < size;) {
		size_t left = size - at - FRAME, len = load16(data + at + 3);

		if (len > left || len < IP4_LEN) {
			len = left < 200 ? left : IP4_LEN + roll(&dice) % 180;
			store16(data + at + 3, (uint16_t)len);
		}
		if (roll(&dice) % 4)
			store16(data + at + 1, 0); /* one datagram */
		if (roll(&dice) % MUTATE_UNREPAIRED && data[at] % (SKETCH_PEERS + 1))
			repair_message(data + at + FRAME, (uint32_t)len, slots[data[0] & HOW_SOCKET],
				       data[at] % (SKETCH_PEERS + 1), roll(&dice));
		at += FRAME + len;
	}
	return size;
}
