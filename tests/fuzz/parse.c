/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever the kernel routes to the TUN is refused for one reason, or everything said of it lies inside of it.
 *
 * An input is a packet, after one byte that says how much headroom there is.
 */
#include "mutate.h"
#include "pure.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t room[UINT8_MAX + PKT_MAX];
	uint32_t headroom, len;
	enum dp_drop drop;
	struct pkt pkt;
	uint8_t *buf;

	if (!size || size > PKT_MAX)
		return 0;
	headroom = data[0] >> 1;
	len = (uint32_t)size - 1;
	memcpy(room + headroom, data + 1, len);
	buf = fuzz_place(fuzz_wall(), room, headroom + len);
	pkt = pkt_init(buf, headroom + len, headroom, len);
	drop = pure_inner(&pkt, 0);
	if (!drop)
		CHECK(encap_vxlan_push(&pkt, 4, PACKET_VNI, packet_peer_mac, packet_peer_mac) ==
		      (headroom >= VXLAN_PUSH));
	return fuzz_count(!drop);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned int seed)
{
	return mutate_packet(data, size, room, 1, seed);
}
