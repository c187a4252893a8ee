/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sys.h - the system calls of the packet path, through one table of pointers.
 *
 * Workers make these calls and no others. Tests point sys at a table of their
 * own to inject faults.
 */
#ifndef SYS_H
#define SYS_H

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

struct sys {
	ssize_t (*read)(int fd, void *buf, size_t len);
	ssize_t (*write)(int fd, const void *buf, size_t len);
	ssize_t (*writev)(int fd, const struct iovec *iov, int count);
	int (*recvmmsg)(int fd, struct mmsghdr *msgs, unsigned int count, int flags, struct timespec *timeout);
	int (*sendmmsg)(int fd, struct mmsghdr *msgs, unsigned int count, int flags);
	int (*epoll_ctl)(int epoll_fd, int op, int fd, struct epoll_event *event);
	int (*epoll_wait)(int epoll_fd, struct epoll_event *events, int count, int timeout_ms);
};

extern const struct sys *sys;

#endif
