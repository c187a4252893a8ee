/* SPDX-License-Identifier: Apache-2.0 */
/* offload.c - checksums and segments that one side left to the other. */
#include "offload.h"

#include "csum.h"

/* Where an L4 protocol keeps its checksum. */
struct l4 {
	uint32_t header_len; /* minimum bytes */
	uint32_t check_off;  /* bytes from the L4 header */
	uint32_t len;        /* bytes of header and payload */
};

/**
 * find_l4() - Describe the L4 part of a packet whose checksum can be offloaded
 * @flow:	The packet, parsed
 * @l4:		Filled in
 *
 * Return: true for whole TCP and UDP packets, false for all others
 */
static bool find_l4(const struct flow *flow, struct l4 *l4)
{
	if (flow->is_fragment || (flow->proto != PROTO_TCP && flow->proto != PROTO_UDP))
		return false;
	l4->header_len = flow->proto == PROTO_TCP ? TCP_LEN : UDP_LEN;
	l4->check_off = flow->proto == PROTO_TCP ? TCP_CHECK : UDP_CHECK;
	l4->len = flow->total_len - flow->l3len;
	return l4->len >= l4->header_len;
}

/**
 * pseudo_sum() - Pseudo-header sum of a packet
 * @pkt:	Packet that begins with the IP header
 * @flow:	The same packet, parsed
 * @l4len:	Bytes of L4 header and payload
 *
 * Return: a running sum in memory order
 */
static uint64_t pseudo_sum(const struct pkt *pkt, const struct flow *flow, uint32_t l4len)
{
	uint32_t addr_len = flow->family == 4 ? 4 : 16;
	const uint8_t *addrs = pkt_at(pkt, flow->family == 4 ? IP4_SRC : IP6_SRC, 2 * addr_len);

	return addrs ? csum_pseudo(addrs, addrs + addr_len, addr_len, flow->proto, l4len) : 0;
}

/**
 * offload_complete() - Finish a checksum that the kernel left to us
 * @pkt:	Packet read from the TUN; changed in place
 * @flow:	The same packet, parsed
 * @vnet:	Its virtio header
 *
 * With NEEDS_CSUM the field holds the pseudo-header sum already, so what is
 * stored is the sum of everything from csum_start on (virtio 1.2 section
 * 5.1.6.2). A UDP result of 0 is sent as 0xffff, since 0 means "none" (RFC 768).
 * Super-packets are not asked for yet, so one is a contradiction.
 *
 * Return: DP_DROP_NONE, or DP_DROP_VNET_HEADER when the header contradicts the packet
 */
enum dp_drop offload_complete(const struct pkt *pkt, const struct flow *flow, const struct vnet_hdr *vnet)
{
	uint32_t start = vnet->csum_start;
	uint16_t sum;
	uint8_t *data, *check;

	if (vnet->gso_type != VNET_GSO_NONE)
		return DP_DROP_VNET_HEADER;
	if (!(vnet->flags & VNET_NEEDS_CSUM))
		return DP_DROP_NONE;
	if (start < flow->l3len || start > flow->total_len)
		return DP_DROP_VNET_HEADER;
	data = pkt_at(pkt, start, flow->total_len - start);
	check = pkt_at(pkt, start + vnet->csum_offset, 2);
	if (!data || !check || start + vnet->csum_offset + 2 > flow->total_len)
		return DP_DROP_VNET_HEADER;

	sum = (uint16_t)~csum_fold(csum_add(data, flow->total_len - start, 0));
	if (!sum && flow->proto == PROTO_UDP)
		sum = 0xffff;
	memcpy(check, &sum, 2);
	return DP_DROP_NONE;
}

/**
 * is_partial() - Does a packet carry a checksum that its sender left to hardware?
 * @pkt:	Packet that begins with the IP header
 * @flow:	The same packet, parsed
 * @l4:		Its L4 part
 *
 * A partial checksum is the bare pseudo-header sum. A complete one looks the
 * same once in 65536, so the whole sum decides then.
 *
 * Return: true if the checksum still has to be completed
 */
