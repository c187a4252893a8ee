/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rate.c - token buckets of ICMP errors, shared by all workers.
 *
 * DOC: Theory of operation
 *
 * An error needs a token from three buckets: its receiver's, its peer's, and that of
 * all. One pod that floods is stopped by its own, so that others are still
 * told; pods that flood one unreachable peer together leave half of the tokens
 * for errors about other peers. The last bucket holds over all workers, which
 * is the promise to the pods.
 *
 * A bucket is known by the moment when it will be full again. A token moves
 * that moment by the time one takes to come; there is one as long as it stays
 * within the time that a whole burst takes. So a bucket is one word, which any
 * number of threads change by compare and swap, and needs no filling.
 */
#include "rate.h"

#define NS_PER_S 1000000000ULL

/**
 * rate_take() - Take a token, if there is one
 * @bucket:	From where
 * @now_ns:	Now; threads need not agree to the nanosecond
 * @per_s:	Tokens that come in a second, rounded down to whole nanoseconds for each
 * @burst:	Tokens it holds when full
 *
 * Return: true if there was one; always false if none ever come
 */
bool rate_take(rate_bucket *bucket, uint64_t now_ns, uint32_t per_s, uint32_t burst)
{
	uint64_t full_ns = atomic_load_explicit(bucket, memory_order_relaxed);
	uint64_t each_ns, next_ns;

	if (!per_s)
		return false;
	each_ns = (NS_PER_S + per_s - 1) / per_s;
	do {
		next_ns = (full_ns > now_ns ? full_ns : now_ns) + each_ns;
		if (next_ns - now_ns > burst * each_ns)
			return false;
	} while (!atomic_compare_exchange_weak_explicit(bucket, &full_ns, next_ns, memory_order_relaxed,
							memory_order_relaxed));
	return true;
}

/**
 * share() - A part of a rate or burst, but not nothing
 * @all:	All of it
 * @parts:	How many parts that is
 *
 * Return: one of them, rounded up; 0 only of 0
 */
static uint32_t share(uint32_t all, uint32_t parts)
{
	return all / parts + (all % parts != 0);
}

/**
 * rate_allows() - May this error be sent?
 * @rates:	All buckets
 * @now_ns:	Now
 * @config:	Rate and burst of all
 * @sender:	Of the packet it is about
 * @peer:	For which that was; DP_NO_PEER: for none
 *
 * Return: true if so, and a token less for each of those it concerns
 */
bool rate_allows(struct rates *rates, uint64_t now_ns, const struct dp_config *config, addr_t sender, uint32_t peer)
{
	/* Addresses of pods lie side by side: their low bits tell them apart. */
	rate_bucket *senders = &rates->senders[(uint64_t)sender % RATE_BUCKETS];
	rate_bucket *peers = peer == DP_NO_PEER ? &rates->no_peer : &rates->peers[peer % RATE_BUCKETS];

	return rate_take(senders, now_ns, share(config->icmp_per_s, RATE_SENDER_SHARE),
			 share(config->icmp_burst, RATE_SENDER_SHARE)) &&
	       rate_take(peers, now_ns, share(config->icmp_per_s, RATE_PEER_SHARE),
			 share(config->icmp_burst, RATE_PEER_SHARE)) &&
	       rate_take(&rates->all, now_ns, config->icmp_per_s, config->icmp_burst);
}
