/* SPDX-License-Identifier: Apache-2.0 */
/* counters.h - counters in shared memory: one writer a word, readers at any time. */
#ifndef COUNTERS_H
#define COUNTERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dp.h"
#include "parse.h"

struct counters {
	struct dp_counters_header *header; /* the mapping, owned */
	size_t size;
	uint32_t threads;
	uint32_t max_peers;
};

uint64_t counters_now_ns(void);
struct dp_thread_counters *counters_thread(const struct counters *counters, uint32_t thread);
struct dp_peer_counters *counters_peers(const struct counters *counters, uint32_t thread);
void counters_adopt(const struct counters *counters, uint64_t start_ns, uint64_t pid);
uint64_t counters_take_turn(const struct counters *counters, uint64_t turn);
void counters_set_generation(const struct counters *counters, uint64_t generation);
void counters_note_last(struct dp_last *last, uint64_t now_ns, uint8_t family, addr_t addr);

/**
 * counters_add() - Count
 * @word:	A word that only this thread writes
 * @n:		How much
 */
static inline void counters_add(uint64_t *word, uint64_t n)
{
	__atomic_store_n(word, __atomic_load_n(word, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
}

/**
 * counters_set() - Set a gauge
 * @word:	A word that only this thread writes
 * @value:	Its new value
 */
static inline void counters_set(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELAXED);
}

#endif
