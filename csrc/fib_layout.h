/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fib_layout.h - how a snapshot lies in its memfd; between fib_build.c and fib.c only.
 *
 * struct fib_header, then subnets, and per family and table four arrays:
 * first addresses and answers of the ranges, nodes and buckets of the index (lpm.h). All offsets are from the start,
 * multiples of FIB_ALIGN. Answers are 1 + index of a subnet entry (FIB_DST),
 * 1 + peer id (FIB_VTEP), or 1.
 */
#ifndef FIB_LAYOUT_H
#define FIB_LAYOUT_H

#include <fcntl.h>
#include <stdint.h>

#include "fib.h"

enum { FIB_ALIGN = 16 };
#define FIB_MAGIC 0x6264696676796c6fULL
#define FIB_SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

struct fib_section {
	uint64_t offset; /* bytes from the start */
	uint64_t count;  /* elements */
};

struct fib_header {
	uint64_t magic;
	uint64_t layout; /* DP_FIB_LAYOUT */
	uint64_t size;   /* bytes of the whole snapshot */
	uint64_t generation;
	struct fib_section subnets;
	struct fib_section starts[2][FIB_TABLE_COUNT];
	struct fib_section values[2][FIB_TABLE_COUNT];
	struct fib_section nodes[2][FIB_TABLE_COUNT];
	struct fib_section index[2][FIB_TABLE_COUNT];
	uint32_t roots[2][FIB_TABLE_COUNT]; /* where lookups begin */
};

bool fib_are_subnets_valid(const struct dp_subnet *subnets, uint64_t count);

#endif
