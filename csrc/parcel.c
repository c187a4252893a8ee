/* SPDX-License-Identifier: Apache-2.0 */
/*
 * parcel.c - a control message with its descriptors, and how it crosses a socket.
 *
 * Who sends may be of another version: shorter messages are made longer with
 * zeros, what is behind the end of ours is not read (dp.h, Versions).
 */
#include "parcel.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Control message buffer for all descriptors a parcel can have. */
union fd_space {
	struct cmsghdr align;
	uint8_t bytes[CMSG_SPACE(sizeof(int) * DP_FD_SLOTS)];
};

/**
 * parcel_has() - Does a message say that a descriptor came along?
 * @msg:	The message
 * @slot:	Which
 *
 * Return: true if it does
 */
bool parcel_has(const struct dp_msg *msg, int slot)
{
	return msg->fd_mask[slot / 64] >> slot % 64 & 1;
}

/**
 * parcel_close() - Close the descriptors of a parcel
 * @parcel:	The parcel
 */
void parcel_close(struct parcel *parcel)
{
	for (int i = 0; i < DP_FD_SLOTS; i++) {
		if (parcel->fds[i] >= 0)
			close(parcel->fds[i]);
		parcel->fds[i] = -1;
	}
}

/**
 * sort_fds() - Put received descriptors where the message says they belong
 * @parcel:	Message received; descriptors are filled in
 * @hdr:	Header with control messages
 *
 * Return: true, or false if their number is not what the message says; all are closed then
 */
static bool sort_fds(struct parcel *parcel, struct msghdr *hdr)
{
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(hdr);
	bool has_fds = cmsg && cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS;
	size_t count = has_fds ? (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;
	size_t used = 0;
	bool is_whole = !(parcel->msg.fd_mask[DP_FD_SLOTS / 64] >> DP_FD_SLOTS % 64);

	for (int i = 0; i < DP_FD_SLOTS && is_whole; i++) {
		if (!parcel_has(&parcel->msg, i))
			continue;
		is_whole = used < count;
		if (is_whole)
			memcpy(&parcel->fds[i], CMSG_DATA(cmsg) + used++ * sizeof(int), sizeof(int));
	}
	if (is_whole && used == count)
		return true;
	for (; used < count; used++) {
		int fd;

		memcpy(&fd, CMSG_DATA(cmsg) + used * sizeof(int), sizeof(int));
		close(fd);
	}
	parcel_close(parcel);
	return false;
}

/**
 * parcel_receive() - Receive one request
 * @fd:		Connection
 * @parcel:	Filled in; its descriptors are the caller's to close
 *
 * Return: true, or false if the connection ended or broke the protocol
 */
bool parcel_receive(int fd, struct parcel *parcel)
{
	uint8_t surplus[DP_MSG_BYTES_MAX - sizeof(parcel->msg) + 1]; /* its last byte is how an oversized one shows */
	union fd_space space;
	struct iovec iov[2] = {{&parcel->msg, sizeof(parcel->msg)}, {surplus, sizeof(surplus)}};
	struct msghdr hdr = {.msg_iov = iov, .msg_iovlen = 2, .msg_control = &space, .msg_controllen = sizeof(space)};
	ssize_t n;

	memset(&parcel->msg, 0, sizeof(parcel->msg));
	memset(parcel->fds, -1, sizeof(parcel->fds));
	n = recvmsg(fd, &hdr, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	parcel->size = (size_t)n < sizeof(parcel->msg) ? (size_t)n : sizeof(parcel->msg);
	if (n < DP_MSG_BYTES_MIN || n > DP_MSG_BYTES_MAX)
		memset(parcel->msg.fd_mask, 0xff, sizeof(parcel->msg.fd_mask)); /* sort_fds() closes what came along */
	if (!sort_fds(parcel, &hdr))
		return false;
	if (parcel->msg.magic != DP_CTL_MAGIC || (hdr.msg_flags & MSG_CTRUNC)) {
		parcel_close(parcel);
		return false;
	}
	return true;
}

/**
 * parcel_send() - Send an answer
 * @fd:		Connection
 * @parcel:	Message, as long as its size says, and borrowed descriptors for the bits of its fd_mask
 *
 * Return: true, or false if the other side does not take it
 */
bool parcel_send(int fd, const struct parcel *parcel)
{
	union fd_space space;
	struct iovec iov = {(void *)(uintptr_t)&parcel->msg, parcel->size};
	struct msghdr hdr = {.msg_iov = &iov, .msg_iovlen = 1};
	size_t count = 0;

	memset(&space, 0, sizeof(space));
	for (int i = 0; i < DP_FD_SLOTS; i++) {
		if (parcel_has(&parcel->msg, i))
			memcpy(CMSG_DATA(&space.align) + count++ * sizeof(int), &parcel->fds[i], sizeof(int));
	}
	if (count) {
		hdr.msg_control = &space;
		hdr.msg_controllen = CMSG_SPACE(count * sizeof(int));
		space.align = (struct cmsghdr){
			.cmsg_len = CMSG_LEN(count * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
	}
	return sendmsg(fd, &hdr, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)parcel->size;
}
