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
 * Messages per system call; pieces one message is gathered from; bytes of
 * control messages, which hold at most IPV6_PKTINFO, a TOS and a UDP_SEGMENT.
 */
enum { UNDERLAY_BATCH = 64, UNDERLAY_IOV = 2, UNDERLAY_CMSG = 128 };

union underlay_addr {
	struct sockaddr sa;
	struct sockaddr_in in4;
	struct sockaddr_in6 in6;
};

/* Room for the headers of one batch of messages, either way. */
struct underlay_batch {
	struct mmsghdr msgs[UNDERLAY_BATCH];
	struct iovec iov[UNDERLAY_BATCH][UNDERLAY_IOV];
	union underlay_addr addrs[UNDERLAY_BATCH];
	_Alignas(16) uint8_t cmsg[UNDERLAY_BATCH][UNDERLAY_CMSG];
};

/* What is known of a received message besides its bytes. */
struct underlay_meta {
	bool is_truncated;
	uint8_t family;
	uint8_t tos;          /* of the outer header; 0 on raw sockets, where it is in the packet */
	uint32_t ifindex;     /* interface it arrived on */
	uint32_t queue_drops; /* SO_RXQ_OVFL so far; 0: not told */
	addr_t src;
	addr_t dst;
};

int underlay_receive(int fd, struct underlay_batch *batch, struct pkt *pkts, uint32_t count);
void underlay_read_meta(const struct underlay_batch *batch, uint32_t index, struct underlay_meta *meta);
void underlay_address(struct underlay_batch *batch, uint32_t index, const struct dp_addr *vtep, uint16_t port,
		      uint8_t tos);
void underlay_set_source(struct underlay_batch *batch, uint32_t index, const struct dp_addr *source, uint32_t ifindex);
int underlay_send(int fd, struct underlay_batch *batch, uint32_t first, uint32_t count);

#endif
