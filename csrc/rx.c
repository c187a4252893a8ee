/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rx.c - underlay to overlay, one batch.
 *
 * Functions stand in the order in which a packet meets them:
 *  1. underlay_receive()  a batch of tunnel packets
 *  2. check_outer()       the right interface, our address, a known peer
 *  3. decapsulate()       outer headers off, each field checked
 *  4. check_inner()       this peer may send from there, and to here
 *  5. deliver()           to the kernel, with what it has to finish
 */
#include "path.h"

#include <errno.h>

#include "encap.h"
#include "offload.h"
#include "tun.h"

/**
 * check_outer() - Is this a tunnel packet from a peer, to us, over the underlay?
 * @path:	The worker's path
 * @meta:	Where it came from; for raw sockets with the outer header's addresses
 * @peer:	Set to the peer
 *
 * Return: DP_DROP_NONE, or DP_DROP_WRONG_IFACE, _OUTER_DST, _UNKNOWN_VTEP
 */
static enum dp_drop check_outer(const struct path *path, const struct underlay_meta *meta, uint32_t *peer)
{
	const struct dp_addr *own = meta->family == 6 ? &path->config->underlay6 : &path->config->underlay4;

	if (meta->ifindex != path->config->underlay_ifindex)
		return DP_DROP_WRONG_IFACE;
	if (!parse_equals(meta->dst, meta->family, own))
		return DP_DROP_OUTER_DST;
	*peer = fib_peer(path->fib, meta->family, meta->src);
	return *peer == DP_NO_PEER ? DP_DROP_UNKNOWN_VTEP : DP_DROP_NONE;
}

/**
 * decapsulate() - Take the outer headers off and read the inner packet
 * @path:	The worker's path
 * @role:	Socket it came from
 * @pkt:	The packet; becomes the inner one without padding
 * @flow:	Set to what the inner packet is
 *
 * Return: DP_DROP_NONE or why it is not a valid packet of its encapsulation
 */
static enum dp_drop decapsulate(const struct path *path, enum dp_fd role, struct pkt *pkt, struct flow *flow)
{
	uint8_t family = 4;
	enum dp_drop drop = DP_DROP_NONE;

	if (role != DP_FD_RAW4)
		drop = encap_vxlan_pull(pkt, path->config, &family);
	if (!drop)
		drop = parse_inner(pkt, flow);
	if (drop)
		return drop;
	if (flow->family != family)
		return DP_DROP_INNER_VERSION;
	pkt_trim(pkt, flow->total_len);
	return role == DP_FD_RAW4 ? encap_check_ipip(flow) : DP_DROP_NONE;
}

/**
 * is_spoofed() - Is the inner source not this peer's?
 * @path:	The worker's path
 * @flow:	The inner packet, parsed
 * @peer:	Who sent it
 *
 * A peer may send from its subnets and from its node address. Neither VXLAN
 * nor IPIP authenticates anything, so this is all that ties the two headers.
 *
 * Return: true if the source belongs to somebody else, or to nobody
 */
static bool is_spoofed(const struct path *path, const struct flow *flow, uint32_t peer)
{
	const struct dp_subnet *subnet = fib_subnet(path->fib, flow->family, flow->src);

	if (subnet && subnet->peer_id == peer)
		return false;
	return fib_peer(path->fib, flow->family, flow->src) != peer &&
	       !fib_holds(path->fib, FIB_ALLOW, flow->family, flow->src);
}

/**
 * check_inner() - May this peer send this packet to us?
 * @path:	The worker's path
 * @flow:	The inner packet, parsed
 * @peer:	Who sent it
 *
 * Return: DP_DROP_NONE, or DP_DROP_MARTIAN, _MULTICAST, _SPOOFED, _NOT_OURS
 */
static enum dp_drop check_inner(struct path *path, const struct flow *flow, uint32_t peer)
{
	if (parse_is_martian(flow))
		return DP_DROP_MARTIAN;
	if (parse_is_multicast(flow))
		return DP_DROP_MULTICAST;
	if (is_spoofed(path, flow, peer)) {
		if (!path->config->spoof_observe)
			return DP_DROP_SPOOFED;
		counters_add(&path->counters->observed, 1);
	}
	return fib_holds(path->fib, FIB_OWN, flow->family, flow->dst) ? DP_DROP_NONE : DP_DROP_NOT_OURS;
}

/**
 * write_error() - Name the drop for an error of a write to the TUN
 * @err:	Negative errno
 *
 * Return: the drop reason, DP_DROP_NONE for 0
 */
