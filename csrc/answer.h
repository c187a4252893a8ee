/* SPDX-License-Identifier: Apache-2.0 */
/* answer.h - ICMP errors to the pods whose packets go nowhere. */
#ifndef ANSWER_H
#define ANSWER_H

#include <stdint.h>

#include "path.h"

void answer_refused(struct path *path, const struct pkt *pkt, const struct flow *flow, enum dp_drop drop, uint32_t mtu);

#endif
