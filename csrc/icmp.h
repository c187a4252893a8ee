/* SPDX-License-Identifier: Apache-2.0 */
/* icmp.h - ICMP errors to the sender of an inner packet (RFC 792, 1122, 4443): pure. */
#ifndef ICMP_H
#define ICMP_H

#include <stdint.h>
#include <stddef.h>

#include "dp.h"
#include "parse.h"
#include "pkt.h"

/* Enough for the largest error: an IPv6 one fills the minimum MTU. */
enum { ICMP_MAX = 1280 };

uint32_t icmp_no_route(uint8_t out[ICMP_MAX], const struct pkt *pkt, const struct flow *flow);
uint32_t icmp_no_host(uint8_t out[ICMP_MAX], const struct pkt *pkt, const struct flow *flow);
uint32_t icmp_too_big(uint8_t out[ICMP_MAX], const struct pkt *pkt, const struct flow *flow, uint32_t mtu);

#endif
