/* SPDX-License-Identifier: Apache-2.0 */
/*
 * merge.c - joining packets of one flow into the super-packet that they came from.
 *
 * DOC: Theory of operation
 *
 * Two packets are joined only if cutting the super-packet would give both back,
 * bit for bit (but for the ID of packets with DF, which says nothing, RFC 6864): same addresses, ports, TOS, TTL, DF and options; for TCP the same
 * acknowledgement and window, the next sequence number, and no flag but ACK, PSH
 * and ECE; IPv4 IDs that count up where fragments could use them. A short packet
 * or a PSH is the last one. Checksums are verified first, since what is joined is
 * handed on as "to be computed", which would hide damage.
 *
 * Packets of a flow are never reordered: one that cannot join makes the caller
 * write what is open of its flow before it goes on.
 */
#include "merge.h"

#include <string.h>

#include "csum.h"

/* What decides whether a packet can be joined to others. */
struct candidate {
	const uint8_t *ip;
	const uint8_t *l4;
	uint64_t ports;
	uint32_t headers;
	uint32_t payload;
	uint32_t seq;
	bool is_joinable;
	bool is_last; /* nothing may follow it */
};

/**
 * has_right_checksum() - Is the L4 checksum of a packet right?
 * @ip:		The packet
 * @flow:	It, or another one of its flow with as long an IP header
 * @total_len:	Bytes of the packet
 *
 * Return: true if it is
 */
static bool has_right_checksum(const uint8_t *ip, const struct flow *flow, uint32_t total_len)
{
	uint32_t addr_len = flow->family == 4 ? 4 : 16;
	const uint8_t *addrs = ip + (flow->family == 4 ? IP4_SRC : IP6_SRC);
	uint32_t len = total_len - flow->l3len;
	uint64_t sum = csum_pseudo(addrs, addrs + addr_len, addr_len, flow->proto, len);

	return csum_fold(csum_add(ip + flow->l3len, len, sum)) == 0xffff;
}

/**
 * read_tcp() - Look at the TCP header of a candidate
 * @flow:	The packet, parsed
 * @candidate:	l4 is set; the rest is filled in
 */
static void read_tcp(const struct flow *flow, struct candidate *candidate)
{
	const uint8_t *tcp = candidate->l4;
	uint32_t len = (tcp[TCP_DOFF] >> 4) * 4U;
	uint8_t flags = tcp[TCP_FLAGS];

	candidate->headers = flow->l3len + len;
	if (len < TCP_LEN || candidate->headers > flow->total_len)
		return;
	candidate->payload = flow->total_len - candidate->headers;
	candidate->seq = load32(tcp + TCP_SEQ);
	candidate->is_last = flags & TCP_FLAG_PSH;
	candidate->is_joinable = candidate->payload && (flags & TCP_FLAG_ACK) && !(tcp[TCP_DOFF] & 0x0f) &&
				 !(flags & (uint8_t) ~(TCP_FLAG_ACK | TCP_FLAG_PSH | TCP_FLAG_ECE));
}

/**
 * read_candidate() - Find out whether a packet can be joined to others
 * @pkt:	The packet
 * @flow:	The same packet, parsed
 * @peer:	Who sent it
 * @has_udp:	Whether datagrams can be joined
 * @candidate:	Filled in
 *
 * Return: true if it has ports, so that it belongs to a flow
 */
static bool read_candidate(const struct pkt *pkt, const struct flow *flow, uint32_t peer, bool has_udp,
			   struct candidate *candidate)
{
	uint32_t least = flow->proto == PROTO_TCP ? TCP_LEN : UDP_LEN;

	*candidate = (struct candidate){.ip = pkt_at(pkt, 0, flow->total_len)};
	if (!candidate->ip || (flow->proto != PROTO_TCP && flow->proto != PROTO_UDP) ||
	    flow->l3len + least > flow->total_len)
		return false;
	candidate->l4 = candidate->ip + flow->l3len;
	candidate->ports = (uint64_t)peer << 32 | load32(candidate->l4);
	if (flow->l3len != (flow->family == 4 ? (uint32_t)IP4_LEN : (uint32_t)IP6_LEN))
		return true;
	if (flow->proto == PROTO_TCP) {
		read_tcp(flow, candidate);
	} else if (has_udp) {
		candidate->headers = flow->l3len + UDP_LEN;
		candidate->payload = flow->total_len - candidate->headers;
		candidate->is_joinable = candidate->payload && load16(candidate->l4 + UDP_CHECK) &&
					 load16(candidate->l4 + UDP_LENGTH) == UDP_LEN + candidate->payload;
	}
	return true;
}

