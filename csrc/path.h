/* SPDX-License-Identifier: Apache-2.0 */
/*
 * path.h - what a worker carries along the packet path, and the counting on it.
 *
 * A worker has two of them: while it carries a long batch along one, those who
 * cannot wait for its end come in between on the other.
 *
 * All of it belongs to one worker thread. The table is held for the length of a
 * batch; everything else for the life of the worker.
 */
#ifndef PATH_H
#define PATH_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "counters.h"
#include "dp.h"
#include "fib.h"
#include "merge.h"
#include "outbox.h"
#include "parse.h"
#include "pkt.h"
#include "rate.h"
#include "underlay.h"
#include "wire.h"

/* Packets per batch in each direction. */
enum { PATH_BATCH = UNDERLAY_BATCH };

/*
 * A buffer holds the largest packet with headroom. The odd stride keeps the
 * first lines of neighbouring buffers out of the same cache sets.
 */
enum { PATH_BUFFER = PKT_HEADROOM + PKT_MAX + 1, PATH_STRIDE = PATH_BUFFER + 4096 + 64 };

/* Inner bytes of a batch that are carried at a stretch; then others may come in between. */
enum { PATH_STRETCH = 48 << 10 };

/* A packet that is about to be dropped or forwarded, as the counters see it. */
struct path_packet {
	enum dp_dir dir;
	uint32_t peer;  /* DP_NO_PEER: not known */
	uint32_t units; /* wire packets */
	uint32_t bytes; /* inner */
	uint8_t family; /* of addr; 0: not known */
	addr_t addr;    /* tx: inner destination; rx: outer source */
};

struct path {
	const struct dp_config *config;
	const int *fds; /* by slot; -1: not there */
	int tun_fd;     /* the queue that is written to */
	struct dp_thread_counters *counters;
	struct dp_peer_counters *peers;
	uint32_t max_peers;
	const struct fib *fib; /* in force for this batch */
	uint64_t now_ns;       /* CLOCK_BOOTTIME of this batch */
	uint32_t reads;        /* packets and messages that were read, so far */
	uint8_t *tx_buffers;   /* PATH_BATCH of PATH_STRIDE bytes */
	uint8_t *rx_buffers;
	struct rates *icmp;         /* the engine's, which all workers share */
	struct path *twin;          /* the worker's other path; NULL: none */
	void (*between)(void *arg); /* carries what cannot wait along the twin; NULL: nothing may come in between */
	void *between_arg;
	uint32_t stretch; /* inner bytes carried since then */
	uint32_t urgent;  /* packets so far that more hangs on than a window that opens sooner */
	struct outbox out;
	struct merge merge;
	struct path_packet merged[MERGE_FLOWS]; /* what each super-packet will count as */
	bool is_joined;                         /* the last packet is part of a super-packet that is not written yet */
	uint32_t message_bytes; /* a message of late, on average: joined ones are as long as 40 others */
	struct underlay_batch rx;
};

/**
 * path_slot() - Where one of several descriptors lies
 * @role:	What it is for
 * @index:	Which of those
 *
 * Return: the slot
 */
static inline uint32_t path_slot(enum dp_fd role, uint32_t index)
{
	return (uint32_t)role + index * DP_FD_COUNT;
}

/**
 * path_offered() - Count packets the moment a system call returned them
 * @path:	The worker's path
 * @dir:	Direction
 * @units:	Wire packets
 */
static inline void path_offered(struct path *path, enum dp_dir dir, uint32_t units)
{
	counters_add(&path->counters->offered[dir], units);
}

/**
 * path_fault() - Count a system call that failed and took no packet with it
 * @path:	The worker's path
 * @err:	Positive errno; that there is nothing to read, or a signal came, is no fault
 */
static inline void path_fault(struct path *path, int err)
{
	counters_add(&path->counters->faults, err != EAGAIN && err != EINTR);
}

/**
 * path_forwarded() - Count a packet whose send or write succeeded
 * @path:	The worker's path
 * @packet:	What it was
 */
static inline void path_forwarded(struct path *path, const struct path_packet *packet)
{
	counters_add(&path->counters->forwarded[packet->dir], packet->units);
	counters_add(&path->counters->bytes[packet->dir], packet->bytes);
	if (packet->peer < path->max_peers) {
		counters_add(&path->peers[packet->peer].packets[packet->dir], packet->units);
		counters_add(&path->peers[packet->peer].bytes[packet->dir], packet->bytes);
	}
}

/**
 * path_drop() - Count a packet that goes no further
 * @path:	The worker's path
 * @packet:	What it was
 * @drop:	Why
 */
static inline void path_drop(struct path *path, const struct path_packet *packet, enum dp_drop drop)
{
	counters_add(&path->counters->drops[packet->dir][drop], packet->units);
	counters_note_last(&path->counters->last[packet->dir][drop], path->now_ns, packet->family, packet->addr);
	if (packet->peer < path->max_peers)
		counters_add(&path->peers[packet->peer].drops[drop], packet->units);
}

/**
 * path_between() - Some bytes of a batch are carried, others are not: may somebody come in between?
 * @path:	The worker's path, where nothing of it is half done
 * @bytes:	Inner bytes carried since the last call
 */
static inline void path_between(struct path *path, uint32_t bytes)
{
	path->stretch += bytes;
	if (path->stretch < PATH_STRETCH || !path->between)
		return;
	path->stretch = 0;
	path->between(path->between_arg);
}

/**
 * path_do_without() - Do without an offload from now on
 * @path:	A path
 * @offload:	Which
 */
static inline void path_do_without(struct path *path, enum dp_tier offload)
{
	if (offload == DP_TIER_UDP_GSO)
		path->out.has_runs = false;
	else if (offload == DP_TIER_TUN_UGRO)
		path->merge.has_udp = false;
	else
		path->merge.is_off = true;
}

/**
 * path_give_up() - Do without an offload from now on, since the kernel refused it, and tell
 * @path:	The worker's path
 * @offload:	Which
 *
 * A kernel that refuses good packets, as some do, does not change its mind.
 */
static inline void path_give_up(struct path *path, enum dp_tier offload)
{
	path_do_without(path, offload);
	if (path->twin)
		path_do_without(path->twin, offload);
	counters_set(&path->counters->refused_tier, path->counters->refused_tier | offload);
}

/**
 * path_buffer() - One buffer of a batch
 * @buffers:	tx_buffers or rx_buffers
 * @index:	Which
 *
 * Return: an empty packet with headroom
 */
static inline struct pkt path_buffer(uint8_t *buffers, uint32_t index)
{
	return pkt_init(buffers + (size_t)index * PATH_STRIDE, PATH_BUFFER, PKT_HEADROOM, 0);
}

uint32_t tx_run(struct path *path, int fd, uint32_t most_bytes);
uint32_t rx_run(struct path *path, uint32_t slot, uint32_t most_bytes);

#endif
