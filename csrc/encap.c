/* SPDX-License-Identifier: Apache-2.0 */
/* encap.c - adding and removing outer headers, and the ECN rules between them. */
#include "encap.h"

#include "csum.h"
#include "wire.h"

/**
 * encap_vxlan_push() - Put inner Ethernet and VXLAN headers in front of an IP packet
 * @pkt:	Inner IP packet, with VXLAN_PUSH bytes of headroom
 * @family:	4 or 6, of the inner packet
 * @vni:	24-bit network identifier, host order
 * @dst_mac:	VTEP MAC of the peer
 * @src_mac:	Our VTEP MAC
 *
 * RFC 7348 section 5; reserved bits are 0.
 *
 * Return: true, or false (and nothing changed) without the headroom
 */
bool encap_vxlan_push(struct pkt *pkt, uint8_t family, uint32_t vni, const uint8_t *dst_mac, const uint8_t *src_mac)
{
	uint8_t *vxlan = pkt_push(pkt, VXLAN_PUSH);
	uint8_t *eth;

	if (!vxlan)
		return false;
	eth = vxlan + VXLAN_LEN;
	store32(vxlan + VXLAN_FLAGS, (uint32_t)VXLAN_FLAG_I << 24);
	store32(vxlan + VXLAN_VNI, vni << 8);
	memcpy(eth + ETH_DST, dst_mac, MAC_LEN);
	memcpy(eth + ETH_SRC, src_mac, MAC_LEN);
	store16(eth + ETH_TYPE, family == 4 ? ETHERTYPE_V4 : ETHERTYPE_V6);
	return true;
}

/**
 * is_own_mac() - Is this the MAC we publish for a family?
 * @mac:	Six bytes
 * @family:	4 or 6; 0: either
 * @config:	Ours
 *
 * Return: true if it is
 */
static bool is_own_mac(const uint8_t *mac, uint8_t family, const struct dp_config *config)
{
	return (family != 6 && !memcmp(mac, config->vtep_mac4, MAC_LEN)) ||
	       (family != 4 && !memcmp(mac, config->vtep_mac6, MAC_LEN));
}

/**
 * is_sender_mac() - Could this MAC be a peer's?
 * @mac:	Six bytes
 * @config:	Ours
 *
 * Return: true if it is unicast, not zero and not ours
 */
static bool is_sender_mac(const uint8_t *mac, const struct dp_config *config)
{
	static const uint8_t zero[MAC_LEN];

	return !(mac[0] & 1) && memcmp(mac, zero, MAC_LEN) && !is_own_mac(mac, 0, config);
}

/**
 * encap_vxlan_pull() - Take VXLAN and inner Ethernet headers off a UDP payload
 * @pkt:	UDP payload; becomes the inner IP packet
 * @config:	VNI, our VTEP MACs, and what to do about reserved bits
 * @family:	Set to what the ethertype promises, 4 or 6
 *
 * RFC 7348 section 5. Bits that RFC calls reserved are refused by default, as
 * the Linux kernel does: they are how extensions with another payload type
 * mark themselves.
 *
 * Return: DP_DROP_NONE, or DP_DROP_SHORT, _VXLAN_FLAGS, _VNI, _ETHERTYPE, _INNER_MAC
 */
enum dp_drop encap_vxlan_pull(struct pkt *pkt, const struct dp_config *config, uint8_t *family)
{
	const uint8_t *vxlan = pkt_pull(pkt, VXLAN_PUSH);
	const uint8_t *eth;
	uint16_t ethertype;

	if (!vxlan)
		return DP_DROP_SHORT;
	if (!(vxlan[VXLAN_FLAGS] & VXLAN_FLAG_I))
		return DP_DROP_VXLAN_FLAGS;
	if (!config->reserved_ignore &&
	    (load32(vxlan + VXLAN_FLAGS) != (uint32_t)VXLAN_FLAG_I << 24 || vxlan[VXLAN_VNI + 3]))
		return DP_DROP_VXLAN_FLAGS;
	if (load32(vxlan + VXLAN_VNI) >> 8 != config->vni)
		return DP_DROP_VNI;

	eth = vxlan + VXLAN_LEN;
	ethertype = load16(eth + ETH_TYPE);
	if (ethertype != ETHERTYPE_V4 && ethertype != ETHERTYPE_V6)
		return DP_DROP_ETHERTYPE;
	*family = ethertype == ETHERTYPE_V4 ? 4 : 6;
	if (!is_own_mac(eth + ETH_DST, *family, config) || !is_sender_mac(eth + ETH_SRC, config))
		return DP_DROP_INNER_MAC;
	return DP_DROP_NONE;
}

