/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever packet cannot be carried, its sender gets an error by the book, or none where none may be sent.
 *
 * An input is two bytes of path MTU, and the packet. RFC 792, 1122 section 3.2.2, 1812 section 4.3.2, 4443 section 2.4.
 */
#include "mutate.h"
#include "pure.h"

enum { HEAD = 2, ICMP_HEAD = 8, MTU4_MIN = 576 };

/**
 * is_error4() - Does an IPv4 packet hold an ICMP error, or what may be one?
 * @ip:		The packet
 * @flow:	The same, parsed
 *
 * Return: true if it does
 */
static bool is_error4(const uint8_t *ip, const struct flow *flow)
{
	static const uint8_t queries[] = {0, 8, 13, 14, 15, 16, 17, 18};

	if (flow->proto != PROTO_ICMP)
		return false;
	return flow->total_len <= flow->l3len || !memchr(queries, ip[flow->l3len], sizeof(queries));
}

/**
 * is_silent() - Must nobody be told about a packet?
 * @ip:		The packet
 * @flow:	The same, parsed
 *
 * Return: true for ICMP errors, fragments but the first, and what does not come from or go to one host
 */
static bool is_silent(const uint8_t *ip, const struct flow *flow)
{
	const uint8_t *src = ip + IP6_SRC, *dst = ip + IP6_DST;
	static const uint8_t zeroes[16];

	if (flow->is_later_fragment)
		return true;
	if (flow->family == 4)
		return is_error4(ip, flow) || ip[IP4_SRC] == 0 || ip[IP4_SRC] == 127 || ip[IP4_SRC] >= 224 ||
		       ip[IP4_DST] >= 224 || !memcmp(ip + IP4_DST, zeroes, 4);
	if (flow->proto == PROTO_ICMP6 && (flow->total_len <= flow->l3len || ip[flow->l3len] < 128))
		return true;
	return src[0] == 0xff || (src[0] == 0xfe && src[1] >> 6 == 2) || !memcmp(src, zeroes, 12) ||
	       (!memcmp(src, zeroes, 10) && src[10] == 0xff && src[11] == 0xff) || dst[0] == 0xff ||
	       !memcmp(dst, zeroes, 16);
}

/**
 * check_error() - Is an error right in every byte?
 * @out:	The error
 * @len:	Its length
 * @ip:		The packet it is about
 * @total_len:	Length of that
 * @word:	Type, code and what stands behind the checksum
 */
static void check_error(const uint8_t *out, uint32_t len, const uint8_t *ip, uint32_t total_len, const uint8_t word[6])
{
	bool is4 = ip[0] >> 4 == 4;
	uint32_t l3len = is4 ? IP4_LEN : IP6_LEN, most = is4 ? 576 : 1280;
	uint32_t src = is4 ? IP4_SRC : IP6_SRC, addr_len = is4 ? 4 : 16;
	const uint8_t *icmp = out + l3len;

	CHECK(out[0] == (is4 ? 0x45 : 0x60) && out[is4 ? IP4_PROTO : IP6_NEXT] == (is4 ? PROTO_ICMP : PROTO_ICMP6));
	CHECK(len == (l3len + ICMP_HEAD + total_len < most ? l3len + ICMP_HEAD + total_len : most));
	CHECK(load16(out + (is4 ? IP4_TOTAL_LEN : IP6_PAYLOAD_LEN)) == len - (is4 ? 0 : l3len));
	CHECK(out[is4 ? IP4_TTL : IP6_HOP_LIMIT] == 64);
	CHECK(!memcmp(out + src, ip + src + addr_len, addr_len) && !memcmp(out + src + addr_len, ip + src, addr_len));
	CHECK(icmp[0] == word[0] && icmp[1] == word[1] && !memcmp(icmp + 4, word + 2, 4));
	CHECK(!memcmp(icmp + ICMP_HEAD, ip, len - l3len - ICMP_HEAD));
	CHECK(!is4 || mutate_naive_sum(out, IP4_LEN, 0) == 0xffff);
	CHECK(mutate_naive_sum(icmp, len - l3len, is4 ? 0 : mutate_pseudo(out, PROTO_ICMP6, len - l3len)) == 0xffff);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct wall room;
	uint32_t len, mtu, told, route, big;
	struct flow flow;
	struct pkt pkt;
	uint8_t *out;
	bool may_tell;

	if (size < HEAD || size > PKT_MAX)
		return 0;
	if (!room.first)
		room = wall_build();
	out = room.end - ICMP_MAX;
	len = (uint32_t)size - HEAD;
	mtu = load16(data);
	pkt = pkt_init(fuzz_place(fuzz_wall(), data + HEAD, len), len, 0, len);
	if (parse_inner(&pkt, &flow))
		return fuzz_count(false);
	pkt_trim(&pkt, flow.total_len);
	route = icmp_no_route(out, &pkt, &flow);
	CHECK(!route == is_silent(pkt.buf, &flow));
	if (route)
		check_error(out, route, pkt.buf, flow.total_len, (uint8_t[6]){flow.family == 4 ? 3 : 1});
	CHECK(icmp_no_host(out, &pkt, &flow) == route);
	if (route)
		check_error(out, route, pkt.buf, flow.total_len,
			    (uint8_t[6]){flow.family == 4 ? 3 : 1, flow.family == 4 ? 1 : 3});
	big = icmp_too_big(out, &pkt, &flow, mtu);
	may_tell = flow.family == 6 || ((load16(pkt.buf + IP4_FRAG) & IP4_DF) && mtu >= MTU4_MIN);
	CHECK(!big == (!route || !may_tell));
	told = flow.family == 6 && mtu < IP6_MIN_MTU ? (uint32_t)IP6_MIN_MTU : mtu;
	if (big)
		check_error(out, big, pkt.buf, flow.total_len,
			    (uint8_t[6]){flow.family == 4 ? 3 : 2, flow.family == 4 ? 4 : 0, 0, 0, (uint8_t)(told >> 8),
					 (uint8_t)told});
	CHECK(!memcmp(pkt.buf, data + HEAD, pkt.len));
	return fuzz_count(route);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned int seed)
{
	return mutate_packet(data, size, room, HEAD, seed);
}
