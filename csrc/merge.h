/* SPDX-License-Identifier: Apache-2.0 */
/*
 * merge.h - joining packets of one flow into the super-packet that they came from: pure.
 *
 * Nothing is copied: a super-packet is the first packet with its headers, and
 * pieces of payload that lie where they were received.
 */
#ifndef MERGE_H
#define MERGE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "parse.h"
#include "pkt.h"
#include "wire.h"

/* Flows that can be open at a time, and packets that one super-packet can hold. */
enum { MERGE_FLOWS = 32, MERGE_UNITS = 64 };

/* A super-packet while it grows. */
struct merge_super {
	struct pkt head; /* the first packet; what it stands in is ours until it is written */
	struct flow flow;
	uint64_t ports;    /* both, and which peer sent it */
	uint32_t headers;  /* bytes of IP and L4 headers */
	uint32_t size;     /* payload bytes of each packet but the last */
	uint32_t total;    /* bytes, headers included */
	uint32_t units;    /* packets */
	uint32_t next_seq; /* TCP */
	uint16_t next_id;  /* IPv4 without DF */
	bool is_closed;    /* takes no more */
	bool is_open;      /* in use */
	struct iovec pieces[MERGE_UNITS];
};

struct merge {
	bool has_udp;   /* the kernel takes UDP super-packets too */
	bool is_off;    /* it took one of ours for nonsense: none are made any more */
	uint32_t last;  /* the super-packet that grew last */
	uint32_t count; /* in use, in order of their first packets */
	uint8_t order[MERGE_FLOWS];
	struct merge_super supers[MERGE_FLOWS];
};

enum merge_verdict {
	MERGE_JOINED, /* the packet is part of a super-packet now */
	MERGE_BEGUN,  /* the packet begins one */
	MERGE_BLOCKED /* an open one of its flow must be written first; ask again then */,
	MERGE_NEVER /* the packet cannot be joined to others; nothing of its flow is open */
};

enum merge_verdict merge_add(struct merge *merge, const struct pkt *pkt, const struct flow *flow, uint32_t peer,
			     uint32_t *index);
bool merge_follow(struct merge *merge, const struct pkt *before, const struct pkt *pkt, uint32_t push);
void merge_describe(struct merge_super *super, struct vnet_hdr *vnet);
void merge_restore(struct merge_super *super);
void merge_take(struct merge *merge, uint32_t index);

#endif
