/* SPDX-License-Identifier: Apache-2.0 */
/* worker.h - one thread that carries packets both ways, and how it is told to pause. */
#ifndef WORKER_H
#define WORKER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "fib.h"
#include "path.h"
#include "spin.h"

enum worker_order { WORKER_RUN, WORKER_PARK, WORKER_EXIT };

/* What a worker may wait for: queues of the TUN, sockets of UDP, the one of IPIP, its own eventfd. */
enum { WORKER_SOURCES = DP_MAX_QUEUES + 2 * (DP_MAX_QUEUES + 1) + DP_MAX_BARE + 2 };
_Static_assert(WORKER_SOURCES <= 64, "a mask has a bit for each");

/* Something that packets come from. */
struct worker_source {
	int fd;
	uint32_t slot;
	bool is_patient; /* can wait for the end of another's batch */
};

struct worker {
	struct fib_reader reader; /* first: engine.c walks the readers by stride */
	struct path path;
	struct path express; /* of those who come in between */
	struct spin spin;
	struct fib_slot *slot;    /* the engine's */
	const uint64_t *turn;     /* whose turn it is: in the counters, of all engines that share them */
	const uint64_t *our_turn; /* the engine's */
	pthread_t thread;
	pthread_mutex_t lock; /* guards parked, and sleeping on changed */
	pthread_cond_t changed;
	struct worker_source sources[WORKER_SOURCES]; /* the first one is wake_fd, and has no slot */
	uint32_t count;                               /* of sources */
	uint32_t serving;                             /* whose batch it is */
	uint32_t vain;                                /* rounds in a row that were woken for nothing */
	bool is_woken;                                /* by the last poll, or it failed */
	int epoll_fd;                                 /* of all sources, owned */
	int wake_fd;                                  /* eventfd, owned */
	_Atomic int order;
	bool is_parked;
};

int worker_init(struct worker *worker, struct fib_slot *slot, uint32_t index);
int worker_start(struct worker *worker);
void worker_park(struct worker *worker);
void worker_resume(struct worker *worker);
void worker_end(struct worker *worker);
void worker_free(struct worker *worker);

#endif
