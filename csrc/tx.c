/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tx.c - overlay to underlay, one batch.
 *
 * Functions stand in the order in which a packet meets them:
 *  1. tun_read()     what the kernel routed to the overlay
 *  2. admit()        is it valid, may it leave from here, which peer is it for
 *  3. answer_tell()  no peer, an unreachable one, or too big for its path: tell the sender
 *  4. encapsulate()  outer headers, checksum, address; a super-packet is cut into segments
 *  5. flush()        messages for one socket leave in one system call, unless they are long
 */
#include "path.h"

#include <errno.h>

#include "answer.h"
#include "encap.h"
#include "offload.h"
#include "split.h"
#include "tun.h"

static void flush(struct path *path);

/* A packet from the TUN, as far as it is understood. */
struct tx_packet {
	struct pkt pkt;
	struct vnet_hdr vnet;
	struct flow flow;
	struct split split; /* count is 1 for a packet that is none */
	const struct dp_subnet *subnet;
};

/**
 * read_packet() - Find out what was read, and for how many wire packets it stands
 * @packet:	pkt and vnet as read; the rest is filled in, and padding is cut off
 *
 * Return: DP_DROP_NONE or why it is no valid packet
 */
static enum dp_drop read_packet(struct tx_packet *packet)
{
	enum dp_drop drop = parse_inner(&packet->pkt, &packet->flow);

	packet->split.count = 1;
	if (drop)
		return drop;
	pkt_trim(&packet->pkt, packet->flow.total_len);
	if (packet->vnet.gso_type == VNET_GSO_NONE)
		return DP_DROP_NONE;
	return split_plan(&packet->pkt, &packet->flow, &packet->vnet, &packet->split);
}

/**
 * is_path_probe() - Is this an echo to the overlay address of a node, the first of its subnet?
 * @flow:	The packet
 * @subnet:	Where it goes
 *
 * By these control finds out whether a path takes more than the table says.
 *
 * Return: true if it may be larger than that
 */
static bool is_path_probe(const struct flow *flow, const struct dp_subnet *subnet)
{
	return flow->proto == (flow->family == 4 ? PROTO_ICMP : PROTO_ICMP6) &&
	       parse_equals(flow->dst, flow->family, &subnet->prefix.addr);
}

/**
 * admit() - Decide whether a packet may leave, and to whom
 * @path:	The worker's path
 * @packet:	After read_packet(); subnet is filled in
 *
 * Return: DP_DROP_NONE or why not
 */
static enum dp_drop admit(struct path *path, struct tx_packet *packet)
{
	const struct flow *flow = &packet->flow;
	uint32_t len = packet->split.count > 1 ? packet->split.headers + packet->split.size : flow->total_len;

	if (parse_is_multicast(flow))
		return DP_DROP_MULTICAST;
	if (!fib_holds(path->fib, FIB_SRC, flow->family, flow->src))
		return DP_DROP_FOREIGN_SOURCE;
	packet->subnet = fib_subnet(path->fib, flow->family, flow->dst);
	if (!packet->subnet)
		return DP_DROP_NO_PEER;
	if (parse_equals(flow->dst, flow->family, &packet->subnet->vtep))
		return DP_DROP_LOOP;
	if (packet->subnet->mtu && len > packet->subnet->mtu && !is_path_probe(flow, packet->subnet))
		return DP_DROP_TOO_BIG;
	return packet->vnet.gso_type == VNET_GSO_NONE ? offload_complete(&packet->pkt, flow, &packet->vnet)
						      : DP_DROP_NONE;
}

/**
 * find_socket() - Which socket carries a packet to its subnet?
 * @path:	The worker's path
 * @packet:	The packet, admitted
 *
 * Of the sockets of UDP, each with a source port of its own, a flow always
 * takes the same one (RFC 7348 section 5), and so do fragments of a datagram.
 *
 * Return: slot of a DP_FD_UDP4_TX, _UDP6_TX or _RAW4_TX; DP_FD_SLOTS if none can
 */
