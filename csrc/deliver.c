/* SPDX-License-Identifier: Apache-2.0 */
/*
 * deliver.c - inner packets to the kernel, by way of the TUN.
 *
 * Packets that could have been cut from one are joined first (merge.h). Those of
 * a kernel peer on this machine may come uncut, and the kernel goes on with them,
 * unless the TUN takes none. Whatever a write says, its packets are counted here.
 */
#include "deliver.h"

#include <errno.h>

#include "offload.h"
#include "split.h"
#include "tun.h"

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
 * count() - Count packets after their write
 * @path:	The worker's path
 * @packet:	What they were
 * @drop:	DP_DROP_NONE if they were written
 */
static void count(struct path *path, const struct path_packet *packet, enum dp_drop drop)
{
	if (drop)
		path_drop(path, packet, drop);
	else
		path_forwarded(path, packet);
}

/**
 * write_apart() - Hand over one by one the packets of a super-packet that the kernel refused
 * @path:	The worker's path
 * @super:	The super-packet
 * @packet:	What is counted
 *
 * Nothing of it has entered yet, so nothing is delivered twice.
 */
static void write_apart(struct path *path, struct merge_super *super, struct path_packet packet)
{
	static const struct vnet_hdr nothing;
	uint32_t hdr = path->config->vnet_hdr_len;

	path_give_up(path, super->flow.proto == PROTO_UDP ? DP_TIER_TUN_UGRO : DP_TIER_TUN_GRO);
	merge_restore(super);
	packet.units = 1;
	for (uint32_t i = 0; i < super->units; i++) {
		uint8_t *ip =
			i ? (uint8_t *)super->pieces[i].iov_base - super->headers : super->head.buf + super->head.off;
		uint32_t len = super->headers + (i ? (uint32_t)super->pieces[i].iov_len : super->size);
		/* something stands in front, and will again, so there is room for the virtio header */
		struct pkt pkt = pkt_init(ip - hdr, hdr + len, hdr, len);

		packet.bytes = len;
		count(path, &packet, write_error(tun_write(path->tun_fd, hdr, &pkt, &nothing)));
	}
}

/**
 * write_super() - Hand a super-packet to the kernel, and count the packets in it
 * @path:	The worker's path
 * @index:	Which
 */
static void write_super(struct path *path, uint32_t index)
{
	struct merge_super *super = &path->merge.supers[index];
	uint32_t bytes = path->merged[index].bytes;
	struct vnet_hdr vnet;
	int err;

	merge_describe(super, &vnet);
	if (super->units > 1)
		counters_add(&path->counters->supers, 1);
	err = tun_write_pieces(path->tun_fd, path->config->vnet_hdr_len, &super->head, &vnet, super->pieces,
			       super->units);
	if (err == -EINVAL && super->units > 1)
		write_apart(path, super, path->merged[index]); /* some kernels 6.6 refuse good ones */
	else
		count(path, &path->merged[index], write_error(err));
	merge_take(&path->merge, index);
	path_between(path, bytes);
}

/**
 * write_cut() - Cut a super-packet of a kernel peer, and hand over its packets one by one
 * @path:	The worker's path
 * @pkt:	The super-packet
 * @split:	How it is cut
 * @packet:	What is counted
 */
static void write_cut(struct path *path, const struct pkt *pkt, const struct split *split, struct path_packet packet)
{
	static const struct vnet_hdr nothing;
	const uint8_t *payload = pkt->buf + pkt->off + split->headers;
	uint8_t buf[PKT_HEADROOM + SPLIT_HEADERS];

	packet.units = 1;
	for (uint32_t i = 0; i < split->count; i++) {
		struct pkt head = pkt_init(buf, sizeof(buf), PKT_HEADROOM, split->headers);
		uint32_t len = split_header(pkt, split, i, buf + PKT_HEADROOM);
		struct iovec pieces[2] = {{0}, {(void *)(payload + i * split->size), len}};

		packet.bytes = split->headers + len;
		count(path, &packet,
		      write_error(
			      tun_write_pieces(path->tun_fd, path->config->vnet_hdr_len, &head, &nothing, pieces, 2)));
	}
}

