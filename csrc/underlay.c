/* SPDX-License-Identifier: Apache-2.0 */
/*
 * underlay.c - tunnel packets through the underlay's sockets, a batch a call.
 *
 * underlay_open.c opens them, and says what they are.
 */
#include "underlay.h"

#include <errno.h>
#include <netinet/udp.h>
#include <string.h>

#include "sys.h"
#include "wire.h"

/**
 * underlay_fill_addr() - Make a socket address
 * @out:	Where to
 * @addr:	Address, family 4 or 6
 * @port:	Host order
 *
 * Return: its length for the kernel
 */
socklen_t underlay_fill_addr(union underlay_addr *out, const struct dp_addr *addr, uint16_t port)
{
	memset(out, 0, sizeof(*out));
	if (addr->family == 6) {
		out->in6.sin6_family = AF_INET6;
		out->in6.sin6_port = htons(port);
		memcpy(&out->in6.sin6_addr, addr->bytes, 16);
		return sizeof(out->in6);
	}
	out->in4.sin_family = AF_INET;
	out->in4.sin_port = htons(port);
	memcpy(&out->in4.sin_addr, addr->bytes, 4);
	return sizeof(out->in4);
}

/* --- receiving ---------------------------------------------------------------- */

/**
 * underlay_set_gro() - Let the kernel join datagrams that arrive together, or not
 * @fd:		Receiving UDP socket, perhaps in use
 * @is_on:	Which
 */
void underlay_set_gro(int fd, bool is_on)
{
	int value = is_on;

	/* if it cannot, datagrams come one by one */
	(void)setsockopt(fd, SOL_UDP, UDP_GRO, &value, sizeof(value));
}

/**
 * underlay_receive() - Receive a batch
 * @fd:		Socket
 * @batch:	Room for the headers; overwritten
 * @pkts:	Buffers with PKT_HEADROOM; become the messages, in order
 * @count:	How many, at most UNDERLAY_BATCH
 *
 * Return: messages received; -EAGAIN when there is none, another -errno
 */
int underlay_receive(int fd, struct underlay_batch *batch, struct pkt *pkts, uint32_t count)
{
	int n;

	for (uint32_t i = 0; i < count; i++) {
		batch->iov[i] =
			(struct iovec){.iov_base = pkts[i].buf + PKT_HEADROOM, .iov_len = pkts[i].cap - PKT_HEADROOM};
		/* lengths are in-out, so all must be set for every call */
		batch->msgs[i].msg_hdr = (struct msghdr){
			.msg_name = &batch->addrs[i],
			.msg_namelen = sizeof(batch->addrs[i]),
			.msg_iov = &batch->iov[i],
			.msg_iovlen = 1,
			.msg_control = batch->cmsg[i],
			.msg_controllen = UNDERLAY_CMSG,
		};
	}
	n = sys->recvmmsg(fd, batch->msgs, count, MSG_DONTWAIT, NULL);
	for (int i = 0; i < n; i++) {
		pkts[i].off = PKT_HEADROOM;
		pkts[i].len = batch->msgs[i].msg_len;
	}
	return n < 0 ? -errno : n;
}

/**
 * read_cmsg() - Note what one control message says
 * @cmsg:	The control message
 * @meta:	Filled in
 */
static void read_cmsg(const struct cmsghdr *cmsg, struct underlay_meta *meta)
{
	const uint8_t *data = CMSG_DATA(cmsg);

	if (cmsg->cmsg_level == IPPROTO_IP && cmsg->cmsg_type == IP_PKTINFO) {
		struct in_pktinfo info;

		memcpy(&info, data, sizeof(info));
		meta->ifindex = (uint32_t)info.ipi_ifindex;
		meta->dst = ntohl(info.ipi_addr.s_addr);
	} else if (cmsg->cmsg_level == IPPROTO_IPV6 && cmsg->cmsg_type == IPV6_PKTINFO) {
		struct in6_pktinfo info;

		memcpy(&info, data, sizeof(info));
		meta->ifindex = info.ipi6_ifindex;
		meta->dst = parse_addr(6, info.ipi6_addr.s6_addr);
	} else if (cmsg->cmsg_level == IPPROTO_IP && cmsg->cmsg_type == IP_TOS) {
		meta->tos = data[0];
	} else if (cmsg->cmsg_level == IPPROTO_IPV6 && cmsg->cmsg_type == IPV6_TCLASS) {
		int tclass;

		memcpy(&tclass, data, sizeof(tclass));
		meta->tos = (uint8_t)tclass;
	} else if (cmsg->cmsg_level == SOL_UDP && cmsg->cmsg_type == UDP_GRO) {
		int size;

		memcpy(&size, data, sizeof(size));
		meta->segment = (uint32_t)size;
	} else if (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SO_RXQ_OVFL) {
		memcpy(&meta->queue_drops, data, sizeof(meta->queue_drops));
	}
}

/**
 * underlay_read_meta() - What is known of a received message
 * @batch:	After underlay_receive()
 * @index:	Which message
 * @meta:	Filled in
 */
void underlay_read_meta(const struct underlay_batch *batch, uint32_t index, struct underlay_meta *meta)
{
	struct msghdr *hdr = (struct msghdr *)&batch->msgs[index].msg_hdr;
	const union underlay_addr *from = &batch->addrs[index];

	memset(meta, 0, sizeof(*meta));
	meta->is_truncated = hdr->msg_flags & MSG_TRUNC;
	meta->family = from->sa.sa_family == AF_INET6 ? 6 : 4;
	meta->src = meta->family == 6 ? parse_addr(6, from->in6.sin6_addr.s6_addr) : ntohl(from->in4.sin_addr.s_addr);
	for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(hdr); cmsg; cmsg = CMSG_NXTHDR(hdr, cmsg))
		read_cmsg(cmsg, meta);
}

