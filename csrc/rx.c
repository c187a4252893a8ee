/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rx.c - underlay to overlay, one batch.
 *
 * Functions stand in the order in which a packet meets them:
 *  1. underlay_receive()  a batch of tunnel packets
 *  2. check_outer()       the right interface, our address, a known peer
 *  3. decapsulate()       outer headers off, each field checked
 *  4. check_inner()       this peer may send from there, and to here
 *  5. deliver_packet()    join others of its flow, or go to the kernel, with what it has to finish
 *  6. deliver_all()       what was joined goes to the kernel as one
 */
#include "path.h"

#include "deliver.h"
#include "encap.h"

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

	if (role == DP_FD_BARE4)
		drop = encap_check_bare(pkt);
	else if (role != DP_FD_RAW4)
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
 * A peer may send from its subnets and from its node address. None of the
 * encapsulations authenticates anything, so this is all that ties the two headers.
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
 * process() - Take one tunnel packet to the TUN
 * @path:	The worker's path
 * @role:	Socket it came from
 * @pkt:	The packet
 * @meta:	What is known of it
 * @packet:	What is counted; filled in on the way
 *
 * Return: DP_DROP_NONE if it was delivered, which counts it, or why not
 */
static enum dp_drop process(struct path *path, enum dp_fd role, struct pkt *pkt, struct underlay_meta *meta,
			    struct path_packet *packet)
{
	struct flow flow;
	enum dp_drop drop;

	path->is_joined = false;
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
	path->urgent += !parse_is_bare_ack(pkt, &flow);
	drop = check_inner(path, &flow, packet->peer);
	if (!drop)
		drop = encap_decap_ecn(pkt, &flow, meta->tos);
	if (!drop)
		deliver_packet(path, pkt, &flow, meta->run, packet);
	return drop;
}

/**
 * follow() - Join a packet of a run that is like the one before it, which was joined
 * @path:	The worker's path
 * @before:	The datagram before
 * @datagram:	The packet's datagram
 * @push:	Bytes in front of the inner packets
 *
 * Return: true if it was joined and counted; false if it must go the long way
 */
static bool follow(struct path *path, const struct pkt *before, const struct pkt *datagram, uint32_t push)
{
	struct path_packet *merged = &path->merged[path->merge.last];

	/* what spoof_observe lets pass is counted packet by packet */
	if (!path->is_joined || path->config->spoof_observe || !merge_follow(&path->merge, before, datagram, push))
		return false;
	merged->units++;
	merged->bytes += datagram->len - push;
	path->urgent++;
	return true;
}

/**
 * is_one_datagram() - Is a message with a segment size one datagram nevertheless?
 * @whole:	The message
 * @push:	Bytes in front of its first inner packet
 *
 * The kernel tells the size of segments for two things: for datagrams that it
 * joined, and for one datagram of a kernel peer on the same machine whose inner
 * packet is yet to be cut into datagrams of that size. Then the inner packet
 * is as long as the message.
 *
 * Return: true if it is
 */
static bool is_one_datagram(const struct pkt *whole, uint32_t push)
{
	const uint8_t *ip = pkt_at(whole, push, IP4_LEN);
	uint32_t len;

	if (!ip)
		return false;
	len = ip[0] >> 4 == 4 ? load16(ip + IP4_TOTAL_LEN) : (uint32_t)IP6_LEN + load16(ip + IP6_PAYLOAD_LEN);
	return whole->len == push + len;
}

/**
 * carry() - Take the datagrams of one received message to the TUN
 * @path:	The worker's path
 * @role:	Socket it came from
 * @whole:	The message
 * @meta:	What is known of it; with a segment it is a run of datagrams
 */
static void carry(struct path *path, enum dp_fd role, const struct pkt *whole, struct underlay_meta *meta)
{
	uint32_t size = meta->segment ? meta->segment : whole->len, off = 0;
	uint32_t push = role == DP_FD_BARE4 ? 0 : VXLAN_PUSH;
	struct pkt before = {0};

	meta->run = 0;
	path->is_joined = false;
	if (size < whole->len && is_one_datagram(whole, push)) {
		meta->run = size;
		size = whole->len;
	}
	do {
		struct path_packet packet = {.dir = DP_RX, .peer = DP_NO_PEER, .units = 1};
		uint32_t len = whole->len - off < size ? whole->len - off : size;
		struct pkt datagram = pkt_init(whole->buf, whole->cap, whole->off + off, len);

		path_offered(path, DP_RX, 1);
		if (!follow(path, &before, &datagram, push)) {
			struct pkt pkt = datagram;
			enum dp_drop drop;

			packet.family = meta->family;
			packet.addr = meta->src;
			drop = process(path, role, &pkt, meta, &packet);
			if (drop)
				path_drop(path, &packet, drop);
		}
		before = datagram;
		off += len;
	} while (off < whole->len);
}

/**
 * receive() - Carry the messages of one system call from a socket to the TUN
 * @path:	The worker's path, with the table in force
 * @slot:	Of a DP_FD_UDP4, _UDP6, _RAW4 or _BARE4
 * @most:	Messages to take, at most PATH_BATCH
 *
 * Return: bytes received
 */
static uint32_t receive(struct path *path, uint32_t slot, uint32_t most)
{
	struct pkt pkts[PATH_BATCH];
	uint32_t bytes = 0;
	int received;

	for (uint32_t i = 0; i < most; i++)
		pkts[i] = path_buffer(path->rx_buffers, i);
	received = underlay_receive(path->fds[slot], &path->rx, pkts, most);
	if (received < 0) {
		path_fault(path, -received);
		return 0;
	}
	path->reads += (uint32_t)received;
	for (int i = 0; i < received; i++) {
		struct underlay_meta meta;

		underlay_read_meta(&path->rx, (uint32_t)i, &meta);
		if (meta.queue_drops)
			counters_set(&path->counters->queue_drops[slot], meta.queue_drops);
		bytes += pkts[i].len;
		carry(path, slot % DP_FD_COUNT, &pkts[i], &meta);
	}
	if (received)
		path->message_bytes = (path->message_bytes + bytes / (uint32_t)received) / 2;
	deliver_all(path);
	return bytes;
}

/**
 * rx_run() - Carry one batch from a socket to the TUN
 * @path:	The worker's path, with the table in force
 * @slot:	Of a DP_FD_UDP4, _UDP6, _RAW4 or _BARE4
 * @most_bytes:	Take about that many, if messages are as long as those before
 *
 * Return: bytes received; 0 when the socket is dry
 */
uint32_t rx_run(struct path *path, uint32_t slot, uint32_t most_bytes)
{
	uint32_t most = most_bytes / (path->message_bytes + 1), bytes = 0, received;

	most = most < 1 ? 1 : most > PATH_BATCH ? PATH_BATCH : most;
	if (path->config->tier & DP_TIER_MMSG)
		return receive(path, slot, most);
	do {
		received = receive(path, slot, 1);
		bytes += received;
	} while (received && --most);
	return bytes;
}
