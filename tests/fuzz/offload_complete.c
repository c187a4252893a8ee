/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever virtio header comes with a packet, completing its checksum writes the field it names inside of it, or nothing.
 *
 * An input is a virtio header of 12 bytes and the packet.
 */
#include "mutate.h"
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
	const uint8_t *before = data + sizeof(struct vnet_hdr);
	struct vnet_hdr vnet;
	bool is_written = false;
	struct flow flow;
	struct pkt pkt;
	uint32_t len;

	if (size < sizeof(vnet) || size > PKT_MAX)
		return 0;
	memcpy(&vnet, data, sizeof(vnet));
	len = (uint32_t)(size - sizeof(vnet));
	pkt = pkt_init(fuzz_place(fuzz_wall(), before, len), len, 0, len);
	if (!parse_inner(&pkt, &flow)) {
		enum dp_drop drop = offload_complete(&pkt, &flow, &vnet);

		CHECK(drop == DP_DROP_NONE || drop == DP_DROP_VNET_HEADER);
		is_written = !drop && (vnet.flags & VNET_NEEDS_CSUM);
		if (is_written)
			check_written(before, &pkt, &flow, &vnet);
		else
			CHECK(!memcmp(pkt.buf, before, len));
	}
	return fuzz_count(is_written);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned int seed)
{
	struct vnet_hdr vnet;
	uint32_t l3len;

	size = LLVMFuzzerMutate(data, size, room);
	if (seed % MUTATE_UNREPAIRED == 0 || size < sizeof(vnet))
		return size;
	l3len = mutate_ip(data + sizeof(vnet), (uint32_t)(size - sizeof(vnet)));
	memcpy(&vnet, data, sizeof(vnet));
	vnet.gso_type = 0;
	vnet.flags |= VNET_NEEDS_CSUM;
	if (vnet.csum_start < l3len || vnet.csum_start + 2U > size - sizeof(vnet)) {
		vnet.csum_start = (uint16_t)l3len;
		vnet.csum_offset %= 32;
	}
	memcpy(data, &vnet, sizeof(vnet));
	return size;
}