static uint32_t find_socket(const struct path *path, const struct tx_packet *packet)
{
	const struct dp_subnet *subnet = packet->subnet;
	uint32_t slot = DP_FD_SLOTS, index = 0;

	if (!(path->config->encaps & 1U << subnet->encap))
		return DP_FD_SLOTS;
	if (subnet->encap != DP_ENCAP_VXLAN && (packet->flow.family != 4 || subnet->vtep.family != 4))
		return DP_FD_SLOTS;
	if (subnet->encap == DP_ENCAP_VXLAN || subnet->encap == DP_ENCAP_FLANNEL_UDP) {
		if (path->config->sources > 1)
			index = parse_flow_hash(&packet->pkt, &packet->flow) % path->config->sources;
		slot = path_slot(subnet->vtep.family == 6 ? DP_FD_UDP6_TX : DP_FD_UDP4_TX, index);
	} else if (subnet->encap == DP_ENCAP_IPIP) {
		slot = DP_FD_RAW4_TX;
	}
	return slot < DP_FD_SLOTS && path->fds[slot] >= 0 ? slot : DP_FD_SLOTS;
}

/**
 * find_port() - To which UDP port does a packet go?
 * @path:	The worker's path
 * @encap:	How it crosses the underlay
 *
 * Return: the port, 0 for IPIP
 */
static uint16_t find_port(const struct path *path, enum dp_encap encap)
{
	if (encap == DP_ENCAP_VXLAN)
		return path->config->vxlan_port;
	return encap == DP_ENCAP_FLANNEL_UDP ? path->config->bare_port : 0;
}

/**
 * push_vxlan() - Put the headers of VXLAN in front of an inner packet
 * @path:	The worker's path
 * @pkt:	Begins with the inner IP header; has the headroom
 * @packet:	What it is, or is a segment of
 */
static void push_vxlan(const struct path *path, struct pkt *pkt, const struct tx_packet *packet)
{
	const struct dp_config *config = path->config;
	const uint8_t *own_mac = packet->flow.family == 4 ? config->vtep_mac4 : config->vtep_mac6;

	encap_vxlan_push(pkt, packet->flow.family, config->vni, packet->subnet->vtep_mac, own_mac);
}

/**
 * enqueue() - Queue a datagram that has its headers
 * @path:	The worker's path
 * @item:	The datagram
 */
static void enqueue(struct path *path, const struct outbox_item *item)
{
	int index = outbox_add(&path->out, item);

	if (index >= 0 && !item->port)
		underlay_set_source(&path->out.sends, (uint32_t)index, &path->config->underlay4,
				    path->config->underlay_ifindex);
}

/**
 * enqueue_segments() - Cut a super-packet and queue its segments
 * @path:	The worker's path
 * @packet:	The super-packet
 * @item:	What all segments have in common
 *
 * Headers are written to the outbox, payload stays where it was read.
 */
static void enqueue_segments(struct path *path, const struct tx_packet *packet, struct outbox_item *item)
{
	const struct split *split = &packet->split;
	uint32_t push = item->subnet->encap == DP_ENCAP_VXLAN ? VXLAN_PUSH : 0;
	const uint8_t *payload = packet->pkt.buf + packet->pkt.off + split->headers;

	for (uint32_t i = 0; i < split->count; i++) {
		struct pkt head;

		if (outbox_is_full(&path->out, 1, push + split->headers))
			flush(path); /* what was read stays where it is, and so does our place in it */
		head = pkt_init(outbox_headers(&path->out, push + split->headers), push + split->headers, push,
				split->headers);

		item->tail = payload + i * split->size;
		item->tail_len = split_header(&packet->pkt, split, i, head.buf + push);
		item->bytes = split->headers + item->tail_len;
		if (push)
			push_vxlan(path, &head, packet);
		item->head = head.buf;
		item->head_len = head.len;
		enqueue(path, item);
	}
}

/**
 * encapsulate() - Give a packet its outer headers and address, and queue it
 * @path:	The worker's path, with room in its outbox
 * @packet:	The packet, admitted
 *
 * Return: DP_DROP_NONE, or DP_DROP_NO_ENCAP if it cannot be carried that way
 */
