/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever prefixes come and go, every address has the answer of a loop over all of them.
 *
 * An input is a family bit, then operations of 4 bytes: length, value, and two bytes of the address. A value of 0
 * removes the prefix.
 */
#include "fuzz.h"
#include "lpm.h"

enum { PREFIXES_MAX = 64 };

/* The prefixes in force; no two are the same. */
struct set {
	struct lpm_prefix prefixes[PREFIXES_MAX];
	uint32_t count;
	uint8_t bits;
};

/**
 * change() - Carry out one operation
 * @set:	Prefixes
 * @op:		Four bytes of input
 */
static void change(struct set *set, const uint8_t *op)
{
	struct lpm_prefix prefix = {.len = (uint8_t)(op[0] % (set->bits + 1)), .value = op[1]};
	addr_t top = set->bits == 32 ? (addr_t)UINT32_MAX : ~(addr_t)0;
	uint32_t i = 0;

	/* bytes at both ends of the address, so that prefixes of any length meet */
	prefix.key = (addr_t)op[2] << (set->bits - 8) | (op[3] & 0x80 ? top >> 8 & ~(addr_t)0x7f : 0) | (op[3] & 0x7f);
	prefix.key &= prefix.len ? ~(((addr_t)1 << (set->bits - prefix.len)) - 1) & top : 0;
	while (i < set->count && (set->prefixes[i].key != prefix.key || set->prefixes[i].len != prefix.len))
		i++;
	if (i == set->count && prefix.value && i < PREFIXES_MAX)
		set->count++;
	else if (i == set->count)
		return;
	set->prefixes[i] = prefix;
	if (!prefix.value)
		set->prefixes[i] = set->prefixes[--set->count];
}

/**
 * naive() - Ask every prefix
 * @set:	Prefixes
 * @addr:	Address
 *
 * Return: value of the longest that holds it, 0 if none does
 */
static uint32_t naive(const struct set *set, addr_t addr)
{
	uint32_t value = 0;
	int longest = -1;

	for (uint32_t i = 0; i < set->count; i++) {
		const struct lpm_prefix *prefix = &set->prefixes[i];
		bool holds = !prefix->len || (addr ^ prefix->key) >> (set->bits - prefix->len) == 0;

		if (holds && prefix->len > longest) {
			longest = prefix->len;
			value = prefix->value;
		}
	}
	return value;
}

/**
 * compare() - Build the table and ask it around both ends of every prefix
 * @set:	Prefixes
 */
static void compare(const struct set *set)
{
	uint32_t ranges = LPM_RANGES(set->count);
	bool is_v6 = set->bits == 128;
	struct lpm_prefix *list =
		(struct lpm_prefix *)fuzz_copy((const uint8_t *)set->prefixes, set->count * sizeof(*list));
	struct lpm_room room = {
		.spare = malloc((set->count + 1) * sizeof(*room.spare)),
		.start4 = is_v6 ? NULL : calloc(ranges, sizeof(*room.start4)),
		.start6 = is_v6 ? aligned_alloc(sizeof(addr_t), ranges * sizeof(*room.start6)) : NULL,
		.value = calloc(ranges, sizeof(*room.value)),
		.node = aligned_alloc(sizeof(addr_t), ranges * sizeof(*room.node)),
		.index = calloc(LPM_BUCKETS(set->count), sizeof(*room.index)),
	};
	struct lpm lpm;

	CHECK(room.spare && (room.start4 || room.start6) && room.value && room.node && room.index);
	lpm = lpm_build(list, set->count, &room);
	CHECK(lpm.count > LPM_SEARCH && lpm.count <= ranges);
	CHECK(lpm_is_valid(&lpm, UINT8_MAX));
	for (uint32_t i = 0; i < 4 * set->count; i++) {
		const struct lpm_prefix *prefix = &set->prefixes[i / 4];
		addr_t top = set->bits == 32 ? (addr_t)UINT32_MAX : ~(addr_t)0;
		addr_t host_bits = prefix->len ? ((addr_t)1 << (set->bits - prefix->len)) - 1 : top;
		addr_t addr = (i & 1 ? prefix->key | host_bits : prefix->key) + (i & 2 ? (addr_t)(i & 1 ? 1 : -1) : 0);

		addr &= top;
		CHECK(naive(set, addr) ==
		      (set->bits == 32 ? lpm_lookup4(&lpm, (uint32_t)addr) : lpm_lookup6(&lpm, addr)));
	}
	free(room.index);
	free(room.node);
	free(room.value);
	free(room.start6);
	free(room.start4);
	free(room.spare);
	free(list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct set set = {.bits = size && data[0] & 1 ? 128 : 32};

	for (size_t at = 1; at + 4 <= size; at += 4)
		change(&set, data + at);
	compare(&set);
	return fuzz_count(set.count); /* nothing is refused; a table with nothing in it says little */
}
