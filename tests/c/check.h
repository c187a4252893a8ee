/* SPDX-License-Identifier: Apache-2.0 */
/* check.h - assertions, guard pages and dice for the C tests and fuzzers. */
#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* What must hold; a failure ends the program, so that a sanitizer or fuzzer shows the way there. */
#define CHECK(condition)                                                                \
	do {                                                                            \
		if (!(condition)) {                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			abort();                                                        \
		}                                                                       \
	} while (0)

enum { WALL_PAGE = 4096, WALL_ROOM = 20 * WALL_PAGE };

/* Memory between two pages that nobody may touch. */
struct wall {
	uint8_t *first; /* first readable byte; the one before it faults */
	uint8_t *end;   /* the first byte that faults again */
};

/**
 * wall_build() - Map memory between two guard pages
 *
 * Return: WALL_ROOM bytes with their walls, for the life of the program
 */
static inline struct wall wall_build(void)
{
	uint8_t *all = mmap(NULL, WALL_ROOM + 2 * WALL_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(all != MAP_FAILED);
	CHECK(!mprotect(all + WALL_PAGE, WALL_ROOM, PROT_READ | PROT_WRITE));
	return (struct wall){.first = all + WALL_PAGE, .end = all + WALL_PAGE + WALL_ROOM};
}

/**
 * wall_before() - Put bytes so that they end at the wall: one byte too far faults
 * @wall:	The wall
 * @data:	Bytes
 * @len:	How many, at most WALL_ROOM
 *
 * Return: where they are now
 */
static inline uint8_t *wall_before(const struct wall *wall, const uint8_t *data, size_t len)
{
	CHECK(len <= WALL_ROOM);
	if (len)
		memcpy(wall->end - len, data, len);
	return wall->end - len;
}

/**
 * wall_behind() - Put bytes so that they begin at the wall: one byte before them faults
 * @wall:	The wall
 * @data:	Bytes
 * @len:	How many, at most WALL_ROOM
 *
 * Return: where they are now
 */
static inline uint8_t *wall_behind(const struct wall *wall, const uint8_t *data, size_t len)
{
	CHECK(len <= WALL_ROOM);
	if (len)
		memcpy(wall->first, data, len);
	return wall->first;
}

/**
 * roll() - Throw dice (xorshift64*)
 * @state:	Not 0; the same state gives the same throws
 *
 * Return: 32 bits
 */
static inline uint32_t roll(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return (uint32_t)(*state * 0x2545f4914f6cdd1dULL >> 32);
}

#endif
