/* SPDX-License-Identifier: Apache-2.0 */
/* icmp.c - errors about originals of every length fit in their room and quote nothing but the original. */
#include "pure.h"

enum { PAYLOAD_MAX = 1500 };

static uint8_t original[PACKET_ROOM];

/**
 * answer() - Build the error about a packet, with walls behind both
 * @room:	Wall behind the error's room
 * @wall:	Wall behind the original
 * @len:	Length of the original
 * @most:	Longest error there may be
 */
static void answer(const struct wall *room, const struct wall *wall, uint32_t len, uint32_t most)
{
	uint8_t *out = room->end - ICMP_MAX;
	struct pkt pkt = pkt_init(wall_before(wall, original, len), len, 0, len);
	uint32_t error_len, l3len;
	struct flow flow;

	memset(out, 0xee, ICMP_MAX);
	CHECK(parse_inner(&pkt, &flow) == DP_DROP_NONE);
	error_len = icmp_no_route(out, &pkt, &flow);
	l3len = flow.family == 4 ? IP4_LEN : IP6_LEN;
	CHECK(error_len == (l3len + 8 + len < most ? l3len + 8 + len : most));
	CHECK(!memcmp(out + l3len + 8, original, error_len - l3len - 8));
	for (uint32_t i = error_len; i < ICMP_MAX; i++)
		CHECK(out[i] == 0xee);
}

int main(void)
{
	struct wall room = wall_build(), wall = wall_build();

	for (uint32_t n = 0; n <= PAYLOAD_MAX; n++) {
		answer(&room, &wall, packet_ip4(original, PROTO_UDP, 0, n), 576);
		answer(&room, &wall, packet_ip4(original, PROTO_TCP, 10, n), 576);
		answer(&room, &wall, packet_ip6(original, PROTO_UDP, 0, n), 1280);
		answer(&room, &wall, packet_ip6(original, PROTO_TCP, 3, n), 1280);
	}
	return 0;
}
