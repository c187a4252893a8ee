/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz.h - what all fuzz targets share.
 *
 * Inputs lie in memory of exactly their length, so that sanitizers see every overrun. How many were accepted is
 * told at the end: a target whose inputs are all refused tests little.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

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
