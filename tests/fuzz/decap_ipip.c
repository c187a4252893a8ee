/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever a raw socket hands up is refused for one reason, or carries a valid packet that stays one.
 *
 * An input is a packet with its outer header, after one byte that says nothing.
 */
#include "mutate.h"
#include "pure.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	enum dp_drop drop;

	if (!size || size > PKT_MAX)
		return 0;
	drop = pure_ipip(fuzz_place(fuzz_wall(), data + 1, size - 1), (uint32_t)size - 1);
	CHECK(drop < DP_DROP_COUNT);
	return fuzz_count(!drop);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned int seed)
{
	uint32_t outer_len;

	size = mutate_packet(data, size, room, 1, seed);
	if (seed % MUTATE_UNREPAIRED && size > 1 + IP4_LEN) {
		data[1] = 0x40 | (data[1] & 0x0f);
		outer_len = mutate_ip(data + 1, (uint32_t)size - 1);
		if (size > 1 + outer_len)
			data[1 + outer_len] = 0x40 | (data[1 + outer_len] & 0x0f);
		mutate_ip(data + 1 + outer_len, (uint32_t)(size - 1 - outer_len));
	}
	return size;
}
