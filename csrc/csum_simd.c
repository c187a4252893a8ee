/* SPDX-License-Identifier: Apache-2.0 */
/*
 * csum_simd.c - the sum of many bytes, by what the processor has.
 *
 * One loop in vectors of the compiler is built several times, each for another
 * set of instructions, and the widest that this processor has is called: the
 * module may be copied to another machine. Where there is one set for all, as
 * NEON on arm64, the plain build already is that.
 *
 * The two halves of each word of 64 bits are added up in lanes of their own, so
 * that no carry is lost before 2^32 words; together they are one ones' complement
 * sum (RFC 1071 section 2).
 */
#include "csum_simd.h"

#include <string.h>

/*
 * DEFINE_SUM() - Define a function that adds up blocks in registers of a width
 * @name:	Of the function: bytes, of any alignment, and how many, a multiple of CSUM_BLOCK -> sum of 64 bits
 * @width:	Bytes of a register
 */
#define DEFINE_SUM(name, width)                                                          \
	static uint64_t name(const uint8_t *data, size_t len)                            \
	{                                                                                \
		typedef uint64_t lanes_t __attribute__((vector_size(width)));            \
		enum { STEPS = CSUM_BLOCK / (width), LANES = (width) / 8 };              \
		lanes_t low[STEPS] = {{0}}, high[STEPS] = {{0}};                         \
		uint64_t total = 0;                                                      \
                                                                                         \
		for (; len; data += CSUM_BLOCK, len -= CSUM_BLOCK) {                     \
			_Pragma("GCC unroll 4") for (size_t i = 0; i < STEPS; i++)       \
			{                                                                \
				lanes_t words;                                           \
                                                                                         \
				memcpy(&words, data + i * sizeof(words), sizeof(words)); \
				low[i] += words & UINT32_MAX;                            \
				high[i] += words >> 32;                                  \
			}                                                                \
		}                                                                        \
		for (size_t i = 0; i < STEPS; i++)                                       \
			for (size_t j = 0; j < LANES; j++)                               \
				total += low[i][j] + high[i][j];                         \
		return total;                                                            \
	}

#if defined(__x86_64__)
__attribute__((target("avx2"))) DEFINE_SUM(sum_avx2, 32) __attribute__((target("avx512f"))) DEFINE_SUM(sum_avx512, 64)
#elif defined(__aarch64__)
DEFINE_SUM(sum_neon, 16)
#endif

	/**
 * sum_portable() - Add up blocks with what every processor has
 * @data:	Bytes, any alignment
 * @len:	How many, a multiple of CSUM_BLOCK
 *
 * Return: the sum, folded to 64 bits
 */
	static uint64_t sum_portable(const uint8_t *data, size_t len)
{
	unsigned __int128 even = 0, odd = 0; /* compilers know best how to carry */
	uint64_t words[2], high;

	for (; len; data += sizeof(words), len -= sizeof(words)) {
		memcpy(words, data, sizeof(words));
		even += words[0];
		odd += words[1];
	}
	even += odd;
	high = (uint64_t)(even >> 64) + (uint64_t)even;
	return high + (high < (uint64_t)even);
}

/**
 * csum_can() - Can this processor sum in a way?
 * @way:	Which
 *
 * Return: true if it can
 */
bool csum_can(enum csum_way way)
{
#if defined(__x86_64__)
	if (way == CSUM_AVX2)
		return __builtin_cpu_supports("avx2");
	if (way == CSUM_AVX512)
		return __builtin_cpu_supports("avx512f");
#elif defined(__aarch64__)
	if (way == CSUM_NEON)
		return true;
#endif
	return way == CSUM_PORTABLE;
}

/**
 * csum_blocks_by() - csum_blocks() in a chosen way
 * @way:	One that csum_can()
 * @data:	As there
 * @len:	As there
 *
 * Return: as there
 */
uint64_t csum_blocks_by(enum csum_way way, const uint8_t *data, size_t len)
{
#if defined(__x86_64__)
	if (way == CSUM_AVX512)
		return sum_avx512(data, len);
	if (way == CSUM_AVX2)
		return sum_avx2(data, len);
#elif defined(__aarch64__)
	if (way == CSUM_NEON)
		return sum_neon(data, len);
#endif
	(void)way;
	return sum_portable(data, len);
}

/**
 * csum_blocks() - Add up blocks in the widest way
 * @data:	Bytes, any alignment
 * @len:	How many, a multiple of CSUM_BLOCK, below 2^32
 *
 * Return: a running sum in memory order, to be added to others with carry
 */
uint64_t csum_blocks(const uint8_t *data, size_t len)
{
	for (enum csum_way way = CSUM_WAYS - 1; way > CSUM_PORTABLE; way--) {
		if (csum_can(way))
			return csum_blocks_by(way, data, len);
	}
	return sum_portable(data, len);
}
