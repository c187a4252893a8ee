/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernel.h - the system calls of a worker, made up: a kernel that refuses what it is told to.
 *
 * Packets wait in a queue. What leaves is kept as single packets: runs and super-packets are cut first, as the
 * kernel would cut them.
 */
#ifndef KERNEL_H
#define KERNEL_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/udp.h>

#include "check.h"
#include "offload.h"
#include "outbox.h"
#include "sketch.h"
#include "split.h"
#include "sys.h"
#include "underlay.h"

enum { KERNEL_TUN = 1000, KERNEL_UDP, KERNEL_UDP_TX, KERNEL_RAW, KERNEL_RAW_TX };
enum { KERNEL_VNET = 12, KERNEL_IFINDEX = 7, KERNEL_QUEUE = 512, KERNEL_SEEN = 16384, KERNEL_BYTES = 16 << 20 };

/* Bytes that wait to be read or were seen. */
struct kernel_bytes {
	uint32_t at; /* in bytes[] of their owner */
	uint32_t len;
	uint32_t size;  /* of datagrams that were received as one message; 0: it is one */
	uint32_t where; /* seen: underlay address, or 0 for the TUN */
};

/* What came out. */
struct kernel_log {
	uint32_t count, used;
	struct kernel_bytes seen[KERNEL_SEEN];
	uint8_t bytes[KERNEL_BYTES];
};

static struct {
	/* what it refuses */
	int run_error;         /* of messages that it should cut; 0: it cuts them */
	uint32_t longest;      /* datagram on the way to peer 1; 0: any. Longer: EMSGSIZE, runs too */
	int peer_error;        /* of whatever goes to peer 1 */
	uint32_t most;         /* messages it sends or receives in one call; 0: all */
	int once_error;        /* of one message or packet, not a run or super-packet ... */
	uint32_t once_after;   /* ... after so many */
	int super_error;       /* of super-packets ... */
	uint8_t super_refused; /* ... of this VNET_GSO_*; 0: of any */

	bool is_cut; /* messages are longer than the room for them */

	bool is_plain; /* the TUN has no virtio header, and takes any packet */

	uint32_t push; /* bytes of encapsulation in front of what leaves for the underlay */

	/* what happened */
	uint32_t refusals; /* of runs and super-packets that it told us of */
	uint32_t runs, supers;
	struct kernel_log *log;

	uint32_t first, count, used; /* what waits to be read */
	struct kernel_bytes queue[KERNEL_QUEUE];
	uint8_t bytes[KERNEL_BYTES];
} kernel;

/**
 * kernel_queue() - Let bytes wait to be read
 * @data:	A packet behind its virtio header, or a message
 * @len:	How many
 * @size:	Of each datagram of a message that is a run, or 0
 * @from:	Underlay address of a message
 */
static inline void kernel_queue(const uint8_t *data, uint32_t len, uint32_t size, uint32_t from)
{
	CHECK(kernel.count < KERNEL_QUEUE && kernel.used + len <= KERNEL_BYTES);
	memcpy(kernel.bytes + kernel.used, data, len);
	kernel.queue[kernel.count++] =
		(struct kernel_bytes){.at = kernel.used, .len = len, .size = size, .where = from};
	kernel.used += len;
}

/**
 * kernel_from_pod() - Let a packet wait at the TUN
 * @sketch:	What it is
 */
static inline void kernel_from_pod(const struct sketch *sketch)
{
	static uint8_t room[KERNEL_VNET + PKT_MAX];
	uint32_t len = sketch_packet(room + KERNEL_VNET, sketch, true), l3len = sketch->family == 4 ? IP4_LEN : IP6_LEN;
	bool is_tcp = sketch->proto == PROTO_TCP;
	struct vnet_hdr vnet = {0};

	if (sketch->size)
		vnet = (struct vnet_hdr){.flags = VNET_NEEDS_CSUM,
					 .gso_type = !is_tcp               ? VNET_GSO_UDP_L4
						     : sketch->family == 4 ? VNET_GSO_TCP4
									   : VNET_GSO_TCP6,
					 .hdr_len = (uint16_t)(l3len + (is_tcp ? TCP_LEN : UDP_LEN)),
					 .gso_size = (uint16_t)sketch->size,
					 .csum_start = (uint16_t)l3len,
					 .csum_offset = is_tcp ? TCP_CHECK : UDP_CHECK};
	memcpy(room, &vnet, sizeof(vnet));
	kernel_queue(room, KERNEL_VNET + len, 0, 0);
}

/* --- what came out -------------------------------------------------------------------- */

/**
 * kernel_keep() - Note a single packet that left
 * @data:	Its bytes
 * @len:	How many
 * @where:	Underlay address, or 0 for the TUN
 */
