/* SPDX-License-Identifier: Apache-2.0 */
/* lpm.c - longest-prefix match as a sorted list of address ranges. */
#include "lpm.h"

#include <stdlib.h>

/* Longest nesting of prefixes there can be: one of each length from 0 to 128, and "nothing". */
enum { NESTING_MAX = 130 };

/* Prefixes that hold the address where the sweep stands, outermost first. */
struct sweep {
	struct {
		addr_t last; /* last address it holds */
		uint32_t value;
	} open[NESTING_MAX];
	uint32_t depth;
	addr_t *starts;
	uint32_t *values;
	uint32_t count;
};

/**
 * compare() - Order of prefixes for the sweep: by first address, then the shorter first
 * @left:	struct lpm_prefix
 * @right:	struct lpm_prefix
 *
 * Return: as qsort() wants
 */
static int compare(const void *left, const void *right)
{
	const struct lpm_prefix *a = left;
	const struct lpm_prefix *b = right;

	if (a->key != b->key)
		return a->key < b->key ? -1 : 1;
	return (a->len > b->len) - (a->len < b->len);
}

/**
 * emit() - From this address on, this is the answer
 * @sweep:	State
 * @start:	Address
 * @value:	Answer
 *
 * A range that would begin where the last one does replaces it, and one with
 * the same answer is not begun at all.
 */
static void emit(struct sweep *sweep, addr_t start, uint32_t value)
{
	if (sweep->count && sweep->starts[sweep->count - 1] == start)
		sweep->count--;
	if (sweep->count && sweep->values[sweep->count - 1] == value)
		return;
	sweep->starts[sweep->count] = start;
	sweep->values[sweep->count] = value;
	sweep->count++;
}

/**
 * close_before() - End all open prefixes that do not reach an address
 * @sweep:	State
 * @addr:	The address
 */
static void close_before(struct sweep *sweep, addr_t addr)
{
	while (sweep->depth > 1 && sweep->open[sweep->depth - 1].last < addr) {
		sweep->depth--;
		emit(sweep, sweep->open[sweep->depth].last + 1, sweep->open[sweep->depth - 1].value);
	}
}

/**
 * lpm_build() - Unroll prefixes into ranges
 * @prefixes:	Prefixes of one family; sorted in place
 * @count:	How many
 * @bits:	32 or 128
 * @starts:	Room for LPM_RANGES(@count) first addresses
 * @values:	Room for as many answers
 *
 * Of two equal prefixes the later one in sorting order wins; callers do not pass any.
 *
 * Return: ranges written, at least 1
 */
uint32_t lpm_build(struct lpm_prefix *prefixes, uint32_t count, uint8_t bits, addr_t *starts, uint32_t *values)
{
	addr_t top = bits == 32 ? (addr_t)UINT32_MAX : ~(addr_t)0;
	struct sweep sweep = {.depth = 1, .starts = starts, .values = values};

	sweep.open[0].last = top;
	sweep.open[0].value = 0;
	qsort(prefixes, count, sizeof(*prefixes), compare);
	emit(&sweep, 0, 0);
	for (uint32_t i = 0; i < count; i++) {
		const struct lpm_prefix *prefix = &prefixes[i];
		addr_t host_bits = prefix->len ? ((addr_t)1 << (bits - prefix->len)) - 1 : top;

		close_before(&sweep, prefix->key);
		if (sweep.depth < NESTING_MAX) {
			sweep.open[sweep.depth].last = prefix->key | host_bits;
			sweep.open[sweep.depth].value = prefix->value;
			sweep.depth++;
		}
		emit(&sweep, prefix->key, prefix->value);
	}
	close_before(&sweep, top); /* what ends with the address space itself stays open */
	return sweep.count;
}

/**
 * lpm_lookup4() - Answer for an IPv4 address
 * @lpm:	A table that lpm_is_valid() accepted
 * @addr:	Host order
 *
 * Return: value of the longest prefix that holds it, 0 if none does
 */
uint32_t lpm_lookup4(const struct lpm *lpm, uint32_t addr)
{
	const uint32_t *base = lpm->start4;

	/* the first range starts at 0, so the answer is always at or behind base */
	for (uint32_t left = lpm->count; left > 1;) {
		uint32_t half = left / 2;

		base += base[half] <= addr ? half : 0;
		left -= half;
	}
	return lpm->value[base - lpm->start4];
}

/**
 * lpm_lookup6() - Answer for an IPv6 address
 * @lpm:	A table that lpm_is_valid() accepted
 * @addr:	Host order
 *
 * Return: value of the longest prefix that holds it, 0 if none does
 */
uint32_t lpm_lookup6(const struct lpm *lpm, addr_t addr)
{
	const addr_t *base = lpm->start6;

	for (uint32_t left = lpm->count; left > 1;) {
		uint32_t half = left / 2;

		base += base[half] <= addr ? half : 0;
		left -= half;
	}
	return lpm->value[base - lpm->start6];
}

/**
 * lpm_is_valid() - May a table be looked up in?
 * @lpm:	A table whose arrays are readable for count elements
 * @value_max:	Largest answer that makes sense
 *
 * Return: true if ranges begin at 0 and ascend, and no answer is above @value_max
 */
bool lpm_is_valid(const struct lpm *lpm, uint32_t value_max)
{
	bool is_first_zero = lpm->count && (lpm->start4 ? lpm->start4[0] == 0 : lpm->start6[0] == 0);

	if (!is_first_zero)
		return false;
	for (uint32_t i = 0; i < lpm->count; i++) {
		bool ascends = i == 0 || (lpm->start4 ? lpm->start4[i - 1] < lpm->start4[i]
						      : lpm->start6[i - 1] < lpm->start6[i]);

		if (!ascends || lpm->value[i] > value_max)
			return false;
	}
	return true;
}
