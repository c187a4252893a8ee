/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sketch.h - inner TCP and UDP packets between pods of ours and of three peers, right in every checksum.
 *
 * Peers hold 10.0.1.0/24 .. 10.0.3.0/24 and fd00:10:0:1::/64 .. fd00:10:0:3::/64; ours are 10.244.1.0/24 and
 * fd00:244:0:1::/64.
 */
#ifndef SKETCH_H
#define SKETCH_H

#include "packets.h"

enum { SKETCH_PEERS = 3 };
enum { SKETCH_VTEP = 0xc0000264, SKETCH_OWN = 0xc0000201 }; /* underlay addresses: peer 1 is SKETCH_VTEP + 1 */

/* An inner packet to be made; a size makes it a super-packet that the kernel hands to us. */
struct sketch {
	uint8_t family;
	uint8_t proto;
	uint8_t peer; /* 1 .. SKETCH_PEERS */
	uint8_t flags;
	uint8_t pod; /* of ours */
	uint16_t port;
	uint16_t id;
	uint32_t seq;
	uint32_t payload;
	uint32_t size;
};

/**
 * sketch_finish() - Give a TCP or UDP packet its L4 checksum
 * @ip:		The packet
 * @family:	4 or 6
 * @proto:	PROTO_TCP or PROTO_UDP
 * @len:	Its length
 */
static inline void sketch_finish(uint8_t *ip, uint8_t family, uint8_t proto, uint32_t len)
{
	uint32_t l3len = family == 4 ? IP4_LEN : IP6_LEN, addr_len = family == 4 ? 4 : 16;
	const uint8_t *addrs = ip + (family == 4 ? IP4_SRC : IP6_SRC);
	uint8_t *check = ip + l3len + (proto == PROTO_TCP ? TCP_CHECK : UDP_CHECK);
	uint64_t sum = csum_pseudo(addrs, addrs + addr_len, addr_len, proto, len - l3len);
	uint16_t folded;

	store16(check, 0);
	folded = (uint16_t)~csum_fold(csum_add(ip + l3len, len - l3len, sum));
	if (!folded && proto == PROTO_UDP)
		folded = 0xffff;
	memcpy(check, &folded, 2);
}

/**
 * sketch_addresses() - Write the addresses of a packet between a pod of ours and one of a peer
 * @ip:		The packet
 * @sketch:	Which peer, and which family
 * @is_tx:	From us to the peer, or the other way
 */
static inline void sketch_addresses(uint8_t *ip, const struct sketch *sketch, bool is_tx)
{
	if (sketch->family == 4) {
		store32(ip + (is_tx ? IP4_SRC : IP4_DST), 0x0af40105U + sketch->pod);
		store32(ip + (is_tx ? IP4_DST : IP4_SRC), 0x0a000005U | (uint32_t)sketch->peer << 8);
		return;
	}
	for (uint32_t i = 0; i < 2; i++) {
		uint8_t *at = ip + IP6_SRC + 16 * i;
		bool is_own = is_tx == !i;

		memset(at, 0, 16);
		store32(at, is_own ? 0xfd000244 : 0xfd000010);
		store32(at + 4, is_own ? 1 : sketch->peer);
		at[15] = is_own ? (uint8_t)(5 + sketch->pod) : 5;
	}
}

/**
 * sketch_packet() - Make an inner packet, with its checksums
 * @ip:		Room for it
 * @sketch:	What it is
 * @is_tx:	From us to a peer, or the other way
 *
 * Return: its length
 */
static inline uint32_t sketch_packet(uint8_t *ip, const struct sketch *sketch, bool is_tx)
{
	uint32_t l4len = sketch->proto == PROTO_TCP ? TCP_LEN : UDP_LEN, l3len, len;
	uint8_t *l4;

	if (sketch->family == 4)
		len = packet_ip4(ip, sketch->proto, 0, l4len + sketch->payload);
	else
		len = packet_ip6(ip, sketch->proto, 0, l4len + sketch->payload);
	l3len = sketch->family == 4 ? IP4_LEN : IP6_LEN;
	sketch_addresses(ip, sketch, is_tx);
	l4 = ip + l3len;
	memset(l4, 0, l4len);
	store16(l4, sketch->port);
	store16(l4 + 2, 443);
	if (sketch->proto == PROTO_TCP) {
		store32(l4 + TCP_SEQ, sketch->seq);
		store32(l4 + TCP_ACK, 4711);
		l4[TCP_DOFF] = 0x50;
		l4[TCP_FLAGS] = TCP_FLAG_ACK | sketch->flags;
		store16(l4 + TCP_WINDOW, 501);
	} else {
		store16(l4 + UDP_LENGTH, (uint16_t)(UDP_LEN + sketch->payload));
	}
	for (uint32_t i = 0; i < sketch->payload && i < 4; i++)
		l4[l4len + i] = (uint8_t)(sketch->seq >> 8 * i); /* no two are alike */
	if (sketch->family == 4) {
		store16(ip + IP4_ID, sketch->id);
		packet_repair(ip, len);
	}
	sketch_finish(ip, sketch->family, sketch->proto, len);
	return len;
}

#endif
