/* SPDX-License-Identifier: Apache-2.0 */
/* corners_pure.c - the pure units are right at limits that packets hardly ever meet: each is asked there itself. */
#include "lpm.h"
#include "merge.h"
#include "outbox.h"
#include "pure.h"
#include "sketch.h"
#include "split.h"

static const struct sketch tcp4 = {.family = 4, .proto = PROTO_TCP, .peer = 1, .port = 7, .payload = 100};
static const struct sketch udp4 = {.family = 4, .proto = PROTO_UDP, .peer = 1, .port = 7, .payload = 100};
static const struct sketch tcp6 = {.family = 6, .proto = PROTO_TCP, .peer = 1, .port = 7, .payload = 100};

/**
 * views() - A view that would not fit is empty, and is never made longer
 */
static void views(void)
{
	uint8_t bytes[8] = {0};
	struct pkt pkt = pkt_init(bytes, 8, 9, 0);

	CHECK(!pkt.off && !pkt.len);
	pkt = pkt_init(bytes, 8, 4, 5);
	CHECK(!pkt.off && !pkt.len && !pkt_at(&pkt, 0, 1));
	pkt = pkt_init(bytes, 8, 4, 4);
	CHECK(pkt.len == 4 && !pkt_trim(&pkt, 5) && pkt.len == 4 && pkt_trim(&pkt, 3) && pkt.len == 3);
}

/**
 * cut_short() - A view that is shorter than what is said of its packet is refused, and nothing is written
 */
static void cut_short(void)
{
	struct vnet_hdr needs = {.flags = VNET_NEEDS_CSUM, .csum_start = 20, .csum_offset = TCP_CHECK}, vnet;
	uint8_t bytes[256], before[256], out[ICMP_MAX];
	struct merge merge = {0};
	struct flow flow;
	uint32_t len = sketch_packet(bytes, &tcp4, false), index;
	struct pkt pkt = pkt_init(bytes, len, 0, len);

	CHECK(!parse_inner(&pkt, &flow));
	memcpy(before, bytes, sizeof(bytes));
	pkt.len = 10;
	CHECK(offload_complete(&pkt, &flow, &needs) == DP_DROP_VNET_HEADER);
	CHECK(offload_describe(&pkt, &flow, 1450, &vnet) == 1 && !vnet.flags);
	CHECK(merge_add(&merge, &pkt, &flow, 1, &index) == MERGE_NEVER);
	CHECK(!icmp_no_route(out, &pkt, &flow) && !icmp_too_big(out, &pkt, &flow, 1400));
	pkt.len = 1;
	flow.tos = ECN_ECT0;
	CHECK(!encap_decap_ecn(&pkt, &flow, ECN_CE));
	CHECK(!memcmp(bytes, before, sizeof(bytes)));
	pkt.len = 30; /* its checksum field, as it is after a pseudo-header of 0, is not inside */
	memset(bytes + 20 + TCP_CHECK, 0, 2);
	CHECK(offload_describe(&pkt, &flow, 1450, &vnet) == 1 && !vnet.flags);
}

/**
 * long_headers() - A super-packet whose headers leave no room for payload, or are too short, is none to be cut
 */
static void long_headers(void)
{
	uint8_t bytes[256];
	uint32_t len = sketch_packet(bytes, &tcp4, false);
	struct pkt pkt = pkt_init(bytes, len, 0, len);
	struct vnet_hdr vnet;
	struct flow flow;
	uint16_t sum;

	CHECK(!parse_inner(&pkt, &flow));
	sum = csum_fold(csum_pseudo(bytes + IP4_SRC, bytes + IP4_DST, 4, PROTO_TCP, len - IP4_LEN));
	memcpy(bytes + IP4_LEN + TCP_CHECK, &sum, 2);
	CHECK(offload_describe(&pkt, &flow, 68, &vnet) > 1 && vnet.gso_type == VNET_GSO_TCP4);
	bytes[IP4_LEN + TCP_DOFF] = 0xf0;
	CHECK(offload_describe(&pkt, &flow, 80, &vnet) == 1 && vnet.flags && !vnet.gso_type);
	bytes[IP4_LEN + TCP_DOFF] = 0x40;
	CHECK(offload_describe(&pkt, &flow, 80, &vnet) == 1 && vnet.flags && !vnet.gso_type);
}

/**
 * marks() - The outer TOS byte is all of the inner one where that was asked for, and its ECN alone otherwise
 */
