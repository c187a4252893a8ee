/* SPDX-License-Identifier: Apache-2.0 */
/* checksum.c - sums of every length up to 9001 read exactly their bytes and are those of a naive loop. */
#include "check.h"
#include "csum.h"

enum { LEN_MAX = 9001 };

/**
 * naive() - Sum bytes one at a time
 * @data:	Bytes
 * @len:	How many
 *
 * Return: folded sum as a number
 */
static uint32_t naive(const uint8_t *data, size_t len)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < len; i++) {
		sum += (uint32_t)data[i] << (i % 2 ? 0 : 8);
		sum = (sum & 0xffff) + (sum >> 16);
	}
	return sum;
}

/**
 * ours() - Sum bytes by csum.c
 * @data:	Bytes
 * @len:	How many
 *
 * Return: folded sum as a number
 */
static uint32_t ours(const uint8_t *data, size_t len)
{
	uint16_t folded = csum_fold(csum_add(data, len, 0));
	uint8_t bytes[2];

	memcpy(bytes, &folded, 2);
	return (uint32_t)bytes[0] << 8 | bytes[1];
}

int main(void)
{
	struct wall wall = wall_build();
	uint8_t data[LEN_MAX];
	uint64_t dice = 4;

	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)roll(&dice);
	for (size_t len = 0; len <= LEN_MAX; len++) {
		uint32_t expected = naive(data, len);

		/* ending at the wall every alignment of the start comes up, too */
		CHECK(ours(wall_before(&wall, data, len), len) == expected);
		CHECK(ours(wall_behind(&wall, data, len), len) == expected);
	}
	return 0;
}
