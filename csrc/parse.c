/* SPDX-License-Identifier: Apache-2.0 */
/*
 * parse.c - what an inner IP packet is.
 *
 * parse_inner() trusts no length: after it returned DP_DROP_NONE, the whole IP
 * header (with options or extension headers) lies inside the packet, and
 * total_len is at most what arrived.
 */
#include "parse.h"

#include "csum.h"
#include "wire.h"

/* Extension headers that are followed before a packet is refused; more has no honest use. */
enum { IP6_EXTENSIONS_MAX = 8 };

/**
 * parse_addr() - An address as a number
 * @family:	4 or 6
 * @bytes:	4 or 16 bytes in wire order
 *
 * Return: the address in host order
 */
addr_t parse_addr(uint8_t family, const uint8_t *bytes)
{
	if (family == 4)
		return load32(bytes);
	return (addr_t)load64(bytes) << 64 | load64(bytes + 8);
}

/**
 * parse_equals() - Is this that address?
 * @addr:	An address as a number
 * @family:	4 or 6
 * @other:	The address to compare with; family 0 equals nothing
 *
 * Return: true if both are the same address of the same family
 */
bool parse_equals(addr_t addr, uint8_t family, const struct dp_addr *other)
{
	return other->family == family && addr == parse_addr(family, other->bytes);
}

/**
 * parse_ip4() - Read an IPv4 header
 * @pkt:	Packet that begins with it
 * @flow:	Filled in
 *
 * Return: DP_DROP_NONE or why it is not a valid packet (RFC 1122 section 3.2.1)
 */
static enum dp_drop parse_ip4(const struct pkt *pkt, struct flow *flow)
{
	const uint8_t *ip = pkt_at(pkt, 0, IP4_LEN);
	uint16_t frag;

	if (!ip)
		return DP_DROP_INNER_HEADER;
	flow->l3len = (ip[IP4_VERSION_IHL] & 0x0fU) * 4;
	flow->total_len = load16(ip + IP4_TOTAL_LEN);
	if (flow->l3len < IP4_LEN || !pkt_at(pkt, 0, flow->l3len))
		return DP_DROP_INNER_HEADER;
	if (flow->total_len < flow->l3len || flow->total_len > pkt->len)
		return DP_DROP_INNER_LENGTH;
	if (csum_fold(csum_add(ip, flow->l3len, 0)) != 0xffff)
		return DP_DROP_INNER_CSUM;

	frag = load16(ip + IP4_FRAG);
	flow->is_fragment = frag & (IP4_MF | IP4_OFFSET_MASK);
	flow->is_later_fragment = frag & IP4_OFFSET_MASK;
	flow->tos = ip[IP4_TOS];
	flow->ttl = ip[IP4_TTL];
	flow->proto = ip[IP4_PROTO];
	flow->src = load32(ip + IP4_SRC);
	flow->dst = load32(ip + IP4_DST);
	return flow->ttl ? DP_DROP_NONE : DP_DROP_INNER_TTL;
}

/**
 * skip_extensions() - Find the upper-layer header behind IPv6 extension headers
 * @pkt:	Packet that begins with an IPv6 header
 * @flow:	total_len is set; proto, l3len and the fragment marks are filled in
 *
 * Return: DP_DROP_NONE, or DP_DROP_INNER_HEADER when the chain is cut short or too long
 */
static enum dp_drop skip_extensions(const struct pkt *pkt, struct flow *flow)
{
	uint8_t next = pkt_at(pkt, 0, IP6_LEN)[IP6_NEXT];
	uint32_t off = IP6_LEN;

	for (int i = 0; i <= IP6_EXTENSIONS_MAX; i++) {
		const uint8_t *ext;

		if (flow->is_later_fragment || (next != PROTO_HOPOPTS && next != PROTO_ROUTING &&
						next != PROTO_DSTOPTS && next != PROTO_FRAGMENT)) {
			flow->proto = next;
			flow->l3len = off;
			return DP_DROP_NONE;
		}
		ext = off + 8 <= flow->total_len ? pkt_at(pkt, off, 8) : NULL;
		if (!ext)
			return DP_DROP_INNER_HEADER;
		if (next == PROTO_FRAGMENT) {
			flow->is_fragment = true;
			flow->is_later_fragment = load16(ext + 2) & 0xfff8;
			off += 8;
		} else {
			off += 8 + ext[1] * 8U;
		}
		next = ext[0];
		if (off > flow->total_len)
			return DP_DROP_INNER_HEADER;
	}
	return DP_DROP_INNER_HEADER;
}

/**
 * parse_ip6() - Read an IPv6 header and its extension headers
 * @pkt:	Packet that begins with it
 * @flow:	Filled in
 *
 * Return: DP_DROP_NONE or why it is not a valid packet (RFC 8200)
 */
static enum dp_drop parse_ip6(const struct pkt *pkt, struct flow *flow)
{
	const uint8_t *ip = pkt_at(pkt, 0, IP6_LEN);

	if (!ip)
		return DP_DROP_INNER_HEADER;
	/* 32 bits wide on purpose: 65535 + 40 does not fit in 16 */
	flow->total_len = (uint32_t)load16(ip + IP6_PAYLOAD_LEN) + IP6_LEN;
	if (flow->total_len > pkt->len)
		return DP_DROP_INNER_LENGTH;
	flow->is_fragment = false;
	flow->is_later_fragment = false;
	flow->tos = (uint8_t)(load16(ip) >> 4);
	flow->ttl = ip[IP6_HOP_LIMIT];
	flow->src = parse_addr(6, ip + IP6_SRC);
	flow->dst = parse_addr(6, ip + IP6_DST);
	if (!flow->ttl)
		return DP_DROP_INNER_TTL;
	return skip_extensions(pkt, flow);
}

