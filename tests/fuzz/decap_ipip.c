/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever a raw socket hands up is refused for one reason, or carries a valid packet that stays one.
 *
 * The first byte says whether the inner IPv4 checksum is repaired first.
 */
#include "fuzz.h"
#include "pure.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t how, *packet;
	uint32_t outer_len;
	enum dp_drop drop;

	if (!size || size > PKT_MAX)
		return 0;
	how = *data++;
	size--;
	packet = fuzz_copy(data, size);
	outer_len = size ? (packet[0] & 0x0fU) * 4 : 0;
	if ((how & 1) && outer_len < size)
		packet_repair(packet + outer_len, (uint32_t)size - outer_len);
	drop = pure_ipip(packet, (uint32_t)size);
	CHECK(drop < DP_DROP_COUNT);
	free(packet);
	return fuzz_count(!drop);
}