/**
 * encap_ip4_pull() - Take the outer IPv4 header off a packet from a raw socket
 * @pkt:	Packet as a raw socket gives it; becomes what the outer header carries
 * @outer:	Filled in
 *
 * The kernel has verified the header and reassembled fragments; only lengths
 * are looked at again.
 *
 * Return: DP_DROP_NONE or DP_DROP_SHORT
 */
enum dp_drop encap_ip4_pull(struct pkt *pkt, struct outer *outer)
{
	const uint8_t *ip = pkt_at(pkt, 0, IP4_LEN);
	uint32_t l3len;

	if (!ip)
		return DP_DROP_SHORT;
	l3len = (ip[IP4_VERSION_IHL] & 0x0fU) * 4;
	if (l3len < IP4_LEN || !pkt_pull(pkt, l3len) || !pkt->len)
		return DP_DROP_SHORT;
	outer->tos = ip[IP4_TOS];
	outer->src = load32(ip + IP4_SRC);
	outer->dst = load32(ip + IP4_DST);
	return DP_DROP_NONE;
}

/**
 * encap_check_ipip() - May this packet come out of an IPIP tunnel?
 * @flow:	The inner packet, parsed
 *
 * IPIP carries IPv4, and a tunnel inside the tunnel is how laundered packets travel.
 *
 * Return: DP_DROP_NONE, DP_DROP_INNER_VERSION for IPv6, DP_DROP_NESTED for a tunnel in the tunnel
 */
enum dp_drop encap_check_ipip(const struct flow *flow)
{
	if (flow->family != 4)
		return DP_DROP_INNER_VERSION;
	return flow->proto == PROTO_IPIP || flow->proto == PROTO_IPV6 ? DP_DROP_NESTED : DP_DROP_NONE;
}

/**
 * encap_check_bare() - Is there anything in a UDP datagram that carries a bare packet?
 * @pkt:	UDP payload
 *
 * There is no header to take off: what follows is the inner packet, which is IPv4.
 *
 * Return: DP_DROP_NONE, or DP_DROP_SHORT for an empty one
 */
enum dp_drop encap_check_bare(const struct pkt *pkt)
{
	return pkt->len ? DP_DROP_NONE : DP_DROP_SHORT;
}

/**
 * encap_tos() - TOS byte of the outer header
 * @config:	Whether the DSCP is to be copied
 * @inner_tos:	TOS byte or traffic class of the inner packet
 *
 * RFC 6040 section 4.1, normal mode: ECN is always copied. DSCP is not, unless
 * it was asked for (RFC 2983, pipe model); on the way in it never is.
 *
 * Return: the outer TOS byte
 */
uint8_t encap_tos(const struct dp_config *config, uint8_t inner_tos)
{
	return config->dscp_inherit ? inner_tos : inner_tos & ECN_MASK;
}

/**
 * set_ecn() - Write the ECN field of an IP header
 * @pkt:	Packet that begins with the header
 * @flow:	The same packet, parsed; its TOS changes with it
 * @ecn:	New value
 */
static void set_ecn(const struct pkt *pkt, struct flow *flow, uint8_t ecn)
{
	uint8_t *ip = pkt_at(pkt, 0, 2);
	uint8_t tos = (uint8_t)((flow->tos & ~ECN_MASK) | ecn);
	uint16_t old;

	if (!ip)
		return;
	flow->tos = tos;
	if (flow->family == 6) {
		ip[0] = (uint8_t)((ip[0] & 0xf0) | tos >> 4);
		ip[1] = (uint8_t)((ip[1] & 0x0f) | tos << 4);
		return;
	}
	old = load16(ip);
	ip[IP4_TOS] = tos;
	csum_replace16(ip + IP4_CHECK, old, load16(ip));
}

/**
 * encap_decap_ecn() - Combine outer and inner ECN on decapsulation
 * @pkt:	Inner packet; its ECN field, and for IPv4 its header checksum, are changed where needed
 * @flow:	The same packet, parsed; its TOS changes with it, since packets are joined by that
 * @outer_tos:	TOS byte or traffic class of the outer header
 *
 * RFC 6040 figure 4.
 *
 * Return: DP_DROP_NONE, or DP_DROP_ECN for outer CE on an inner Not-ECT
 */
enum dp_drop encap_decap_ecn(const struct pkt *pkt, struct flow *flow, uint8_t outer_tos)
{
	uint8_t inner = flow->tos & ECN_MASK;
	uint8_t outer = outer_tos & ECN_MASK;

	if (outer == ECN_CE && inner == ECN_NOT_ECT)
		return DP_DROP_ECN;
	if (inner == ECN_NOT_ECT || inner == ECN_CE)
		return DP_DROP_NONE;
	if (outer == ECN_CE || (outer == ECN_ECT1 && inner == ECN_ECT0))
		set_ecn(pkt, flow, outer);
	return DP_DROP_NONE;
}
