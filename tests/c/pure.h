/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pure.h - the pure half of the packet path, with what must hold after each step.
 *
 * Tests and fuzzers run any bytes through it. The steps are those of rx.c and tx.c.
 */
#ifndef PURE_H
#define PURE_H

#include "check.h"
#include "encap.h"
#include "icmp.h"
#include "offload.h"
#include "packets.h"
#include "parse.h"

/**
 * pure_describe() - Check what offload_describe() says of a packet
 * @pkt:	Valid packet without padding
 * @flow:	The same packet, parsed
 * @mtu:	MTU of the pods
 */
static inline void pure_describe(const struct pkt *pkt, const struct flow *flow, uint32_t mtu)
{
	struct vnet_hdr vnet, plain;
	uint32_t units = offload_describe(pkt, flow, mtu, &vnet);

	CHECK(units >= 1 && !vnet.num_buffers);
	if (!vnet.flags) {
		CHECK(units == 1 && !vnet.gso_type && !vnet.gso_size && !vnet.csum_start && !vnet.csum_offset);
		return;
	}
	CHECK(vnet.flags == VNET_NEEDS_CSUM && vnet.csum_start == flow->l3len);
	CHECK(vnet.hdr_len <= flow->total_len);
	CHECK((uint32_t)vnet.csum_start + vnet.csum_offset + 2U <= flow->total_len);
	if (vnet.gso_type) {
		uint32_t payload = flow->total_len - vnet.hdr_len;

		CHECK(vnet.gso_size && vnet.hdr_len + vnet.gso_size == mtu && flow->total_len > mtu);
		CHECK(units > 1 && (units - 1) * vnet.gso_size < payload && payload <= units * vnet.gso_size);
	} else {
		CHECK(units == 1 && !vnet.gso_size);
	}
	plain = (struct vnet_hdr){.flags = vnet.flags, .csum_start = vnet.csum_start, .csum_offset = vnet.csum_offset};
	CHECK(offload_complete(pkt, flow, &plain) == DP_DROP_NONE);
	CHECK(offload_describe(pkt, flow, mtu, &vnet) == 1 && !vnet.flags); /* now it is complete */
}

/**
 * pure_answer() - Check the ICMP error about a packet
 * @pkt:	Valid packet
 * @flow:	The same packet, parsed
 */
static inline void pure_answer(const struct pkt *pkt, const struct flow *flow)
{
	uint8_t out[ICMP_MAX];
	uint32_t len = icmp_no_host(out, pkt, flow);
	struct pkt error;
	struct flow back;

	CHECK(len == icmp_no_route(out, pkt, flow)); /* the same but for what it says */
	error = pkt_init(out, sizeof(out), 0, len);

	CHECK(len <= (flow->family == 4 ? 576U : 1280U));
	if (!len)
		return;
	CHECK(parse_inner(&error, &back) == DP_DROP_NONE);
	CHECK(back.total_len == len && back.src == flow->dst && back.dst == flow->src);
	CHECK(!icmp_no_route(out, &error, &back)); /* no error about an error */
}

/**
 * pure_inner() - Carry an inner packet as far as its addresses
 * @pkt:	Any bytes
 * @outer_tos:	TOS byte of the outer header
 *
 * Return: DP_DROP_NONE or why it is refused
 */
static inline enum dp_drop pure_inner(struct pkt *pkt, uint8_t outer_tos)
{
	struct flow flow, again;
	enum dp_drop drop = parse_inner(pkt, &flow);
	uint32_t hash;

	if (drop)
		return drop;
	CHECK(flow.family == 4 || flow.family == 6);
	CHECK(flow.l3len >= (flow.family == 4 ? 20U : 40U));
	CHECK(flow.l3len <= flow.total_len && flow.total_len <= pkt->len && flow.ttl);
	CHECK(flow.is_fragment || !flow.is_later_fragment);
	CHECK(pkt_trim(pkt, flow.total_len));
	hash = parse_flow_hash(pkt, &flow);
	(void)parse_is_martian(&flow);
	(void)parse_is_multicast(&flow);
	pure_answer(pkt, &flow);
	drop = encap_decap_ecn(pkt, &flow, outer_tos);
	CHECK(parse_inner(pkt, &again) == DP_DROP_NONE); /* marking left a valid packet */
	CHECK((again.tos & ~ECN_MASK) == (flow.tos & ~ECN_MASK) && again.src == flow.src && again.dst == flow.dst);
	CHECK(parse_flow_hash(pkt, &again) == hash);
	CHECK(!drop || ((outer_tos & ECN_MASK) == ECN_CE && (flow.tos & ECN_MASK) == ECN_NOT_ECT));
	pure_describe(pkt, &flow, 1450);
	pure_describe(pkt, &flow, 68);
	return drop;
}

/**
 * pure_vxlan() - Carry a UDP payload as far as its addresses
 * @data:	Any bytes; changed
 * @len:	How many
 * @config:	What is right here
 * @outer_tos:	TOS byte of the outer header
 *
 * Return: DP_DROP_NONE or why it is refused
 */
static inline enum dp_drop pure_vxlan(uint8_t *data, uint32_t len, const struct dp_config *config, uint8_t outer_tos)
{
	struct pkt pkt = pkt_init(data, len, 0, len);
	uint8_t family = 0;
	struct flow flow;
	enum dp_drop drop = encap_vxlan_pull(&pkt, config, &family);

	if (drop)
		return drop;
	CHECK(family == 4 || family == 6);
	CHECK(pkt.off == VXLAN_PUSH && pkt.len == len - VXLAN_PUSH);
	drop = parse_inner(&pkt, &flow);
	if (!drop && flow.family != family)
		drop = DP_DROP_INNER_VERSION;
	return drop ? drop : pure_inner(&pkt, outer_tos);
}

/**
 * pure_ipip() - Carry a packet from a raw socket as far as its addresses
 * @data:	Any bytes; changed
 * @len:	How many
 *
 * Return: DP_DROP_NONE or why it is refused
 */
static inline enum dp_drop pure_ipip(uint8_t *data, uint32_t len)
{
	struct pkt pkt = pkt_init(data, len, 0, len);
	struct outer outer;
	struct flow flow;
	enum dp_drop drop = encap_ip4_pull(&pkt, &outer);

	if (drop)
		return drop;
	CHECK(pkt.off >= IP4_LEN && pkt.off <= 60 && pkt.len && pkt.off + pkt.len == len);
	drop = parse_inner(&pkt, &flow);
	if (!drop)
		drop = encap_check_ipip(&flow);
	return drop ? drop : pure_inner(&pkt, outer.tos);
}

/**
 * pure_bare() - Carry a UDP payload that is to be a bare packet as far as its addresses
 * @data:	Any bytes; changed
 * @len:	How many
 * @outer_tos:	TOS byte of the outer header
 *
 * Return: DP_DROP_NONE or why it is refused
 */
static inline enum dp_drop pure_bare(uint8_t *data, uint32_t len, uint8_t outer_tos)
{
	struct pkt pkt = pkt_init(data, len, 0, len);
	struct flow flow;
	enum dp_drop drop = encap_check_bare(&pkt);

	if (!drop)
		drop = parse_inner(&pkt, &flow);
	if (!drop && flow.family != 4)
		drop = DP_DROP_INNER_VERSION;
	CHECK(!pkt.off && pkt.len == len);
	return drop ? drop : pure_inner(&pkt, outer_tos);
}

#endif