/* --- sending -------------------------------------------------------------------- */

/**
 * add_cmsg() - Append a control message
 * @hdr:	Message whose control buffer has UNDERLAY_CMSG bytes
 * @level:	Protocol level
 * @type:	Type
 * @data:	Its data
 * @len:	Bytes of data
 */
static void add_cmsg(struct msghdr *hdr, int level, int type, const void *data, size_t len)
{
	struct cmsghdr *cmsg = (struct cmsghdr *)((uint8_t *)hdr->msg_control + hdr->msg_controllen);

	cmsg->cmsg_level = level;
	cmsg->cmsg_type = type;
	cmsg->cmsg_len = CMSG_LEN(len);
	memcpy(CMSG_DATA(cmsg), data, len);
	hdr->msg_controllen += CMSG_SPACE(len);
}

/**
 * underlay_address() - Address a message of a batch
 * @sends:	The batch
 * @index:	Which message; its pieces follow
 * @vtep:	Underlay address of the peer
 * @port:	UDP destination port, 0 on raw sockets
 * @tos:	TOS byte of the outer header
 */
void underlay_address(struct underlay_sends *sends, uint32_t index, const struct dp_addr *vtep, uint16_t port,
		      uint8_t tos)
{
	struct msghdr *hdr = &sends->msgs[index].msg_hdr;
	int value = tos;

	*hdr = (struct msghdr){
		.msg_name = &sends->addrs[index],
		.msg_namelen = underlay_fill_addr(&sends->addrs[index], vtep, port),
		.msg_control = sends->cmsg[index],
	};
	if (!tos)
		return; /* what the socket has anyway */
	if (vtep->family == 6)
		add_cmsg(hdr, IPPROTO_IPV6, IPV6_TCLASS, &value, sizeof(value));
	else
		add_cmsg(hdr, IPPROTO_IP, IP_TOS, &value, sizeof(value));
}

/**
 * underlay_set_ttl() - Give the outer header of a message another TTL or hop limit than the socket's
 * @sends:	The batch
 * @index:	Which message, after underlay_address()
 * @ttl:	1 .. 255
 */
void underlay_set_ttl(struct underlay_sends *sends, uint32_t index, uint8_t ttl)
{
	bool is_v6 = sends->addrs[index].sa.sa_family == AF_INET6;
	int value = ttl;

	add_cmsg(&sends->msgs[index].msg_hdr, is_v6 ? IPPROTO_IPV6 : IPPROTO_IP, is_v6 ? IPV6_HOPLIMIT : IP_TTL, &value,
		 sizeof(value));
}

/**
 * underlay_set_source() - Say where a message of an unbound IPv4 socket leaves from
 * @sends:	The batch
 * @index:	Which message, after underlay_address()
 * @source:	Our underlay address
 * @ifindex:	Underlay interface
 */
void underlay_set_source(struct underlay_sends *sends, uint32_t index, const struct dp_addr *source, uint32_t ifindex)
{
	struct in_pktinfo info = {.ipi_ifindex = (int)ifindex};

	memcpy(&info.ipi_spec_dst, source->bytes, sizeof(info.ipi_spec_dst));
	add_cmsg(&sends->msgs[index].msg_hdr, IPPROTO_IP, IP_PKTINFO, &info, sizeof(info));
}

/**
 * underlay_set_pieces() - Say what a message is gathered from
 * @sends:	The batch
 * @index:	Which message
 * @pieces:	Borrowed until it is sent
 * @count:	How many
 */
void underlay_set_pieces(struct underlay_sends *sends, uint32_t index, struct iovec *pieces, uint32_t count)
{
	sends->msgs[index].msg_hdr.msg_iov = pieces;
	sends->msgs[index].msg_hdr.msg_iovlen = count;
}

/**
 * underlay_set_segment() - Let the kernel cut a message into datagrams
 * @sends:	The batch
 * @index:	Which message, after underlay_address()
 * @size:	Bytes of each datagram but the last
 */
void underlay_set_segment(struct underlay_sends *sends, uint32_t index, uint16_t size)
{
	add_cmsg(&sends->msgs[index].msg_hdr, SOL_UDP, UDP_SEGMENT, &size, sizeof(size));
}

/**
 * underlay_clear_segment() - Undo underlay_set_segment(), which must have been the last to be set
 * @sends:	The batch
 * @index:	Which message
 */
void underlay_clear_segment(struct underlay_sends *sends, uint32_t index)
{
	sends->msgs[index].msg_hdr.msg_controllen -= CMSG_SPACE(sizeof(uint16_t));
}

/**
 * underlay_send() - Send messages of a batch until one fails
 * @fd:		Socket
 * @sends:	The batch
 * @first:	First message
 * @count:	How many
 *
 * sendmmsg() tells of an error only when it is the first message's; call again
 * for what is left to learn it.
 *
 * Return: messages sent, at least 1; or -errno of the first one
 */
int underlay_send(int fd, struct underlay_sends *sends, uint32_t first, uint32_t count)
{
	int n;

	do
		n = sys->sendmmsg(fd, sends->msgs + first, count, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}
