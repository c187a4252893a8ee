/* SPDX-License-Identifier: Apache-2.0 */
/*
 * probe_super.c - lets tests in Python cut and join super-packets; part of no build but theirs.
 *
 * It does what tx.c and rx.c do with split.c and merge.c, and gathers what they would send and write.
 */
#include <stdlib.h>
#include <string.h>

#include "merge.h"
#include "parse.h"
#include "pkt.h"
#include "split.h"
#include "wire.h"
#include "probe.h"

/**
 * probe_split() - parse_inner(), split_plan(), then every segment
 * @pkt:	Super-packet
 * @vnet:	Bytes of its virtio header
 * @out:	Set to the segments, one behind the other
 * @cap:	Room in @out
 * @lens:	Set to their lengths
 * @most:	Room in @lens
 *
 * Return: segments, or the drop reason as a negative number; -1000 if there was no room
 */
int64_t probe_split(const struct probe_pkt *pkt, const uint8_t vnet[12], uint8_t *out, uint32_t cap, uint32_t *lens,
		    uint32_t most)
{
	struct pkt view = pkt_init(pkt->buf, pkt->cap, pkt->off, pkt->len);
	struct vnet_hdr hdr;
	struct split split;
	struct flow flow;
	enum dp_drop drop = parse_inner(&view, &flow);
	uint32_t used = 0;

	memcpy(&hdr, vnet, sizeof(hdr));
	if (!drop)
		drop = split_plan(&view, &flow, &hdr, &split);
	if (drop)
		return -(int64_t)drop;
	if (split.count > most)
		return -1000;
	for (uint32_t i = 0; i < split.count; i++) {
		uint8_t header[SPLIT_HEADERS];
		uint32_t len = split_header(&view, &split, i, header);

		if (used + split.headers + len > cap)
			return -1000;
		memcpy(out + used, header, split.headers);
		memcpy(out + used + split.headers, pkt_at(&view, split.headers + i * split.size, len), len);
		lens[i] = split.headers + len;
		used += lens[i];
	}
	return split.count;
}

/**
 * emit() - Append what would be written to the TUN
 * @out:	Where to
 * @vnet:	Its virtio header
 * @head:	First piece
 * @pieces:	The others, from the second on
 * @count:	Pieces, with the first
 *
 * Return: bytes appended
 */
static uint32_t emit(uint8_t *out, const struct vnet_hdr *vnet, const struct pkt *head, const struct iovec *pieces,
		     uint32_t count)
{
	uint32_t used = sizeof(*vnet);

	memcpy(out, vnet, sizeof(*vnet));
	memcpy(out + used, head->buf + head->off, head->len);
	used += head->len;
	for (uint32_t i = 1; i < count; i++) {
		memcpy(out + used, pieces[i].iov_base, pieces[i].iov_len);
		used += (uint32_t)pieces[i].iov_len;
	}
	return used;
}

/* Packets that came together, one behind the other. */
struct burst {
	uint8_t *packets; /* changed */
	const uint32_t *lens;
	const uint32_t *peers; /* who sent each */
	uint32_t count;
	bool has_udp; /* the kernel takes UDP super-packets */
	bool is_run;  /* they are datagrams of one message, bare */
};

/**
 * join() - What rx.c does with packets that came together
 * @burst:	The packets
 * @out:	Set to what is written: a virtio header of 12 bytes and a packet each
 * @out_lens:	Set to their lengths, header included
 *
 * Return: how many are written, -1 without memory
 */
static int64_t join(const struct burst *burst, uint8_t *out, uint32_t *out_lens)
{
	struct merge *merge = calloc(1, sizeof(*merge));
	uint32_t written = 0, at = 0;
	struct pkt before = {0};
	bool is_joined = false;

	if (!merge)
		return -1;
	merge->has_udp = burst->has_udp;
	for (uint32_t i = 0; i <= burst->count; i++) {
		bool is_end = i == burst->count;
		uint32_t len = is_end ? 0 : burst->lens[i];
		struct pkt pkt = pkt_init(burst->packets + at, len, 0, len);
		enum merge_verdict verdict = MERGE_BLOCKED;
		struct vnet_hdr vnet = {0};
		struct flow flow;
		uint32_t index = 0;

		at += len;
		if (!is_end && burst->is_run && is_joined && merge_follow(merge, &before, &pkt, 0)) {
			before = pkt;
			continue;
		}
		before = pkt;
		is_joined = false;
		if (!is_end && parse_inner(&pkt, &flow))
			continue; /* rx.c drops it */
		while (is_end ? merge->count > 0 : verdict == MERGE_BLOCKED) {
			if (is_end)
				index = merge->order[0];
			else
				verdict = merge_add(merge, &pkt, &flow, burst->peers[i], &index);
			if (verdict != MERGE_BLOCKED)
				break;
			merge_describe(&merge->supers[index], &vnet);
			out_lens[written] = emit(out, &vnet, &merge->supers[index].head, merge->supers[index].pieces,
						 merge->supers[index].units);
			out += out_lens[written++];
			merge_take(merge, index);
		}
		if (!is_end && verdict == MERGE_NEVER) {
			struct vnet_hdr none = {0};

			out_lens[written] = emit(out, &none, &pkt, NULL, 1);
			out += out_lens[written++];
		}
		is_joined = verdict == MERGE_BEGUN || verdict == MERGE_JOINED;
	}
	free(merge);
	return written;
}

/**
 * probe_merge() - What rx.c does with packets that came together
 * @packets:	Packets, one behind the other; changed
 * @lens:	Their lengths
 * @peers:	Who sent each
 * @count:	How many
 * @out:	Set to what is written: a virtio header of 12 bytes and a packet each
 * @out_lens:	Set to their lengths, header included; room for @count
 *
 * Return: how many are written, -1 without memory
 */
int64_t probe_merge(uint8_t *packets, const uint32_t *lens, const uint32_t *peers, uint32_t count, uint8_t *out,
		    uint32_t *out_lens)
{
	const struct burst burst = {packets, lens, peers, count, true, false};

	return join(&burst, out, out_lens);
}

/**
 * probe_merge_tcp() - The same where the kernel takes no UDP super-packets
 * @packets:	As there
 * @lens:	As there
 * @peers:	As there
 * @count:	As there
 * @out:	As there
 * @out_lens:	As there
 *
 * Return: as probe_merge()
 */
int64_t probe_merge_tcp(uint8_t *packets, const uint32_t *lens, const uint32_t *peers, uint32_t count, uint8_t *out,
			uint32_t *out_lens)
{
	const struct burst burst = {packets, lens, peers, count, false, false};

	return join(&burst, out, out_lens);
}

/**
 * probe_merge_run() - The same of packets that came as a run of datagrams of one peer
 * @packets:	As there
 * @lens:	As there
 * @peers:	As there, all the same
 * @count:	As there
 * @out:	As there
 * @out_lens:	As there
 *
 * Return: as probe_merge()
 */
int64_t probe_merge_run(uint8_t *packets, const uint32_t *lens, const uint32_t *peers, uint32_t count, uint8_t *out,
			uint32_t *out_lens)
{
	const struct burst burst = {packets, lens, peers, count, true, true};

	return join(&burst, out, out_lens);
}
