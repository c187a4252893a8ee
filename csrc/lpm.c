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
 * last range is repeated as often at the end of a table.
 */
#include "lpm.h"

#include <string.h>

/* Longest nesting of prefixes there can be: one of each length from 0 to 128, and "nothing". */
enum { NESTING_MAX = 130 };
enum { BUCKETS_PER_USED = 4 };

_Static_assert(sizeof(struct lpm_node) == 32, "nodes lie in memory that processes share");

/* A table while it is built. */
struct build {
	const struct lpm_room *room;
	addr_t top; /* the last address there is */
	uint32_t count, nodes_count, index_count;
	/* prefixes that hold the address where the sweep stands, outermost first */
	struct {
		addr_t last; /* last address it holds */
		uint32_t value;
	} open[NESTING_MAX];
	uint32_t depth;
};

/**
 * start_at() - First address of a range
 * @build:	State
 * @i:		Which range
 *
 * Return: the address
 */
static inline addr_t start_at(const struct build *build, uint32_t i)
{
	return build->room->start4 ? build->room->start4[i] : build->room->start6[i];
}

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
 * append() - Write a range
 * @build:	State
 * @start:	Its first address
 * @value:	Its answer
 */
static inline void append(struct build *build, addr_t start, uint32_t value)
{
	if (build->room->start4)
		build->room->start4[build->count] = (uint32_t)start;
	else
		build->room->start6[build->count] = start;
	build->room->value[build->count] = value;
	build->count++;
}

/**
 * emit() - From this address on, this is the answer
 * @build:	State
 * @start:	Address
 * @value:	Answer
 *
 * A range that would begin where the last one does replaces it, and one with
 * the same answer is not begun at all.
 */
static inline void emit(struct build *build, addr_t start, uint32_t value)
{
	if (build->count && start_at(build, build->count - 1) == start)
		build->count--;
	if (!build->count || build->room->value[build->count - 1] != value)
		append(build, start, value);
}

/**
 * close_before() - End all open prefixes that do not reach an address
 * @build:	State
 * @addr:	The address
 */
static void close_before(struct build *build, addr_t addr)
{
	while (build->depth > 1 && build->open[build->depth - 1].last < addr) {
		build->depth--;
		emit(build, build->open[build->depth].last + 1, build->open[build->depth - 1].value);
	}
}

/**
 * build_ranges() - Unroll prefixes into ranges
 * @build:	State
 * @prefixes:	Prefixes in the order of the sweep
 * @count:	How many
 *
 * Of two equal prefixes the later one in sorting order wins; callers do not pass any.
 */
