/* SPDX-License-Identifier: Apache-2.0 */
/* offload.c - no virtio header makes checksum completion reach outside of its packet, and only runs are cut as runs. */
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

/**
 * is_left_whole() - Is a packet that is no run of datagrams described as one packet?
 * @proto:	Its protocol
 * @payload:	Its bytes behind a UDP header, of a run of datagrams of 1000 bytes
 * @flags:	Of its virtio header
 *
 * Return: true if so, and the header says nothing of segments
 */
static bool is_left_whole(uint8_t proto, uint32_t payload, uint8_t flags)
{
	struct flow flow = {.family = 4, .proto = proto, .l3len = IP4_LEN, .total_len = IP4_LEN + UDP_LEN + payload};
	struct vnet_hdr vnet = {.flags = flags};

	return offload_describe_run(&flow, 1000, &vnet) == 1 && vnet.gso_type == VNET_GSO_NONE && !vnet.gso_size;
}

/**
 * check_runs() - Only what is a run of datagrams that need checksums is to be cut into some
 */
static void check_runs(void)
{
	struct flow flow = {.family = 4, .proto = PROTO_UDP, .l3len = IP4_LEN, .total_len = IP4_LEN + UDP_LEN + 2001};
	struct vnet_hdr vnet = {.flags = VNET_NEEDS_CSUM};

	CHECK(offload_describe_run(&flow, 1000, &vnet) == 3);
	CHECK(vnet.gso_type == VNET_GSO_UDP_L4 && vnet.gso_size == 1000);
	CHECK(!is_left_whole(PROTO_UDP, 1001, VNET_NEEDS_CSUM));
	CHECK(is_left_whole(PROTO_UDP, 1000, VNET_NEEDS_CSUM) && is_left_whole(PROTO_UDP, 0, VNET_NEEDS_CSUM));
	CHECK(is_left_whole(PROTO_TCP, 2001, VNET_NEEDS_CSUM) && is_left_whole(PROTO_UDP, 2001, 0));
}

int main(void)
{
	struct wall wall = wall_build();
	uint8_t packet[PACKET_ROOM];
	uint32_t accepted = 0;
	uint64_t dice = 5;

	check_runs();
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
