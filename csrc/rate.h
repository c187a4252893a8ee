/* SPDX-License-Identifier: Apache-2.0 */
/* rate.h - token buckets of ICMP errors, shared by all workers; time is an argument. */
#ifndef RATE_H
#define RATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "dp.h"
#include "parse.h"

/* Senders, or peers, that have a bucket of their own; more of them share. */
enum { RATE_BUCKETS = 4096 };
/* Of all errors: one sender gets a tenth at most, and packets to one peer cause a half. */
enum { RATE_SENDER_SHARE = 10, RATE_PEER_SHARE = 2 };

/* A bucket is one word: when it will be full again, in ns; 0 is full since ever. */
typedef _Atomic uint64_t rate_bucket;

struct rates {
	rate_bucket all;
	rate_bucket no_peer; /* destinations of no peer are one more peer */
	rate_bucket senders[RATE_BUCKETS];
	rate_bucket peers[RATE_BUCKETS];
};

bool rate_take(rate_bucket *bucket, uint64_t now_ns, uint32_t per_s, uint32_t burst);
bool rate_allows(struct rates *rates, uint64_t now_ns, const struct dp_config *config, addr_t sender, uint32_t peer);

#endif