static void build_ranges(struct build *build, const struct lpm_prefix *prefixes, uint32_t count)
{
	uint32_t bits = build->room->start4 ? 32 : 128;

	build->depth = 1;
	build->open[0].last = build->top;
	build->open[0].value = 0;
	emit(build, 0, 0);
	for (uint32_t i = 0; i < count; i++) {
		const struct lpm_prefix *prefix = &prefixes[i];
		addr_t host_bits = prefix->len ? ((addr_t)1 << (bits - prefix->len)) - 1 : build->top;

		close_before(build, prefix->key);
		if (build->depth < NESTING_MAX) {
			build->open[build->depth].last = prefix->key | host_bits;
			build->open[build->depth].value = prefix->value;
			build->depth++;
		}
		emit(build, prefix->key, prefix->value);
	}
	close_before(build, build->top); /* what ends with the address space itself stays open */
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
 * @build:	State
 * @first:	First range that it is to divide
 * @count:	How many, at least 2
 *
 * Return: the smallest shift that parts neighbours and with which enough buckets are used; there is one that
 * makes two used buckets of three at most
 */
static uint32_t choose_shift(const struct build *build, uint32_t first, uint32_t count)
{
	uint32_t splits[128] = {0}; /* neighbours that part at this bit, so lie in two buckets up to this shift */
	addr_t low = start_at(build, first), high = start_at(build, first + count - 1), last = low;
	uint32_t top = top_bit(low, high), best = top, used;

	for (uint32_t i = first + 1; i < first + count; i++) {
		addr_t start = start_at(build, i);

		splits[top_bit(last, start)]++;
		last = start;
	}
	used = 1 + splits[top];
	for (uint32_t shift = top; shift-- > 0;) {
		used += splits[shift];
		if ((high >> shift) - ((low - 1) >> shift) >= (addr_t)BUCKETS_PER_USED * used)
			break;
		best = splits[shift] ? shift : best;
	}
	return best;
}

/**
 * make_entry() - What a bucket says
 * @build:	State; grows by a node that is filled later, if the bucket needs one
 * @at:		Range in force at the first address of the bucket
 * @count:	Ranges that begin behind it, inside
 *
 * Return: the entry
 */
static uint32_t make_entry(struct build *build, uint32_t at, uint32_t count)
{
	if (!count)
		return build->room->value[at];
	if (count <= LPM_SEARCH)
		return LPM_RANGE | at;
	build->room->node[build->nodes_count] = (struct lpm_node){.base = at + 1, .last = count};
	return LPM_NODE | build->nodes_count++;
}

/**
 * fill_node() - Write the buckets of a node
 * @build:	State
 * @number:	The node, as make_entry() left it: base and last are the ranges that it is to divide
 */
static void fill_node(struct build *build, uint32_t number)
{
	struct lpm_node *node = &build->room->node[number];
	uint32_t next = node->base, end = next + node->last, shift = choose_shift(build, next, node->last);
	addr_t first = (start_at(build, next) - 1) >> shift, inside = ((addr_t)1 << shift) - 1;
	uint32_t buckets = (uint32_t)((start_at(build, end - 1) >> shift) - first) + 1;
	uint32_t *entry = build->room->index + build->index_count;
	addr_t start = start_at(build, next);
	uint32_t bucket = (uint32_t)((start >> shift) - first); /* the one in which range next begins */

	*node = (struct lpm_node){.first = first, .base = build->index_count, .last = buckets - 1, .shift = shift};
	build->index_count += buckets;
	for (uint32_t i = 0; i < buckets; i++) {
		bool is_whole = bucket == i && !(start & inside); /* the bucket begins with that range */
		uint32_t at = is_whole ? next : next - 1;

		while (bucket == i) {
			next++;
			start = next < end ? start_at(build, next) : 0;
			bucket = next < end ? (uint32_t)((start >> shift) - first) : buckets;
		}
		entry[i] = make_entry(build, at, next - 1 - at);
	}
}

/**
 * build_index() - Index the ranges that build_ranges() made
 * @build:	State
 *
 * Each node divides what it has into two used buckets at least, so count ranges
 * make less than count nodes, with less than twice as many used buckets.
 *
 * Return: the entry where lookups begin
 */
static uint32_t build_index(struct build *build)
{
	uint32_t root = make_entry(build, 0, build->count - 1);

	for (uint32_t i = 0; i < build->nodes_count; i++)
		fill_node(build, i);
	return root;
}

/**
 * lpm_build() - Build a table
 * @prefixes:	Prefixes of one family, no two the same; sorted in place
 * @count:	How many
 * @room:	Where the table goes
 *
 * Return: the table, in that room
 */
struct lpm lpm_build(struct lpm_prefix *prefixes, uint32_t count, const struct lpm_room *room)
{
	struct build build = {.room = room, .top = room->start4 ? (addr_t)UINT32_MAX : ~(addr_t)0};
	uint32_t root;

	sort(prefixes, room->spare, count, room->start4 ? 32 : 128);
	build_ranges(&build, prefixes, count);
	root = build_index(&build);
	for (uint32_t i = 0; i < LPM_SEARCH; i++)
		append(&build, build.top, room->value[build.count - 1]);
	return (struct lpm){
		.root = root,
		.count = build.count,
		.nodes_count = build.nodes_count,
		.index_count = build.index_count,
		.start4 = room->start4,
		.start6 = room->start6,
		.value = room->value,
		.node = room->node,
		.index = room->index,
	};
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
