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

#include "csum_simd.h"
#include "pkt.h"

/* From here on it pays to sum by blocks. */
enum { LONG_MIN_BYTES = 128 };

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
 * csum_add() - Add bytes to a running checksum
 * @data:	Bytes, any alignment
 * @len:	How many; odd only for the last piece of what is summed
 * @sum:	Running sum in memory order, 0 to begin
 *
 * Return: the new running sum, for csum_fold()
 */
uint64_t csum_add(const uint8_t *data, size_t len, uint64_t sum)
{
	uint64_t word;

	if (len >= LONG_MIN_BYTES) {
		size_t blocks = len - len % CSUM_BLOCK;

		sum = add64(sum, csum_blocks(data, blocks));
		data += blocks;
		len -= blocks;
	}
	for (; len >= 8; data += 8, len -= 8) {
		memcpy(&word, data, 8);
		sum = add64(sum, word);
	}
	if (len) {
		word = 0;
		memcpy(&word, data, len);
		sum = add64(sum, word);
	}
	return sum;
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