static inline void kernel_keep(const uint8_t *data, uint32_t len, uint32_t where)
{
	struct kernel_log *log = kernel.log;

	CHECK(log->count < KERNEL_SEEN && log->used + len <= KERNEL_BYTES);
	memcpy(log->bytes + log->used, data, len);
	log->seen[log->count++] = (struct kernel_bytes){.at = log->used, .len = len, .where = where};
	log->used += len;
}

/**
 * kernel_key() - Which flow does a packet belong to?
 * @log:	Where it is
 * @index:	Which
 *
 * Return: something that packets of a flow have in common
 */
static inline uint64_t kernel_key(const struct kernel_log *log, uint32_t index)
{
	const struct kernel_bytes *seen = &log->seen[index];
	const uint8_t *ip = log->bytes + seen->at + (seen->where ? kernel.push : 0);
	bool is4 = ip[0] >> 4 == 4;
	uint32_t peer4 = load32(ip + IP4_SRC) ^ load32(ip + IP4_DST);
	uint32_t peer6 = load32(ip + IP6_SRC + 4) ^ load32(ip + IP6_DST + 4);
	uint32_t ports = load32(ip + (is4 ? IP4_LEN : IP6_LEN));

	return (uint64_t)(is4 ? peer4 : peer6) << 32 ^ (uint64_t)ip[is4 ? IP4_PROTO : IP6_NEXT] << 56 ^ ports;
}

/**
 * kernel_follows() - Are all packets of a log in another one, and those of a flow in the same order?
 * @whole:	The other
 * @part:	Their log
 *
 * The same means bit for bit, and to the same place; each packet of @whole counts once.
 *
 * Return: true if they are
 */
static inline bool kernel_follows(const struct kernel_log *whole, const struct kernel_log *part)
{
	static bool is_passed[KERNEL_SEEN];

	memset(is_passed, 0, sizeof(is_passed));
	for (uint32_t i = 0; i < part->count; i++) {
		const struct kernel_bytes *one = &part->seen[i];
		uint64_t key = kernel_key(part, i);
		uint32_t other = 0;
		bool is_same = false;

		for (; other < whole->count && !is_same; other++) {
			const struct kernel_bytes *two = &whole->seen[other];

			if (is_passed[other] || kernel_key(whole, other) != key)
				continue;
			is_passed[other] = true; /* nothing later of the flow may come from here */
			is_same = one->len == two->len && one->where == two->where &&
				  !memcmp(part->bytes + one->at, whole->bytes + two->at, one->len);
		}
		if (!is_same)
			return false;
	}
	return true;
}

/**
 * kernel_equal() - Are two logs the same but for the order of packets of different flows?
 * @a:		One
 * @b:		The other
 *
 * Return: true if they are
 */
static inline bool kernel_equal(const struct kernel_log *a, const struct kernel_log *b)
{
	return a->count == b->count && kernel_follows(a, b);
}

/* --- system calls ----------------------------------------------------------------------- */

/**
 * kernel_refuse() - Fail as a system call does
 * @err:	Positive errno
 *
 * Return: -1
 */
static inline int kernel_refuse(int err)
{
	errno = err;
	return -1;
}

/**
 * kernel_once() - Is this the message or packet that is refused once?
 *
 * Return: true if it is
 */
static inline bool kernel_once(void)
{
	if (!kernel.once_error)
		return false;
	if (kernel.once_after) {
		kernel.once_after--;
		return false;
	}
	return true;
}

/**
 * kernel_read() - The TUN's read()
 * @fd:		KERNEL_TUN
 * @buf:	Where to
 * @len:	Its size
 *
 * Return: as read()
 */
static inline ssize_t kernel_read(int fd, void *buf, size_t len)
{
	const struct kernel_bytes *next = &kernel.queue[kernel.first];

	CHECK(fd == KERNEL_TUN);
	if (kernel.first == kernel.count)
		return kernel_refuse(EAGAIN);
	CHECK(next->len <= len);
	memcpy(buf, kernel.bytes + next->at, next->len);
	kernel.first++;
	return next->len;
}

static inline ssize_t kernel_writev(int fd, const struct iovec *iov, int count);

/**
 * kernel_complete() - Finish the checksum of a packet that came without it
 * @seen:	The packet, as it was kept
 * @vnet:	Its virtio header
 */
static inline void kernel_complete(const struct kernel_bytes *seen, const struct vnet_hdr *vnet)
{
	struct pkt pkt = pkt_init(kernel.log->bytes + seen->at, seen->len, 0, seen->len);
	struct flow flow;

	CHECK(vnet->flags == VNET_NEEDS_CSUM && parse_inner(&pkt, &flow) == DP_DROP_NONE);
	CHECK(offload_complete(&pkt, &flow, vnet) == DP_DROP_NONE);
}

