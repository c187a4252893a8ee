/* SPDX-License-Identifier: Apache-2.0 */
/* answer.c - ICMP errors to the pods whose packets go nowhere, at a bounded rate. */
#include "answer.h"

#include "icmp.h"
#include "tun.h"

#define NS_PER_S 1000000000ULL

/**
 * take_token() - May one more ICMP error be sent?
 * @bucket:	Tokens
 * @now_ns:	Now
 * @per_s:	Sustained rate
 * @burst:	Tokens it holds when full
 *
 * Return: true, and a token less, or false
 */
static bool take_token(struct path_bucket *bucket, uint64_t now_ns, uint32_t per_s, uint32_t burst)
{
	uint64_t full = burst * NS_PER_S;
	uint64_t passed_ns = now_ns - bucket->filled_ns;

	/* a full refill takes burst / per_s seconds; longer pauses would overflow the product */
	if (!per_s)
		return false;
	if (passed_ns > full / per_s)
		bucket->tokens = full;
	else
		bucket->tokens += passed_ns * per_s;
	bucket->filled_ns = now_ns;
	if (bucket->tokens > full)
		bucket->tokens = full;
	if (bucket->tokens < NS_PER_S)
		return false;
	bucket->tokens -= NS_PER_S;
	return true;
}

/**
 * answer_refused() - Tell the sender of a packet why it goes nowhere
 * @path:	The worker's path
 * @pkt:	The packet
 * @flow:	The same packet, parsed
 * @drop:	Why: no peer takes it, it cannot be carried there, or is larger than its path
 * @mtu:	DP_DROP_TOO_BIG: what the path takes, in bytes of an inner packet
 */
void answer_refused(struct path *path, const struct pkt *pkt, const struct flow *flow, enum dp_drop drop, uint32_t mtu)
{
	static const struct vnet_hdr nothing;
	uint8_t buf[PKT_HEADROOM + ICMP_MAX];
	struct pkt error;
	uint32_t len;

	if (!take_token(path->icmp, path->now_ns, path->config->icmp_per_s, path->config->icmp_burst))
		return;
	if (drop == DP_DROP_TOO_BIG)
		len = icmp_too_big(buf + PKT_HEADROOM, pkt, flow, mtu);
	else
		len = icmp_no_route(buf + PKT_HEADROOM, pkt, flow);
	error = pkt_init(buf, sizeof(buf), PKT_HEADROOM, len);
	if (len && !tun_write(path->tun_fd, path->config->vnet_hdr_len, &error, &nothing))
		counters_add(&path->counters->icmp_sent, 1);
}
