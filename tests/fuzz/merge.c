/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever packets come in a row, cutting what was joined of them gives every one back, bit for bit and in order.
 *
 * An input is one byte that says how they are handled, then packets of OP_LEN bytes: the flow, its payload, its TCP
 * flags, what is odd about it, and how much. A packet without oddities goes on where its flow left off. So whatever
 * must not be joined shows: cutting could not give it back.
 */
#include "merge.h"
#include "mutate.h"
#include "sketch.h"
#include "split.h"

enum { HEAD = 1, OP_LEN = 5, PACKETS_MAX = 80, LEN_MAX = 2048, FLOWS = 64, STRAY = FLOWS };
enum { HAS_UDP = 1, REFUSES = 2 };                 /* how: of the input */
enum { WANTS_FOLLOW = 0x40, WRITES_FIRST = 0x80 }; /* of a packet */

enum oddity {
	ODD_TOS,
	ODD_TTL,
	ODD_NO_DF,
	ODD_ID,
	ODD_ACK,
	ODD_WINDOW,
	ODD_URGENT,
	ODD_OPTIONS,
	ODD_SEQ,
	ODD_L4_CHECK,
	ODD_FRAGMENT,
	ODD_LATER_FRAGMENT,
	ODD_IP_OPTIONS,
	ODD_FLOW_LABEL,
	ODD_UDP_UNCHECKED,
	ODD_UDP_LENGTH,
	ODD_RESERVED,
	ODD_HEADER_LEN,
	ODD_PROTO,
	ODD_FLAGS,
	ODD_COUNT
};

/* A packet as it came. */
struct packet {
	struct pkt pkt;
	struct flow flow;
	uint8_t key; /* its flow: packets with the same one must stay in order; STRAY: belongs to none */
	uint8_t peer;
	uint8_t bytes[LEN_MAX]; /* a copy */
};

static struct packet packets[PACKETS_MAX];
static uint32_t seqs[FLOWS];
static uint16_t ids[FLOWS];
static struct merge merge;
static uint8_t members[MERGE_FLOWS][MERGE_UNITS]; /* of each super-packet */
static uint32_t handed[FLOWS];                    /* of each flow: one more than the last that was written */
static uint32_t written;
static uint8_t how;

/**
 * spoil() - Give a packet what is odd about it
 * @ip:		A right packet; its checksums are made right again where they are not meant to be wrong
 * @sketch:	What it is
 * @len:	Its length
 * @odd:	Oddity
 * @value:	How much
 */
static void spoil(uint8_t *ip, const struct sketch *sketch, uint32_t len, enum oddity odd, uint8_t value)
{
	bool is4 = sketch->family == 4, is_tcp = sketch->proto == PROTO_TCP;
	uint32_t l3len = is4 ? IP4_LEN : IP6_LEN;
	uint8_t *l4 = ip + l3len, *check = l4 + (is_tcp ? TCP_CHECK : UDP_CHECK);

	if (odd == ODD_TOS)
		ip[1] ^= is4 ? value : (uint8_t)(value << 4);
	else if (odd == ODD_TTL)
		ip[is4 ? IP4_TTL : IP6_HOP_LIMIT] ^= value % 64;
	else if (odd == ODD_NO_DF && is4)
		store16(ip + IP4_FRAG, 0);
	else if (odd == ODD_FRAGMENT && is4)
		store16(ip + IP4_FRAG, IP4_MF);
	else if (odd == ODD_LATER_FRAGMENT && is4)
		store16(ip + IP4_FRAG, value);
	else if (odd == ODD_IP_OPTIONS && is4 && len >= l3len + 4U * (value % 11U))
		ip[0] = (uint8_t)(0x45 + value % 11); /* payload becomes options */
	else if (odd == ODD_FLOW_LABEL && !is4)
		ip[3] ^= value;
	else if (odd == ODD_ACK && is_tcp)
		l4[TCP_ACK + value % 4] ^= value;
	else if (odd == ODD_WINDOW && is_tcp)
		l4[TCP_WINDOW + 1] ^= value;
	else if (odd == ODD_URGENT && is_tcp)
		l4[TCP_URGENT + 1] ^= value;
	else if ((odd == ODD_OPTIONS || odd == ODD_HEADER_LEN) && is_tcp)
		l4[TCP_DOFF] = (uint8_t)(odd == ODD_HEADER_LEN ? value << 4 : 0x80);
	else if (odd == ODD_RESERVED && is_tcp)
		l4[TCP_DOFF] |= value & 0x0f;
	else if (odd == ODD_FLAGS && is_tcp)
		l4[TCP_FLAGS] = value;
	else if (odd == ODD_UDP_LENGTH && !is_tcp)
		l4[UDP_LENGTH + 1] ^= value;
	else if (odd == ODD_PROTO)
		ip[is4 ? IP4_PROTO : IP6_NEXT] = value;
	if (odd == ODD_OPTIONS && is_tcp && len >= l3len + TCP_LEN + 12)
		memset(l4 + TCP_LEN, value & 1, 12);
	sketch_finish(ip, sketch->family, sketch->proto, len);
	if (odd == ODD_L4_CHECK)
		check[value & 1] ^= value;
	if (odd == ODD_UDP_UNCHECKED && !is_tcp)
		store16(check, 0);
	packet_repair(ip, len);
}