/**
 * takes_super() - Does the TUN take super-packets of a protocol?
 * @path:	The worker's path
 * @proto:	PROTO_TCP or PROTO_UDP
 *
 * Return: true if it does
 */
static bool takes_super(const struct path *path, uint8_t proto)
{
	return path->config->vnet_hdr_len && !path->merge.is_off && (proto != PROTO_UDP || path->merge.has_udp);
}

/**
 * write_one() - Hand a packet that joins no other to the kernel, and count it
 * @path:	The worker's path
 * @pkt:	Inner packet
 * @flow:	The same packet, parsed
 * @run:	Bytes of payload in each datagram that it stands for; 0: it is no run
 * @packet:	What is counted; learns how many wire packets it stands for
 */
static void write_one(struct path *path, struct pkt *pkt, const struct flow *flow, uint32_t run,
		      struct path_packet *packet)
{
	uint32_t vnet_hdr_len = path->config->vnet_hdr_len;
	struct vnet_hdr vnet;
	struct split split;
	uint32_t units = offload_describe(pkt, flow, path->config->tun_mtu, &vnet);
	int err;

	if (run)
		units = offload_describe_run(flow, run, &vnet);
	if (units > 1) {
		path_offered(path, DP_RX, units - 1); /* the read counted one */
		packet->units = units;
		packet->bytes += (units - 1) * vnet.hdr_len; /* each has headers of its own */
		counters_add(&path->counters->supers, 1);
		if (!takes_super(path, flow->proto) && !split_plan(pkt, flow, &vnet, &split)) {
			write_cut(path, pkt, &split, *packet);
			return;
		}
	}
	if ((vnet.flags & VNET_NEEDS_CSUM) && !vnet_hdr_len) {
		struct vnet_hdr whole = {
			.flags = VNET_NEEDS_CSUM, .csum_start = vnet.csum_start, .csum_offset = vnet.csum_offset};

		offload_complete(pkt, flow, &whole); /* this TUN takes no virtio header: do it here */
	}
	err = tun_write(path->tun_fd, vnet_hdr_len, pkt, &vnet);
	if (err == -EINVAL && units > 1 && !split_plan(pkt, flow, &vnet, &split))
		write_cut(path, pkt, &split, *packet); /* whoever sent it may be at fault: nothing is given up */
	else
		count(path, packet, write_error(err));
	path_between(path, packet->bytes);
}

/**
 * deliver_all() - Hand to the kernel whatever is joined by now
 * @path:	The worker's path
 */
void deliver_all(struct path *path)
{
	while (path->merge.count)
		write_super(path, path->merge.order[0]);
}

/**
 * deliver_packet() - Join a packet to others of its flow, or hand it to the kernel
 * @path:	The worker's path
 * @pkt:	Inner packet
 * @flow:	The same packet, parsed
 * @run:	As for write_one()
 * @packet:	What is counted
 */
void deliver_packet(struct path *path, struct pkt *pkt, const struct flow *flow, uint32_t run,
		    struct path_packet *packet)
{
	enum merge_verdict verdict = MERGE_NEVER;
	uint32_t index = 0;

	if (path->merge.is_off)
		deliver_all(path);
	while (path->config->vnet_hdr_len && !path->merge.is_off) {
		verdict = merge_add(&path->merge, pkt, flow, packet->peer, &index);
		if (verdict != MERGE_BLOCKED)
			break;
		write_super(path, index);
	}
	path->is_joined = verdict == MERGE_BEGUN || verdict == MERGE_JOINED;
	switch (verdict) {
	case MERGE_BEGUN:
		path->merged[index] = *packet;
		break;
	case MERGE_JOINED:
		path->merged[index].units++;
		path->merged[index].bytes += packet->bytes;
		break;
	default:
		write_one(path, pkt, flow, run, packet);
	}
}
