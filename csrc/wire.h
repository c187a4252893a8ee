/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wire.h - formats on the wire and at the TUN: offsets, sizes, constants.
 *
 * Headers are described by offsets, not by structs laid over packet bytes:
 * fields are read and written through the accessors of pkt.h, so alignment and
 * byte order are never an issue.
 */
#ifndef WIRE_H
#define WIRE_H

#include <stdint.h>

/* Ethernet II */
enum { ETH_LEN = 14, ETH_DST = 0, ETH_SRC = 6, ETH_TYPE = 12, MAC_LEN = 6 };
enum { ETHERTYPE_V4 = 0x0800, ETHERTYPE_V6 = 0x86dd };

/* IPv4, RFC 791 */
enum {
	IP4_LEN = 20,
	IP4_VERSION_IHL = 0,
	IP4_TOS = 1,
	IP4_TOTAL_LEN = 2,
	IP4_ID = 4,
	IP4_FRAG = 6,
	IP4_TTL = 8,
	IP4_PROTO = 9,
	IP4_CHECK = 10,
	IP4_SRC = 12,
	IP4_DST = 16,
};
enum { IP4_DF = 0x4000, IP4_MF = 0x2000, IP4_OFFSET_MASK = 0x1fff };

/* IPv6, RFC 8200 */
enum { IP6_LEN = 40, IP6_PAYLOAD_LEN = 4, IP6_NEXT = 6, IP6_HOP_LIMIT = 7, IP6_SRC = 8, IP6_DST = 24 };
enum { IP6_MIN_MTU = 1280 };

/* IP protocol numbers */
enum {
	PROTO_HOPOPTS = 0,
	PROTO_ICMP = 1,
	PROTO_IPIP = 4,
	PROTO_TCP = 6,
	PROTO_UDP = 17,
	PROTO_IPV6 = 41,
	PROTO_ROUTING = 43,
	PROTO_FRAGMENT = 44,
	PROTO_ICMP6 = 58,
	PROTO_DSTOPTS = 60,
};

/* UDP, RFC 768, and TCP, RFC 9293 */
enum { UDP_LEN = 8, UDP_LENGTH = 4, UDP_CHECK = 6 };
enum {
	TCP_LEN = 20,
	TCP_SEQ = 4,
	TCP_ACK = 8,
	TCP_DOFF = 12,
	TCP_FLAGS = 13,
	TCP_WINDOW = 14,
	TCP_CHECK = 16,
	TCP_URGENT = 18
};
enum {
	TCP_FLAG_FIN = 1,
	TCP_FLAG_SYN = 2,
	TCP_FLAG_PSH = 8,
	TCP_FLAG_ACK = 16,
	TCP_FLAG_ECE = 0x40,
	TCP_FLAG_CWR = 0x80
};

/* VXLAN, RFC 7348 section 5 */
enum { VXLAN_LEN = 8, VXLAN_FLAGS = 0, VXLAN_VNI = 4, VXLAN_FLAG_I = 0x08, VXLAN_VNI_MAX = 0xffffff };

/* What an encapsulation adds to an inner packet, outer IP header excluded. */
enum { VXLAN_PUSH = VXLAN_LEN + ETH_LEN };

/* ECN field of the TOS byte, RFC 3168 */
enum { ECN_MASK = 3, ECN_NOT_ECT = 0, ECN_ECT1 = 1, ECN_ECT0 = 2, ECN_CE = 3 };

/* struct virtio_net_hdr as the TUN writes and reads it, virtio 1.2 section 5.1.6, host order */
struct vnet_hdr {
	uint8_t flags;
	uint8_t gso_type;
	uint16_t hdr_len;     /* bytes of all headers */
	uint16_t gso_size;    /* payload bytes per segment */
	uint16_t csum_start;  /* from the first byte of the packet */
	uint16_t csum_offset; /* from csum_start */
	uint16_t num_buffers; /* always 0 here */
};
_Static_assert(sizeof(struct vnet_hdr) == 12, "virtio_net_hdr_v1");
enum { VNET_NEEDS_CSUM = 1 };
enum { VNET_GSO_NONE = 0, VNET_GSO_TCP4 = 1, VNET_GSO_TCP6 = 4, VNET_GSO_UDP_L4 = 5, VNET_GSO_ECN = 0x80 };

/* Space in front of every packet buffer: virtio header on read, outer headers on send. */
enum { PKT_HEADROOM = 128 };
/* The largest IP packet there can be. */
enum { PKT_MAX = 65535 };

#endif
