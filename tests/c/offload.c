/* SPDX-License-Identifier: Apache-2.0 */
/* offload.c - no virtio header makes checksum completion read or write outside of the packet that it came with. */
#include "pure.h"

enum { HEADERS = 300000 };

/**
 * complete() - Complete a packet at the wall by any header
 * @wall:	The wall
 * @packet:	Valid packet
 * @len:	Its length
 * @vnet:	The header
 *
 * Return: true if it was accepted
 */
static bool complete(const struct wall *wall, const uint8_t *packet, uint32_t len, const struct vnet_hdr *vnet)
{
	uint8_t *data = wall_before(wall, packet, len);
	struct pkt pkt = pkt_init(data, len, 0, len);
	uint32_t at = (uint32_t)vnet->csum_start + vnet->csum_offset;
	enum dp_drop drop;
	struct flow flow;

	CHECK(parse_inner(&pkt, &flow) == DP_DROP_NONE);
	drop = offload_complete(&pkt, &flow, vnet);
	CHECK(drop == DP_DROP_NONE || drop == DP_DROP_VNET_HEADER);
	if (drop || !(vnet->flags & VNET_NEEDS_CSUM)) {
		CHECK(!memcmp(data, packet, len));
		return !drop;
	}
	CHECK(at + 2 <= flow.total_len && vnet->csum_start >= flow.l3len && !vnet->gso_type);
	CHECK(!memcmp(data, packet, at) && !memcmp(data + at + 2, packet + at + 2, len - at - 2));
	return true;
}

int main(void)
{
	struct wall wall = wall_build();
	uint8_t packet[PACKET_ROOM];
	uint32_t accepted = 0;
	uint64_t dice = 5;

	for (int i = 0; i < HEADERS; i++) {
		uint32_t len = packet_good(packet, i % 7);
		uint16_t wide = roll(&dice) % 2 ? 0xffff : 127;
		struct vnet_hdr vnet = {
			.flags = (uint8_t)(roll(&dice) % 4),
			.gso_type = (uint8_t)(roll(&dice) % 8 ? 0 : roll(&dice)),
			.hdr_len = (uint16_t)roll(&dice),
			.gso_size = (uint16_t)roll(&dice),
			.csum_start = (uint16_t)roll(&dice) & wide,
			.csum_offset = (uint16_t)roll(&dice) & wide,
		};

		accepted += complete(&wall, packet, len, &vnet);
	}
	CHECK(accepted > HEADERS / 10 && accepted < HEADERS * 9 / 10); /* both ways are well trodden */
	return 0;
}