static enum dp_drop encapsulate(struct path *path, struct tx_packet *packet)
{
	uint32_t slot = find_socket(path, packet);
	struct outbox_item item = {.subnet = packet->subnet,
				   .dst = packet->flow.dst,
				   .tos = encap_tos(path->config, packet->flow.tos),
				   .ttl = path->config->ttl_inherit ? packet->flow.ttl : path->config->outer_ttl,
				   .family = packet->flow.family};

	if (slot == DP_FD_SLOTS)
		return DP_DROP_NO_ENCAP;
	item.fd = path->fds[slot];
	item.port = find_port(path, packet->subnet->encap);
	if (packet->vnet.gso_type != VNET_GSO_NONE) {
		enqueue_segments(path, packet, &item);
		return DP_DROP_NONE;
	}
	item.bytes = packet->pkt.len;
	if (packet->subnet->encap == DP_ENCAP_VXLAN)
		push_vxlan(path, &packet->pkt, packet);
	item.head = packet->pkt.buf + packet->pkt.off;
	item.head_len = packet->pkt.len;
	enqueue(path, &item);
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
 * settle() - Count the packets of a message after its send
 * @path:	The worker's path
 * @message:	The message
 * @units:	Wire packets of it that this is about
 * @bytes:	Their inner bytes
 * @drop:	DP_DROP_NONE if they were sent
 */
static void settle(struct path *path, const struct outbox_message *message, uint32_t units, uint32_t bytes,
		   enum dp_drop drop)
{
	struct path_packet packet = {.dir = DP_TX,
				     .peer = message->subnet->peer_id,
				     .units = units,
				     .bytes = bytes,
				     .family = message->family,
				     .addr = message->dst};

