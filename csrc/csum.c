/* SPDX-License-Identifier: Apache-2.0 */
/*
 * csum.c - the internet checksum.
 *
 * Sums are kept in memory order: words are added as they lie in memory, and a
 * folded result is stored back with memcpy. The ones' complement sum does not
 * depend on byte order (RFC 1071 section 2B), so nothing is swapped on the way.
 */
#include "csum.h"

#include <arpa/inet.h>
#include <string.h>

#include "pkt.h"

/**
 * add64() - Add a word with end-around carry
 * @sum:	Running sum
 * @word:	What to add
 *
 * Return: the new sum
 */
static inline uint64_t add64(uint64_t sum, uint64_t word)
{
	sum += word;
	return sum + (sum < word);
}

/**
 * add_words() - Add bytes a 64-bit word at a time
 * @data:	Bytes, any alignment
 * @len:	How many
 * @sum:	Running sum
 *
 * Return: the new sum
 */
static inline uint64_t add_words(const uint8_t *data, size_t len, uint64_t sum)
{
	uint64_t word, rest = 0;
	uint32_t half;
	uint16_t quarter;

	for (; len >= sizeof(word); data += sizeof(word), len -= sizeof(word)) {
		memcpy(&word, data, sizeof(word));
		sum = add64(sum, word);
	}
	/* copies of constant size are single loads; one of len bytes would be a call */
	if (len & sizeof(half)) {
		memcpy(&half, data, sizeof(half));
		rest += half;
		data += sizeof(half);
	}
	if (len & sizeof(quarter)) {
		memcpy(&quarter, data, sizeof(quarter));
		rest += quarter;
		data += sizeof(quarter);
	}
	if (len & 1) {
		quarter = 0;
		memcpy(&quarter, data, 1);
		rest += quarter;
	}
	return add64(sum, rest);
}

/*
 * Add all of data that fills pairs of vectors of so many bytes to sum, and move on
 * behind it. The vectors are the compiler's, not those of one CPU: it makes SSE2,
 * AVX2, AVX-512 or NEON of them, as the function around allows.
 *
 * Vectors have no carry. So each 64-bit lane adds up its words modulo 2^64 in
 * all1 and all2, and the upper halves of the words, which cannot overflow, in
 * upper1 and upper2. What the lower halves sum up to is all - upper * 2^32: that
 * is below 2^64 too, hence exact. 2^32 is 1 modulo 0xffff, so both halves count
 * alike in the end. This holds for anything shorter than 2^34 bytes.
 */
#define ADD_VECTORS(data, len, sum, bytes)                                                  \
	do {                                                                                \
		typedef uint64_t vector __attribute__((vector_size(bytes)));                \
		uint64_t lanes = 0;                                                         \
		vector one, two, all1 = {0}, all2 = {0}, upper1 = {0}, upper2 = {0};        \
                                                                                            \
		if ((len) < 2 * (bytes))                                                    \
			break;                                                              \
		for (; (len) >= 2 * (bytes); (data) += 2 * (bytes), (len) -= 2 * (bytes)) { \
			memcpy(&one, data, bytes);                                          \
			memcpy(&two, (data) + (bytes), bytes);                              \
			all1 += one;                                                        \
			all2 += two;                                                        \
			upper1 += one >> 32;                                                \
			upper2 += two >> 32;                                                \
		}                                                                           \
		upper1 += upper2;                                                           \
		all1 += all2 - (upper1 << 32) + upper1;                                     \
		for (int i = 0; i < (bytes) / 8; i++)                                       \
			lanes += all1[i];                                                   \
		(sum) = add64(sum, lanes);                                                  \
	} while (0)

/**
 * csum_add_any() - csum_add() with the vectors that every CPU of its kind has
 * @data:	Bytes, any alignment
 * @len:	How many
 * @sum:	Running sum
 *
 * Return: the new running sum
 */
uint64_t csum_add_any(const uint8_t *data, size_t len, uint64_t sum)
{
	ADD_VECTORS(data, len, sum, 16);
	return add_words(data, len, sum);
}

#ifdef __x86_64__
/**
 * csum_add_avx2() - csum_add() for CPUs with AVX2
 * @data:	Bytes, any alignment
 * @len:	How many
 * @sum:	Running sum
 *
 * Return: the new running sum
 */