/**
 * parse_inner() - Read an inner IP packet
 * @pkt:	Packet that begins with an IP header; bytes behind its total length are allowed
 * @flow:	Filled in; meaningful only if DP_DROP_NONE is returned
 *
 * Return: DP_DROP_NONE, or DP_DROP_INNER_VERSION, _HEADER, _LENGTH, _CSUM, _TTL
 */
enum dp_drop parse_inner(const struct pkt *pkt, struct flow *flow)
{
	const uint8_t *first = pkt_at(pkt, 0, 1);

	if (!first)
		return DP_DROP_INNER_HEADER;
	flow->family = first[0] >> 4;
	if (flow->family == 4)
		return parse_ip4(pkt, flow);
	if (flow->family == 6)
		return parse_ip6(pkt, flow);
	return DP_DROP_INNER_VERSION;
}

/**
 * is_in() - Does an address lie in a prefix?
 * @addr:	The address
 * @bits:	32 or 128
 * @prefix:	First address of the prefix
 * @len:	Its length in bits, at least 1
 *
 * Return: true if it does
 */
static bool is_in(addr_t addr, uint8_t bits, addr_t prefix, uint8_t len)
{
	return (addr ^ prefix) >> (bits - len) == 0;
}

/**
 * parse_is_martian() - Can this source never be right on a network?
 * @flow:	A parsed packet
 *
 * RFC 1122 section 3.2.1.3, RFC 6890, RFC 4291 section 2.5: this network,
 * loopback, multicast, class E and broadcast; unspecified, IPv4-mapped and
 * IPv4-compatible, multicast, link-local.
 *
 * Return: true if the source is a martian
 */
bool parse_is_martian(const struct flow *flow)
{
	if (flow->family == 4)
		return is_in(flow->src, 32, 0, 8) || is_in(flow->src, 32, 0x7f000000, 8) ||
		       is_in(flow->src, 32, 0xe0000000, 3);
	return is_in(flow->src, 128, 0, 96) || is_in(flow->src, 128, (addr_t)0xffff << 32, 96) ||
	       is_in(flow->src, 128, (addr_t)0xff << 120, 8) || is_in(flow->src, 128, (addr_t)0xfe80 << 112, 10);
}

/**
 * parse_is_multicast() - Is the destination not one host?
 * @flow:	A parsed packet
 *
 * Return: true for multicast, limited broadcast and unspecified destinations
 */
bool parse_is_multicast(const struct flow *flow)
{
	if (flow->family == 4)
		return flow->dst == 0 || is_in(flow->dst, 32, 0xe0000000, 3);
	return flow->dst == 0 || is_in(flow->dst, 128, (addr_t)0xff << 120, 8);
}

/**
 * mix() - Stir 64 bits
 * @hash:	Value
 *
 * The finaliser of MurmurHash3: each input bit reaches each output bit.
 *
 * Return: stirred value
 */
static uint64_t mix(uint64_t hash)
{
	hash ^= hash >> 33;
	hash *= 0xff51afd7ed558ccdULL;
	hash ^= hash >> 33;
	hash *= 0xc4ceb9fe1a85ec53ULL;
	return hash ^ hash >> 33;
}

/**
 * parse_is_bare_ack() - Does a packet do no more than to acknowledge what a TCP transfer brought?
 * @pkt:	Packet
 * @flow:	The same packet, parsed
 *
 * Return: true if it has no data, opens and closes nothing
 */
bool parse_is_bare_ack(const struct pkt *pkt, const struct flow *flow)
{
	const uint8_t *tcp;

	if (flow->proto != PROTO_TCP || flow->is_later_fragment)
		return false;
	tcp = pkt_at(pkt, flow->l3len, TCP_LEN);
	return tcp && flow->total_len == flow->l3len + (tcp[TCP_DOFF] >> 4) * 4U &&
	       (tcp[TCP_FLAGS] & ~(TCP_FLAG_PSH | TCP_FLAG_ECE | TCP_FLAG_CWR)) == TCP_FLAG_ACK;
}

/**
 * parse_flow_hash() - A number that is the same for all packets of a flow
 * @pkt:	Packet that begins with the IP header
 * @flow:	The same packet, parsed
 *
 * Every fragment of a datagram gets the same hash: where a packet is a
 * fragment, ports are left out (only the first one would have them).
 *
 * Return: 32 well-mixed bits
 */
uint32_t parse_flow_hash(const struct pkt *pkt, const struct flow *flow)
{
	uint64_t hash = mix((uint64_t)flow->src ^ flow->proto);
	const uint8_t *ports = NULL;

	hash = mix(hash ^ (uint64_t)(flow->src >> 64));
	hash = mix(hash ^ (uint64_t)flow->dst);
	hash = mix(hash ^ (uint64_t)(flow->dst >> 64));
	if (!flow->is_fragment && (flow->proto == PROTO_TCP || flow->proto == PROTO_UDP))
		ports = pkt_at(pkt, flow->l3len, 4);
	if (ports)
		hash = mix(hash ^ load32(ports));
	return (uint32_t)hash;
}
