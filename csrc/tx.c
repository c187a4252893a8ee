/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tx.c - overlay to underlay, one batch.
 *
 * Functions stand in the order in which a packet meets them:
 *  1. tun_read()     what the kernel routed to the overlay
 *  2. admit()        is it valid, may it leave from here, which peer is it for
 *  3. refuse()       no peer: tell the sender
 *  4. encapsulate()  outer headers, checksum, address
 *  5. flush()        runs of messages for one socket leave in one system call
 */
#include "path.h"

#include <errno.h>

#include "encap.h"
#include "icmp.h"
#include "offload.h"
#include "tun.h"

#define NS_PER_S 1000000000ULL

/**
 * admit() - Decide whether a packet may leave, and to whom
 * @path:	The worker's path
 * @pkt:	Packet from the TUN; padding behind it is cut off
 * @vnet:	Its virtio header
 * @flow:	Set to what it is
 * @subnet:	Set to where it goes
 *
 * Return: DP_DROP_NONE or why not; @flow is valid from DP_DROP_MULTICAST on
 */
static enum dp_drop admit(struct path *path, struct pkt *pkt, const struct vnet_hdr *vnet, struct flow *flow,
			  const struct dp_subnet **subnet)
{
	enum dp_drop drop = parse_inner(pkt, flow);

	if (drop)
		return drop;
	pkt_trim(pkt, flow->total_len);
	if (parse_is_multicast(flow))
		return DP_DROP_MULTICAST;
	if (!fib_holds(path->fib, FIB_SRC, flow->family, flow->src))
		return DP_DROP_FOREIGN_SOURCE;
	*subnet = fib_subnet(path->fib, flow->family, flow->dst);
	if (!*subnet)
		return DP_DROP_NO_PEER;
	if (parse_equals(flow->dst, flow->family, &(*subnet)->vtep))
		return DP_DROP_LOOP;
	if ((*subnet)->mtu && flow->total_len > (*subnet)->mtu)
		return DP_DROP_TOO_BIG;
	return offload_complete(pkt, flow, vnet);
}

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
 * refuse() - Tell the sender of a packet that no peer holds its destination
 * @path:	The worker's path
 * @pkt:	The packet
 * @flow:	The same packet, parsed
 */
static void refuse(struct path *path, const struct pkt *pkt, const struct flow *flow)
{
	static const struct vnet_hdr nothing;
	uint8_t buf[PKT_HEADROOM + ICMP_MAX];
	struct pkt error;
	uint32_t len;

	if (!take_token(&path->icmp, path->now_ns, path->config->icmp_per_s, path->config->icmp_burst))
		return;
	len = icmp_no_route(buf + PKT_HEADROOM, pkt, flow);
	error = pkt_init(buf, sizeof(buf), PKT_HEADROOM, len);
	if (len && !tun_write(path->fds[DP_FD_TUN], path->config->vnet_hdr_len, &error, &nothing))
		counters_add(&path->counters->icmp_sent, 1);
}

/**
 * encapsulate() - Give a packet its outer headers and address
 * @path:	The worker's path
 * @pkt:	The packet; gains headers
 * @flow:	The same packet, parsed
 * @subnet:	Where it goes
 * @index:	Its place in the batch
 *
 * Return: DP_DROP_NONE, or DP_DROP_NO_ENCAP if it cannot be carried that way
 */
static enum dp_drop encapsulate(struct path *path, struct pkt *pkt, const struct flow *flow,
				const struct dp_subnet *subnet, uint32_t index)
{
	const struct dp_config *config = path->config;
	struct path_queued *queued = &path->queue[index];
	uint8_t tos = encap_ecn(flow->tos);
	enum dp_fd role;

	if (!(config->encaps & 1U << subnet->encap))
		return DP_DROP_NO_ENCAP;
	if (subnet->encap == DP_ENCAP_VXLAN)
		role = subnet->vtep.family == 6 ? DP_FD_UDP6_TX : DP_FD_UDP4_TX;
	else if (subnet->encap == DP_ENCAP_IPIP && flow->family == 4 && subnet->vtep.family == 4)
		role = DP_FD_RAW4_TX;
	else
		return DP_DROP_NO_ENCAP;
	if (path->fds[role] < 0)
		return DP_DROP_NO_ENCAP;

	*queued = (struct path_queued){.subnet = subnet,
				       .dst = flow->dst,
				       .bytes = pkt->len,
				       .units = 1,
				       .fd = path->fds[role],
				       .family = flow->family};
	if (role == DP_FD_RAW4_TX) {
		underlay_address(&path->tx, index, &subnet->vtep, 0, tos);
		underlay_set_source(&path->tx, index, &config->underlay4, config->underlay_ifindex);
	} else {
		const uint8_t *own_mac = flow->family == 4 ? config->vtep_mac4 : config->vtep_mac6;

		encap_vxlan_push(pkt, flow->family, config->vni, subnet->vtep_mac, own_mac);
		underlay_address(&path->tx, index, &subnet->vtep, config->vxlan_port, tos);
	}
	path->tx.iov[index][0].iov_base = pkt_at(pkt, 0, pkt->len);
	path->tx.iov[index][0].iov_len = pkt->len;
	return DP_DROP_NONE;
}

