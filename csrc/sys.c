/* SPDX-License-Identifier: Apache-2.0 */
/* sys.c - the real system calls. */
#include "sys.h"

#include <unistd.h>

static const struct sys linux_calls = {
	.read = read,
	.write = write,
	.writev = writev,
	.recvmmsg = recvmmsg,
	.sendmmsg = sendmmsg,
	.epoll_ctl = epoll_ctl,
	.epoll_wait = epoll_wait,
};

const struct sys *sys = &linux_calls;
