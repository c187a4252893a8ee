/* SPDX-License-Identifier: Apache-2.0 */
/*
 * outbox.h - packets on their way to the underlay, joined into runs.
 *
 * A run is one message that the kernel cuts into equal datagrams (UDP_SEGMENT):
 * one trip through its stack instead of dozens. Packets of one peer and one
 * socket stay in order; those of different peers need not.
 */
#ifndef OUTBOX_H
#define OUTBOX_H

#include <stdbool.h>
#include <stdint.h>

#include "dp.h"
#include "parse.h"
#include "underlay.h"

/*
 * Pieces all messages are gathered from, bytes of headers that lie nowhere else,
 * datagrams in one run (UDP_MAX_SEGMENTS before Linux 6.9).
 */
enum { OUTBOX_PIECES = 4096, OUTBOX_HEADERS = 64 << 10, OUTBOX_RUN = 64 };
/* Most payload bytes of one message: 65535 less the IPv4 and UDP headers. */
enum { OUTBOX_BYTES = 65507 };

/* What is remembered of a message until its send is settled. */
struct outbox_message {
	const struct dp_subnet *subnet;
	addr_t dst;      /* inner, of its first packet */
	uint32_t bytes;  /* inner, all packets */
	uint32_t units;  /* wire packets */
	uint32_t size;   /* bytes of each datagram but the last */
	uint32_t total;  /* bytes of all datagrams */
	uint32_t pieces; /* used */
	uint32_t room;   /* pieces it may use */
	uint32_t iov;    /* first piece */
	int fd;
	uint8_t tos;    /* of the outer header, as the next one */
	uint8_t ttl;    /* 0: the socket's */
	uint8_t family; /* of dst */
	bool is_closed; /* its last datagram is a short one */
};

/* A datagram to be queued, and where it goes. */
struct outbox_item {
	const struct dp_subnet *subnet;
	addr_t dst;
	const void *head; /* stays readable until the outbox is empty again */
	const void *tail; /* the same; may be empty */
	uint32_t head_len;
	uint32_t tail_len;
	uint32_t bytes; /* inner */
	int fd;
	uint16_t port; /* UDP destination port; 0 on raw sockets, where nothing is joined */
	uint8_t tos;   /* of the outer header, as the next one */
	uint8_t ttl;   /* 0: the socket's */
	uint8_t family;
};

struct outbox {
	bool has_runs; /* the kernel cuts messages */
	uint32_t count;
	uint32_t pieces;
	uint32_t used; /* bytes of headers */
	uint8_t newest[UNDERLAY_SENDS];
	struct outbox_message messages[UNDERLAY_SENDS];
	struct iovec iov[OUTBOX_PIECES];
	struct underlay_sends sends;
	_Alignas(64) uint8_t headers[OUTBOX_HEADERS];
};

void outbox_clear(struct outbox *out);
bool outbox_is_full(const struct outbox *out, uint32_t datagrams, uint32_t header_bytes);
uint8_t *outbox_headers(struct outbox *out, uint32_t len);
int outbox_add(struct outbox *out, const struct outbox_item *item);
void outbox_finish(struct outbox *out);

#endif
