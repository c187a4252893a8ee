/* SPDX-License-Identifier: Apache-2.0 */
/* parse.h - what an inner IP packet is: pure, no state. */
#ifndef PARSE_H
#define PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dp.h"
#include "pkt.h"

/* An address as a number in host order: IPv4 in the low 32 bits. */
typedef unsigned __int128 addr_t;

struct flow {
	uint8_t family;         /* 4 or 6 */
	uint8_t proto;          /* upper-layer protocol, behind IPv6 extension headers */
	uint8_t tos;            /* TOS byte or traffic class */
	uint8_t ttl;            /* TTL or hop limit */
	bool is_fragment;       /* part of a fragmented datagram, first one included */
	bool is_later_fragment; /* has no L4 header */
	uint32_t l3len;         /* bytes of IP header with options and extension headers */
	uint32_t total_len;     /* bytes of the whole packet, as its header says */
	addr_t src;
	addr_t dst;
};

enum dp_drop parse_inner(const struct pkt *pkt, struct flow *flow);
bool parse_is_bare_ack(const struct pkt *pkt, const struct flow *flow);
bool parse_is_martian(const struct flow *flow);
bool parse_is_multicast(const struct flow *flow);
uint32_t parse_flow_hash(const struct pkt *pkt, const struct flow *flow);
addr_t parse_addr(uint8_t family, const uint8_t *bytes);
bool parse_equals(addr_t addr, uint8_t family, const struct dp_addr *other);

#endif
