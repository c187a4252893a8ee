/* SPDX-License-Identifier: Apache-2.0 */
/* deliver.h - inner packets to the kernel, by way of the TUN. */
#ifndef DELIVER_H
#define DELIVER_H

#include <stdint.h>

#include "path.h"

void deliver_all(struct path *path);
void deliver_packet(struct path *path, struct pkt *pkt, const struct flow *flow, uint32_t run,
		    struct path_packet *packet);

#endif