static bool is_partial(const struct pkt *pkt, const struct flow *flow, const struct l4 *l4)
{
	uint64_t pseudo = pseudo_sum(pkt, flow, l4->len);
	const uint8_t *data = pkt_at(pkt, flow->l3len, l4->len);
	uint16_t check, folded = csum_fold(pseudo);

	if (!data)
		return false;
	memcpy(&check, data + l4->check_off, 2);
	if (check != folded)
		return false;
	return csum_fold(csum_add(data, l4->len, pseudo)) != 0xffff;
}

/**
 * describe_super() - Tell the kernel how to cut a TCP super-packet
 * @flow:	The packet, parsed; it is longer than @mtu
 * @tcp:	Its TCP header, TCP_LEN readable bytes
 * @mtu:	Largest packet the pods take, in bytes
 * @vnet:	Header to complete
 *
 * The sender's own segment size did not cross the wire; the largest that fits
 * stands in for it.
 *
 * Return: segments it stands for; 1 if it is not one that can be cut
 */
static uint32_t describe_super(const struct flow *flow, const uint8_t *tcp, uint32_t mtu, struct vnet_hdr *vnet)
{
	uint32_t tcp_len = (tcp[TCP_DOFF] >> 4) * 4U;
	uint32_t headers = flow->l3len + tcp_len;

	if (tcp_len < TCP_LEN || headers >= mtu)
		return 1;
	vnet->gso_type = flow->family == 4 ? VNET_GSO_TCP4 : VNET_GSO_TCP6;
	if (tcp[TCP_FLAGS] & TCP_FLAG_CWR)
		vnet->gso_type |= VNET_GSO_ECN;
	vnet->gso_size = (uint16_t)(mtu - headers);
	vnet->hdr_len = (uint16_t)headers;
	return (flow->total_len - headers + vnet->gso_size - 1) / vnet->gso_size;
}

/**
 * offload_describe() - Recognise what a kernel peer on the same machine left undone
 * @pkt:	Inner packet that begins with the IP header
 * @flow:	The same packet, parsed
 * @mtu:	Largest packet the pods take, in bytes
 * @vnet:	Set to the virtio header to write with it
 *
 * A kernel VXLAN device whose packets never meet a real wire sends datagrams of
 * up to 64 KiB with partial inner checksums. Handed on as they are, pods drop
 * them; handed on with the work described, the kernel finishes it or never needs to.
 *
 * Return: wire packets it stands for, at least 1
 */
uint32_t offload_describe(const struct pkt *pkt, const struct flow *flow, uint32_t mtu, struct vnet_hdr *vnet)
{
	struct l4 l4;

	memset(vnet, 0, sizeof(*vnet));
	if (!find_l4(flow, &l4) || !is_partial(pkt, flow, &l4))
		return 1;
	vnet->flags = VNET_NEEDS_CSUM;
	vnet->csum_start = (uint16_t)flow->l3len;
	vnet->csum_offset = (uint16_t)l4.check_off;
	vnet->hdr_len = (uint16_t)(flow->l3len + l4.header_len);
	if (flow->proto != PROTO_TCP || flow->total_len <= mtu)
		return 1;
	return describe_super(flow, pkt_at(pkt, flow->l3len, TCP_LEN), mtu, vnet);
}

/**
 * offload_describe_run() - Tell the kernel how to cut a UDP super-packet
 * @flow:	The packet, parsed
 * @size:	Bytes of payload in each datagram but the last, not 0
 * @vnet:	From offload_describe(); completed if the packet is one
 *
 * Return: datagrams it stands for; 1 if it is not one that can be cut
 */
uint32_t offload_describe_run(const struct flow *flow, uint32_t size, struct vnet_hdr *vnet)
{
	uint32_t headers = flow->l3len + UDP_LEN;

	if (flow->proto != PROTO_UDP || !(vnet->flags & VNET_NEEDS_CSUM) || flow->total_len <= headers + size)
		return 1;
	vnet->gso_type = VNET_GSO_UDP_L4;
	vnet->gso_size = (uint16_t)size;
	return (flow->total_len - headers + size - 1) / size;
}
