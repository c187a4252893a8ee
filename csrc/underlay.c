/* SPDX-License-Identifier: Apache-2.0 */
/*
 * underlay.c - the sockets that tunnel packets cross.
 *
 * DOC: Theory of operation
 *
 * Receiving and sending have sockets of their own. Those that receive are bound
 * to no address, and say for each packet where it arrived and where it was sent
 * to (IP_PKTINFO): what came to the wrong place can be counted, not only
 * ignored. Those that send never receive: a filter that accepts nothing is
 * attached before they are bound.
 *
 * The kernel answers a protocol-4 packet with ICMP protocol unreachable if no
 * raw socket took it, which includes the case that the receive buffer of the
 * only one was full. The sending raw socket, whose filter "takes" everything,
 * prevents that; control holds it too, for the time without a forwarder.
 *
 * DF is set on all outer packets (RFC 7348 section 4.3, RFC 2003 section 3.1),
 * TTL is 64, DSCP 0.
 */
#include "underlay.h"

#include <errno.h>
#include <linux/filter.h>
#include <netinet/udp.h>
#include <string.h>
#include <unistd.h>

#include "sys.h"
#include "wire.h"

enum { OUTER_TTL = 64 };
/* RFC 7348 section 5 recommends this range for source ports. */
enum { SOURCE_PORT_MIN = 49152, SOURCE_PORT_MAX = 65535 };

/**
 * set_option() - setsockopt() with an integer
 * @fd:		Socket
 * @level:	SOL_SOCKET, IPPROTO_IP, …
 * @name:	Option
 * @value:	Its value
 *
 * Return: 0 or -errno
 */
static int set_option(int fd, int level, int name, int value)
{
	return setsockopt(fd, level, name, &value, sizeof(value)) ? -errno : 0;
}

/**
 * set_buffer() - Size a socket buffer beyond the system's limit if we may
 * @fd:		Socket
 * @force:	SO_RCVBUFFORCE or SO_SNDBUFFORCE
 * @plain:	SO_RCVBUF or SO_SNDBUF
 * @bytes:	Wanted
 *
 * Return: bytes granted, or -errno
 */
static int set_buffer(int fd, int force, int plain, int bytes)
{
	int granted = 0;
	socklen_t len = sizeof(granted);

	if (set_option(fd, SOL_SOCKET, force, bytes) && set_option(fd, SOL_SOCKET, plain, bytes))
		return -errno;
	if (getsockopt(fd, SOL_SOCKET, plain, &granted, &len))
		return -errno;
	return granted / 2; /* the kernel doubles what was asked for, for its own bookkeeping */
}

/**
 * refuse_all() - Attach a filter that accepts nothing
 * @fd:		Socket
 *
 * Return: 0 or -errno
 */
static int refuse_all(int fd)
{
	struct sock_filter none = BPF_STMT(BPF_RET | BPF_K, 0);
	struct sock_fprog program = {.len = 1, .filter = &none};

	return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)) ? -errno : 0;
}

/**
 * set_receiving() - Options of a socket that receives
 * @fd:		Socket
 * @is_v6:	Family
 *
 * Return: 0 or -errno
 */
static int set_receiving(int fd, bool is_v6)
{
	int err = set_option(fd, SOL_SOCKET, SO_RXQ_OVFL, 1);

	if (!err && is_v6)
		err = set_option(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
	if (!err && is_v6)
		return set_option(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
	if (!err)
		err = set_option(fd, IPPROTO_IP, IP_PKTINFO, 1);
	return err ? err : set_option(fd, IPPROTO_IP, IP_RECVTOS, 1);
}

/**
 * set_sending() - Options of a socket that sends
 * @fd:		Socket
 * @is_v6:	Family
 *
 * Return: 0 or -errno
 */
static int set_sending(int fd, bool is_v6)
{
	int err = refuse_all(fd);

	if (!err && is_v6)
		err = set_option(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO);
	if (!err && is_v6)
		return set_option(fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS, OUTER_TTL);
	if (!err)
		err = set_option(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO);
	return err ? err : set_option(fd, IPPROTO_IP, IP_TTL, OUTER_TTL);
}

/**
 * fill_addr() - Make a socket address
 * @out:	Where to
 * @addr:	Address, family 4 or 6
 * @port:	Host order
 *
 * Return: its length for the kernel
 */
static socklen_t fill_addr(union underlay_addr *out, const struct dp_addr *addr, uint16_t port)
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

/**
 * bind_source() - Bind a sending socket to our address and a source port
 * @fd:		Socket
 * @addr:	Our underlay address
 *
 * Return: 0 or -errno; the first free port of the recommended range is taken
 */
static int bind_source(int fd, const struct dp_addr *addr)
{
	for (int port = SOURCE_PORT_MIN; port <= SOURCE_PORT_MAX; port++) {
		union underlay_addr to;
		socklen_t len = fill_addr(&to, addr, (uint16_t)port);

		if (!bind(fd, &to.sa, len))
			return 0;
		if (errno != EADDRINUSE)
			return -errno;
	}
	return -EADDRINUSE;
}

/**
 * bind_udp() - Bind a VXLAN socket
 * @fd:		Socket
 * @config:	Port and our addresses
 * @device:	Underlay interface
 * @is_v6:	Family
 * @is_sending:	Bind to our address on the device, instead of to the VXLAN port anywhere
 *
 * Return: 0 or -errno
 */
static int bind_udp(int fd, const struct dp_config *config, const char *device, bool is_v6, bool is_sending)
{
	struct dp_addr any = {.family = is_v6 ? 6 : 4};
	union underlay_addr to;
	socklen_t len;

	if (is_sending) {
		if (setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, (socklen_t)strlen(device) + 1))
			return -errno;
		return bind_source(fd, is_v6 ? &config->underlay6 : &config->underlay4);
	}
	if (is_v6) {
		int err = set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);

		if (err)
			return err;
	}
	len = fill_addr(&to, &any, config->vxlan_port);
	return bind(fd, &to.sa, len) ? -errno : 0;
}

