/* SPDX-License-Identifier: Apache-2.0 */
/* split.c - cutting a super-packet into the packets it stands for. */
#include "split.h"

#include "csum.h"

/**
 * l4_header() - Bytes of the L4 header that is repeated
 * @pkt:	Super-packet that begins with the IP header
 * @flow:	The same packet, parsed
 * @gso:	VNET_GSO_* without the ECN bit
 *
 * Return: the bytes, or 0 when the header contradicts @gso
 */
static uint32_t l4_header(const struct pkt *pkt, const struct flow *flow, uint8_t gso)
{
	const uint8_t *tcp;
	uint32_t len;

	if (gso == VNET_GSO_UDP_L4)
		return flow->proto == PROTO_UDP ? UDP_LEN : 0;
	if (flow->proto != PROTO_TCP || gso != (flow->family == 4 ? VNET_GSO_TCP4 : VNET_GSO_TCP6))
		return 0;
	tcp = pkt_at(pkt, flow->l3len, TCP_LEN);
	if (!tcp)
		return 0;
	len = (tcp[TCP_DOFF] >> 4) * 4U;
	return len < TCP_LEN ? 0 : len;
}

/**
 * split_plan() - Decide how a super-packet is to be cut
 * @pkt:	Packet read from the TUN
 * @flow:	The same packet, parsed
 * @vnet:	Its virtio header, with a gso_type
 * @split:	Filled in
 *
 * The header lengths that the kernel tells can be wrong for forwarded packets,
 * so they are read from the packet.
 *
 * Return: DP_DROP_NONE, or DP_DROP_VNET_HEADER when the header contradicts the packet
 */
enum dp_drop split_plan(const struct pkt *pkt, const struct flow *flow, const struct vnet_hdr *vnet,
			struct split *split)
{
	uint32_t l4len;

	if (flow->is_fragment || !(vnet->flags & VNET_NEEDS_CSUM) || !vnet->gso_size)
		return DP_DROP_VNET_HEADER;
	l4len = l4_header(pkt, flow, vnet->gso_type & (uint8_t)~VNET_GSO_ECN);
	if (!l4len || flow->l3len + l4len > SPLIT_HEADERS || flow->l3len + l4len > flow->total_len)
		return DP_DROP_VNET_HEADER;
	*split = (struct split){.headers = flow->l3len + l4len,
				.payload = flow->total_len - flow->l3len - l4len,
				.size = vnet->gso_size,
				.l3len = flow->l3len,
				.family = flow->family,
				.proto = flow->proto};
	split->count = split->payload ? (split->payload + split->size - 1) / split->size : 1;
	return DP_DROP_NONE;
}

/**
 * write_ip() - Give the IP header of a segment its length, and IPv4 its ID and checksum
 * @ip:		The header, split->l3len bytes
 * @split:	The plan
 * @index:	Which segment
 * @len:	Bytes of the segment with its headers
 */
static void write_ip(uint8_t *ip, const struct split *split, uint32_t index, uint32_t len)
{
	uint16_t sum;

	if (split->family == 6) {
		store16(ip + IP6_PAYLOAD_LEN, (uint16_t)(len - IP6_LEN));
		return;
	}
	store16(ip + IP4_TOTAL_LEN, (uint16_t)len);
	store16(ip + IP4_ID, (uint16_t)(load16(ip + IP4_ID) + index));
	memset(ip + IP4_CHECK, 0, 2);
	sum = (uint16_t)~csum_fold(csum_add(ip, split->l3len, 0));
	memcpy(ip + IP4_CHECK, &sum, 2);
}

/**
 * write_tcp() - Give the TCP header of a segment its sequence number and flags
 * @tcp:	The header
 * @split:	The plan
 * @index:	Which segment
 *
 * FIN and PSH belong to the last segment, CWR to the first (RFC 3168 section 6.1.2).
 */
static void write_tcp(uint8_t *tcp, const struct split *split, uint32_t index)
{
	store32(tcp + TCP_SEQ, load32(tcp + TCP_SEQ) + index * split->size);
	if (index)
		tcp[TCP_FLAGS] &= (uint8_t)~TCP_FLAG_CWR;
	if (index + 1 < split->count)
		tcp[TCP_FLAGS] &= (uint8_t) ~(TCP_FLAG_FIN | TCP_FLAG_PSH);
}

/**
 * split_header() - Write the headers of one segment
 * @pkt:	The super-packet
 * @split:	From split_plan()
 * @index:	Which segment, below split->count
 * @out:	Room for split->headers bytes
 *
 * The payload of segment i lies at split->headers + i * split->size.
 *
 * Return: bytes of payload in this segment
 */
uint32_t split_header(const struct pkt *pkt, const struct split *split, uint32_t index, uint8_t *out)
{
	uint32_t off = index * split->size;
	uint32_t len = split->payload - off < split->size ? split->payload - off : split->size;
	uint32_t l4len = split->headers - split->l3len;
	uint32_t check_off = split->proto == PROTO_TCP ? TCP_CHECK : UDP_CHECK;
	uint32_t addr_len = split->family == 4 ? 4 : 16;
	uint8_t *l4 = out + split->l3len;
	const uint8_t *addrs = out + (split->family == 4 ? IP4_SRC : IP6_SRC);
	uint64_t sum;
	uint16_t folded;

	memcpy(out, pkt->buf + pkt->off, split->headers);
	write_ip(out, split, index, split->headers + len);
	if (split->proto == PROTO_TCP)
		write_tcp(l4, split, index);
	else
		store16(l4 + UDP_LENGTH, (uint16_t)(UDP_LEN + len));
	memset(l4 + check_off, 0, 2);
	sum = csum_pseudo(addrs, addrs + addr_len, addr_len, split->proto, l4len + len);
	sum = csum_add(l4, l4len, sum);
	sum = csum_add(pkt->buf + pkt->off + split->headers + off, len, sum);
	folded = (uint16_t)~csum_fold(sum);
	if (!folded && split->proto == PROTO_UDP)
		folded = 0xffff; /* 0 means "none" (RFC 768) */
	memcpy(l4 + check_off, &folded, 2);
	return len;
}
