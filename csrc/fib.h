/* SPDX-License-Identifier: Apache-2.0 */
/* fib.h - the published table: an immutable snapshot, swapped under running readers. */
#ifndef FIB_H
#define FIB_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dp.h"
#include "lpm.h"

/* The prefix tables of a snapshot, for one family. */
enum fib_table {
	FIB_DST,   /* subnets of peers -> subnet entry */
	FIB_VTEP,  /* underlay addresses -> peer */
	FIB_OWN,   /* our subnets */
	FIB_SRC,   /* valid sources of packets from this host, --allow-source included */
	FIB_ALLOW, /* --allow-source */
	FIB_TABLE_COUNT
};

struct fib_header;

struct fib {
	const struct fib_header *header; /* the mapping, owned */
	const struct dp_subnet *subnets;
	size_t size;
	struct lpm lpm[2][FIB_TABLE_COUNT]; /* by is_v6 */
};

/* Where the table in force hangs. One writer, any number of readers. */
struct fib_slot {
	_Atomic(struct fib *) current;
};

/* One reader's announcement of the table it is using; on a cache line of its own. */
struct fib_reader {
	_Alignas(64) _Atomic(struct fib *) using;
};

const struct dp_subnet *fib_subnet(const struct fib *fib, uint8_t family, addr_t addr);
uint32_t fib_peer(const struct fib *fib, uint8_t family, addr_t addr);
bool fib_holds(const struct fib *fib, enum fib_table table, uint8_t family, addr_t addr);

struct fib *fib_enter(struct fib_slot *slot, struct fib_reader *reader);
void fib_leave(struct fib_reader *reader);
struct fib *fib_publish(struct fib_slot *slot, struct fib_reader *readers, size_t readers_stride,
			uint32_t readers_count, struct fib *next);

#endif
