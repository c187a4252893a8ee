/* SPDX-License-Identifier: Apache-2.0 */
/* underlay.h - the sockets that tunnel packets cross: opening, batched receive and send. */
#ifndef UNDERLAY_H
#define UNDERLAY_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "dp.h"
#include "parse.h"
#include "pkt.h"

/*
 * Messages received and sent by one system call; bytes of control messages,
 * which hold at most IPV6_PKTINFO, a TOS, SO_RXQ_OVFL and UDP_GRO, or a TOS, a TTL
 * and IP_PKTINFO or UDP_SEGMENT.
 */
enum { UNDERLAY_BATCH = 64, UNDERLAY_SENDS = 128, UNDERLAY_CMSG = 128 };

union underlay_addr {
	struct sockaddr sa;
	struct sockaddr_in in4;
	struct sockaddr_in6 in6;
};

/* Room for the headers of one batch of received messages. */
struct underlay_batch {
	struct mmsghdr msgs[UNDERLAY_BATCH];
	struct iovec iov[UNDERLAY_BATCH];
	union underlay_addr addrs[UNDERLAY_BATCH];
	_Alignas(16) uint8_t cmsg[UNDERLAY_BATCH][UNDERLAY_CMSG];
};

/* The same of messages to send; their pieces are the caller's. */
struct underlay_sends {
	struct mmsghdr msgs[UNDERLAY_SENDS];
	union underlay_addr addrs[UNDERLAY_SENDS];
	_Alignas(16) uint8_t cmsg[UNDERLAY_SENDS][UNDERLAY_CMSG];
};

/* What is known of a received message besides its bytes. */
struct underlay_meta {
	bool is_truncated;
	uint8_t family;
	uint8_t tos;          /* of the outer header; 0 on raw sockets, where it is in the packet */
	uint32_t ifindex;     /* interface it arrived on */
	uint32_t queue_drops; /* SO_RXQ_OVFL so far; 0: not told */
	uint32_t segment;     /* bytes of each datagram but the last in a merged one (UDP_GRO); 0: it is one */
	uint32_t run;         /* payload of each datagram that its inner packet is to be cut into; 0: it is not */
	addr_t src;
	addr_t dst;
};

socklen_t underlay_fill_addr(union underlay_addr *out, const struct dp_addr *addr, uint16_t port);
void underlay_set_gro(int fd, bool is_on);
int underlay_receive(int fd, struct underlay_batch *batch, struct pkt *pkts, uint32_t count);
void underlay_read_meta(const struct underlay_batch *batch, uint32_t index, struct underlay_meta *meta);
void underlay_address(struct underlay_sends *sends, uint32_t index, const struct dp_addr *vtep, uint16_t port,
		      uint8_t tos);
void underlay_set_ttl(struct underlay_sends *sends, uint32_t index, uint8_t ttl);
void underlay_set_source(struct underlay_sends *sends, uint32_t index, const struct dp_addr *source, uint32_t ifindex);
void underlay_set_pieces(struct underlay_sends *sends, uint32_t index, struct iovec *pieces, uint32_t count);
void underlay_set_segment(struct underlay_sends *sends, uint32_t index, uint16_t size);
void underlay_clear_segment(struct underlay_sends *sends, uint32_t index);
int underlay_send(int fd, struct underlay_sends *sends, uint32_t first, uint32_t count);

#endif
