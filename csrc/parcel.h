/* SPDX-License-Identifier: Apache-2.0 */
/* parcel.h - a control message with its descriptors, and how it crosses a socket. */
#ifndef PARCEL_H
#define PARCEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dp.h"

/* A request or an answer with its descriptors, by slot; -1: none. */
struct parcel {
	struct dp_msg msg;
	size_t size; /* bytes of msg that crossed the socket, or are to */
	int fds[DP_FD_SLOTS];
};

bool parcel_has(const struct dp_msg *msg, int slot);
void parcel_close(struct parcel *parcel);
bool parcel_receive(int fd, struct parcel *parcel);
bool parcel_send(int fd, const struct parcel *parcel);

#endif