/**
 * is_same_flow() - Does a packet belong to the flow of a super-packet?
 * @super:	The super-packet
 * @flow:	The packet, parsed
 * @ports:	Its ports and peer
 *
 * Return: true if it does
 */
static bool is_same_flow(const struct merge_super *super, const struct flow *flow, uint64_t ports)
{
	return super->ports == ports && super->flow.proto == flow->proto && super->flow.src == flow->src &&
	       super->flow.dst == flow->dst && super->flow.family == flow->family;
}

/**
 * find() - Find the open super-packet of a flow
 * @merge:	All of them
 * @flow:	A packet of the flow
 * @ports:	Its ports and peer
 *
 * Return: its index, or MERGE_FLOWS
 */
static uint32_t find(const struct merge *merge, const struct flow *flow, uint64_t ports)
{
	if (merge->supers[merge->last].is_open && is_same_flow(&merge->supers[merge->last], flow, ports))
		return merge->last;
	for (uint32_t i = 0; i < merge->count; i++)
		if (is_same_flow(&merge->supers[merge->order[i]], flow, ports))
			return merge->order[i];
	return MERGE_FLOWS;
}

/**
 * find_hosts() - Find an open super-packet between the hosts of a fragment
 * @merge:	All of them
 * @flow:	The fragment, which may not tell its ports
 *
 * Return: its index, or MERGE_FLOWS
 */
static uint32_t find_hosts(const struct merge *merge, const struct flow *flow)
{
	for (uint32_t i = 0; i < merge->count; i++) {
		const struct flow *open = &merge->supers[merge->order[i]].flow;

		if (open->family == flow->family && open->src == flow->src && open->dst == flow->dst)
			return merge->order[i];
	}
	return MERGE_FLOWS;
}

/**
 * is_next() - Does a packet come right behind a super-packet, and fit?
 * @super:	The super-packet, of the same flow
 * @candidate:	The packet, with as many bytes of headers
 *
 * Return: true if it does
 */
static bool is_next(const struct merge_super *super, const struct candidate *candidate)
{
	if (super->is_closed || candidate->payload > super->size || super->total + candidate->payload > PKT_MAX ||
	    super->units == MERGE_UNITS)
		return false;
	if (super->flow.family == 4 && !(load16(candidate->ip + IP4_FRAG) & IP4_DF) &&
	    load16(candidate->ip + IP4_ID) != super->next_id)
		return false;
	return super->flow.proto == PROTO_UDP || candidate->seq == super->next_seq;
}

/**
 * follows() - Is a packet the next one of a super-packet?
 * @super:	The super-packet, of the same flow
 * @flow:	The packet, parsed
 * @candidate:	The same packet
 *
 * Return: true if both could have been cut from one
 */
static bool follows(const struct merge_super *super, const struct flow *flow, const struct candidate *candidate)
{
	const uint8_t *ip = super->head.buf + super->head.off;
	const uint8_t *l4 = ip + super->flow.l3len;

	if (candidate->headers != super->headers || flow->tos != super->flow.tos || flow->ttl != super->flow.ttl)
		return false;
	/* DF, or the flow label */
	if (flow->family == 4 ? memcmp(ip + IP4_FRAG, candidate->ip + IP4_FRAG, 2) : memcmp(ip, candidate->ip, 4))
		return false;
	if (!is_next(super, candidate))
		return false;
	if (flow->proto == PROTO_UDP)
		return true;
	if (memcmp(l4 + TCP_ACK, candidate->l4 + TCP_ACK, 4) ||
	    memcmp(l4 + TCP_WINDOW, candidate->l4 + TCP_WINDOW, 2) ||
	    ((l4[TCP_FLAGS] ^ candidate->l4[TCP_FLAGS]) & TCP_FLAG_ECE))
		return false;
	return !memcmp(l4 + TCP_URGENT, candidate->l4 + TCP_URGENT, super->headers - super->flow.l3len - TCP_URGENT);
}

