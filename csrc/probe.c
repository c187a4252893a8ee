/* SPDX-License-Identifier: Apache-2.0 */
/*
 * probe.c - lets tests in Python call the pure units; part of no build but theirs.
 *
 * Adapters only: each one translates its arguments and calls what it is named after.
 * probe.h comes last, so that the compiler compares it with the headers it repeats.
 */
#include <stdlib.h>
#include <string.h>

#include "csum.h"
#include "encap.h"
#include "icmp.h"
#include "offload.h"
#include "parse.h"
#include "pkt.h"
#include "wire.h"
#include "probe.h"

/* --- pkt ------------------------------------------------------------------- */

/**
 * unwrap() - The view that Python described
 * @probe:	As Python has it
 *
 * Return: the same view
 */
static struct pkt unwrap(const struct probe_pkt *probe)
{
	return (struct pkt){.buf = probe->buf, .cap = probe->cap, .off = probe->off, .len = probe->len};
}

/**
 * wrap() - Show Python what became of a view
 * @probe:	As Python has it
 * @pkt:	The view
 */
static void wrap(struct probe_pkt *probe, const struct pkt *pkt)
{
	*probe = (struct probe_pkt){.buf = pkt->buf, .cap = pkt->cap, .off = pkt->off, .len = pkt->len};
}

/**
 * probe_pkt_init() - pkt_init()
 * @out:	What it returns
 * @buf:	As there
 * @cap:	As there
 * @off:	As there
 * @len:	As there
 */
void probe_pkt_init(struct probe_pkt *out, uint8_t *buf, uint32_t cap, uint32_t off, uint32_t len)
{
	struct pkt pkt = pkt_init(buf, cap, off, len);

	wrap(out, &pkt);
}

/**
 * probe_pkt_at() - pkt_at()
 * @pkt:	As there
 * @off:	As there
 * @len:	As there
 *
 * Return: as there
 */
uint8_t *probe_pkt_at(const struct probe_pkt *pkt, uint32_t off, uint32_t len)
{
	struct pkt view = unwrap(pkt);

	return pkt_at(&view, off, len);
}

/**
 * probe_pkt_pull() - pkt_pull()
 * @pkt:	As there
 * @len:	As there
 *
 * Return: as there
 */
uint8_t *probe_pkt_pull(struct probe_pkt *pkt, uint32_t len)
{
	struct pkt view = unwrap(pkt);
	uint8_t *taken = pkt_pull(&view, len);

	wrap(pkt, &view);
	return taken;
}

/**
 * probe_pkt_push() - pkt_push()
 * @pkt:	As there
 * @len:	As there
 *
 * Return: as there
 */
uint8_t *probe_pkt_push(struct probe_pkt *pkt, uint32_t len)
{
	struct pkt view = unwrap(pkt);
	uint8_t *first = pkt_push(&view, len);

	wrap(pkt, &view);
	return first;
}

/**
 * probe_pkt_trim() - pkt_trim()
 * @pkt:	As there
 * @len:	As there
 *
 * Return: as there
 */
uint8_t probe_pkt_trim(struct probe_pkt *pkt, uint32_t len)
{
	struct pkt view = unwrap(pkt);
	bool is_cut = pkt_trim(&view, len);

	wrap(pkt, &view);
	return is_cut;
}

/**
 * probe_load() - load16(), load32() or load64()
 * @at:		As there
 * @bytes:	2, 4 or 8
 *
 * Return: as there
 */
uint64_t probe_load(const uint8_t *at, uint32_t bytes)
{
	return bytes == 2 ? load16(at) : bytes == 4 ? load32(at) : load64(at);
}

/**
 * probe_store() - store16() or store32()
 * @at:		As there
 * @bytes:	2 or 4
 * @value:	As there
 */
void probe_store(uint8_t *at, uint32_t bytes, uint32_t value)
{
	if (bytes == 2)
		store16(at, (uint16_t)value);
	else
		store32(at, value);
}

/* --- parse ------------------------------------------------------------------ */

