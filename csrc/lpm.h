/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lpm.h - longest-prefix match as a sorted list of address ranges: pure.
 *
 * Prefixes are unrolled once, when a table is built, into disjoint ranges that
 * each have one answer; a lookup is then a binary search for the last range
 * that starts at or below the address. The same code serves both families.
 */
#ifndef LPM_H
#define LPM_H

#include <stdbool.h>
#include <stdint.h>

#include "parse.h"

/* One prefix on the way into a table; host bits of key are 0. */
struct lpm_prefix {
	addr_t key;
	uint32_t value; /* > 0 */
	uint8_t len;    /* bits */
};

/* A table to look up in; borrowed memory. */
struct lpm {
	uint32_t count;         /* ranges */
	const uint32_t *start4; /* IPv4: first address of each range, ascending from 0 */
	const addr_t *start6;   /* IPv6: the same */
	const uint32_t *value;  /* its answer; 0: none */
};

/* Ranges that count prefixes can unroll into, at most. */
#define LPM_RANGES(count) (2 * (count) + 1)

uint32_t lpm_build(struct lpm_prefix *prefixes, uint32_t count, uint8_t bits, addr_t *starts, uint32_t *values);
uint32_t lpm_lookup4(const struct lpm *lpm, uint32_t addr);
uint32_t lpm_lookup6(const struct lpm *lpm, addr_t addr);
bool lpm_is_valid(const struct lpm *lpm, uint32_t value_max);

#endif
