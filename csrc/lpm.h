/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lpm.h - longest-prefix match as a sorted list of address ranges with an index: pure.
 *
 * Prefixes are unrolled once, when a table is built, into disjoint ranges that
 * each have one answer. An index of buckets, as fine as the ranges lie dense,
 * then says for most addresses what the answer is, and for the others which few
 * ranges to search. The same code serves both families.
 */
#ifndef LPM_H
#define LPM_H

#include <stdbool.h>
#include <stdint.h>

#include "parse.h"

/* One prefix on the way into a table; host bits of key are 0. */
struct lpm_prefix {
	addr_t key;
	uint32_t value; /* 1 .. LPM_VALUE_MAX */
	uint8_t len;    /* bits */
};

/*
 * Part of the index: buckets of 1 << shift addresses, side by side. The first
 * one also stands for all addresses below, the last one for all above.
 */
struct lpm_node {
	addr_t first;   /* number of its first bucket, counted from address 0 */
	uint32_t base;  /* its first bucket in the index */
	uint32_t last;  /* buckets - 1 */
	uint32_t shift; /* bits */
	uint32_t pad[1];
};

/* A table to look up in; borrowed memory. */
struct lpm {
	uint32_t root;               /* an entry, as in the index: where every lookup begins */
	uint32_t count;              /* ranges */
	uint32_t nodes_count;        /* parts of the index */
	uint32_t index_count;        /* buckets of all parts */
	const uint32_t *start4;      /* IPv4: first address of each range, ascending from 0 */
	const addr_t *start6;        /* IPv6: the same */
	const uint32_t *value;       /* its answer; 0: none */
	const struct lpm_node *node; /* each behind the one that leads to it */
	const uint32_t *index;       /* what a bucket says: see lpm.c */
};

/* What lpm_build() writes to, for count prefixes. */
struct lpm_room {
	struct lpm_prefix *spare; /* as many as there are prefixes */
	uint32_t *start4;         /* LPM_RANGES(count); NULL for IPv6 */
	addr_t *start6;           /* the same; NULL for IPv4 */
	uint32_t *value;          /* the same */
	struct lpm_node *node;    /* the same */
	uint32_t *index;          /* LPM_BUCKETS(count) */
};

/* Ranges that are searched for one address. */
#define LPM_SEARCH 4U

/* An entry of the index; below LPM_RANGE it is the answer. See lpm.c. */
#define LPM_RANGE 0x80000000U
#define LPM_NODE 0xc0000000U
#define LPM_AT 0x3fffffffU

#define LPM_VALUE_MAX (LPM_RANGE - 1)
#define LPM_RANGES_MAX (1U << 28)

/* Ranges that count prefixes can unroll into, at most; those behind the last one included. */
#define LPM_RANGES(count) (2 * (count) + 1 + LPM_SEARCH)

/* Buckets of their index, at most: see build_index(). */
#define LPM_BUCKETS(count) (8 * LPM_RANGES(count))

struct lpm lpm_build(struct lpm_prefix *prefixes, uint32_t count, const struct lpm_room *room);
bool lpm_is_valid(const struct lpm *lpm, uint32_t value_max);

/**
 * lpm_lookup4() - Answer for an IPv4 address
 * @lpm:	A table that lpm_is_valid() accepted
 * @addr:	Host order
 *
 * Return: value of the longest prefix that holds it, 0 if none does
 */
static inline uint32_t lpm_lookup4(const struct lpm *lpm, uint32_t addr)
{
	uint32_t entry = lpm->root;
	const uint32_t *start;

	while (entry >= LPM_NODE) {
		const struct lpm_node *node = &lpm->node[entry & LPM_AT];
		uint32_t bucket = addr >> node->shift, first = (uint32_t)node->first;

		bucket = bucket < first ? 0 : bucket - first;
		entry = lpm->index[node->base + (bucket < node->last ? bucket : node->last)];
	}
	if (entry < LPM_RANGE)
		return entry;
	entry &= LPM_AT;
	start = lpm->start4 + entry;
	for (uint32_t i = 1; i <= LPM_SEARCH; i++)
		entry += start[i] <= addr;
	return lpm->value[entry];
}

/**
 * lpm_lookup6() - Answer for an IPv6 address
 * @lpm:	A table that lpm_is_valid() accepted
 * @addr:	Host order
 *
 * Return: value of the longest prefix that holds it, 0 if none does
 */
static inline uint32_t lpm_lookup6(const struct lpm *lpm, addr_t addr)
{
	uint32_t entry = lpm->root;
	const addr_t *start;

	while (entry >= LPM_NODE) {
		const struct lpm_node *node = &lpm->node[entry & LPM_AT];
		addr_t bucket = addr >> node->shift;

		bucket = bucket < node->first ? 0 : bucket - node->first;
		entry = lpm->index[node->base + (bucket < node->last ? (uint32_t)bucket : node->last)];
	}
	if (entry < LPM_RANGE)
		return entry;
	entry &= LPM_AT;
	start = lpm->start6 + entry;
	for (uint32_t i = 1; i <= LPM_SEARCH; i++)
		entry += start[i] <= addr;
	return lpm->value[entry];
}

#endif