static void marks(void)
{
	struct dp_config config = {.dscp_inherit = 1};

	CHECK(encap_tos(&config, 0xb9) == 0xb9);
	config.dscp_inherit = 0;
	CHECK(encap_tos(&config, 0xb9) == 1);
}

/**
 * plans() - A super-packet of another protocol than its header says, or with headers too long, is refused
 */
static void plans(void)
{
	struct vnet_hdr vnet = {.flags = VNET_NEEDS_CSUM, .gso_type = VNET_GSO_UDP_L4, .gso_size = 100};
	uint8_t bytes[1024];
	struct split split;
	struct flow flow;
	uint32_t len = sketch_packet(bytes, &tcp4, true);
	struct pkt pkt = pkt_init(bytes, len, 0, len);

	CHECK(!parse_inner(&pkt, &flow) && split_plan(&pkt, &flow, &vnet, &split) == DP_DROP_VNET_HEADER);
	len = packet_ip6(bytes, PROTO_DSTOPTS, 0, 300);
	bytes[IP6_LEN] = PROTO_TCP;
	bytes[IP6_LEN + 1] = 160 / 8 - 1; /* options that are longer than all else */
	pkt = pkt_init(bytes, len, 0, len);
	CHECK(!parse_inner(&pkt, &flow) && flow.proto == PROTO_TCP && flow.l3len == IP6_LEN + 160);
	bytes[flow.l3len + TCP_DOFF] = 0x50;
	vnet.gso_type = VNET_GSO_TCP6;
	CHECK(flow.l3len + TCP_LEN > SPLIT_HEADERS);
	CHECK(split_plan(&pkt, &flow, &vnet, &split) == DP_DROP_VNET_HEADER);
}

/**
 * add() - Offer a packet to be joined
 * @merge:	What is open
 * @pkt:	The packet
 * @index:	Set to what it joined
 *
 * Return: what became of it
 */
static enum merge_verdict add(struct merge *merge, const struct pkt *pkt, uint32_t *index)
{
	struct flow flow;

	CHECK(!parse_inner(pkt, &flow));
	return merge_add(merge, pkt, &flow, 1, index);
}

/**
 * families() - Packets of two families whose addresses are the same numbers are two flows
 */
static void families(void)
{
	uint8_t one[256], two[256], fragment[256];
	static struct merge merge;
	uint32_t len, index;
	struct pkt pkt;

	len = sketch_packet(one, &tcp4, false);
	pkt = pkt_init(one, len, 0, len);
	CHECK(add(&merge, &pkt, &index) == MERGE_BEGUN && !index);
	len = sketch_packet(two, &tcp6, false);
	memset(two + IP6_SRC, 0, 32);
	memcpy(two + IP6_SRC + 12, one + IP4_SRC, 4);
	memcpy(two + IP6_DST + 12, one + IP4_DST, 4);
	sketch_finish(two, 6, PROTO_TCP, len);
	pkt = pkt_init(two, len, 0, len);
	CHECK(add(&merge, &pkt, &index) == MERGE_BEGUN && index == 1);
	merge_take(&merge, 0);
	len = sketch_packet(fragment, &tcp4, false);
	store16(fragment + IP4_FRAG, IP4_MF);
	packet_repair(fragment, len);
	pkt = pkt_init(fragment, len, 0, len);
	CHECK(add(&merge, &pkt, &index) == MERGE_NEVER);
	merge_take(&merge, 1);
}

/**
 * follow_after() - Does a packet follow another one that was joined first?
 * @sketch:	The first; the second is the next of its flow
 * @at:		A byte of the second that is changed; beyond its end: none
 * @is_l4:	Then make its L4 checksum right again, but not that of IPv4
 * @more:	Bytes that it is longer than it says
 *
 * Return: true if it was joined
 */
static bool follow_after(const struct sketch *sketch, uint32_t at, bool is_l4, uint32_t more)
{
	static uint8_t one[512], two[512];
	static struct merge merge;
	struct sketch next = *sketch;
	struct pkt before, pkt;
	uint32_t len, index;
	bool is_joined;

	memset(&merge, 0, sizeof(merge));
	merge.has_udp = true;
	len = sketch_packet(one, sketch, false);
	before = pkt_init(one, len, 0, len);
	CHECK(add(&merge, &before, &index) == MERGE_BEGUN);
	next.seq += sketch->payload;
	next.id++;
	len = sketch_packet(two, &next, false);
	if (at < len)
		two[at] ^= 1;
	if (is_l4)
		sketch_finish(two, sketch->family, sketch->proto, len);
	pkt = pkt_init(two, len + more, 0, len + more);
	is_joined = merge_follow(&merge, &before, &pkt, 0);
	merge_take(&merge, index);
	CHECK(!merge_follow(&merge, &before, &pkt, 0)); /* nothing is open */
	return is_joined;
}