/**
 * put_addr() - Write an address in wire order
 * @out:	4 or 16 bytes
 * @family:	4 or 6
 * @addr:	The address as a number
 */
static void put_addr(uint8_t *out, uint8_t family, addr_t addr)
{
	uint32_t bytes = family == 4 ? 4 : 16;

	for (uint32_t i = bytes; i-- > 0; addr >>= 8)
		out[i] = (uint8_t)addr;
}

/**
 * probe_parse_inner() - parse_inner(), and all predicates of the flow
 * @pkt:	As there
 * @out:	Filled in if the packet is valid, zeroed otherwise
 *
 * Return: as there
 */
uint32_t probe_parse_inner(const struct probe_pkt *pkt, struct probe_flow *out)
{
	struct pkt view = unwrap(pkt);
	struct flow flow;
	enum dp_drop drop = parse_inner(&view, &flow);

	memset(out, 0, sizeof(*out));
	if (drop)
		return drop;
	out->family = flow.family;
	out->proto = flow.proto;
	out->tos = flow.tos;
	out->ttl = flow.ttl;
	out->is_fragment = flow.is_fragment;
	out->is_later_fragment = flow.is_later_fragment;
	out->is_martian = parse_is_martian(&flow);
	out->is_multicast = parse_is_multicast(&flow);
	out->l3len = flow.l3len;
	out->total_len = flow.total_len;
	out->hash = parse_flow_hash(&view, &flow);
	put_addr(out->src, flow.family, flow.src);
	put_addr(out->dst, flow.family, flow.dst);
	return drop;
}

/**
 * probe_parse_equals() - parse_equals()
 * @addr:	Address to give as a number; family 4 or 6
 * @other:	As there
 *
 * Return: as there
 */
uint8_t probe_parse_equals(const struct dp_addr *addr, const struct dp_addr *other)
{
	return parse_equals(parse_addr(addr->family, addr->bytes), addr->family, other);
}

/* --- encap ------------------------------------------------------------------ */

/**
 * probe_encap_vxlan_push() - encap_vxlan_push()
 * @pkt:	As there
 * @family:	As there
 * @vni:	As there
 * @dst_mac:	As there
 * @src_mac:	As there
 *
 * Return: as there
 */
uint8_t probe_encap_vxlan_push(struct probe_pkt *pkt, uint8_t family, uint32_t vni, const uint8_t *dst_mac,
			       const uint8_t *src_mac)
{
	struct pkt view = unwrap(pkt);
	bool is_done = encap_vxlan_push(&view, family, vni, dst_mac, src_mac);

	wrap(pkt, &view);
	return is_done;
}

/**
 * probe_encap_vxlan_pull() - encap_vxlan_pull()
 * @pkt:	As there
 * @config:	As there
 * @family:	As there
 *
 * Return: as there
 */
uint32_t probe_encap_vxlan_pull(struct probe_pkt *pkt, const struct dp_config *config, uint8_t *family)
{
	struct pkt view = unwrap(pkt);
	enum dp_drop drop = encap_vxlan_pull(&view, config, family);

	wrap(pkt, &view);
	return drop;
}

/**
 * probe_encap_ip4_pull() - encap_ip4_pull()
 * @pkt:	As there
 * @out:	Filled in unless the packet is refused
 *
 * Return: as there
 */
uint32_t probe_encap_ip4_pull(struct probe_pkt *pkt, struct probe_outer *out)
{
	struct pkt view = unwrap(pkt);
	struct outer outer;
	enum dp_drop drop = encap_ip4_pull(&view, &outer);

	wrap(pkt, &view);
	memset(out, 0, sizeof(*out));
	if (drop)
		return drop;
	out->tos = outer.tos;
	put_addr(out->src, 4, outer.src);
	put_addr(out->dst, 4, outer.dst);
	return drop;
}

/**
 * probe_encap_check_ipip() - parse_inner(), then encap_check_ipip()
 * @pkt:	What an IPIP packet carries
 *
 * Return: the first reason of the two
 */