/**
 * grow() - Add a packet to a super-packet
 * @super:	The super-packet
 * @candidate:	The packet
 */
static void grow(struct merge_super *super, const struct candidate *candidate)
{
	super->pieces[super->units] =
		(struct iovec){.iov_base = (void *)(candidate->ip + candidate->headers), .iov_len = candidate->payload};
	super->units++;
	super->total += candidate->payload;
	super->next_seq += candidate->payload;
	super->next_id++;
	super->is_closed = candidate->is_last || candidate->payload < super->size;
	if (candidate->is_last) {
		uint8_t *l4 = super->head.buf + super->head.off + super->flow.l3len;

		l4[TCP_FLAGS] |= TCP_FLAG_PSH; /* cutting leaves it to the last one */
	}
}

/**
 * begin() - Open a super-packet
 * @merge:	All of them, with one free
 * @pkt:	Its first packet
 * @flow:	The same, parsed
 * @candidate:	The same
 *
 * Return: its index
 */
static uint32_t begin(struct merge *merge, const struct pkt *pkt, const struct flow *flow,
		      const struct candidate *candidate)
{
	uint32_t index = 0;
	struct merge_super *super;

	while (merge->supers[index].is_open)
		index++;
	super = &merge->supers[index];
	super->head = *pkt;
	super->flow = *flow;
	super->ports = candidate->ports;
	super->headers = candidate->headers;
	super->size = candidate->payload;
	super->total = candidate->headers + candidate->payload;
	super->units = 1;
	super->next_seq = candidate->seq + candidate->payload;
	super->next_id = flow->family == 4 ? (uint16_t)(load16(candidate->ip + IP4_ID) + 1) : 0;
	super->is_closed = candidate->is_last;
	super->is_open = true;
	merge->order[merge->count++] = (uint8_t)index;
	merge->last = index;
	return index;
}

/**
 * merge_add() - Join a packet to others of its flow, if it can be
 * @merge:	What is open
 * @pkt:	Inner packet; where it stands is the caller's until what it joined is taken
 * @flow:	The same packet, parsed
 * @peer:	Who sent it
 * @index:	Set to the super-packet that the verdict is about
 *
 * Return: what became of it
 */
enum merge_verdict merge_add(struct merge *merge, const struct pkt *pkt, const struct flow *flow, uint32_t peer,
			     uint32_t *index)
{
	struct candidate candidate;

	if (flow->is_fragment) {
		*index = find_hosts(merge, flow);
		return *index < MERGE_FLOWS ? MERGE_BLOCKED : MERGE_NEVER;
	}
	if (!read_candidate(pkt, flow, peer, merge->has_udp, &candidate))
		return MERGE_NEVER;
	*index = find(merge, flow, candidate.ports);
	if (candidate.is_joinable && !has_right_checksum(candidate.ip, flow, flow->total_len))
		candidate.is_joinable = false;
	if (*index < MERGE_FLOWS) {
		struct merge_super *super = &merge->supers[*index];

		if (!candidate.is_joinable || !follows(super, flow, &candidate))
			return MERGE_BLOCKED;
		grow(super, &candidate);
		merge->last = *index;
		return MERGE_JOINED;
	}
	if (!candidate.is_joinable)
		return MERGE_NEVER;
	if (merge->count == MERGE_FLOWS) {
		*index = merge->order[0];
		return MERGE_BLOCKED;
	}
	*index = begin(merge, pkt, flow, &candidate);
	return MERGE_BEGUN;
}

/**
 * has_same_headers() - Do two packets differ in nothing but what differs in packets cut from one?
 * @one:	A packet
 * @other:	Another one
 * @super:	What the first is part of; both have as many bytes of headers
 *
 * Lengths, checksums, the ID, the sequence number and PSH are not looked at.
 *
 * Return: true if all else in their headers is the same
 */
