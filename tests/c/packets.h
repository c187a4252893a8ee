/* SPDX-License-Identifier: Apache-2.0 */
/* packets.h - good packets to begin with, and repairs that let damaged ones get further. */
#ifndef PACKETS_H
#define PACKETS_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "csum.h"
#include "dp.h"
#include "encap.h"
#include "pkt.h"
#include "wire.h"

enum { PACKET_VNI = 0x00a1b2, PACKET_ROOM = 2048 };

/* Ours are the VTEP MACs ending in 01; the peer is 02. */
static const struct dp_config packet_config = {
	.vni = PACKET_VNI,
	.tun_mtu = 1450,
	.threads = 1,
	.queues = 1,
	.sources = 1,
	.vtep_mac4 = {0x02, 0x4f, 0, 0, 4, 1},
	.vtep_mac6 = {0x02, 0x4f, 0, 0, 6, 1},
	.encaps = 1 << DP_ENCAP_VXLAN | 1 << DP_ENCAP_IPIP | 1 << DP_ENCAP_FLANNEL_UDP,
};
static const uint8_t packet_peer_mac[MAC_LEN] = {0x02, 0x4f, 0, 0, 4, 2};

/**
 * packet_repair() - Make an IPv4 header checksum right
 * @ip:		Bytes that may begin with an IPv4 header
 * @len:	How many there are; too few are left alone
 */
static inline void packet_repair(uint8_t *ip, uint32_t len)
{
	uint32_t l3len;
	uint16_t sum;

	if (len < IP4_LEN || ip[0] >> 4 != 4)
		return;
	l3len = (ip[0] & 0x0fU) * 4;
	if (l3len < IP4_LEN || l3len > len)
		return;
	store16(ip + IP4_CHECK, 0);
	sum = (uint16_t)~csum_fold(csum_add(ip, l3len, 0));
	memcpy(ip + IP4_CHECK, &sum, sizeof(sum));
}

/**
 * packet_ip4() - Write an IPv4 packet from 10.244.2.5 to 10.244.1.5
 * @out:	Room for 20 + @words * 4 + @payload_len bytes
 * @proto:	Protocol
 * @words:	32-bit words of options, 0 .. 10
 * @payload_len:	Bytes of payload, counting up
 *
 * Return: bytes written
 */
static inline uint32_t packet_ip4(uint8_t *out, uint8_t proto, uint32_t words, uint32_t payload_len)
{
	uint32_t l3len = IP4_LEN + 4 * words;

	memset(out, 1, l3len); /* options: 1 is "no operation" */
	memset(out, 0, IP4_LEN);
	out[IP4_VERSION_IHL] = (uint8_t)(0x45 + words);
	store16(out + IP4_TOTAL_LEN, (uint16_t)(l3len + payload_len));
	store16(out + IP4_FRAG, IP4_DF);
	out[IP4_TTL] = 64;
	out[IP4_PROTO] = proto;
	store32(out + IP4_SRC, 0x0af40205);
	store32(out + IP4_DST, 0x0af40105);
	for (uint32_t i = 0; i < payload_len; i++)
		out[l3len + i] = (uint8_t)i;
	packet_repair(out, l3len);
	return l3len + payload_len;
}

/**
 * packet_ip6() - Write an IPv6 packet from fd00:244:0:2::5 to fd00:244:0:1::5
 * @out:	Room for 40 + @extensions * 8 + @payload_len bytes
 * @proto:	Protocol
 * @extensions:	Destination options headers in front of it; the last is a fragment header
 * @payload_len:	Bytes of payload, counting up
 *
 * Return: bytes written
 */
static inline uint32_t packet_ip6(uint8_t *out, uint8_t proto, uint32_t extensions, uint32_t payload_len)
{
	uint8_t *next = out + IP6_NEXT;
	uint32_t off = IP6_LEN;

	memset(out, 0, IP6_LEN + 8 * extensions);
	out[0] = 0x60;
	store16(out + IP6_PAYLOAD_LEN, (uint16_t)(8 * extensions + payload_len));
	out[IP6_HOP_LIMIT] = 64;
	for (int i = 0; i < 2; i++) {
		store32(out + IP6_SRC + 16 * i, 0xfd000244);
		store32(out + IP6_SRC + 16 * i + 4, 2 - (uint32_t)i);
		store32(out + IP6_SRC + 16 * i + 12, 5);
	}
	for (uint32_t i = 0; i < extensions; i++, off += 8) {
		*next = i + 1 < extensions ? PROTO_DSTOPTS : PROTO_FRAGMENT;
		next = out + off;
	}
	*next = proto;
	for (uint32_t i = 0; i < payload_len; i++)
		out[off + i] = (uint8_t)i;
	return off + payload_len;
}

/**
 * packet_vxlan() - Put VXLAN headers of a peer in front of a packet for us
 * @out:	Room for VXLAN_PUSH + @len bytes
 * @inner:	IP packet
 * @len:	Its length
 *
 * Return: bytes written
 */
static inline uint32_t packet_vxlan(uint8_t *out, const uint8_t *inner, uint32_t len)
{
	uint8_t family = inner[0] >> 4;
	struct pkt pkt = pkt_init(out, VXLAN_PUSH + len, VXLAN_PUSH, len);
	const uint8_t *own_mac = family == 4 ? packet_config.vtep_mac4 : packet_config.vtep_mac6;

	memcpy(out + VXLAN_PUSH, inner, len);
	encap_vxlan_push(&pkt, family, PACKET_VNI, own_mac, packet_peer_mac);
	return pkt.len;
}

/**
 * packet_ipip() - Put an outer IPv4 header in front of a packet
 * @out:	Room for IP4_LEN + @len bytes
 * @inner:	IP packet
 * @len:	Its length
 *
 * Return: bytes written
 */
static inline uint32_t packet_ipip(uint8_t *out, const uint8_t *inner, uint32_t len)
{
	packet_ip4(out, PROTO_IPIP, 0, len);
	memcpy(out + IP4_LEN, inner, len);
	return IP4_LEN + len;
}

/**
 * packet_good() - Write one of a few good inner packets
 * @out:	Room for PACKET_ROOM bytes
 * @which:	From 0
 *
 * Return: bytes written, 0 if there is no such packet
 */
static inline uint32_t packet_good(uint8_t *out, int which)
{
	switch (which) {
	case 0:
		return packet_ip4(out, PROTO_UDP, 0, 36);
	case 1:
		return packet_ip4(out, PROTO_TCP, 0, 60);
	case 2:
		return packet_ip4(out, PROTO_ICMP, 10, 8);
	case 3:
		return packet_ip6(out, PROTO_UDP, 0, 36);
	case 4:
		return packet_ip6(out, PROTO_TCP, 3, 60);
	case 5:
		return packet_ip6(out, PROTO_ICMP6, 8, 16);
	case 6:
		return packet_ip4(out, PROTO_TCP, 0, 1900);
	default:
		return 0;
	}
}

#endif
