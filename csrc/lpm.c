/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lpm.c - longest-prefix match as a sorted list of address ranges with an index.
 *
 * DOC: The index
 *
 * The index is a tree of nodes. A node cuts a stretch of addresses into buckets
 * of equal size, and holds one entry for each:
 *
 *   bit 31 clear           the answer for the whole bucket
 *   bits 31 and 30 = 10    range bits 29..0 is in force where the bucket begins, and
 *                          at most LPM_SEARCH others begin behind that
 *   bits 31 and 30 = 11    another node, number bits 29..0, divides this bucket
 *
 * Buckets are made as small as possible while at least one in BUCKETS_PER_USED
 * holds the beginning of a range. So subnets side by side have a bucket each and
 * take one load, subnets strewn at random take a short search, and one that is
 * far from all others costs a few buckets and one node more, not many of them.
 *
 * A search looks at LPM_SEARCH beginnings, however many are in the bucket: those
 * of other buckets behind it are above the address, and what costs time is a
 * branch that goes now here, now there. So that there are always as many, the
 * last range is repeated as often at the end of a table (lpm_build()).
 */
#include "lpm.h"

#include <string.h>

/* Longest nesting of prefixes there can be: one of each length from 0 to 128, and "nothing". */
enum { NESTING_MAX = 130 };
enum { BUCKETS_PER_USED = 4 };

_Static_assert(sizeof(struct lpm_node) == 32, "nodes lie in memory that processes share");

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

/* --- building: ranges -------------------------------------------------------- */

/**
 * digit() - Part of a prefix to sort by
 * @prefix:	The prefix
 * @pass:	0: its length; from 1 on: the bytes of its first address, the lowest first
 *
 * Return: the digit
 */
static uint32_t digit(const struct lpm_prefix *prefix, uint32_t pass)
{
	return pass ? (uint32_t)(prefix->key >> 8 * (pass - 1)) & 0xff : prefix->len;
}

/**
 * is_sorted() - Are prefixes in the order of the sweep: by first address, then the shorter first?
 * @prefixes:	Prefixes
 * @count:	How many
 *
 * Return: true if they are
 */
static bool is_sorted(const struct lpm_prefix *prefixes, uint32_t count)
{
	for (uint32_t i = 1; i < count; i++) {
		const struct lpm_prefix *a = &prefixes[i - 1], *b = &prefixes[i];

		if (a->key > b->key || (a->key == b->key && a->len > b->len))
			return false;
	}
	return true;
}

/**
 * sort() - Put prefixes in the order of the sweep, digit by digit
 * @prefixes:	Prefixes, sorted in place
 * @spare:	Room for as many
 * @count:	How many
 * @bits:	32 or 128
 */