/**
 * followers() - The short way joins what is right, and nothing that the long way would not
 */
static void followers(void)
{
	static const struct sketch *const sketches[] = {&tcp4, &udp4, &tcp6};

	for (int i = 0; i < 3; i++) {
		bool is4 = sketches[i]->family == 4;

		CHECK(follow_after(sketches[i], 1000, false, 0));
		CHECK(!follow_after(sketches[i], (is4 ? IP4_SRC : IP6_SRC) + 3, true, 0));
		CHECK(!follow_after(sketches[i], is4 ? IP4_CHECK : 1000, false, !is4));
		CHECK(!follow_after(sketches[i], 1000, false, 1));
		CHECK(!follow_after(sketches[i], (is4 ? IP4_LEN : IP6_LEN) + 60, false, 0)); /* payload damaged */
	}
}

/**
 * too_short() - A packet without room for its own headers, or with others in front, follows none
 */
static void too_short(void)
{
	uint8_t one[256], two[256], three[256];
	static struct merge merge;
	struct pkt before, pkt;
	uint32_t len, index;

	len = sketch_packet(one + 4, &tcp4, false);
	before = pkt_init(one, 4 + len, 4, len);
	memset(one, 0, 4);
	memcpy(two, one, sizeof(two));
	memcpy(three, one, sizeof(three));
	CHECK(add(&merge, &before, &index) == MERGE_BEGUN);
	before = pkt_init(one, 4 + len, 0, 4 + len);
	pkt = pkt_init(two, 30, 0, 30);
	CHECK(!merge_follow(&merge, &before, &pkt, 4) && !merge_follow(&merge, &pkt, &before, 4));
	two[0] = 1; /* the encapsulation */
	pkt = pkt_init(two, 4 + len, 0, 4 + len);
	CHECK(!merge_follow(&merge, &before, &pkt, 4));
	pkt = pkt_init(three, 4 + IP4_LEN + TCP_LEN, 0, 4 + IP4_LEN + TCP_LEN);
	CHECK(!merge_follow(&merge, &before, &pkt, 4)); /* no payload */
}

/**
 * zero_checksums() - A first packet gets its checksum of 0 back, which a datagram has as 0xffff
 */
static void zero_checksums(void)
{
	static uint8_t first[256], copy[256], second[256];
	static struct merge merge;
	uint32_t done = 0, len, index;
	struct vnet_hdr vnet;

	merge.has_udp = true;
	for (uint32_t port = 0; done < 2 && port < 2U << 16; port++) {
		struct sketch sketch = done ? udp4 : tcp4;
		uint32_t at = IP4_LEN + (done ? UDP_CHECK : TCP_CHECK);
		struct pkt pkt, next;

		sketch.port = (uint16_t)port;
		len = sketch_packet(first, &sketch, false);
		if (load16(first + at) != (done ? 0xffff : 0))
			continue;
		memcpy(copy, first, len);
		pkt = pkt_init(first, len, 0, len);
		CHECK(add(&merge, &pkt, &index) == MERGE_BEGUN);
		sketch.seq += sketch.payload;
		sketch.id++;
		len = sketch_packet(second, &sketch, false);
		next = pkt_init(second, len, 0, len);
		CHECK(add(&merge, &next, &index) == MERGE_JOINED);
		merge_describe(&merge.supers[index], &vnet);
		merge_restore(&merge.supers[index]);
		CHECK(!memcmp(first, copy, len));
		merge_take(&merge, index);
		done++;
	}
	CHECK(done == 2);
}

/**
 * tables() - A table that says of itself what cannot be is none
 */
