/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever arrives on the port of bare packets is refused for one reason, or is a valid packet that stays one.
 *
 * The first byte says: 0x30 the outer mark.
 */
#include "mutate.h"
#include "pure.h"

enum { MARK_SHIFT = 4 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	enum dp_drop drop;

	if (!size || size > PKT_MAX)
		return 0;
	drop = pure_bare(fuzz_place(fuzz_wall(), data + 1, size - 1), (uint32_t)size - 1, data[0] >> MARK_SHIFT);
	CHECK(drop < DP_DROP_COUNT);
	return fuzz_count(!drop);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned int seed)
{
	size = mutate_packet(data, size, room, 1, seed);
	if (seed % MUTATE_UNREPAIRED && size > 1 + IP4_LEN) {
		data[1] = 0x40 | (data[1] & 0x0f);
		mutate_ip(data + 1, (uint32_t)size - 1);
	}
	return size;
}