static void sort(struct lpm_prefix *prefixes, struct lpm_prefix *spare, uint32_t count, uint8_t bits)
{
	struct lpm_prefix *from = prefixes, *to = spare;

	if (is_sorted(prefixes, count))
		return;
	for (uint32_t pass = 0; pass <= bits / 8U; pass++) {
		uint32_t ends[256] = {0};
		struct lpm_prefix *swap = from;

		for (uint32_t i = 0; i < count; i++)
			ends[digit(&from[i], pass)]++;
		if (ends[digit(&from[0], pass)] == count)
			continue; /* they all agree */
		for (uint32_t i = 1; i < 256; i++)
			ends[i] += ends[i - 1];
		for (uint32_t i = count; i > 0; i--)
			to[--ends[digit(&from[i - 1], pass)]] = from[i - 1];
		from = to;
		to = swap;
	}
	if (from != prefixes)
		memcpy(prefixes, from, count * sizeof(*prefixes));
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
 * @spare:	Room for as many
 * @count:	How many
 * @bits:	32 or 128
 * @starts:	Room for LPM_RANGES(@count) first addresses
 * @values:	Room for as many answers
 *
 * Of two equal prefixes the later one in sorting order wins; callers do not pass any.
 *
 * Return: ranges written, at least 1, and LPM_SEARCH times the last one once more, from the top address on
 */
uint32_t lpm_build(struct lpm_prefix *prefixes, struct lpm_prefix *spare, uint32_t count, uint8_t bits, addr_t *starts,
		   uint32_t *values)
{
	addr_t top = bits == 32 ? (addr_t)UINT32_MAX : ~(addr_t)0;
	struct sweep sweep = {.depth = 1, .starts = starts, .values = values};

	sweep.open[0].last = top;
	sweep.open[0].value = 0;
	sort(prefixes, spare, count, bits);
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
	for (uint32_t i = 0; i < LPM_SEARCH; i++, sweep.count++) {
		starts[sweep.count] = top;
		values[sweep.count] = values[sweep.count - 1];
	}
	return sweep.count;
}

/* --- building: the index ----------------------------------------------------- */

/**
 * top_bit() - The highest bit in which two addresses differ
 * @a:		Address
 * @b:		Another one
 *
 * Return: its number, 0 for the lowest
 */
static uint32_t top_bit(addr_t a, addr_t b)
{
	uint64_t high = (uint64_t)(a >> 64) ^ (uint64_t)(b >> 64);
	uint64_t low = (uint64_t)a ^ (uint64_t)b;

	return high ? 127U - (uint32_t)__builtin_clzll(high) : 63U - (uint32_t)__builtin_clzll(low);
}

/**
 * choose_shift() - How large the buckets of a node are
 * @starts:	First addresses that it is to divide, none of them 0
 * @count:	How many, at least 2
 *
 * Return: the smallest shift with which enough buckets are used; there is one where two are
 */
static uint32_t choose_shift(const addr_t *starts, uint32_t count)
{
	uint32_t splits[128] = {0}; /* neighbours that part at this bit, so lie in two buckets up to this shift */
	uint32_t shift = top_bit(starts[0], starts[count - 1]), used = 1;

	for (uint32_t i = 1; i < count; i++)
		splits[top_bit(starts[i - 1], starts[i])]++;
	used += splits[shift];
	while (shift > 0) {
		uint32_t more = used + splits[shift - 1];

		if ((starts[count - 1] >> (shift - 1)) - ((starts[0] - 1) >> (shift - 1)) >=
		    (addr_t)BUCKETS_PER_USED * more)
			break;
		used = more;
		shift--;
	}
	return shift;
}

/**
 * add_node() - Begin a node, to be filled later
 * @room:	Where it goes
 * @first:	First range that it is to divide
 * @count:	How many
 *
 * Return: the entry that leads to it
 */
static uint32_t add_node(struct lpm_room *room, uint32_t first, uint32_t count)
{
	room->nodes[room->nodes_count] = (struct lpm_node){.base = first, .last = count};
	return LPM_NODE | room->nodes_count++;
}

/**
 * make_entry() - What a bucket says
 * @room:	Where further nodes go
 * @values:	Answers
 * @at:		Range in force at the first address of the bucket
 * @count:	Ranges that begin behind it, inside
 *
 * Return: the entry
 */
static uint32_t make_entry(struct lpm_room *room, const uint32_t *values, uint32_t at, uint32_t count)
{
	if (!count)
		return values[at];
	if (count <= LPM_SEARCH)
		return LPM_RANGE | at;
	return add_node(room, at + 1, count);
}

/**
 * fill_node() - Write the buckets of a node
 * @starts:	First addresses of all ranges
 * @values:	Their answers
 * @room:	Where buckets and further nodes go
 * @number:	The node, as add_node() left it
 */
static void fill_node(const addr_t *starts, const uint32_t *values, struct lpm_room *room, uint32_t number)
{
	struct lpm_node *node = &room->nodes[number];
	uint32_t next = node->base, end = next + node->last, shift = choose_shift(starts + next, node->last);
	addr_t first = (starts[next] - 1) >> shift;
	uint32_t buckets = (uint32_t)((starts[end - 1] >> shift) - first) + 1;
	uint32_t *entry = room->index + room->index_count;

	*node = (struct lpm_node){.first = first, .base = room->index_count, .last = buckets - 1, .shift = shift};
	room->index_count += buckets;
	for (uint32_t i = 0; i < buckets; i++) {
		uint32_t at, behind;

		if (next < end && starts[next] == (first + i) << shift)
			next++;
		at = next - 1;
		while (next < end && starts[next] >> shift == first + i)
			next++;
		behind = next - 1 - at;
		entry[i] = make_entry(room, values, at, behind);
	}
}

/**
 * lpm_index() - Index the ranges that lpm_build() made
 * @starts:	Their first addresses
 * @values:	Their answers, at most LPM_VALUE_MAX
 * @count:	How many, at most LPM_RANGES_MAX
 * @room:	Where the index goes; its counts are 0
 *
 * Each node divides what it has into two used buckets at least, so count ranges
 * make less than count nodes, with less than twice as many used buckets.
 *
 * Return: the entry where lookups begin
 */
uint32_t lpm_index(const addr_t *starts, const uint32_t *values, uint32_t count, struct lpm_room *room)
{
	uint32_t root = make_entry(room, values, 0, count - LPM_SEARCH - 1);

	for (uint32_t i = 0; i < room->nodes_count; i++)
		fill_node(starts, values, room, i);
	return root;
}

/* --- checking ------------------------------------------------------------------ */

/**
 * is_entry_valid() - May an entry be followed?
 * @lpm:	The table
 * @entry:	The entry
 * @node_min:	Least node that it may lead to, so that a lookup comes to an end
 * @value_max:	Largest answer that makes sense
 *
 * Return: true if it may
 */
static bool is_entry_valid(const struct lpm *lpm, uint32_t entry, uint32_t node_min, uint32_t value_max)
{
	uint32_t at = entry & LPM_AT;

	if (entry < LPM_RANGE)
		return entry <= value_max;
	if (entry < LPM_NODE)
		return lpm->count > LPM_SEARCH && at < lpm->count - LPM_SEARCH;
	return at >= node_min && at < lpm->nodes_count;
}

/**
 * is_index_valid() - May the index be followed?
 * @lpm:	A table whose arrays are readable for their counts
 * @value_max:	Largest answer that makes sense
 *
 * Nodes take the buckets one behind the other, as lpm_index() writes them, so
 * each bucket is seen once.
 *
 * Return: true if it leads nowhere else but into the table, and not in circles
 */
static bool is_index_valid(const struct lpm *lpm, uint32_t value_max)
{
	uint32_t bucket = 0, bits = lpm->start4 ? 32 : 128;

	if (!is_entry_valid(lpm, lpm->root, 0, value_max))
		return false;
	for (uint32_t i = 0; i < lpm->nodes_count; i++) {
		const struct lpm_node *node = &lpm->node[i];

		if (node->base != bucket || node->last >= lpm->index_count - bucket || node->shift >= bits)
			return false;
		for (uint32_t left = node->last + 1; left > 0; left--) {
			if (!is_entry_valid(lpm, lpm->index[bucket++], i + 1, value_max))
				return false;
		}
	}
	return bucket == lpm->index_count;
}

/**
 * is_behind() - Does a range begin behind the one before it?
 * @lpm:	A table whose arrays are readable for their counts
 * @i:		The range, not the first
 *
 * Return: true if it does; at the top address there may be more than one
 */
static bool is_behind(const struct lpm *lpm, uint32_t i)
{
	if (lpm->start4)
		return lpm->start4[i] > lpm->start4[i - 1] || lpm->start4[i] == UINT32_MAX;
	return lpm->start6[i] > lpm->start6[i - 1] || lpm->start6[i] == ~(addr_t)0;
}

/**
 * lpm_is_valid() - May a table be looked up in?
 * @lpm:	A table whose arrays are readable for their counts
 * @value_max:	Largest answer that makes sense
 *
 * Return: true if ranges begin at 0 and ascend, no answer is above @value_max,
 * and the index leads to them only
 */
bool lpm_is_valid(const struct lpm *lpm, uint32_t value_max)
{
	bool is_first_zero = lpm->count && (lpm->start4 ? lpm->start4[0] == 0 : lpm->start6[0] == 0);

	if (!is_first_zero || lpm->count > LPM_RANGES_MAX)
		return false;
	value_max = value_max < LPM_VALUE_MAX ? value_max : LPM_VALUE_MAX;
	for (uint32_t i = 0; i < lpm->count; i++) {
		if ((i && !is_behind(lpm, i)) || lpm->value[i] > value_max)
			return false;
	}
	return is_index_valid(lpm, value_max);
}
