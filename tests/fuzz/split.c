/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever super-packet the TUN hands over is refused, or its segments are what it stands for, each a right packet.
 *
 * An input is a virtio header of 12 bytes and the packet. What a segment must be is found out naively.
 */
#include "mutate.h"
#include "parse.h"
#include "split.h"

/**
 * expect() - Write the headers that a segment must have
 * @out:	Room for them
 * @ip:		Super-packet
 * @split:	The plan
 * @index:	Which segment
 * @len:	Bytes of payload in it
 */
static void expect(uint8_t *out, const uint8_t *ip, const struct split *split, uint32_t index, uint32_t len)
{
	uint32_t off = index * split->size, l4len = split->headers - split->l3len;
	uint8_t *l4 = out + split->l3len;
	bool is_last = off + len == split->payload, is_tcp = split->proto == PROTO_TCP;
	uint32_t sum;

	memcpy(out, ip, split->headers);
	if (split->family == 4) {
		store16(out + IP4_TOTAL_LEN, (uint16_t)(split->headers + len));
		store16(out + IP4_ID, (uint16_t)(load16(ip + IP4_ID) + index));
		store16(out + IP4_CHECK, 0);
		store16(out + IP4_CHECK, (uint16_t)~mutate_naive_sum(out, split->l3len, 0));
	} else {
		store16(out + IP6_PAYLOAD_LEN, (uint16_t)(split->headers + len - IP6_LEN));
	}
	if (is_tcp) {
		store32(l4 + TCP_SEQ, load32(l4 + TCP_SEQ) + off);
		l4[TCP_FLAGS] &= is_last ? 0xff : 0xf6;
		l4[TCP_FLAGS] &= index ? 0x7f : 0xff;
	} else {
		store16(l4 + UDP_LENGTH, (uint16_t)(l4len + len));
	}
	store16(l4 + (is_tcp ? TCP_CHECK : UDP_CHECK), 0);
	sum = mutate_naive_sum(l4, l4len, mutate_pseudo(out, split->proto, l4len + len));
	sum = ~mutate_naive_sum(ip + split->headers + off, len, sum) & 0xffff;
	store16(l4 + (is_tcp ? TCP_CHECK : UDP_CHECK), (uint16_t)(sum || is_tcp ? sum : 0xffff));
}

/**
 * check_segments() - Is each segment right, and is all of the payload in them?
 * @pkt:	Super-packet
 * @split:	The plan
 */
static void check_segments(const struct pkt *pkt, const struct split *split)
{
	const uint8_t *ip = pkt->buf + pkt->off;
	uint8_t expected[SPLIT_HEADERS];
	static struct wall wall;
	uint32_t total = 0;

	if (!wall.first)
		wall = wall_build();
	for (uint32_t i = 0; i < split->count; i++) {
		uint8_t *out = wall.end - split->headers;
		uint32_t len = split_header(pkt, split, i, out);

		CHECK(total == i * split->size && len <= split->size && (len == split->size || i + 1 == split->count));
		CHECK(len || !split->payload);
		expect(expected, ip, split, i, len);
		CHECK(!memcmp(out, expected, split->headers));
		total += len;
	}
	CHECK(total == split->payload);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vnet_hdr vnet;
	struct split split;
	enum dp_drop drop;
	struct flow flow;
	struct pkt pkt;
	uint32_t len;

	if (size < sizeof(vnet) || size > PKT_MAX)
		return 0;
	memcpy(&vnet, data, sizeof(vnet));
	len = (uint32_t)(size - sizeof(vnet));
	pkt = pkt_init(fuzz_place(fuzz_wall(), data + sizeof(vnet), len), len, 0, len);
	if (parse_inner(&pkt, &flow))
		return fuzz_count(false);
	pkt_trim(&pkt, flow.total_len);
	drop = split_plan(&pkt, &flow, &vnet, &split);
	CHECK(drop == DP_DROP_NONE || drop == DP_DROP_VNET_HEADER);
	if (drop)
		return fuzz_count(false);
	CHECK(split.headers <= SPLIT_HEADERS && split.headers + split.payload == pkt.len && split.count >= 1);
	CHECK(split.size == vnet.gso_size && split.proto == flow.proto && !flow.is_fragment);
	check_segments(&pkt, &split);
	CHECK(!memcmp(pkt.buf, data + sizeof(vnet), len));
	return fuzz_count(split.count > 1);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned int seed)
{
	uint8_t *ip = data + sizeof(struct vnet_hdr);
	uint32_t l3len, len;
	struct vnet_hdr vnet;

	size = LLVMFuzzerMutate(data, size, room);
	if (seed % MUTATE_UNREPAIRED == 0 || size <= sizeof(vnet))
		return size;
	len = (uint32_t)(size - sizeof(vnet));
	l3len = mutate_ip(ip, len);
	if (!l3len || !mutate_ports(ip, l3len, len))
		return size;
	memcpy(&vnet, data, sizeof(vnet));
	vnet.flags |= VNET_NEEDS_CSUM;
	if (ip[ip[0] >> 4 == 4 ? IP4_PROTO : IP6_NEXT] == PROTO_UDP)
		vnet.gso_type = VNET_GSO_UDP_L4;
	else
		vnet.gso_type = (ip[0] >> 4 == 4 ? VNET_GSO_TCP4 : VNET_GSO_TCP6) | (vnet.gso_type & VNET_GSO_ECN);
	vnet.gso_size %= 2048;
	vnet.gso_size |= vnet.gso_size < 8 ? 16 : 0; /* hundreds of tiny segments say no more than some */
	memcpy(data, &vnet, sizeof(vnet));
	mutate_l4(ip, l3len, len, true);
	return size;
}
