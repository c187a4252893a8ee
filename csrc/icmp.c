/* SPDX-License-Identifier: Apache-2.0 */
/*
 * icmp.c - ICMP errors to the sender of an inner packet.
 *
 * The error's source is the packet's own destination: an address of ours would
 * be dropped as a martian by the host that the error passes through on its way
 * to the pod.
 */
#include "icmp.h"

#include "csum.h"
#include "wire.h"

enum { ICMP_HDR_LEN = 8, ICMP_TTL = 64 };
/* RFC 1812 section 4.3.2.3: the whole error in 576 bytes; RFC 4443 section 2.4(c): in the minimum MTU. */
enum { ICMP4_MAX = 576, ICMP6_MAX = IP6_MIN_MTU };
enum { ICMP4_UNREACHABLE = 3, ICMP4_NET_UNREACHABLE = 0, ICMP4_HOST_UNREACHABLE = 1, ICMP4_FRAG_NEEDED = 4 };
enum { ICMP6_UNREACHABLE = 1, ICMP6_NO_ROUTE = 0, ICMP6_ADDR_UNREACHABLE = 3, ICMP6_TOO_BIG = 2 };
/* Less is told to nobody: every host must take this much (RFC 791 section 3.1), and the kernel says no less. */
enum { ICMP4_MTU_MIN = 576 };

/* The part of an error that tells what went wrong. */
struct reason {
	uint8_t type;
	uint8_t code;
	uint32_t mtu; /* 0: not about that */
};

/**
 * is_icmp_error() - Is this packet itself an ICMP error, or ICMP we cannot classify?
 * @pkt:	The packet
 * @flow:	The same packet, parsed
 *
 * Return: true if it must not be answered (RFC 1122 section 3.2.2, RFC 4443 section 2.4(e))
 */
static bool is_icmp_error(const struct pkt *pkt, const struct flow *flow)
{
	const uint8_t *type;

	if (flow->family == 4 ? flow->proto != PROTO_ICMP : flow->proto != PROTO_ICMP6)
		return false;
	type = pkt_at(pkt, flow->l3len, 1);
	if (!type)
		return true;
	if (flow->family == 6)
		return *type < 128; /* all ICMPv6 errors */
	/* echo and its reply, timestamp, information, address mask: queries */
	return *type != 0 && *type != 8 && (*type < 13 || *type > 18);
}

/**
 * may_answer() - May an ICMP error be sent about this packet?
 * @pkt:	The packet
 * @flow:	The same packet, parsed
 *
 * Return: false for everything that RFC 1122 section 3.2.2 and RFC 4443 section 2.4(e) exclude
 */
static bool may_answer(const struct pkt *pkt, const struct flow *flow)
{
	return !parse_is_martian(flow) && !parse_is_multicast(flow) && !flow->is_later_fragment &&
	       !is_icmp_error(pkt, flow);
}

/**
 * store_check() - Complete a checksum field
 * @check:	The field, holding 0
 * @sum:	Running sum over everything it covers
 */
static void store_check(uint8_t *check, uint64_t sum)
{
	uint16_t value = (uint16_t)~csum_fold(sum);

	memcpy(check, &value, 2);
}

/**
 * error4() - Build an ICMP error (RFC 792; with the MTU where RFC 1191 section 4 puts it)
 * @out:	Where to
 * @reason:	What went wrong
 * @orig:	Bytes of the packet it is about
 * @orig_len:	How many of them there are
 *
 * Return: length of the error in bytes
 */
static uint32_t error4(uint8_t *out, const struct reason *reason, const uint8_t *orig, uint32_t orig_len)
{
	uint32_t room = ICMP4_MAX - IP4_LEN - ICMP_HDR_LEN;
	uint32_t quote = orig_len < room ? orig_len : room;
	uint32_t len = IP4_LEN + ICMP_HDR_LEN + quote;
	uint8_t *icmp = out + IP4_LEN;

	memset(out, 0, IP4_LEN + ICMP_HDR_LEN);
	out[IP4_VERSION_IHL] = 0x45;
	store16(out + IP4_TOTAL_LEN, (uint16_t)len);
	store16(out + IP4_FRAG, IP4_DF);
	out[IP4_TTL] = ICMP_TTL;
	out[IP4_PROTO] = PROTO_ICMP;
	memcpy(out + IP4_SRC, orig + IP4_DST, 4);
	memcpy(out + IP4_DST, orig + IP4_SRC, 4);
	store_check(out + IP4_CHECK, csum_add(out, IP4_LEN, 0));

	icmp[0] = reason->type;
	icmp[1] = reason->code;
	store32(icmp + 4, reason->mtu);
	memcpy(icmp + ICMP_HDR_LEN, orig, quote);
	store_check(icmp + 2, csum_add(icmp, ICMP_HDR_LEN + quote, 0));
	return len;
}

/**
 * error6() - Build an ICMPv6 error (RFC 4443 sections 3.1, 3.2)
 * @out:	Where to
 * @reason:	What went wrong
 * @orig:	Bytes of the packet it is about
 * @orig_len:	How many of them there are
 *
 * Return: length of the error in bytes
 */
