/* SPDX-License-Identifier: Apache-2.0 */
/* probe_table.c - prefix tables and snapshots for Python; for tests only. */
#include <stdlib.h>

#include "fib.h"
#include "lpm.h"
#include "parse.h"
#include "probe.h"

/* A table, and the memory that it is in. */
struct probe_lpm {
	struct lpm lpm;
	struct lpm_room room;
};

/* --- lpm --------------------------------------------------------------------- */

/**
 * probe_lpm_free() - Free a table
 * @lpm:	From probe_lpm_build(), or NULL
 */
void probe_lpm_free(struct probe_lpm *lpm)
{
	if (!lpm)
		return;
	free(lpm->room.index);
	free(lpm->room.node);
	free(lpm->room.value);
	free(lpm->room.start6);
	free(lpm->room.start4);
	free(lpm->room.spare);
	free(lpm);
}

/**
 * probe_lpm_build() - lpm_build(), and the table to look up in
 * @prefixes:	All of one family
 * @values:	Their answers
 * @count:	How many
 * @family:	4 or 6
 *
 * Return: owned by the caller (probe_lpm_free()), or NULL without memory
 */
struct probe_lpm *probe_lpm_build(const struct dp_prefix *prefixes, const uint32_t *values, uint32_t count,
				  uint8_t family)
{
	struct lpm_prefix *list = aligned_alloc(sizeof(addr_t), (count + 1UL) * sizeof(*list));
	struct probe_lpm *lpm = calloc(1, sizeof(*lpm));
	struct lpm_room *room;

	if (!list || !lpm)
		goto fail;
	room = &lpm->room;
	room->spare = aligned_alloc(sizeof(addr_t), (count + 1UL) * sizeof(*room->spare));
	room->start4 = family == 4 ? calloc(LPM_RANGES(count), sizeof(*room->start4)) : NULL;
	room->start6 = family == 4 ? NULL : aligned_alloc(sizeof(addr_t), LPM_RANGES(count) * sizeof(*room->start6));
	room->value = calloc(LPM_RANGES(count), sizeof(*room->value));
	room->node = aligned_alloc(sizeof(addr_t), LPM_RANGES(count) * sizeof(*room->node));
	room->index = calloc(LPM_BUCKETS(count), sizeof(*room->index));
	if (!room->spare || !(room->start4 || room->start6) || !room->value || !room->node || !room->index)
		goto fail;
	for (uint32_t i = 0; i < count; i++) {
		list[i].key = parse_addr(family, prefixes[i].addr.bytes);
		list[i].len = prefixes[i].len;
		list[i].value = values[i];
	}
	lpm->lpm = lpm_build(list, count, room);
	free(list);
	return lpm;

fail:
	probe_lpm_free(lpm);
	free(list);
	return NULL;
}

/**
 * probe_lpm_is_valid() - lpm_is_valid()
 * @lpm:	As there
 * @value_max:	As there
 *
 * Return: as there
 */
uint8_t probe_lpm_is_valid(const struct probe_lpm *lpm, uint32_t value_max)
{
	return lpm_is_valid(&lpm->lpm, value_max);
}

/**
 * probe_lpm_lookup() - lpm_lookup4() or lpm_lookup6(), many times
 * @lpm:	From probe_lpm_build()
 * @addrs:	Addresses of 4 or 16 bytes in wire order
 * @count:	How many
 * @answers:	Set to their answers
 */
void probe_lpm_lookup(const struct probe_lpm *lpm, const uint8_t *addrs, uint32_t count, uint32_t *answers)
{
	for (uint32_t i = 0; i < count; i++) {
		if (lpm->lpm.start4)
			answers[i] = lpm_lookup4(&lpm->lpm, (uint32_t)parse_addr(4, addrs + 4UL * i));
		else
			answers[i] = lpm_lookup6(&lpm->lpm, parse_addr(6, addrs + 16UL * i));
	}
}

/* --- fib --------------------------------------------------------------------- */

/**
 * probe_fib_subnet() - fib_subnet()
 * @fib:	As there
 * @family:	As there
 * @addr:	In wire order
 *
 * Return: index of the subnet entry, -1 for none
 */
int64_t probe_fib_subnet(const dp_fib *fib, uint8_t family, const uint8_t *addr)
{
	const struct dp_subnet *subnet = fib_subnet(fib, family, parse_addr(family, addr));

	return subnet ? subnet - fib->subnets : -1;
}

/**
 * probe_fib_peer() - fib_peer()
 * @fib:	As there
 * @family:	As there
 * @addr:	In wire order
 *
 * Return: as there
 */
uint32_t probe_fib_peer(const dp_fib *fib, uint8_t family, const uint8_t *addr)
{
	return fib_peer(fib, family, parse_addr(family, addr));
}

/**
 * probe_fib_lists() - fib_holds() for each of the plain lists
 * @fib:	As there
 * @family:	As there
 * @addr:	In wire order
 *
 * Return: 1 for FIB_OWN, 2 for FIB_SRC, 4 for FIB_ALLOW, added up
 */
uint32_t probe_fib_lists(const dp_fib *fib, uint8_t family, const uint8_t *addr)
{
	addr_t number = parse_addr(family, addr);

	return (fib_holds(fib, FIB_OWN, family, number) ? 1U : 0U) |
	       (fib_holds(fib, FIB_SRC, family, number) ? 2U : 0U) |
	       (fib_holds(fib, FIB_ALLOW, family, number) ? 4U : 0U);
}
