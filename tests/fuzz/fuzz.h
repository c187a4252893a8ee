/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz.h - what all fuzz targets share.
 *
 * Inputs lie in memory of exactly their length, against a page that nobody may touch: before it if their length is
 * even, behind it if it is odd. So overruns are seen at full speed, without sanitizers too. How many inputs were
 * accepted is told at the end: a target whose inputs are all refused tests little.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#endif

#include "check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned int seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room);

/* Bytes beside an input that sanitizers guard where there is no wall. */
enum { FUZZ_BESIDE = 256 };

static uint64_t fuzz_inputs, fuzz_accepted;

/**
 * fuzz_report() - Tell run.py how many inputs were accepted
 */
static void fuzz_report(void)
{
	fprintf(stderr, "accepted: %llu of %llu\n", (unsigned long long)fuzz_accepted, (unsigned long long)fuzz_inputs);
}

/**
 * fuzz_count() - Count an input
 * @is_accepted:	It was not refused
 *
 * Return: 0, as libFuzzer wants
 */
static inline int fuzz_count(bool is_accepted)
{
	if (!fuzz_inputs++)
		atexit(fuzz_report);
	fuzz_accepted += is_accepted;
	return 0;
}

/**
 * fuzz_place() - Copy part of an input against a wall
 * @wall:	From wall_build()
 * @data:	Bytes
 * @size:	How many, less than WALL_ROOM - FUZZ_BESIDE
 *
 * Sanitizers see as well what is touched beside them on the other side.
 *
 * Return: the copy, valid until the next one there
 */
static inline uint8_t *fuzz_place(const struct wall *wall, const uint8_t *data, size_t size)
{
	bool is_behind = size % 2;

#if __has_feature(address_sanitizer)
	uint8_t *at = is_behind ? wall->first : wall->end - size;

	ASAN_UNPOISON_MEMORY_REGION(at, size);
	ASAN_POISON_MEMORY_REGION(is_behind ? at + size : at - FUZZ_BESIDE, FUZZ_BESIDE);
#endif
	return is_behind ? wall_behind(wall, data, size) : wall_before(wall, data, size);
}

/**
 * fuzz_wall() - The wall for the one packet of an input
 *
 * Return: always the same
 */
static inline const struct wall *fuzz_wall(void)
{
	static struct wall wall;

	if (!wall.first)
		wall = wall_build();
	return &wall;
}

/**
 * fuzz_copy() - Copy part of an input to writable memory of exactly its length
 * @data:	Input
 * @size:	Its length
 *
 * Return: owned by the caller
 */
static inline uint8_t *fuzz_copy(const uint8_t *data, size_t size)
{
	uint8_t *copy = malloc(size ? size : 1);

	CHECK(copy);
	if (size)
		memcpy(copy, data, size);
	return copy;
}

#endif
