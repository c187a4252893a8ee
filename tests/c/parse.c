/* SPDX-License-Identifier: Apache-2.0 */
/* parse.c - no inner packet makes the parser, or what relies on it, touch a byte outside of it. */
#include "pure.h"

enum { PACKETS = 400000 };

static struct wall wall;

/**
 * carry() - Carry a packet at both walls
 * @data:	The packet
 * @len:	Its length
 *
 * Return: DP_DROP_NONE or why it is refused
 */
static enum dp_drop carry(const uint8_t *data, uint32_t len)
{
	struct pkt before = pkt_init(wall_before(&wall, data, len), len, 0, len);
	enum dp_drop drop = pure_inner(&before, 0);
	struct pkt behind = pkt_init(wall_behind(&wall, data, len), len, 0, len);

	CHECK(pure_inner(&behind, 0) == drop);
	return drop;
}

/**
 * invent() - Write a packet whose every field is drawn, near what is legal
 * @out:	Room for PACKET_ROOM bytes
 * @dice:	State of roll()
 *
 * Return: its length
 */
static uint32_t invent(uint8_t *out, uint64_t *dice)
{
	static const uint8_t protos[] = {PROTO_HOPOPTS,  PROTO_ICMP,  PROTO_TCP,     PROTO_UDP, PROTO_ROUTING,
					 PROTO_FRAGMENT, PROTO_ICMP6, PROTO_DSTOPTS, 59};
	uint32_t len = roll(dice) % 160;

	for (uint32_t i = 0; i < len; i++)
		out[i] = (uint8_t)(roll(dice) % 4 ? roll(dice) % 3 : roll(dice));
	if (len < 40)
		return len;
	if (roll(dice) % 2) {
		out[0] = (uint8_t)(0x45 + roll(dice) % 3);
		store16(out + IP4_TOTAL_LEN, (uint16_t)(len - roll(dice) % 3 + roll(dice) % 2));
		out[IP4_PROTO] = protos[roll(dice) % sizeof(protos)];
		if (roll(dice) % 8)
			packet_repair(out, len);
		return len;
	}
	out[0] = 0x60;
	store16(out + IP6_PAYLOAD_LEN, (uint16_t)(len - IP6_LEN - roll(dice) % 3 + roll(dice) % 2));
	out[IP6_NEXT] = protos[roll(dice) % sizeof(protos)];
	for (uint32_t off = IP6_LEN; off < len; off += 8)
		out[off] = protos[roll(dice) % sizeof(protos)];
	return len;
}

int main(void)
{
	uint32_t tally[DP_DROP_COUNT] = {0}, len;
	uint8_t packet[PACKET_ROOM];
	uint64_t dice = 3;

	wall = wall_build();
	for (int which = 0; (len = packet_good(packet, which)); which++) {
		for (uint32_t n = 0; n < len; n++)
			CHECK(carry(packet, n) != DP_DROP_NONE);
		CHECK(carry(packet, len) == DP_DROP_NONE);
	}
	for (int i = 0; i < PACKETS; i++) {
		len = invent(packet, &dice);
		tally[carry(packet, len)]++;
	}
	/* every way out was taken often */
	CHECK(tally[DP_DROP_NONE] > 1000 && tally[DP_DROP_INNER_VERSION] > 1000 && tally[DP_DROP_INNER_HEADER] > 1000);
	CHECK(tally[DP_DROP_INNER_LENGTH] > 1000 && tally[DP_DROP_INNER_CSUM] > 1000 &&
	      tally[DP_DROP_INNER_TTL] > 1000);
	return 0;
}