/**
 * kernel_write() - The TUN's write()
 * @fd:		KERNEL_TUN
 * @buf:	A packet behind its virtio header
 * @len:	Its length
 *
 * Return: as write()
 */
static inline ssize_t kernel_write(int fd, const void *buf, size_t len)
{
	struct vnet_hdr vnet;

	CHECK(fd == KERNEL_TUN && len > KERNEL_VNET);
	if (kernel.is_plain) {
		kernel_keep(buf, (uint32_t)len, 0);
		return (ssize_t)len;
	}
	memcpy(&vnet, buf, sizeof(vnet));
	if (vnet.gso_type) {
		struct iovec whole = {.iov_base = (void *)buf, .iov_len = len};

		return kernel_writev(fd, &whole, 1);
	}
	if (kernel_once()) {
		int err = kernel.once_error;

		kernel.once_error = 0;
		return kernel_refuse(err);
	}
	kernel_keep((const uint8_t *)buf + KERNEL_VNET, (uint32_t)len - KERNEL_VNET, 0);
	if (vnet.flags)
		kernel_complete(&kernel.log->seen[kernel.log->count - 1], &vnet);
	return (ssize_t)len;
}

/**
 * kernel_writev() - The TUN's writev(), which cuts super-packets
 * @fd:		KERNEL_TUN
 * @iov:	Pieces of a packet, behind a virtio header
 * @count:	How many
 *
 * Return: as writev()
 */
static inline ssize_t kernel_writev(int fd, const struct iovec *iov, int count)
{
	static uint8_t whole[KERNEL_VNET + PKT_MAX];
	uint32_t len = 0;
	struct vnet_hdr vnet;
	struct split split;
	struct flow flow;
	struct pkt pkt;

	for (int i = 0; i < count; i++) {
		CHECK(len + iov[i].iov_len <= sizeof(whole));
		memcpy(whole + len, iov[i].iov_base, iov[i].iov_len);
		len += (uint32_t)iov[i].iov_len;
	}
	memcpy(&vnet, whole, sizeof(vnet));
	if (!vnet.gso_type || kernel.is_plain)
		return kernel_write(fd, whole, len);
	if (kernel.super_error && (!kernel.super_refused || kernel.super_refused == vnet.gso_type)) {
		kernel.refusals++;
		return kernel_refuse(kernel.super_error);
	}
	kernel.supers++;
	pkt = pkt_init(whole, len, KERNEL_VNET, len - KERNEL_VNET);
	CHECK(parse_inner(&pkt, &flow) == DP_DROP_NONE);
	CHECK(split_plan(&pkt, &flow, &vnet, &split) == DP_DROP_NONE);
	for (uint32_t i = 0; i < split.count; i++) {
		uint8_t packet[PKT_MAX];
		uint32_t payload = split_header(&pkt, &split, i, packet);

		memcpy(packet + split.headers, whole + KERNEL_VNET + split.headers + i * split.size, payload);
		kernel_keep(packet, split.headers + payload, 0);
	}
	return len;
}

/**
 * kernel_segment() - Of how many bytes is each datagram of a message?
 * @hdr:	The message
 *
 * Return: as UDP_SEGMENT says, or 0
 */
static inline uint16_t kernel_segment(struct msghdr *hdr)
{
	uint16_t size = 0;

	for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(hdr); cmsg; cmsg = CMSG_NXTHDR(hdr, cmsg))
		if (cmsg->cmsg_level == SOL_UDP && cmsg->cmsg_type == UDP_SEGMENT)
			memcpy(&size, CMSG_DATA(cmsg), sizeof(size));
	return size;
}

/**
 * kernel_send() - Send one message, cut into datagrams
 * @hdr:	The message
 *
 * Return: 0, or the errno with which it is refused as a whole
 */
static inline int kernel_send(struct msghdr *hdr)
{
	static uint8_t whole[PKT_MAX];
	const struct sockaddr_in *to = hdr->msg_name;
	uint32_t len = 0, where = ntohl(to->sin_addr.s_addr), size = kernel_segment(hdr);
	int err = 0;

	for (size_t i = 0; i < hdr->msg_iovlen; i++) {
		CHECK(len + hdr->msg_iov[i].iov_len <= sizeof(whole));
		memcpy(whole + len, hdr->msg_iov[i].iov_base, hdr->msg_iov[i].iov_len);
		len += (uint32_t)hdr->msg_iov[i].iov_len;
	}
	CHECK(len && len <= OUTBOX_BYTES && size <= len);
	if (where == SKETCH_VTEP + 1 && kernel.peer_error)
		err = kernel.peer_error;
	else if (where == SKETCH_VTEP + 1 && kernel.longest && (size ? size : len) > kernel.longest)
		err = EMSGSIZE;
	else if (size && kernel.run_error)
		err = kernel.run_error;
	else if (kernel_once()) {
		err = kernel.once_error;
	}
	if (err)
		return err;
	kernel.runs += !!size;
	if (!size)
		size = len;
	for (uint32_t off = 0; off < len; off += size)
		kernel_keep(whole + off, len - off < size ? len - off : size, where);
	return 0;
}