static void tables(void)
{
	static const uint32_t starts[LPM_SEARCH + 2], values[LPM_SEARCH + 2];
	struct lpm lpm = {.root = LPM_RANGE, .count = 1, .start4 = starts, .value = values};

	CHECK(!lpm_is_valid(&lpm, 1)); /* an entry that names a range, but too few ranges to search */
	lpm.count = 0;
	CHECK(!lpm_is_valid(&lpm, 1));
	lpm.count = LPM_RANGES_MAX + 1;
	CHECK(!lpm_is_valid(&lpm, 1));
	lpm = (struct lpm){.root = LPM_VALUE_MAX, .count = 1, .start4 = starts, .value = values};
	CHECK(lpm_is_valid(&lpm, UINT32_MAX)); /* the largest answer that an entry can hold */
}

/**
 * nested() - More prefixes around one address than there can be different ones do no harm
 */
static void nested(void)
{
	enum { COUNT = 200 };
	static struct lpm_prefix prefixes[COUNT], spare[COUNT];
	static uint32_t start4[LPM_RANGES(COUNT)], value[LPM_RANGES(COUNT)], bucket[LPM_BUCKETS(COUNT)];
	static _Alignas(16) struct lpm_node node[LPM_RANGES(COUNT)];
	struct lpm_room room = {.spare = spare, .start4 = start4, .value = value, .node = node, .index = bucket};
	struct lpm lpm;

	for (uint32_t i = 0; i < COUNT; i++)
		prefixes[i] = (struct lpm_prefix){.key = 0x0a000000, .len = 8, .value = 1};
	lpm = lpm_build(prefixes, COUNT, &room);
	CHECK(lpm_is_valid(&lpm, 1) && lpm_lookup4(&lpm, 0x0a123456) == 1 && !lpm_lookup4(&lpm, 0x0b000000));
}

/**
 * messages() - A datagram joins a message only where the kernel would cut it off again, and none is too long
 */
static void messages(void)
{
	static struct outbox out;
	struct dp_subnet here = {.vtep = {.family = 4}, .peer_id = 1}, there = here;
	struct outbox_item item = {.subnet = &here, .head = "", .head_len = 1000, .fd = 3, .port = 8472}, other;
	uint32_t joined = 0;

	out.has_runs = true;
	outbox_clear(&out);
	CHECK(!outbox_is_full(&out, 1, 0));
	out.pieces = OUTBOX_PIECES - 100;
	CHECK(outbox_is_full(&out, 1, 0));
	CHECK(outbox_add(&out, &item) == 0 && out.messages[0].room == 100); /* no more than there are */
	CHECK(outbox_add(&out, &item) == -1);
	outbox_clear(&out);
	out.used = OUTBOX_HEADERS - 10;
	CHECK(!outbox_is_full(&out, 1, 10) && outbox_is_full(&out, 1, 11));
	outbox_clear(&out);
	CHECK(outbox_add(&out, &item) == 0);
	other = item;
	other.fd += UNDERLAY_SENDS; /* shares the place of the first */
	CHECK(outbox_add(&out, &other) == 1 && outbox_add(&out, &item) == 2);
	other = item;
	other.subnet = &there;
	CHECK(outbox_add(&out, &other) == 3 && outbox_add(&out, &item) == 4);
	other = item;
	other.tos = 1;
	CHECK(outbox_add(&out, &other) == 5 && outbox_add(&out, &item) == 6);
	other = item;
	other.ttl = 9;
	CHECK(outbox_add(&out, &other) == 7 && outbox_add(&out, &other) == -1 && outbox_add(&out, &item) == 8);
	other = item;
	other.head_len = 1001;
	CHECK(outbox_add(&out, &other) == 9 && outbox_add(&out, &item) == -1 && outbox_add(&out, &item) == 10);
	while (outbox_add(&out, &item) == -1)
		joined++;
	CHECK(joined == OUTBOX_RUN - 1); /* as many as the kernel cuts */
	outbox_clear(&out);
	item.head_len = 2000;
	CHECK(outbox_add(&out, &item) == 0);
	out.messages[0].total = OUTBOX_BYTES - 1999;
	CHECK(outbox_add(&out, &item) == 1);
	out.messages[1].room = 2; /* two pieces are what one datagram takes */
	CHECK(outbox_add(&out, &item) == 2);
	for (out.messages[2].units = OUTBOX_RUN; out.count < 4;)
		CHECK(outbox_add(&out, &item) == (int)out.count - 1);
}

int main(void)
{
	views();
	cut_short();
	long_headers();
	marks();
	plans();
	families();
	followers();
	too_short();
	zero_checksums();
	tables();
	nested();
	messages();
	return 0;
}
