/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever arrives in a UDP datagram is refused for one reason, or is a valid packet that stays one.
 *
 * The first byte says what is repaired first, because few inputs would get past a checksum by themselves:
 * 1 the VXLAN and Ethernet headers, 2 the inner IPv4 checksum, 4 reserved bits are ignored, 0x30 the outer mark.
 */
#include "fuzz.h"
#include "pure.h"

enum { REPAIR_HEADERS = 1, REPAIR_CHECKSUM = 2, IGNORE_RESERVED = 4, MARK_SHIFT = 4 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct dp_config config = packet_config;
	uint8_t how, *payload;
	enum dp_drop drop;

	if (!size || size > PKT_MAX)
		return 0;
	how = *data++;
	size--;
	payload = fuzz_copy(data, size);
	if ((how & REPAIR_HEADERS) && size > VXLAN_PUSH) {
		uint8_t inner[1] = {payload[VXLAN_PUSH]}, headers[VXLAN_PUSH + 1];

		packet_vxlan(headers, inner, 1);
		memcpy(payload, headers, VXLAN_PUSH);
	}
	if ((how & REPAIR_CHECKSUM) && size > VXLAN_PUSH)
		packet_repair(payload + VXLAN_PUSH, (uint32_t)size - VXLAN_PUSH);
	config.reserved_ignore = (how & IGNORE_RESERVED) != 0;
	drop = pure_vxlan(payload, (uint32_t)size, &config, how >> MARK_SHIFT);
	CHECK(drop < DP_DROP_COUNT);
	free(payload);
	return fuzz_count(!drop);
}