static enum dp_drop write_error(int err)
{
	switch (err) {
	case 0:
		return DP_DROP_NONE;
	case -EIO:
	case -EBADFD:
		return DP_DROP_TUN_DOWN;
	case -EAGAIN:
	case -ENOBUFS:
	case -ENOMEM:
		return DP_DROP_TUN_FULL;
	default:
		return DP_DROP_TUN_ERROR;
	}
}

/**
 * deliver() - Hand an inner packet to the kernel
 * @path:	The worker's path
 * @pkt:	Inner packet
 * @flow:	The same packet, parsed
 * @packet:	What is counted; learns how many wire packets it stands for
 *
 * Return: DP_DROP_NONE, or DP_DROP_TUN_DOWN, _TUN_FULL, _TUN_ERROR
 */
static enum dp_drop deliver(struct path *path, struct pkt *pkt, const struct flow *flow, struct path_packet *packet)
{
	uint32_t vnet_hdr_len = path->config->vnet_hdr_len;
	struct vnet_hdr vnet;
	uint32_t units = offload_describe(pkt, flow, path->config->tun_mtu, &vnet);

	if (units > 1) {
		path_offered(path, DP_RX, units - 1); /* the read counted one */
		packet->units = units;
		counters_add(&path->counters->supers, 1);
	}
	if ((vnet.flags & VNET_NEEDS_CSUM) && !vnet_hdr_len) {
		struct vnet_hdr whole = {
			.flags = VNET_NEEDS_CSUM, .csum_start = vnet.csum_start, .csum_offset = vnet.csum_offset};

		offload_complete(pkt, flow, &whole); /* this TUN takes no virtio header: do it here */
	}
	return write_error(tun_write(path->fds[DP_FD_TUN], vnet_hdr_len, pkt, &vnet));
}

/**
 * process() - Take one tunnel packet to the TUN
 * @path:	The worker's path
 * @role:	Socket it came from
 * @pkt:	The packet
 * @meta:	What is known of it
 * @packet:	What is counted; filled in on the way
 *
 * Return: DP_DROP_NONE if it was written, or why not
 */
static enum dp_drop process(struct path *path, enum dp_fd role, struct pkt *pkt, struct underlay_meta *meta,
			    struct path_packet *packet)
{
	struct flow flow;
	enum dp_drop drop;

	if (meta->is_truncated)
		return DP_DROP_TRUNCATED;
	if (role == DP_FD_RAW4) {
		struct outer outer;

		drop = encap_ip4_pull(pkt, &outer);
		if (drop)
			return drop;
		meta->tos = outer.tos;
		meta->dst = outer.dst;
	}
	drop = check_outer(path, meta, &packet->peer);
	if (!drop)
		drop = decapsulate(path, role, pkt, &flow);
	if (drop)
		return drop;
	packet->bytes = pkt->len;
	drop = check_inner(path, &flow, packet->peer);
	if (!drop)
		drop = encap_decap_ecn(pkt, &flow, meta->tos);
	return drop ? drop : deliver(path, pkt, &flow, packet);
}

/**
 * rx_run() - Carry one batch from a socket to the TUN
 * @path:	The worker's path, with the table in force
 * @role:	DP_FD_UDP4, DP_FD_UDP6 or DP_FD_RAW4
 *
 * Return: packets received; 0 when the socket is dry
 */
uint32_t rx_run(struct path *path, enum dp_fd role)
{
	struct pkt pkts[PATH_BATCH];
	int count;

	for (uint32_t i = 0; i < PATH_BATCH; i++)
		pkts[i] = path_buffer(path->rx_buffers, i);
	count = underlay_receive(path->fds[role], &path->rx, pkts, PATH_BATCH);
	if (count > 0)
		path_offered(path, DP_RX, (uint32_t)count);
	for (int i = 0; i < count; i++) {
		struct path_packet packet = {.dir = DP_RX, .peer = DP_NO_PEER, .units = 1};
		struct underlay_meta meta;
		enum dp_drop drop;

		underlay_read_meta(&path->rx, (uint32_t)i, &meta);
		if (meta.queue_drops)
			counters_set(&path->counters->queue_drops[role], meta.queue_drops);
		packet.family = meta.family;
		packet.addr = meta.src;
		drop = process(path, role, &pkts[i], &meta, &packet);
		if (drop)
			path_drop(path, &packet, drop);
		else
			path_forwarded(path, &packet);
	}
	return (uint32_t)count;
}