/**
 * make_packet() - Make the packet that an input describes
 * @packet:	Filled in
 * @wall:	What it stands against
 * @op:		OP_LEN bytes
 *
 * Return: false if it is none that the parser lets pass
 */
static bool make_packet(struct packet *packet, const struct wall *wall, const uint8_t *op)
{
	static const uint16_t sizes[16] = {0, 1, 2, 4, 12, 13, 16, 64, 64, 64, 100, 100, 100, 101, 256, 1400};
	uint8_t key = op[0] % FLOWS;
	enum oddity odd = op[3] & 0x80 ? (op[3] & 0x7f) % ODD_COUNT : ODD_COUNT;
	struct sketch sketch = {.family = key & 1 ? 6 : 4,
				.proto = key & 2 ? PROTO_UDP : PROTO_TCP,
				.peer = (uint8_t)(1 + (key >> 2 & 3) % SKETCH_PEERS),
				.flags = op[2] & 1 ? TCP_FLAG_PSH : 0,
				.port = key >> 4,
				.payload = sizes[op[1] & 15] + (op[1] >> 6),
				.seq = seqs[key] + (odd == ODD_SEQ ? (uint32_t)op[4] - 100 : 0),
				.id = (uint16_t)(ids[key] + (odd == ODD_ID ? op[4] : 0))};
	uint32_t len = sketch_packet(packet->bytes, &sketch, false);

	if (odd < ODD_COUNT)
		spoil(packet->bytes, &sketch, len, odd, op[4]);
	packet->key = key;
	packet->peer = sketch.peer;
	packet->pkt = pkt_init(fuzz_place(wall, packet->bytes, len), len, 0, len);
	if (parse_inner(&packet->pkt, &packet->flow))
		return false;
	seqs[key] = sketch.seq + sketch.payload;
	if (odd == ODD_OPTIONS && sketch.proto == PROTO_TCP)
		seqs[key] -= 12; /* of the payload, they took that */
	ids[key] = (uint16_t)(sketch.id + 1);
	if (packet->flow.proto != sketch.proto ||
	    (!packet->flow.is_fragment && packet->flow.l3len != (sketch.family == 4 ? IP4_LEN : IP6_LEN)))
		packet->key = STRAY; /* the ports are not where they were */
	return true;
}

/**
 * hand() - A packet reaches the kernel: is it the one that came, and has it overtaken none of its flow?
 * @index:	Which came
 * @ip:		What is handed over, without payload
 * @headers:	Bytes of it
 * @payload:	The rest
 * @is_cut:	It comes out of a super-packet, so if it has DF its ID may be another
 */
static void hand(uint32_t index, const uint8_t *ip, uint32_t headers, const uint8_t *payload, bool is_cut)
{
	const struct packet *packet = &packets[index];
	uint32_t len = packet->pkt.len - headers;

	CHECK(headers <= packet->pkt.len && !memcmp(payload, packet->bytes + headers, len));
	if (is_cut && packet->flow.family == 4 && load16(ip + IP4_FRAG) & IP4_DF) {
		CHECK(!memcmp(ip, packet->bytes, IP4_ID) && mutate_naive_sum(ip, IP4_LEN, 0) == 0xffff);
		CHECK(!memcmp(ip + IP4_FRAG, packet->bytes + IP4_FRAG, IP4_CHECK - IP4_FRAG));
		CHECK(!memcmp(ip + IP4_SRC, packet->bytes + IP4_SRC, headers - IP4_SRC));
	} else {
		CHECK(!memcmp(ip, packet->bytes, headers));
	}
	written++;
	if (packet->key == STRAY)
		return;
	CHECK(handed[packet->key] <= index);
	handed[packet->key] = index + 1;
}

/**
 * cut() - The kernel cuts a super-packet
 * @super:	The super-packet, described
 * @vnet:	Its virtio header
 * @came:	Its packets
 */
