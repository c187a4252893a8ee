/* SPDX-License-Identifier: Apache-2.0 */
/*
 * offload.h - checksums and segments that one side left to the other: pure.
 *
 * Today: completing NEEDS_CSUM packets from the TUN, and recognising what a
 * kernel VXLAN peer on the same machine left partial. Splitting super-packets
 * and merging segments belong here too.
 */
#ifndef OFFLOAD_H
#define OFFLOAD_H

#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>

#include "dp.h"
#include "parse.h"
#include "pkt.h"
#include "wire.h"

enum dp_drop offload_complete(const struct pkt *pkt, const struct flow *flow, const struct vnet_hdr *vnet);
uint32_t offload_describe(const struct pkt *pkt, const struct flow *flow, uint32_t mtu, struct vnet_hdr *vnet);
uint32_t offload_describe_run(const struct flow *flow, uint32_t size, struct vnet_hdr *vnet);

#endif