static bool has_same_headers(const uint8_t *one, const uint8_t *other, const struct merge_super *super)
{
	uint32_t l3len = super->flow.l3len;
	const uint8_t *l4 = one + l3len, *other_l4 = other + l3len;

	if (super->flow.family == 4) {
		if (memcmp(one, other, IP4_TOTAL_LEN) ||
		    memcmp(one + IP4_FRAG, other + IP4_FRAG, IP4_CHECK - IP4_FRAG) ||
		    memcmp(one + IP4_SRC, other + IP4_SRC, IP4_LEN - IP4_SRC))
			return false;
	} else if (memcmp(one, other, IP6_PAYLOAD_LEN) ||
		   memcmp(one + IP6_NEXT, other + IP6_NEXT, IP6_LEN - IP6_NEXT)) {
		return false;
	}
	if (memcmp(l4, other_l4, 4)) /* ports */
		return false;
	if (super->flow.proto == PROTO_UDP)
		return true;
	return !memcmp(l4 + TCP_ACK, other_l4 + TCP_ACK, TCP_FLAGS - TCP_ACK) &&
	       !((l4[TCP_FLAGS] ^ other_l4[TCP_FLAGS]) & ~TCP_FLAG_PSH) &&
	       !memcmp(l4 + TCP_WINDOW, other_l4 + TCP_WINDOW, 2) &&
	       !memcmp(l4 + TCP_URGENT, other_l4 + TCP_URGENT, super->headers - l3len - TCP_URGENT);
}

/**
 * has_right_sums() - Are the lengths and checksums of a packet right?
 * @super:	A super-packet of its flow
 * @candidate:	The packet; its header lengths are those of the super-packet
 * @total_len:	Bytes of the packet
 *
 * Return: true if they are
 */
static bool has_right_sums(const struct merge_super *super, const struct candidate *candidate, uint32_t total_len)
{
	const uint8_t *ip = candidate->ip;

	if (super->flow.family == 4) {
		if (load16(ip + IP4_TOTAL_LEN) != total_len || csum_fold(csum_add(ip, IP4_LEN, 0)) != 0xffff)
			return false;
	} else if ((uint32_t)IP6_LEN + load16(ip + IP6_PAYLOAD_LEN) != total_len) {
		return false;
	}
	if (super->flow.proto == PROTO_UDP &&
	    (!load16(candidate->l4 + UDP_CHECK) || load16(candidate->l4 + UDP_LENGTH) != total_len - super->flow.l3len))
		return false;
	return has_right_checksum(ip, &super->flow, total_len);
}

/**
 * merge_follow() - Join a packet that is like the one before it, which was joined last
 * @merge:	What is open
 * @before:	The packet before, as it was received
 * @pkt:	The packet, as it was received, right after the other
 * @push:	Bytes of encapsulation in front of both inner packets, which must be the same as well
 *
 * What was found out of the other by its headers holds for this one: what they
 * have in common is not looked at again. A peer's super-packet comes as a run of
 * such packets.
 *
 * Return: true if it is part of the super-packet now; false if it must be looked at like any other
 */
bool merge_follow(struct merge *merge, const struct pkt *before, const struct pkt *pkt, uint32_t push)
{
	struct merge_super *super = &merge->supers[merge->last];
	const uint8_t *one = pkt_at(before, 0, push + super->headers);
	const uint8_t *other = pkt_at(pkt, 0, push + super->headers);
	struct candidate candidate;

	if (!super->is_open || !one || !other || pkt->len == push + super->headers || memcmp(one, other, push) ||
	    !has_same_headers(one + push, other + push, super))
		return false;
	candidate = (struct candidate){
		.ip = other + push,
		.l4 = other + push + super->flow.l3len,
		.headers = super->headers,
		.payload = pkt->len - push - super->headers,
	};
	if (super->flow.proto == PROTO_TCP) {
		candidate.seq = load32(candidate.l4 + TCP_SEQ);
		candidate.is_last = candidate.l4[TCP_FLAGS] & TCP_FLAG_PSH;
	}
	if (!is_next(super, &candidate) || !has_right_sums(super, &candidate, pkt->len - push))
		return false;
	grow(super, &candidate);
	return true;
}

/**
 * merge_describe() - Give a super-packet its headers, and say how it is to be cut
 * @super:	The super-packet, about to be written
 * @vnet:	Set to its virtio header
 *
 * A single packet is left as it came, checksum included.
 */
