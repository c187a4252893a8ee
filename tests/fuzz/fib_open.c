/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever bytes a sealed memfd holds, opening it as a table refuses them, or no question leads outside of them.
 *
 * The first byte says whether the size in the header is repaired first.
 */
#include "fuzz.h"
#include "tables.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t how, *bytes;
	uint64_t len;
	bool is_open;

	if (!size)
		return 0;
	how = *data++;
	len = --size;
	bytes = fuzz_copy(data, size);
	if ((how & 1) && size >= sizeof(struct fib_header))
		memcpy(bytes + offsetof(struct fib_header, size), &len, sizeof(len));
	is_open = table_open(bytes, size);
	free(bytes);
	return fuzz_count(is_open);
}
