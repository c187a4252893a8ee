/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever arrives on the port of bare packets is refused for one reason, or is a valid packet that stays one.
 *
 * The first byte says what is repaired first: 1 the IPv4 checksum, 0x30 is the outer mark.
 */
#include "fuzz.h"
#include "pure.h"

enum { REPAIR_CHECKSUM = 1, MARK_SHIFT = 4 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t how, *packet;
	enum dp_drop drop;

	if (!size || size > PKT_MAX)
		return 0;
	how = *data++;
	size--;
	packet = fuzz_copy(data, size);
	if (how & REPAIR_CHECKSUM)
		packet_repair(packet, (uint32_t)size);
	drop = pure_bare(packet, (uint32_t)size, how >> MARK_SHIFT);
	CHECK(drop < DP_DROP_COUNT);
	free(packet);
	return fuzz_count(!drop);
}