	if (drop)
		path_drop(path, &packet, drop);
	else
		path_forwarded(path, &packet);
}

/**
 * fail() - Count the packets of a message that was not sent, and tell who sent them if there is no way
 * @path:	The worker's path
 * @message:	The message
 * @err:	Positive errno
 */
static void fail(struct path *path, const struct outbox_message *message, int err)
{
	enum dp_drop drop = send_error(err);

	if (drop == DP_DROP_UNREACHABLE && !message->subnet->is_unreachable) /* told already */
		answer_unsent(path, message, err);
	settle(path, message, message->units, message->bytes, drop);
}

/**
 * send_apart() - Send the datagrams of a run one by one, since the kernel refuses the run
 * @path:	The worker's path
 * @index:	The message
 *
 * Nothing of it has left yet, so nothing is sent twice.
 *
 * Return: true if one of full size passed: then it was the run that was refused
 */
static bool send_apart(struct path *path, uint32_t index)
{
	struct outbox_message *message = &path->out.messages[index];
	struct iovec *iov = path->out.iov + message->iov;
	uint32_t units = message->units, push = message->total - message->bytes;
	uint32_t pieces = message->pieces;
	bool passed = false;

	underlay_clear_segment(&path->out.sends, index);
	push /= units; /* bytes of encapsulation in front of each */
	while (units--) {
		uint32_t used = 0, len = 0;
		int sent;

		while (used < pieces && len < message->size)
			len += (uint32_t)iov[used++].iov_len;
		underlay_set_pieces(&path->out.sends, index, iov, used);
		sent = underlay_send(message->fd, &path->out.sends, index, 1);
		settle(path, message, 1, len - push, sent > 0 ? DP_DROP_NONE : send_error(-sent));
		passed |= sent > 0 && len == message->size;
		iov += used;
		pieces -= used;
	}
	return passed;
}

/**
 * refuses_runs() - May an error say that this socket or device cannot cut messages?
 * @err:	Positive errno of a run
 *
 * EIO: no checksum offload (before Linux 6.11); EINVAL: too many datagrams for
 * this kernel, or a route of type blackhole; EMSGSIZE: each is larger than the
 * path takes, mostly, and then the short last one may still pass.
 *
 * Return: true if its datagrams may pass one by one
 */
static bool refuses_runs(int err)
{
	return err == EIO || err == EINVAL || err == EMSGSIZE;
}

/**
 * flush() - Send what is queued
 * @path:	The worker's path
 */
static void flush(struct path *path)
{
	struct outbox *out = &path->out;
	uint32_t next = 0;

	outbox_finish(out);
	while (next < out->count) {
		uint32_t end = next + 1, bytes = out->messages[next].bytes;
		int sent;

		while (end < out->count && out->messages[end].fd == out->messages[next].fd && bytes < PATH_STRETCH)
			bytes += out->messages[end++].bytes;
		sent = underlay_send(out->messages[next].fd, &out->sends, next, end - next);
		for (int i = 0; i < sent; i++, next++)
			settle(path, &out->messages[next], out->messages[next].units, out->messages[next].bytes,
			       DP_DROP_NONE);
		if (sent > 0) {
			path_between(path, bytes);
			continue;
		}
		if (out->messages[next].units > 1 && refuses_runs(-sent)) {
			if (send_apart(path, next++))
				path_give_up(path, DP_TIER_UDP_GSO);
			continue;
		}
		fail(path, &out->messages[next++], -sent);
	}
	outbox_clear(out);
}

/**
 * tell_refused() - Tell the sender of a packet that goes nowhere, if it can do something about it
 * @path:	The worker's path
 * @packet:	The packet
 * @drop:	Why
 */
static void tell_refused(struct path *path, const struct tx_packet *packet, enum dp_drop drop)
{
	if (drop == DP_DROP_NO_PEER || drop == DP_DROP_NO_ENCAP)
		answer_tell(path, &packet->pkt, &packet->flow, packet->subnet, ANSWER_NO_ROUTE);
	else if (drop == DP_DROP_TOO_BIG)
		answer_tell(path, &packet->pkt, &packet->flow, packet->subnet, ANSWER_TOO_BIG);
}

/**
 * tx_one() - Take one packet from the TUN to the outbox
 * @path:	The worker's path
 * @packet:	pkt and vnet as read
 */
static void tx_one(struct path *path, struct tx_packet *packet)
{
	struct path_packet counted = {.dir = DP_TX, .peer = DP_NO_PEER, .units = 1};
	enum dp_drop drop = read_packet(packet);

	path->urgent += drop || !parse_is_bare_ack(&packet->pkt, &packet->flow);
	counted.units = packet->split.count;
	path_offered(path, DP_TX, counted.units);
	if (counted.units > 1)
		counters_add(&path->counters->supers, 1);
	if (!drop)
		drop = admit(path, packet);
	if (!drop && packet->subnet->is_unreachable)
		answer_tell(path, &packet->pkt, &packet->flow, packet->subnet, ANSWER_NO_HOST);
	if (!drop && outbox_is_full(&path->out, 1, 0))
		flush(path);
	if (!drop)
		drop = encapsulate(path, packet);
	if (!drop)
		return;
	if (drop >= DP_DROP_MARTIAN) {
		counted.family = packet->flow.family;
		counted.addr = packet->flow.dst;
	}
	if (packet->subnet)
		counted.peer = packet->subnet->peer_id;
	tell_refused(path, packet, drop);
	path_drop(path, &counted, drop);
}

/**
 * tx_run() - Carry one batch from a queue of the TUN to the underlay
 * @path:	The worker's path, with the table in force
 * @fd:		The queue
 * @most_bytes:	No packet is read after that many
 *
 * Return: bytes read; 0 when the queue is dry
 */
uint32_t tx_run(struct path *path, int fd, uint32_t most_bytes)
{
	bool has_batches = path->config->tier & DP_TIER_MMSG;
	uint32_t read = 0, bytes = 0;

	while (read < PATH_BATCH && bytes < most_bytes) {
		struct tx_packet packet = {.pkt = path_buffer(path->tx_buffers, read)};
		int err = tun_read(fd, path->config->vnet_hdr_len, &packet.pkt, &packet.vnet);

		if (err) {
			path_fault(path, -err);
			break;
		}
		read++;
		path->reads++;
		bytes += packet.pkt.len;
		tx_one(path, &packet);
		if (!has_batches)
			flush(path);
	}
	flush(path);
	return bytes;
}