static void cut(const struct merge_super *super, const struct vnet_hdr *vnet, const uint8_t *came)
{
	static uint8_t whole[PKT_MAX], headers[SPLIT_HEADERS];
	uint32_t len = super->head.len;
	struct split split;
	struct flow flow;
	struct pkt pkt;

	memcpy(whole, super->head.buf + super->head.off, len);
	for (uint32_t i = 1; i < super->units; i++) {
		CHECK(len + super->pieces[i].iov_len <= PKT_MAX);
		memcpy(whole + len, super->pieces[i].iov_base, super->pieces[i].iov_len);
		len += (uint32_t)super->pieces[i].iov_len;
	}
	CHECK(len == super->total);
	pkt = pkt_init(whole, len, 0, len);
	CHECK(!parse_inner(&pkt, &flow) && !split_plan(&pkt, &flow, vnet, &split));
	CHECK(split.count == super->units && split.headers == super->headers && vnet->hdr_len == split.headers);
	CHECK(vnet->csum_start == flow.l3len);
	for (uint32_t i = 0; i < split.count; i++) {
		CHECK(packets[came[i]].peer == packets[came[0]].peer);
		CHECK(split_header(&pkt, &split, i, headers) == packets[came[i]].pkt.len - split.headers);
		hand(came[i], headers, split.headers, whole + split.headers + i * split.size, true);
	}
}

/**
 * take() - Write a super-packet, or what it was made of
 * @index:	Which
 */
static void take(uint32_t index)
{
	struct merge_super *super = &merge.supers[index];
	const uint8_t *came = members[index];
	struct vnet_hdr vnet;

	merge_describe(super, &vnet);
	if (super->units > 1 && !(how & REFUSES)) {
		cut(super, &vnet, came);
	} else {
		CHECK(super->units > 1 || !vnet.gso_type);
		if (super->units > 1)
			merge_restore(super);
		for (uint32_t i = 0; i < super->units; i++) {
			const struct pkt *pkt = &packets[came[i]].pkt;

			CHECK(i || pkt->buf == super->head.buf);
			hand(came[i], pkt->buf, super->headers, pkt->buf + super->headers, false);
		}
	}
	merge_take(&merge, index);
}

/**
 * add() - Let a packet go the way of rx.c
 * @index:	Which
 * @before:	The one before it, if that was joined last and followers are looked for; NULL: none
 *
 * Return: what became of it
 */
static enum merge_verdict add(uint32_t index, const struct packet *before)
{
	struct packet *packet = &packets[index];
	enum merge_verdict verdict;
	uint32_t super = 0;

	if (before && before->peer == packet->peer && merge_follow(&merge, &before->pkt, &packet->pkt, 0)) {
		super = merge.last;
		members[super][merge.supers[super].units - 1] = (uint8_t)index;
		return MERGE_JOINED;
	}
	for (;;) {
		verdict = merge_add(&merge, &packet->pkt, &packet->flow, packet->peer, &super);
		if (verdict != MERGE_BLOCKED)
			break;
		take(super);
	}
	if (verdict == MERGE_NEVER)
		hand(index, packet->pkt.buf, packet->pkt.len, packet->pkt.buf + packet->pkt.len, false);
	else
		members[super][merge.supers[super].units - 1] = (uint8_t)index;
	return verdict;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct wall walls[PACKETS_MAX];
	const struct packet *before = NULL;
	bool is_joined = false;
	uint32_t count = 0;

	if (!walls[0].first)
		for (int i = 0; i < PACKETS_MAX; i++)
			walls[i] = wall_build();
	if (size < HEAD)
		return 0;
	how = data[0];
	merge.has_udp = how & HAS_UDP;
	merge.last = 0;
	written = 0;
	memset(handed, 0, sizeof(handed));
	memset(seqs, 0, sizeof(seqs));
	memset(ids, 0, sizeof(ids));
	for (size_t at = HEAD; at + OP_LEN <= size && count < PACKETS_MAX; at += OP_LEN) {
		const uint8_t *op = data + at;
		enum merge_verdict verdict;

		if (!make_packet(&packets[count], &walls[count], op))
			continue;
		if (op[0] & WRITES_FIRST && merge.count) {
			take(merge.order[0]);
			before = NULL;
		}
		verdict = add(count, op[0] & WANTS_FOLLOW ? before : NULL);
		before = verdict == MERGE_NEVER ? NULL : &packets[count];
		is_joined |= verdict == MERGE_JOINED;
		count++;
	}
	while (merge.count)
		take(merge.order[0]);
	CHECK(written == count);
	return fuzz_count(is_joined);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned int seed)
{
	size_t ops, from;

	size = LLVMFuzzerMutate(data, size, room);
	ops = size < HEAD ? 0 : (size - HEAD) / OP_LEN;
	if (ops < 2 || seed % 4 == 0)
		return size;
	/* mostly packets of one flow are joined: let the next one be of it, or be the same but for its place */
	from = HEAD + seed / 4 % (ops - 1) * OP_LEN;
	if (seed % 4 == 1)
		data[from + OP_LEN] = (uint8_t)((data[from] & 0x3f) | (data[from + OP_LEN] & WANTS_FOLLOW));
	else
		memcpy(data + from + OP_LEN, data + from, OP_LEN);
	return size;
}
