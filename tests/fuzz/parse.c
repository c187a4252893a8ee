/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever the kernel routes to the TUN is refused for one reason, or everything said of it lies inside of it.
 *
 * The first byte says whether the IPv4 checksum is repaired first, and how much headroom there is.
 */
#include "fuzz.h"
#include "pure.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint32_t headroom, len;
	uint8_t how, *buf;
	enum dp_drop drop;
	struct pkt pkt;

	if (!size || size > PKT_MAX)
		return 0;
	how = *data++;
	len = (uint32_t)--size;
	headroom = how >> 1;
	buf = malloc(headroom + size + 1);
	CHECK(buf);
	memcpy(buf + headroom + 1, data, size);
	if (how & 1)
		packet_repair(buf + headroom + 1, len);
	pkt = pkt_init(buf + 1, headroom + len, headroom, len);
	drop = pure_inner(&pkt, 0);
	if (!drop) {
		bool has_room = encap_vxlan_push(&pkt, 4, PACKET_VNI, packet_peer_mac, packet_peer_mac);

		CHECK(has_room == (headroom >= VXLAN_PUSH));
	}
	free(buf);
	return fuzz_count(!drop);
}
