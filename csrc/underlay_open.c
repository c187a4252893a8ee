/* SPDX-License-Identifier: Apache-2.0 */
/*
 * underlay_open.c - the sockets that tunnel packets cross, as control opens them.
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
 * TTL is 64, DSCP 0, where a message says nothing else.
 */
#include <errno.h>
#include <linux/filter.h>
#include <netinet/udp.h>
#include <string.h>
#include <unistd.h>

#include "underlay.h"

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
		socklen_t len = underlay_fill_addr(&to, addr, (uint16_t)port);

		if (!bind(fd, &to.sa, len))
			return 0;
		if (errno != EADDRINUSE)
			return -errno;
	}
	return -EADDRINUSE;
}

/**
 * bind_sending() - Bind a UDP socket that sends to our address on the device
 * @fd:		Socket
 * @config:	Our addresses
 * @device:	Underlay interface
 * @is_v6:	Family
 *
 * Return: 0 or -errno
 */
static int bind_sending(int fd, const struct dp_config *config, const char *device, bool is_v6)
{
	if (setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, (socklen_t)strlen(device) + 1))
		return -errno;
	return bind_source(fd, is_v6 ? &config->underlay6 : &config->underlay4);
}

/**
 * bind_receiving() - Bind a UDP socket that receives to the port of its encapsulation
 * @fd:		Socket
 * @slot:	What for, and which of those that share the port
 * @config:	Ports and our addresses
 *
 * The first one is bound to no address: it gets all that others do not, and so
 * each packet that is not for us, once. It has the port to itself when it is
 * bound, so that somebody else who holds it is noticed; then it lets others of
 * the same user join, which share what is sent to our address.
 *
 * Return: 0 or -errno
 */
static int bind_receiving(int fd, uint32_t slot, const struct dp_config *config)
{
	uint32_t role = slot % DP_FD_COUNT;
	bool is_v6 = role == DP_FD_UDP6, is_first = slot == role;
	uint16_t port = role == DP_FD_BARE4 ? config->bare_port : config->vxlan_port;
	const struct dp_addr any = {.family = is_v6 ? 6 : 4};
	const struct dp_addr *own = is_v6 ? &config->underlay6 : &config->underlay4;
	union underlay_addr to;
	socklen_t len = underlay_fill_addr(&to, is_first ? &any : own, port);
	int err = is_v6 ? set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1) : 0;

	if (!err && !is_first)
		err = set_option(fd, SOL_SOCKET, SO_REUSEPORT, 1);
	if (!err && bind(fd, &to.sa, len))
		err = -errno;
	return err || !is_first ? err : set_option(fd, SOL_SOCKET, SO_REUSEPORT, 1);
}

/**
 * configure() - Set all options of a new socket and bind it
 * @fd:		Socket
 * @slot:	What for, and which of those
 * @config:	Port and our addresses
 * @device:	Underlay interface
 * @buffer_bytes:	Socket buffer wanted
 *
 * Return: bytes of socket buffer granted, or -errno
 */
static int configure(int fd, uint32_t slot, const struct dp_config *config, const char *device, int buffer_bytes)
{
	uint32_t role = slot % DP_FD_COUNT;
	bool is_v6 = role == DP_FD_UDP6 || role == DP_FD_UDP6_TX;
	bool is_sending = role == DP_FD_UDP4_TX || role == DP_FD_UDP6_TX || role == DP_FD_RAW4_TX;
	bool is_raw = role == DP_FD_RAW4 || role == DP_FD_RAW4_TX;
	int granted, err;

	err = is_sending ? set_sending(fd, is_v6) : set_receiving(fd, is_v6);
	if (err)
		return err;
	granted = is_sending ? set_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, buffer_bytes)
			     : set_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF, buffer_bytes);
	if (granted < 0)
		return granted;
	if (!is_raw)
		err = is_sending ? bind_sending(fd, config, device, is_v6) : bind_receiving(fd, slot, config);
	return err ? err : granted;
}

/**
 * dp_underlay_open() - Open one of the sockets that tunnel packets cross
 * @slot:	DP_FD_UDP4 .. DP_FD_BARE4, and which of those
 * @config:	Ports and our underlay addresses
 * @device:	Underlay interface
 * @buffer_bytes:	Socket buffer wanted
 * @granted_bytes:	Set to the bytes granted
 *
 * Return: non-blocking descriptor owned by the caller; -EADDRINUSE if the port
 * is taken, -EADDRNOTAVAIL if the address is not ours, -EPERM without
 * CAP_NET_RAW (raw sockets), -EINVAL for another role, another -errno
 */
int dp_underlay_open(uint32_t slot, const struct dp_config *config, const char *device, int buffer_bytes,
		     int *granted_bytes)
{
	uint32_t role = slot % DP_FD_COUNT;
	bool is_raw = role == DP_FD_RAW4 || role == DP_FD_RAW4_TX;
	bool is_v6 = role == DP_FD_UDP6 || role == DP_FD_UDP6_TX;
	int type = (is_raw ? SOCK_RAW : SOCK_DGRAM) | SOCK_NONBLOCK | SOCK_CLOEXEC;
	int fd, granted;

	if (role < DP_FD_UDP4 || slot >= DP_FD_SLOTS)
		return -EINVAL;
	fd = socket(is_v6 ? AF_INET6 : AF_INET, type, is_raw ? IPPROTO_IPIP : IPPROTO_UDP);
	if (fd < 0)
		return -errno;
	granted = configure(fd, slot, config, device, buffer_bytes);
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