/**
 * kernel_sendmmsg() - The sockets' sendmmsg()
 * @fd:		KERNEL_UDP_TX or KERNEL_RAW_TX
 * @msgs:	Messages
 * @count:	How many
 * @flags:	MSG_DONTWAIT
 *
 * As there, an error is told only if it is that of the first message.
 *
 * Return: as sendmmsg()
 */
static inline int kernel_sendmmsg(int fd, struct mmsghdr *msgs, unsigned int count, int flags)
{
	CHECK((fd == KERNEL_UDP_TX || fd == KERNEL_RAW_TX) && flags == MSG_DONTWAIT);
	CHECK(count && count <= UNDERLAY_SENDS);
	for (unsigned int i = 0; i < count; i++) {
		int err = kernel.most && i == kernel.most ? EAGAIN : kernel_send(&msgs[i].msg_hdr);

		if (err && i)
			return (int)i;
		if (err) {
			if (kernel_segment(&msgs[0].msg_hdr))
				kernel.refusals++;
			if (err == kernel.once_error)
				kernel.once_error = 0;
			return kernel_refuse(err);
		}
	}
	return (int)count;
}

/**
 * kernel_receive() - Receive one message
 * @msg:	Where to
 * @next:	What waits
 * @is_udp:	Whether what it was sent to is told apart from its bytes
 */
static inline void kernel_receive(struct mmsghdr *msg, const struct kernel_bytes *next, bool is_udp)
{
	struct msghdr *hdr = &msg->msg_hdr;
	struct in_pktinfo info = {.ipi_ifindex = KERNEL_IFINDEX, .ipi_addr.s_addr = htonl(SKETCH_OWN)};
	struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(next->where)};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(hdr);
	int size = (int)next->size;

	CHECK(next->len <= hdr->msg_iov[0].iov_len);
	memcpy(hdr->msg_iov[0].iov_base, kernel.bytes + next->at, next->len);
	msg->msg_len = next->len;
	memcpy(hdr->msg_name, &from, sizeof(from));
	cmsg->cmsg_level = IPPROTO_IP;
	cmsg->cmsg_type = IP_PKTINFO;
	cmsg->cmsg_len = CMSG_LEN(sizeof(info));
	memcpy(CMSG_DATA(cmsg), &info, sizeof(info));
	hdr->msg_controllen = CMSG_SPACE(sizeof(info));
	if (is_udp && size) {
		cmsg = (struct cmsghdr *)((uint8_t *)hdr->msg_control + hdr->msg_controllen);
		cmsg->cmsg_level = SOL_UDP;
		cmsg->cmsg_type = UDP_GRO;
		cmsg->cmsg_len = CMSG_LEN(sizeof(size));
		memcpy(CMSG_DATA(cmsg), &size, sizeof(size));
		hdr->msg_controllen += CMSG_SPACE(sizeof(size));
	}
	hdr->msg_flags = kernel.is_cut ? MSG_TRUNC : 0;
}

/**
 * kernel_recvmmsg() - The sockets' recvmmsg()
 * @fd:		KERNEL_UDP or KERNEL_RAW
 * @msgs:	Where to
 * @count:	How many fit
 * @flags:	MSG_DONTWAIT
 * @timeout:	NULL
 *
 * Return: as recvmmsg()
 */
static inline int kernel_recvmmsg(int fd, struct mmsghdr *msgs, unsigned int count, int flags, struct timespec *timeout)
{
	unsigned int received = 0;

	CHECK((fd == KERNEL_UDP || fd == KERNEL_RAW) && flags == MSG_DONTWAIT && !timeout);
	while (received < count && kernel.first < kernel.count && (!kernel.most || received < kernel.most))
		kernel_receive(&msgs[received++], &kernel.queue[kernel.first++], fd == KERNEL_UDP);
	return received ? (int)received : kernel_refuse(EAGAIN);
}

static const struct sys kernel_calls = {
	.read = kernel_read,
	.write = kernel_write,
	.writev = kernel_writev,
	.recvmmsg = kernel_recvmmsg,
	.sendmmsg = kernel_sendmmsg,
};

#endif
