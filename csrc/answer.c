/* SPDX-License-Identifier: Apache-2.0 */
/* answer.c - ICMP errors to the pods whose packets go nowhere, at a bounded rate. */
#include "answer.h"

#include <errno.h>

#include "encap.h"
#include "icmp.h"
#include "tun.h"

/**
 * build() - Make an ICMP error
 * @out:	Room for it, an IP packet
 * @pkt:	The packet it is about
 * @flow:	The same packet, parsed
 * @subnet:	To which that is; NULL: to none
 * @what:	What it says
 *
 * Return: its length in bytes, 0 if none may be sent
 */
static uint32_t build(uint8_t out[ICMP_MAX], const struct pkt *pkt, const struct flow *flow,
		      const struct dp_subnet *subnet, enum answer what)
{
	if (what == ANSWER_TOO_BIG)
		return icmp_too_big(out, pkt, flow, subnet->mtu);
	return what == ANSWER_NO_HOST ? icmp_no_host(out, pkt, flow) : icmp_no_route(out, pkt, flow);
}

/**
 * answer_tell() - Tell the sender of a packet what is wrong, if it may be told and is not told too often
 * @path:	The worker's path
 * @pkt:	The packet
 * @flow:	The same packet, parsed
 * @subnet:	To which it is; NULL: to none
 * @what:	What is wrong
 */
void answer_tell(struct path *path, const struct pkt *pkt, const struct flow *flow, const struct dp_subnet *subnet,
		 enum answer what)
{
	static const struct vnet_hdr nothing;
	uint8_t buf[PKT_HEADROOM + ICMP_MAX];
	struct pkt error;
	uint32_t len;

	if (!path->config->icmp_per_s)
		return;
	len = build(buf + PKT_HEADROOM, pkt, flow, subnet, what);
	if (!len)
		return;
	if (!rate_allows(path->icmp, path->now_ns, path->config, flow->src, subnet ? subnet->peer_id : DP_NO_PEER)) {
		counters_add(&path->counters->icmp_limited, 1);
		return;
	}
	error = pkt_init(buf, sizeof(buf), PKT_HEADROOM, len);
	if (!tun_write(path->tun_fd, path->config->vnet_hdr_len, &error, &nothing))
		counters_add(&path->counters->icmp_sent, 1);
}

/**
 * answer_unsent() - Tell the sender of a datagram that this host has no way to its peer
 * @path:	The worker's path
 * @message:	What could not be sent; of a run, its first datagram is answered
 * @err:	Positive errno
 */
void answer_unsent(struct path *path, const struct outbox_message *message, int err)
{
	const struct iovec *piece = path->out.iov + message->iov, *end = piece + message->pieces;
	uint32_t push = message->subnet->encap == DP_ENCAP_VXLAN ? VXLAN_PUSH : 0, len = 0;
	uint8_t whole[PKT_MAX];
	struct pkt pkt;
	struct flow flow;

	for (; piece < end && len < message->size && piece->iov_len <= sizeof(whole) - len; piece++) {
		memcpy(whole + len, piece->iov_base, piece->iov_len);
		len += (uint32_t)piece->iov_len;
	}
	if (len < push)
		return;
	pkt = pkt_init(whole, len, push, len - push);
	if (parse_inner(&pkt, &flow) == DP_DROP_NONE)
		answer_tell(path, &pkt, &flow, message->subnet, err == ENETUNREACH ? ANSWER_NO_ROUTE : ANSWER_NO_HOST);
}