/**
 * configure() - Set all options of a new socket and bind it
 * @fd:		Socket
 * @role:	enum dp_fd
 * @config:	Port and our addresses
 * @device:	Underlay interface
 * @buffer_bytes:	Socket buffer wanted
 *
 * Return: bytes of socket buffer granted, or -errno
 */
static int configure(int fd, uint32_t role, const struct dp_config *config, const char *device, int buffer_bytes)
{
	bool is_v6 = role == DP_FD_UDP6 || role == DP_FD_UDP6_TX;
	bool is_sending = role == DP_FD_UDP4_TX || role == DP_FD_UDP6_TX || role == DP_FD_RAW4_TX;
	bool is_raw = role == DP_FD_RAW4 || role == DP_FD_RAW4_TX;
	int granted, err;

	err = is_sending ? set_sending(fd, is_v6) : set_receiving(fd, is_v6);
	if (err)
		return err;
	if (!is_sending && !is_raw && (config->tier & DP_TIER_UDP_GRO))
		(void)set_option(fd, SOL_UDP, UDP_GRO, 1); /* without, datagrams come one by one */
	granted = is_sending ? set_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, buffer_bytes)
			     : set_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF, buffer_bytes);
	if (granted < 0)
		return granted;
	err = is_raw ? 0 : bind_udp(fd, config, device, is_v6, is_sending);
	return err ? err : granted;
}

/**
 * dp_underlay_open() - Open one of the sockets that tunnel packets cross
 * @role:	DP_FD_UDP4 .. DP_FD_RAW4_TX
 * @config:	VXLAN port and our underlay addresses
 * @device:	Underlay interface
 * @buffer_bytes:	Socket buffer wanted
 * @granted_bytes:	Set to the bytes granted
 *
 * Return: non-blocking descriptor owned by the caller; -EADDRINUSE if the port
 * is taken, -EADDRNOTAVAIL if the address is not ours, -EPERM without
 * CAP_NET_RAW (raw sockets), -EINVAL for another role, another -errno
 */
int dp_underlay_open(uint32_t role, const struct dp_config *config, const char *device, int buffer_bytes,
		     int *granted_bytes)
{
	bool is_raw = role == DP_FD_RAW4 || role == DP_FD_RAW4_TX;
	bool is_v6 = role == DP_FD_UDP6 || role == DP_FD_UDP6_TX;
	int type = (is_raw ? SOCK_RAW : SOCK_DGRAM) | SOCK_NONBLOCK | SOCK_CLOEXEC;
	int fd, granted;

	if (role < DP_FD_UDP4 || role >= DP_FD_COUNT)
		return -EINVAL;
	fd = socket(is_v6 ? AF_INET6 : AF_INET, type, is_raw ? IPPROTO_IPIP : IPPROTO_UDP);
	if (fd < 0)
		return -errno;
	granted = configure(fd, role, config, device, buffer_bytes);
	if (granted < 0) {
		close(fd);
		return granted;
	}
	*granted_bytes = granted;
	return fd;
}

/**
 * dp_socket_tier() - Which socket offloads does this kernel know?
 *
 * Return: mask of DP_TIER_MMSG, _UDP_GSO (Linux 4.18) and _UDP_GRO (5.0)
 */
uint32_t dp_socket_tier(void)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_UDP);
	uint32_t tier = DP_TIER_MMSG;

	if (fd < 0)
		return tier;
	if (!set_option(fd, SOL_UDP, UDP_SEGMENT, 1000))
		tier |= DP_TIER_UDP_GSO;
	if (!set_option(fd, SOL_UDP, UDP_GRO, 1))
		tier |= DP_TIER_UDP_GRO;
	close(fd);
	return tier;
}

/* --- receiving ---------------------------------------------------------------- */

/**
 * underlay_receive() - Receive a batch
 * @fd:		Socket
 * @batch:	Room for the headers; overwritten
 * @pkts:	Buffers with PKT_HEADROOM; become the messages, in order
 * @count:	How many, at most UNDERLAY_BATCH
 *
 * Return: messages received, 0 when there is none or the socket only had an error to tell
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
	return n < 0 ? 0 : n;
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
		.msg_namelen = fill_addr(&sends->addrs[index], vtep, port),
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