/**
 * send_error() - Name the drop for an error of a send
 * @err:	Positive errno
 *
 * Return: the drop reason
 */
static enum dp_drop send_error(int err)
{
	switch (err) {
	case EAGAIN:
	case ENOBUFS:
	case ENOMEM:
		return DP_DROP_SEND_FULL;
	case EMSGSIZE:
		return DP_DROP_TOO_BIG;
	case ENETUNREACH:
	case EHOSTUNREACH:
	case ENETDOWN:
	case EHOSTDOWN:
	case ENODEV:
		return DP_DROP_UNREACHABLE;
	case EPERM:
	case EACCES:
		return DP_DROP_SEND_DENIED;
	default:
		return DP_DROP_SEND_ERROR;
	}
}

/**
 * settle() - Count a queued packet after its send
 * @path:	The worker's path
 * @queued:	The packet
 * @drop:	DP_DROP_NONE if it was sent
 */
static void settle(struct path *path, const struct path_queued *queued, enum dp_drop drop)
{
	struct path_packet packet = {.dir = DP_TX,
				     .peer = queued->subnet->peer_id,
				     .units = queued->units,
				     .bytes = queued->bytes,
				     .family = queued->family,
				     .addr = queued->dst};

	if (drop)
		path_drop(path, &packet, drop);
	else
		path_forwarded(path, &packet);
}

/**
 * flush() - Send what is queued
 * @path:	The worker's path
 * @count:	Messages in the queue
 */
static void flush(struct path *path, uint32_t count)
{
	uint32_t next = 0;

	while (next < count) {
		uint32_t end = next + 1;
		int sent;

		while (end < count && path->queue[end].fd == path->queue[next].fd)
			end++;
		sent = underlay_send(path->queue[next].fd, &path->tx, next, end - next);
		if (sent <= 0)
			settle(path, &path->queue[next++], send_error(-sent));
		for (int i = 0; i < sent; i++)
			settle(path, &path->queue[next++], DP_DROP_NONE);
	}
}

/**
 * tx_one() - Take one packet from the TUN to the queue
 * @path:	The worker's path
 * @pkt:	The packet
 * @vnet:	Its virtio header
 * @index:	Free place in the batch
 *
 * Return: true if it was queued, false if it was dropped and counted
 */
static bool tx_one(struct path *path, struct pkt *pkt, const struct vnet_hdr *vnet, uint32_t index)
{
	struct path_packet packet = {.dir = DP_TX, .peer = DP_NO_PEER, .units = 1};
	const struct dp_subnet *subnet = NULL;
	struct flow flow;
	enum dp_drop drop = admit(path, pkt, vnet, &flow, &subnet);

	if (!drop)
		drop = encapsulate(path, pkt, &flow, subnet, index);
	if (!drop)
		return true;
	if (drop >= DP_DROP_MARTIAN) {
		packet.family = flow.family;
		packet.addr = flow.dst;
	}
	if (subnet)
		packet.peer = subnet->peer_id;
	if (drop == DP_DROP_NO_PEER)
		refuse(path, pkt, &flow);
	path_drop(path, &packet, drop);
	return false;
}

/**
 * tx_run() - Carry one batch from the TUN to the underlay
 * @path:	The worker's path, with the table in force
 *
 * Return: packets read; 0 when the TUN is dry
 */
uint32_t tx_run(struct path *path)
{
	uint32_t read = 0, queued = 0;

	while (read < PATH_BATCH) {
		struct pkt pkt = path_buffer(path->tx_buffers, queued);
		struct vnet_hdr vnet;
		int err = tun_read(path->fds[DP_FD_TUN], path->config->vnet_hdr_len, &pkt, &vnet);

		if (err) {
			path->is_tun_gone = err == -EBADFD;
			break;
		}
		read++;
		path_offered(path, DP_TX, 1);
		queued += tx_one(path, &pkt, &vnet, queued);
	}
	flush(path, queued);
	return read;
}
