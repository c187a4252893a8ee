/* SPDX-License-Identifier: Apache-2.0 */
/* tun.h - the overlay device: opening it by a feature ladder, reading and writing packets. */
#ifndef TUN_H
#define TUN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "dp.h"
#include "pkt.h"
#include "wire.h"

int tun_read(int fd, uint32_t vnet_hdr_len, struct pkt *pkt, struct vnet_hdr *vnet);
int tun_write(int fd, uint32_t vnet_hdr_len, struct pkt *pkt, const struct vnet_hdr *vnet);
int tun_write_pieces(int fd, uint32_t vnet_hdr_len, struct pkt *head, const struct vnet_hdr *vnet,
		     const struct iovec *pieces, uint32_t count);

#endif