void merge_describe(struct merge_super *super, struct vnet_hdr *vnet)
{
	const struct flow *flow = &super->flow;
	uint8_t *ip = super->head.buf + super->head.off;
	uint8_t *l4 = ip + flow->l3len;
	uint32_t addr_len = flow->family == 4 ? 4 : 16;
	const uint8_t *addrs = ip + (flow->family == 4 ? IP4_SRC : IP6_SRC);
	uint32_t l4len = super->total - flow->l3len;
	bool is_tcp = flow->proto == PROTO_TCP;
	uint16_t sum;

	memset(vnet, 0, sizeof(*vnet));
	if (super->units == 1)
		return;
	vnet->flags = VNET_NEEDS_CSUM;
	vnet->gso_type = !is_tcp ? VNET_GSO_UDP_L4 : flow->family == 4 ? VNET_GSO_TCP4 : VNET_GSO_TCP6;
	vnet->hdr_len = (uint16_t)super->headers;
	vnet->gso_size = (uint16_t)super->size;
	vnet->csum_start = (uint16_t)flow->l3len;
	vnet->csum_offset = is_tcp ? TCP_CHECK : UDP_CHECK;
	if (flow->family == 4) {
		store16(ip + IP4_TOTAL_LEN, (uint16_t)super->total);
		memset(ip + IP4_CHECK, 0, 2);
		sum = (uint16_t)~csum_fold(csum_add(ip, flow->l3len, 0));
		memcpy(ip + IP4_CHECK, &sum, 2);
	} else {
		store16(ip + IP6_PAYLOAD_LEN, (uint16_t)(super->total - IP6_LEN));
	}
	if (!is_tcp)
		store16(l4 + UDP_LENGTH, (uint16_t)l4len);
	sum = csum_fold(csum_pseudo(addrs, addrs + addr_len, addr_len, flow->proto, l4len));
	memcpy(l4 + vnet->csum_offset, &sum, 2);
}

/**
 * merge_restore() - Give the first packet of a super-packet its own headers back
 * @super:	After merge_describe(); the kernel did not want it
 *
 * The other packets still stand where they were received, untouched.
 */
void merge_restore(struct merge_super *super)
{
	const struct flow *flow = &super->flow;
	uint8_t *ip = super->head.buf + super->head.off;
	uint8_t *l4 = ip + flow->l3len;
	uint32_t addr_len = flow->family == 4 ? 4 : 16;
	const uint8_t *addrs = ip + (flow->family == 4 ? IP4_SRC : IP6_SRC);
	uint32_t total = super->headers + super->size;
	uint8_t *check = l4 + (flow->proto == PROTO_TCP ? TCP_CHECK : UDP_CHECK);
	uint16_t sum;

	if (flow->family == 4) {
		store16(ip + IP4_TOTAL_LEN, (uint16_t)total);
		memset(ip + IP4_CHECK, 0, 2);
		sum = (uint16_t)~csum_fold(csum_add(ip, flow->l3len, 0));
		memcpy(ip + IP4_CHECK, &sum, 2);
	} else {
		store16(ip + IP6_PAYLOAD_LEN, (uint16_t)(total - IP6_LEN));
	}
	if (flow->proto == PROTO_TCP)
		l4[TCP_FLAGS] &= (uint8_t)~TCP_FLAG_PSH; /* with it, nothing would have followed */
	else
		store16(l4 + UDP_LENGTH, (uint16_t)(total - flow->l3len));
	memset(check, 0, 2);
	sum = (uint16_t)~csum_fold(
		csum_add(l4, total - flow->l3len,
			 csum_pseudo(addrs, addrs + addr_len, addr_len, flow->proto, total - flow->l3len)));
	if (!sum && flow->proto == PROTO_UDP)
		sum = 0xffff; /* 0 would say that there is none */
	memcpy(check, &sum, 2);
}

/**
 * merge_take() - Forget a super-packet that was written
 * @merge:	All of them
 * @index:	Which
 */
void merge_take(struct merge *merge, uint32_t index)
{
	uint32_t at = 0;

	while (merge->order[at] != index)
		at++;
	memmove(merge->order + at, merge->order + at + 1, merge->count - at - 1);
	merge->count--;
	merge->supers[index].is_open = false;
}
