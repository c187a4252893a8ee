/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mutate.h - repairs after a mutation, so that inputs get past lengths and checksums.
 *
 * What a mutation changed is kept as far as it can be: only what follows from other bytes is made right. A part of
 * all inputs is left as damaged as it is.
 */
#ifndef MUTATE_H
#define MUTATE_H

#include "fuzz.h"
#include "packets.h"

/* One input in so many is not repaired. */
enum { MUTATE_UNREPAIRED = 8 };

/**
 * mutate_naive_sum() - The checksum of RFC 1071, a byte at a time
 * @data:	Bytes
 * @len:	How many
 * @sum:	What was summed before, an even number of bytes
 *
 * Return: the sum, folded but not complemented, in host order
 */
static inline uint32_t mutate_naive_sum(const uint8_t *data, size_t len, uint32_t sum)
{
	for (size_t i = 0; i < len; i++) {
		sum += (uint32_t)data[i] << (i % 2 ? 0 : 8);
		sum = (sum & 0xffff) + (sum >> 16);
	}
	return sum;
}

/**
 * mutate_pseudo() - The sum of a pseudo-header, naively
 * @ip:		Packet
 * @proto:	Upper-layer protocol
 * @len:	Bytes of it, below 64 KiB
 *
 * Return: as mutate_naive_sum()
 */
static inline uint32_t mutate_pseudo(const uint8_t *ip, uint8_t proto, uint32_t len)
{
	bool is4 = ip[0] >> 4 == 4;
	const uint8_t tail[4] = {(uint8_t)(len >> 8), (uint8_t)len, 0, proto};

	return mutate_naive_sum(tail, 4, mutate_naive_sum(ip + (is4 ? IP4_SRC : IP6_SRC), is4 ? 8 : 32, 0));
}

/**
 * mutate_ip() - Make an IP header right, lengths and checksum included
 * @ip:		Bytes that are to be a packet
 * @len:	How many there are; too few are left alone
 *
 * Return: bytes of the header, without IPv6 extension headers; 0 if there is room for none
 */
static inline uint32_t mutate_ip(uint8_t *ip, uint32_t len)
{
	uint32_t l3len;

	if (len < IP4_LEN)
		return 0;
	if (ip[0] >> 4 != 4 && ip[0] >> 4 != 6)
		ip[0] = (uint8_t)((ip[0] & 0x80 ? 0x60 : 0x40) | (ip[0] & 0x0f));
	if (ip[0] >> 4 == 6) {
		if (len < IP6_LEN)
			return 0;
		store16(ip + IP6_PAYLOAD_LEN, (uint16_t)(len - IP6_LEN));
		ip[IP6_HOP_LIMIT] |= !ip[IP6_HOP_LIMIT];
		return IP6_LEN;
	}
	l3len = (ip[0] & 0x0fU) * 4;
	if (l3len < IP4_LEN || l3len > len) {
		ip[0] = 0x45;
		l3len = IP4_LEN;
	}
	store16(ip + IP4_TOTAL_LEN, (uint16_t)len);
	ip[IP4_TTL] |= !ip[IP4_TTL];
	packet_repair(ip, len);
	return l3len;
}

/**
 * mutate_l4() - Make the checksum of a TCP or UDP packet right, or what the kernel leaves of it
 * @ip:		The packet, after mutate_ip()
 * @l3len:	From there
 * @len:	Bytes of the packet
 * @is_partial:	Only the sum of the pseudo-header is wanted
 *
 * Extension headers are not looked behind.
 */
static inline void mutate_l4(uint8_t *ip, uint32_t l3len, uint32_t len, bool is_partial)
{
	uint8_t proto = ip[ip[0] >> 4 == 4 ? IP4_PROTO : IP6_NEXT];
	uint8_t *check = ip + l3len + (proto == PROTO_TCP ? TCP_CHECK : UDP_CHECK);
	uint32_t sum;

	if ((proto != PROTO_TCP && proto != PROTO_UDP) ||
	    len < l3len + (proto == PROTO_TCP ? (uint32_t)TCP_LEN : (uint32_t)UDP_LEN))
		return;
	if (proto == PROTO_UDP)
		store16(ip + l3len + UDP_LENGTH, (uint16_t)(len - l3len));
	store16(check, 0);
	sum = mutate_pseudo(ip, proto, len - l3len);
	if (is_partial) {
		store16(check, (uint16_t)sum);
		return;
	}
	sum = ~mutate_naive_sum(ip + l3len, len - l3len, sum) & 0xffff;
	store16(check, (uint16_t)(sum || proto == PROTO_TCP ? sum : 0xffff));
}

/**
 * mutate_ports() - Make a packet one of TCP or UDP, with room for the header
 * @ip:		The packet, after mutate_ip()
 * @l3len:	From there
 * @len:	Bytes of the packet
 *
 * Return: true if it is one now
 */
static inline bool mutate_ports(uint8_t *ip, uint32_t l3len, uint32_t len)
{
	uint8_t *proto = ip + (ip[0] >> 4 == 4 ? IP4_PROTO : IP6_NEXT);
	uint32_t doff;

	if (*proto != PROTO_TCP && *proto != PROTO_UDP)
		*proto = *proto & 1 ? PROTO_UDP : PROTO_TCP;
	if (*proto == PROTO_TCP && len < l3len + TCP_LEN)
		*proto = PROTO_UDP;
	if (len < l3len + UDP_LEN)
		return false;
	if (ip[0] >> 4 == 4) {
		ip[IP4_FRAG] &= 0x40;
		ip[IP4_FRAG + 1] = 0;
		packet_repair(ip, len);
	}
	if (*proto == PROTO_UDP)
		return true;
	doff = (ip[l3len + TCP_DOFF] >> 4) * 4U;
	if (doff < TCP_LEN || l3len + doff > len)
		ip[l3len + TCP_DOFF] = (uint8_t)(0x50 | (ip[l3len + TCP_DOFF] & 0x0f));
	return true;
}

/**
 * mutate_packet() - Mutate an input that is a few bytes and a packet
 * @data:	The input
 * @size:	Its length
 * @room:	Most that it may become
 * @front:	Bytes in front of the packet
 * @seed:	Dice
 *
 * Return: its length now
 */
static inline size_t mutate_packet(uint8_t *data, size_t size, size_t room, size_t front, unsigned int seed)
{
	size = LLVMFuzzerMutate(data, size, room);
	if (seed % MUTATE_UNREPAIRED && size > front)
		mutate_ip(data + front, (uint32_t)(size - front));
	return size;
}

#endif
