/* SPDX-License-Identifier: Apache-2.0 */
/*
 * split.h - cutting a super-packet into the packets it stands for: pure.
 *
 * Nothing is copied but headers: split_header() writes those of one segment,
 * and its payload stays where the super-packet was read.
 */
#ifndef SPLIT_H
#define SPLIT_H

#include <stdint.h>

#include "dp.h"
#include "parse.h"
#include "pkt.h"
#include "wire.h"

/* The longest headers that can be repeated: IPv6 with extensions, and TCP with all its options. */
enum { SPLIT_HEADERS = 192 };

/* How a packet from the TUN is to be cut. */
struct split {
	uint32_t headers; /* bytes of IP and L4 headers, repeated in front of each segment */
	uint32_t payload; /* bytes behind them, all segments together */
	uint32_t size;    /* payload bytes of each segment but the last */
	uint32_t count;   /* segments, at least 1 */
	uint32_t l3len;
	uint8_t family;
	uint8_t proto;
};

enum dp_drop split_plan(const struct pkt *pkt, const struct flow *flow, const struct vnet_hdr *vnet,
			struct split *split);
uint32_t split_header(const struct pkt *pkt, const struct split *split, uint32_t index, uint8_t *out);

#endif
