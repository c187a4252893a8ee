/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever bytes are summed, in however many pieces and by whatever vectors, the sum is that of a naive loop.
 *
 * An input is one byte that says where the bytes are cut in two, one that says which words change, and the bytes.
 */
#include "csum.h"
#include "mutate.h"

enum { HEAD = 2 };

typedef uint64_t add_fn(const uint8_t *data, size_t len, uint64_t sum);

/**
 * number() - A folded sum as a number
 * @sum:	Running sum
 *
 * Return: host order
 */
static uint32_t number(uint64_t sum)
{
	uint16_t folded = csum_fold(sum);
	uint8_t bytes[2];

	memcpy(bytes, &folded, 2);
	return load16(bytes);
}

/**
 * check_variant() - Does one way to sum agree with the naive one?
 * @add:	Way
 * @data:	Bytes
 * @len:	How many
 * @cut:	Where the second piece begins, even
 */
static void check_variant(add_fn *add, const uint8_t *data, size_t len, size_t cut)
{
	uint32_t naive = mutate_naive_sum(data, len, 0);

	CHECK(number(add(data, len, 0)) == naive);
	CHECK(number(add(data + cut, len - cut, add(data, cut, 0))) == naive);
}

/**
 * check_pseudo() - Does the sum of a pseudo-header agree with the naive one?
 * @data:	Addresses
 * @len:	Bytes of them
 * @proto:	Upper-layer protocol
 */
static void check_pseudo(const uint8_t *data, uint32_t len, uint8_t proto)
{
	for (uint32_t addr_len = 4; addr_len <= 16 && 2 * addr_len <= len; addr_len += 12) {
		const uint8_t tail[4] = {0, 0, 0, proto};
		uint32_t naive = mutate_naive_sum(tail, 4, mutate_naive_sum(data, 2 * addr_len, len));

		CHECK(number(csum_pseudo(data, data + addr_len, addr_len, proto, len)) == naive);
	}
}

/**
 * check_update() - Is a checksum right again after a word changed and it was updated?
 * @data:	Bytes, the first two of them the checksum
 * @len:	How many
 * @which:	The word that changes, and how
 *
 * All of them 0 are left out: then 0 and 0xffff are two ways to say one thing.
 */
static void check_update(uint8_t *data, size_t len, uint8_t which)
{
	size_t at = 2 + (which % 16U) * 2;
	uint16_t old, now;

	if (len < at + 2 || len % 2)
		return;
	old = load16(data + at);
	now = (uint16_t)(old ^ which * 257);
	store16(data, 0);
	store16(data, (uint16_t)~mutate_naive_sum(data, len, 0));
	csum_replace16(data, old, now);
	store16(data + at, now);
	CHECK(mutate_naive_sum(data, len, 0) == 0xffff || !mutate_naive_sum(data + 2, len - 2, 0));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t len, cut;
	uint8_t *bytes;

	if (size < HEAD || size > PKT_MAX)
		return 0;
	len = size - HEAD;
	bytes = fuzz_place(fuzz_wall(), data + HEAD, len);
	cut = len ? data[0] * len / UINT8_MAX / 2 * 2 : 0;
	check_variant(csum_add, bytes, len, cut);
	check_variant(csum_add_any, bytes, len, cut);
#ifdef __x86_64__
	if (__builtin_cpu_supports("avx2"))
		check_variant(csum_add_avx2, bytes, len, cut);
	if (__builtin_cpu_supports("avx512f"))
		check_variant(csum_add_avx512, bytes, len, cut);
#endif
	check_pseudo(bytes, (uint32_t)len, data[1]);
	check_update(bytes, len, data[1]);
	return fuzz_count(len);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned int seed)
{
	size = LLVMFuzzerMutate(data, size, room);
	/* carries come of long rows of ones, which single changes hardly make */
	if (seed % 8 == 0 && size > HEAD)
		memset(data + HEAD, 0xff, (size - HEAD) / (1 + seed / 8 % 4));
	/* and the wide vectors begin where inputs rarely get by themselves */
	if (seed % 8 == 1 && size > HEAD && room > size * 2) {
		memcpy(data + size, data + HEAD, size - HEAD);
		size += size - HEAD;
	}
	return size;
}
