/* SPDX-License-Identifier: Apache-2.0 */
/* answer.h - ICMP errors to the pods whose packets go nowhere. */
#ifndef ANSWER_H
#define ANSWER_H

#include <stdint.h>

#include "path.h"

/* What a pod is told. */
enum answer {
	ANSWER_NO_ROUTE, /* no peer takes it, or none can here */
	ANSWER_NO_HOST,  /* its peer is said to be unreachable */
	ANSWER_TOO_BIG   /* larger than its subnet's mtu */
};

void answer_tell(struct path *path, const struct pkt *pkt, const struct flow *flow, const struct dp_subnet *subnet,
		 enum answer what);
void answer_unsent(struct path *path, const struct outbox_message *message, int err);

#endif
