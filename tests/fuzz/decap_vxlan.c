/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever arrives in a UDP datagram is refused for one reason, or is a valid packet that stays one.
 *
 * The first byte says: 4 reserved bits are ignored, 0x30 the outer mark.
 */
#include "mutate.h"
#include "pure.h"

enum { IGNORE_RESERVED = 4, MARK_SHIFT = 4 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct dp_config config = packet_config;
	enum dp_drop drop;

	if (!size || size > PKT_MAX)
		return 0;
	config.reserved_ignore = (data[0] & IGNORE_RESERVED) != 0;
	drop = pure_vxlan(fuzz_place(fuzz_wall(), data + 1, size - 1), (uint32_t)size - 1, &config,
			  data[0] >> MARK_SHIFT);
	CHECK(drop < DP_DROP_COUNT);
	return fuzz_count(!drop);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned int seed)
{
	uint8_t inner[1], headers[VXLAN_PUSH + 1];

	size = mutate_packet(data, size, room, 1 + VXLAN_PUSH, seed);
	if (seed / MUTATE_UNREPAIRED % MUTATE_UNREPAIRED && size > 1 + VXLAN_PUSH) {
		inner[0] = data[1 + VXLAN_PUSH];
		packet_vxlan(headers, inner, 1);
		memcpy(data + 1, headers, VXLAN_PUSH);
	}
	return size;
}
