/* SPDX-License-Identifier: Apache-2.0 */
/* spin.h - when a worker that found nothing looks again at once, instead of sleeping: pure. */
#ifndef SPIN_H
#define SPIN_H

#include <stdbool.h>
#include <stdint.h>

/* What a worker has learned of the gaps between its packets. Zeroed, with limit_ns set, to begin. */
struct spin {
	uint64_t limit_ns; /* longest look; 0: never look, always sleep */
	uint64_t dry_ns;   /* when packets ran out; 0: they have not */
	uint64_t look_ns;  /* when we looked last since then; 0: we are not looking */
	uint64_t rest_ns;  /* for how long we gave up when the processor was last taken from us */
	uint64_t until_ns; /* when that ends */
	uint32_t worth;    /* share of recent looks that met a packet, of SPIN_ALL */
	uint32_t hopes;    /* gaps slept through since, which a look might have met */
};

enum { SPIN_ALL = 1 << 16 };

void spin_found(struct spin *spin, uint64_t now_ns);
bool spin_again(struct spin *spin, uint64_t now_ns);

#endif
