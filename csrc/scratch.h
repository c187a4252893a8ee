/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scratch.h - a network of our own for a moment: a loopback device and a TUN that nothing else can reach.
 *
 * It lives in a network namespace of the calling thread and ends with it.
 */
#ifndef SCRATCH_H
#define SCRATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "dp.h"
#include "parse.h"
#include "pkt.h"
#include "underlay.h"
#include "wire.h"

/* Ports of the two ends; the far one is only ever on the other side of the TUN. */
enum { SCRATCH_PORT = 40001, SCRATCH_FAR_PORT = 40002 };

/* How long to wait for one packet: none has a way of more than some microseconds. */
#define SCRATCH_STEP_NS 100000000ULL

/* What is sent: so many segments of that size, the last one short or not. */
enum { SCRATCH_SIZE = 1000, SCRATCH_SEGMENTS = 4, SCRATCH_TOTAL = 3 * SCRATCH_SIZE + SCRATCH_SIZE / 2 };

struct scratch {
	int tun;
	uint32_t tier;         /* of the TUN, as far as the kernel says it can */
	uint32_t vnet_hdr_len; /* of the TUN */
	bool has_ip6;
	uint64_t deadline_ns; /* CLOCK_MONOTONIC; nothing is begun or waited for beyond it */
	uint8_t buf[PKT_HEADROOM + PKT_MAX + 1];
};

int scratch_open(struct scratch *scratch, uint32_t wanted, uint64_t most_ns);
void scratch_close(struct scratch *scratch);
bool scratch_is_over(const struct scratch *scratch);
int scratch_wait(const struct scratch *scratch, int fd, short events);
int scratch_socket(uint8_t family, int type, bool is_connected);
socklen_t scratch_address(union underlay_addr *out, uint8_t family, bool is_far);
int scratch_read(struct scratch *scratch, uint8_t family, uint8_t proto, struct pkt *pkt, struct flow *flow,
		 struct vnet_hdr *vnet);
uint32_t scratch_headers(uint8_t *out, uint8_t family, uint8_t proto, uint32_t payload);

void scratch_fill(uint8_t *out, uint32_t len);
bool scratch_is_whole(const uint8_t *data, uint32_t at, uint32_t len);
int scratch_send_run(int fd, uint32_t total);
int scratch_receive(const struct scratch *scratch, int fd, uint32_t total, uint32_t size);

#endif
