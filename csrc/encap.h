/* SPDX-License-Identifier: Apache-2.0 */
/* encap.h - adding and removing outer headers, and the ECN rules between them: pure. */
#ifndef ENCAP_H
#define ENCAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dp.h"
#include "parse.h"
#include "pkt.h"

/* The outer IPv4 header of a packet from a raw socket. */
struct outer {
	uint8_t tos;
	addr_t src;
	addr_t dst;
};

bool encap_vxlan_push(struct pkt *pkt, uint8_t family, uint32_t vni, const uint8_t *dst_mac, const uint8_t *src_mac);
enum dp_drop encap_vxlan_pull(struct pkt *pkt, const struct dp_config *config, uint8_t *family);
enum dp_drop encap_ip4_pull(struct pkt *pkt, struct outer *outer);
enum dp_drop encap_check_ipip(const struct flow *flow);
enum dp_drop encap_check_bare(const struct pkt *pkt);
uint8_t encap_tos(const struct dp_config *config, uint8_t inner_tos);
enum dp_drop encap_decap_ecn(const struct pkt *pkt, struct flow *flow, uint8_t outer_tos);

#endif