static uint32_t error6(uint8_t *out, const struct reason *reason, const uint8_t *orig, uint32_t orig_len)
{
	uint32_t room = ICMP6_MAX - IP6_LEN - ICMP_HDR_LEN;
	uint32_t quote = orig_len < room ? orig_len : room;
	uint32_t l4len = ICMP_HDR_LEN + quote;
	uint8_t *icmp = out + IP6_LEN;

	memset(out, 0, IP6_LEN + ICMP_HDR_LEN);
	out[0] = 0x60;
	store16(out + IP6_PAYLOAD_LEN, (uint16_t)l4len);
	out[IP6_NEXT] = PROTO_ICMP6;
	out[IP6_HOP_LIMIT] = ICMP_TTL;
	memcpy(out + IP6_SRC, orig + IP6_DST, 16);
	memcpy(out + IP6_DST, orig + IP6_SRC, 16);

	icmp[0] = reason->type;
	icmp[1] = reason->code;
	store32(icmp + 4, reason->mtu);
	memcpy(icmp + ICMP_HDR_LEN, orig, quote);
	store_check(icmp + 2, csum_add(icmp, l4len, csum_pseudo(out + IP6_SRC, out + IP6_DST, 16, PROTO_ICMP6, l4len)));
	return IP6_LEN + l4len;
}

/**
 * unreachable() - Build a destination unreachable
 * @out:	Room for the error, an IP packet
 * @pkt:	The packet it is about
 * @flow:	The same packet, parsed
 * @code4:	Code of ICMP
 * @code6:	Code of ICMPv6
 *
 * Return: length of the error in bytes, 0 if none may be sent
 */
static uint32_t unreachable(uint8_t out[ICMP_MAX], const struct pkt *pkt, const struct flow *flow, uint8_t code4,
			    uint8_t code6)
{
	const struct reason reason4 = {.type = ICMP4_UNREACHABLE, .code = code4};
	const struct reason reason6 = {.type = ICMP6_UNREACHABLE, .code = code6};
	const uint8_t *orig = pkt_at(pkt, 0, flow->total_len);

	if (!orig || !may_answer(pkt, flow))
		return 0;
	return flow->family == 4 ? error4(out, &reason4, orig, flow->total_len)
				 : error6(out, &reason6, orig, flow->total_len);
}

/**
 * icmp_no_route() - Tell a sender that no peer holds its destination
 * @out:	Room for the error, an IP packet
 * @pkt:	The packet it is about
 * @flow:	The same packet, parsed
 *
 * Net unreachable, or no route to destination.
 *
 * Return: length of the error in bytes, 0 if none may be sent
 */
uint32_t icmp_no_route(uint8_t out[ICMP_MAX], const struct pkt *pkt, const struct flow *flow)
{
	return unreachable(out, pkt, flow, ICMP4_NET_UNREACHABLE, ICMP6_NO_ROUTE);
}

/**
 * icmp_no_host() - Tell a sender that the peer of its destination cannot be reached
 * @out:	Room for the error, an IP packet
 * @pkt:	The packet it is about
 * @flow:	The same packet, parsed
 *
 * Host unreachable (RFC 2003 section 4), or address unreachable.
 *
 * Return: length of the error in bytes, 0 if none may be sent
 */
uint32_t icmp_no_host(uint8_t out[ICMP_MAX], const struct pkt *pkt, const struct flow *flow)
{
	return unreachable(out, pkt, flow, ICMP4_HOST_UNREACHABLE, ICMP6_ADDR_UNREACHABLE);
}

/**
 * icmp_too_big() - Tell a sender how large packets to its destination may be
 * @out:	Room for the error, an IP packet
 * @pkt:	The packet it is about; of a super-packet, all
 * @flow:	The same packet, parsed
 * @mtu:	Largest inner packet, in bytes
 *
 * IPv4 senders without DF are not told: they expect routers to fragment (RFC 1191 section 3). Nor is anybody
 * told of less than ICMP4_MTU_MIN: such a path is forged, or no use.
 * IPv6 senders are never told of less than every link must take (RFC 8200 section 5).
 *
 * Return: length of the error in bytes, 0 if none may be sent
 */
uint32_t icmp_too_big(uint8_t out[ICMP_MAX], const struct pkt *pkt, const struct flow *flow, uint32_t mtu)
{
	struct reason needed = {.type = ICMP4_UNREACHABLE, .code = ICMP4_FRAG_NEEDED, .mtu = mtu};
	struct reason big = {.type = ICMP6_TOO_BIG, .mtu = mtu < IP6_MIN_MTU ? (uint32_t)IP6_MIN_MTU : mtu};
	const uint8_t *orig = pkt_at(pkt, 0, flow->total_len);

	if (!orig || !may_answer(pkt, flow))
		return 0;
	if (flow->family == 4 && (!(load16(orig + IP4_FRAG) & IP4_DF) || mtu < ICMP4_MTU_MIN))
		return 0;
	return flow->family == 4 ? error4(out, &needed, orig, flow->total_len)
				 : error6(out, &big, orig, flow->total_len);
}
