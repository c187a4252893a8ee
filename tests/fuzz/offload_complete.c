/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever virtio header comes with a packet, completing its checksum writes the field it names inside of it, or nothing.
 *
 * An input is a virtio header of 12 bytes and the packet; its IPv4 checksum is repaired.
 */
#include "fuzz.h"
#include "pure.h"

/**
 * check_written() - Was only the checksum field written?
 * @before:	The packet as it was
 * @pkt:	The packet as it is
 * @flow:	The same packet, parsed
 * @vnet:	Its virtio header
 */
static void check_written(const uint8_t *before, const struct pkt *pkt, const struct flow *flow,
			  const struct vnet_hdr *vnet)
{
	uint32_t at = (uint32_t)vnet->csum_start + vnet->csum_offset;
	const uint8_t *now = pkt->buf + pkt->off;

	CHECK(at + 2 <= flow->total_len && at >= flow->l3len);
	CHECK(!memcmp(now, before, at) && !memcmp(now + at + 2, before + at + 2, pkt->len - at - 2));
	CHECK(flow->proto != PROTO_UDP || now[at] || now[at + 1]); /* 0 would say "no checksum" */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vnet_hdr vnet;
	uint8_t *packet, *before;
	bool is_written = false;
	struct flow flow;
	struct pkt pkt;
	uint32_t len;

	if (size < sizeof(vnet) || size > PKT_MAX)
		return 0;
	memcpy(&vnet, data, sizeof(vnet));
	len = (uint32_t)(size - sizeof(vnet));
	packet = fuzz_copy(data + sizeof(vnet), len);
	packet_repair(packet, len);
	before = fuzz_copy(packet, len);
	pkt = pkt_init(packet, len, 0, len);
	if (!parse_inner(&pkt, &flow)) {
		enum dp_drop drop = offload_complete(&pkt, &flow, &vnet);

		CHECK(drop == DP_DROP_NONE || drop == DP_DROP_VNET_HEADER);
		is_written = !drop && (vnet.flags & VNET_NEEDS_CSUM);
		if (is_written)
			check_written(before, &pkt, &flow, &vnet);
		else
			CHECK(!memcmp(packet, before, len));
	}
	free(before);
	free(packet);
	return fuzz_count(is_written);
}