uint32_t probe_encap_check_ipip(const struct probe_pkt *pkt)
{
	struct pkt view = unwrap(pkt);
	struct flow flow;
	enum dp_drop drop = parse_inner(&view, &flow);

	return drop ? drop : encap_check_ipip(&flow);
}

/**
 * probe_encap_check_bare() - encap_check_bare()
 * @pkt:	As there
 *
 * Return: as there
 */
uint32_t probe_encap_check_bare(const struct probe_pkt *pkt)
{
	struct pkt view = unwrap(pkt);

	return encap_check_bare(&view);
}

/**
 * probe_encap_decap_ecn() - parse_inner(), then encap_decap_ecn()
 * @pkt:	Inner packet
 * @outer_tos:	As there
 *
 * Return: the first reason of the two
 */
uint32_t probe_encap_decap_ecn(const struct probe_pkt *pkt, uint8_t outer_tos)
{
	struct pkt view = unwrap(pkt);
	struct flow flow;
	enum dp_drop drop = parse_inner(&view, &flow);

	return drop ? drop : encap_decap_ecn(&view, &flow, outer_tos);
}

/* --- offload and icmp -------------------------------------------------------- */

/**
 * probe_offload_complete() - parse_inner(), then offload_complete()
 * @pkt:	As there
 * @vnet:	Bytes of the virtio header
 *
 * Return: the first reason of the two
 */
uint32_t probe_offload_complete(const struct probe_pkt *pkt, const uint8_t vnet[12])
{
	struct pkt view = unwrap(pkt);
	struct vnet_hdr hdr;
	struct flow flow;
	enum dp_drop drop = parse_inner(&view, &flow);

	memcpy(&hdr, vnet, sizeof(hdr));
	return drop ? drop : offload_complete(&view, &flow, &hdr);
}

/**
 * probe_offload_describe() - parse_inner(), then offload_describe()
 * @pkt:	As there
 * @mtu:	As there
 * @vnet:	Set to the bytes of the virtio header
 *
 * Return: as there; 0 if the packet is not valid
 */
uint32_t probe_offload_describe(const struct probe_pkt *pkt, uint32_t mtu, uint8_t vnet[12])
{
	struct pkt view = unwrap(pkt);
	struct vnet_hdr hdr;
	struct flow flow;
	uint32_t units;

	if (parse_inner(&view, &flow))
		return 0;
	units = offload_describe(&view, &flow, mtu, &hdr);
	memcpy(vnet, &hdr, sizeof(hdr));
	return units;
}

/**
 * probe_icmp_no_route() - parse_inner(), then icmp_no_route()
 * @out:	As there
 * @pkt:	As there
 *
 * Return: as there; 0 if the packet is not valid
 */
uint32_t probe_icmp_no_route(uint8_t *out, const struct probe_pkt *pkt)
{
	struct pkt view = unwrap(pkt);
	struct flow flow;

	return parse_inner(&view, &flow) ? 0 : icmp_no_route(out, &view, &flow);
}

/**
 * probe_icmp_no_host() - parse_inner(), then icmp_no_host()
 * @out:	As there
 * @pkt:	As there
 *
 * Return: as there; 0 if the packet is not valid
 */
uint32_t probe_icmp_no_host(uint8_t *out, const struct probe_pkt *pkt)
{
	struct pkt view = unwrap(pkt);
	struct flow flow;

	return parse_inner(&view, &flow) ? 0 : icmp_no_host(out, &view, &flow);
}

/**
 * probe_icmp_too_big() - parse_inner(), then icmp_too_big()
 * @out:	As there
 * @pkt:	As there
 * @mtu:	As there
 *
 * Return: as there; 0 if the packet is not valid
 */
uint32_t probe_icmp_too_big(uint8_t *out, const struct probe_pkt *pkt, uint32_t mtu)
{
	struct pkt view = unwrap(pkt);
	struct flow flow;

	return parse_inner(&view, &flow) ? 0 : icmp_too_big(out, &view, &flow, mtu);
}