__attribute__((target("avx2"))) uint64_t csum_add_avx2(const uint8_t *data, size_t len, uint64_t sum)
{
	ADD_VECTORS(data, len, sum, 32);
	return add_words(data, len, sum);
}

/**
 * csum_add_avx512() - csum_add() for CPUs with AVX-512
 * @data:	Bytes, any alignment
 * @len:	How many
 * @sum:	Running sum
 *
 * Return: the new running sum
 */
__attribute__((target("avx512f"))) uint64_t csum_add_avx512(const uint8_t *data, size_t len, uint64_t sum)
{
	ADD_VECTORS(data, len, sum, 64);
	return add_words(data, len, sum);
}
#endif

/**
 * csum_add() - Add bytes to a running checksum
 * @data:	Bytes, any alignment
 * @len:	How many; odd only for the last piece of what is summed
 * @sum:	Running sum in memory order, 0 to begin
 *
 * What the CPU can do is asked each time: that is a load and a jump always taken
 * the same way, cheaper than a call through a pointer. Headers do not even ask.
 * Long inputs begin with what lies before a vector's boundary: each load that
 * crosses a cache line counts twice. (At an odd address all of them still do.)
 *
 * Return: the new running sum, for csum_fold()
 */
uint64_t csum_add(const uint8_t *data, size_t len, uint64_t sum)
{
#ifdef __x86_64__
	if (len >= CSUM_LONG) {
		size_t ahead = -(uintptr_t)data & 62; /* even, or all bytes behind would change places */

		sum = add_words(data, ahead, sum);
		data += ahead;
		len -= ahead;
	}
	if (len >= CSUM_WIDE) {
		/* VBMI2 came with the CPUs that no longer lower their clock for AVX-512 */
		if (__builtin_cpu_supports("avx512vbmi2"))
			return csum_add_avx512(data, len, sum);
		if (__builtin_cpu_supports("avx2"))
			return csum_add_avx2(data, len, sum);
	}
#endif
	return csum_add_any(data, len, sum);
}

/**
 * csum_fold() - Fold a running sum to 16 bits
 * @sum:	From csum_add() or csum_pseudo()
 *
 * Return: the sum, not complemented, in memory order; 0xffff over data with a right checksum
 */
uint16_t csum_fold(uint64_t sum)
{
	sum = (sum >> 32) + (sum & 0xffffffff);
	sum = (sum >> 16 & 0xffff) + (sum >> 32) + (sum & 0xffff);
	sum = (sum >> 16) + (sum & 0xffff);
	sum = (sum >> 16) + (sum & 0xffff);
	return (uint16_t)sum;
}

/**
 * csum_pseudo() - Sum of a TCP or UDP pseudo-header
 * @saddr:	Source address in wire order
 * @daddr:	Destination address in wire order
 * @addr_len:	4 or 16 bytes
 * @proto:	Upper-layer protocol
 * @l4len:	Bytes of L4 header and payload
 *
 * RFC 9293 section 3.1 and RFC 8200 section 8.1 give the same sum.
 *
 * Return: a running sum in memory order
 */
uint64_t csum_pseudo(const uint8_t *saddr, const uint8_t *daddr, uint32_t addr_len, uint8_t proto, uint32_t l4len)
{
	uint64_t sum = csum_add(saddr, addr_len, 0);

	sum = csum_add(daddr, addr_len, sum);
	return add64(sum, (uint64_t)htonl(l4len) + htons(proto));
}

/**
 * csum_replace16() - Update a checksum field after a 16-bit word changed
 * @check:	The checksum field, two bytes in wire order
 * @old:	The word before, host order
 * @now:	The word after, host order
 *
 * RFC 1624 equation 3, which is right at the corner case of section 5 too.
 */
void csum_replace16(uint8_t *check, uint16_t old, uint16_t now)
{
	uint32_t sum = (uint16_t)~load16(check) + (uint32_t)(uint16_t)~old + now;

	sum = (sum >> 16) + (sum & 0xffff);
	sum += sum >> 16;
	store16(check, (uint16_t)~sum);
}
