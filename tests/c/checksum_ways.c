/* SPDX-License-Identifier: Apache-2.0 */
/* checksum_ways.c - every way to sum blocks that this processor has gives the sum of a naive loop. */
#include <stdio.h>

#include "check.h"
#include "csum.h"
#include "csum_simd.h"

enum { LEN_MAX = 64 << 10, SHIFTS = 64 };

/**
 * naive() - Sum 16-bit words as they lie in memory
 * @data:	Bytes
 * @len:	How many, even
 *
 * Return: folded sum in memory order
 */
static uint16_t naive(const uint8_t *data, size_t len)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < len; i += 2) {
		uint16_t word;

		memcpy(&word, data + i, 2);
		sum += word;
		sum = (sum & 0xffff) + (sum >> 16);
	}
	return (uint16_t)sum;
}

/**
 * check_way() - Compare one way with the naive loop
 * @way:	One the processor can
 * @data:	LEN_MAX + SHIFTS bytes
 */
static void check_way(enum csum_way way, const uint8_t *data)
{
	struct wall wall = wall_build();

	for (size_t len = 0; len <= LEN_MAX; len += len < 4096 ? CSUM_BLOCK : 64 * CSUM_BLOCK) {
		for (size_t shift = 0; shift < (len < 2048 ? SHIFTS : 3); shift++)
			CHECK(csum_fold(csum_blocks_by(way, data + shift, len)) == naive(data + shift, len));
		if (len > 4096)
			continue;
		/* reads exactly its bytes */
		CHECK(csum_fold(csum_blocks_by(way, wall_before(&wall, data, len), len)) == naive(data, len));
		CHECK(csum_fold(csum_blocks_by(way, wall_behind(&wall, data, len), len)) == naive(data, len));
	}
}

int main(void)
{
	static uint8_t data[LEN_MAX + SHIFTS];
	uint64_t dice = 5;
	int ways = 0;

	for (int kind = 0; kind < 4; kind++) {
		for (size_t i = 0; i < sizeof(data); i++)
			data[i] = kind == 0   ? 0
				  : kind == 1 ? 0xff
				  : kind == 2 ? (uint8_t)(i % 8 ? 0xff : 1)
					      : (uint8_t)roll(&dice);
		ways = 0;
		for (enum csum_way way = CSUM_PORTABLE; way < CSUM_WAYS; way++) {
			if (!csum_can(way))
				continue;
			check_way(way, data);
			ways++;
		}
	}
	printf("%d ways\n", ways);
	return ways < 1;
}
