/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loadgen.h - what both ends of the generator know: its packets, and how it fails.
 */
#ifndef BENCH_LOADGEN_H
#define BENCH_LOADGEN_H

#include <stdint.h>

enum {
	BATCH = 32, /* messages of one system call */
	SIZE_LEAST = 32,
	PACKETS_MAX = 1 << 26, /* of one trial; a bit each in the receiver */
};

#define MAGIC 0x6f766c64u

enum kind { KIND_DATA = 1, KIND_ASK, KIND_ANSWER };

/* The head of each packet; the last 8 bytes of data are the number's complement. Both ends are one machine. */
struct head {
	uint32_t magic;
	uint16_t kind;
	uint16_t size;
	uint32_t trial;
	uint32_t pad;
	uint64_t number;
};

/* What the receiver answers. */
struct answer {
	struct head head;
	uint64_t received; /* different numbers */
	uint64_t doubled;
	uint64_t reordered;
	uint64_t changed;
};

void receive(uint16_t port);
void fail(const char *what);

#endif
