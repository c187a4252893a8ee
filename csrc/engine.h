/* SPDX-License-Identifier: Apache-2.0 */
/* engine.h - the workers, the table they share and the descriptors they use. */
#ifndef ENGINE_H
#define ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "dp.h"

struct engine_identity {
	uint64_t start_ns; /* CLOCK_BOOTTIME when this process began to serve */
	uint64_t pid;
};

int engine_create(const struct dp_config *config, const int fds[DP_FD_SLOTS], const struct engine_identity *identity,
		  struct engine **out);
int engine_take_turn(struct engine *engine, uint64_t turn);
bool engine_has_turn(const struct engine *engine);
void engine_go(struct engine *engine);
void engine_count_fault(struct engine *engine);
const int *engine_fds(const struct engine *engine);
const struct dp_config *engine_config(const struct engine *engine);
uint64_t engine_generation(const struct engine *engine);
uint64_t engine_turn(const struct engine *engine);

#endif
