/* SPDX-License-Identifier: Apache-2.0 */
/* scratch.c - a network of our own for a moment: a loopback device and a TUN that nothing else can reach. */
#include "scratch.h"

#include <errno.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <netinet/udp.h>
#include <time.h>
#include <unistd.h>

#include "csum.h"
#include "sys.h"
#include "tun.h"

#define NS_PER_S 1000000000ULL

static const char name[] = "scratch0";

/* Documentation addresses (RFC 5737, RFC 3849): ours on the TUN, and the other side's. */
static const uint8_t near4[4] = {192, 0, 2, 1}, far4[4] = {192, 0, 2, 2};
static const uint8_t near6[16] = {0x20, 0x01, 0x0d, 0xb8, [15] = 1}, far6[16] = {0x20, 0x01, 0x0d, 0xb8, [15] = 2};

/* As the kernel takes it (linux/ipv6.h, which cannot be included beside netinet/in.h). */
struct in6_request {
	struct in6_addr addr;
	uint32_t prefix_len;
	int ifindex;
};

/**
 * now_ns() - What time is it?
 *
 * Return: CLOCK_MONOTONIC, ns
 */
static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/**
 * set_up() - Let a device carry packets
 * @fd:		Any IPv4 socket
 * @device:	Its name
 *
 * Return: 0 or -errno
 */
static int set_up(int fd, const char *device)
{
	struct ifreq request = {.ifr_flags = IFF_UP | IFF_RUNNING};

	strncpy(request.ifr_name, device, IFNAMSIZ - 1);
	return ioctl(fd, SIOCSIFFLAGS, &request) ? -errno : 0;
}

/**
 * add_address4() - Give the TUN our IPv4 address, and a route to the other side
 * @fd:		Any IPv4 socket
 *
 * Return: 0 or -errno
 */
static int add_address4(int fd)
{
	struct ifreq request = {0};
	struct sockaddr_in *in = (struct sockaddr_in *)(void *)&request.ifr_addr;

	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	in->sin_family = AF_INET;
	memcpy(&in->sin_addr, near4, sizeof(near4));
	if (ioctl(fd, SIOCSIFADDR, &request))
		return -errno;
	in->sin_addr.s_addr = htonl(0xffffff00);
	return ioctl(fd, SIOCSIFNETMASK, &request) ? -errno : 0;
}

/**
 * add_address6() - The same of IPv6
 *
 * A TUN resolves no addresses, so duplicates are not looked for; but the address
 * is good only when a kernel thread has said so, some milliseconds later.
 *
 * Return: whether there is IPv6
 */
static bool add_address6(void)
{
	static const struct timespec pause = {.tv_nsec = 500000};
	struct in6_request request = {.prefix_len = 64, .ifindex = (int)if_nametoindex(name)};
	int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0), left = 200;
	union underlay_addr near;
	bool is_good;

	if (fd < 0)
		return false;
	memcpy(&request.addr, near6, sizeof(near6));
	if (ioctl(fd, SIOCSIFADDR, &request))
		left = 0;
	scratch_address(&near, 6, false);
	do
		is_good = left && !bind(fd, &near.sa, sizeof(near.in6));
	while (!is_good && --left > 0 && !ppoll(NULL, 0, &pause, NULL));
	close(fd);
	return is_good;
}

/**
 * scratch_open() - Move the calling thread to a network namespace of its own, and furnish it
 * @scratch:	Zeroed; call scratch_close() when it was opened
 * @wanted:	Mask of enum dp_tier: what the TUN may be asked for
 * @most_ns:	How long all that follows may take
 *
 * The thread must end soon: there is no way back.
 *
 * Return: 0 or -errno; -EPERM without CAP_SYS_ADMIN
 */
int scratch_open(struct scratch *scratch, uint32_t wanted, uint64_t most_ns)
{
	int fd, err;

	scratch->deadline_ns = now_ns() + most_ns;
	scratch->tun = -1;
	if (unshare(CLONE_NEWNET))
		return -errno;
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	err = set_up(fd, "lo");
	if (!err)
		scratch->tun = dp_tun_open(name, wanted, &scratch->tier, &scratch->vnet_hdr_len);
	if (!err && scratch->tun < 0)
		err = scratch->tun;
	if (!err)
		err = set_up(fd, name);
	if (!err)
		err = add_address4(fd);
	if (!err)
		scratch->has_ip6 = add_address6();
	close(fd);
	if (err)
		scratch_close(scratch);
	return err;
}

/**
 * scratch_close() - Close the TUN; the namespace goes with the thread
 * @scratch:	After scratch_open()
 */
void scratch_close(struct scratch *scratch)
{
	if (scratch->tun >= 0)
		close(scratch->tun);
	scratch->tun = -1;
}

/**
 * scratch_is_over() - Is the time up?
 * @scratch:	The scratch network
 *
 * Return: true if nothing more is to be begun
 */
bool scratch_is_over(const struct scratch *scratch)
{
	return now_ns() >= scratch->deadline_ns;
}

/**
 * scratch_wait() - Wait until a descriptor is ready, for a step at most
 * @scratch:	The scratch network
 * @fd:		Descriptor
 * @events:	POLLIN or POLLOUT
 *
 * Return: 0 or -ETIMEDOUT
 */
int scratch_wait(const struct scratch *scratch, int fd, short events)
{
	struct pollfd poll = {.fd = fd, .events = events};
	uint64_t now = now_ns(), left = now < scratch->deadline_ns ? scratch->deadline_ns - now : 0;
	struct timespec timeout = {.tv_nsec = (long)(left < SCRATCH_STEP_NS ? left : SCRATCH_STEP_NS)};

	return ppoll(&poll, 1, &timeout, NULL) == 1 ? 0 : -ETIMEDOUT;
}

/**
 * scratch_address() - Make the socket address of one end
 * @out:	Where to
 * @family:	4 or 6
 * @is_far:	That beyond the TUN
 *
 * Return: its length
 */
socklen_t scratch_address(union underlay_addr *out, uint8_t family, bool is_far)
{
	struct dp_addr addr = {.family = family};

	if (family == 6)
		memcpy(addr.bytes, is_far ? far6 : near6, sizeof(near6));
	else
		memcpy(addr.bytes, is_far ? far4 : near4, sizeof(near4));
	return underlay_fill_addr(out, &addr, is_far ? SCRATCH_FAR_PORT : SCRATCH_PORT);
}

/**
 * scratch_socket() - Open a socket at our end
 * @family:	4 or 6
 * @type:	SOCK_DGRAM or SOCK_STREAM
 * @is_connected:	Connect it to the far end; TCP goes on in the background
 *
 * Return: non-blocking descriptor, or -errno
 */
int scratch_socket(uint8_t family, int type, bool is_connected)
{
	static const struct linger at_once = {.l_onoff = 1};
	union underlay_addr near, far;
	socklen_t len = scratch_address(&near, family, false);
	int fd = socket(family == 6 ? AF_INET6 : AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), err = 0;

	if (fd < 0)
		return -errno;
	scratch_address(&far, family, true);
	if (type == SOCK_STREAM) {
		/* or it would wait for answers after its end, and the namespace with it */
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
		near.in4.sin_port = 0; /* any; it lies at the same place in both families */
	}
	if (bind(fd, &near.sa, len) || (is_connected && connect(fd, &far.sa, len) && errno != EINPROGRESS))
		err = -errno;
	if (!err)
		return fd;
	close(fd);
	return err;
}

/**
 * scratch_read() - Read the next packet of ours from the TUN, whatever else the kernel sends there
 * @scratch:	The scratch network
 * @family:	4 or 6
 * @proto:	PROTO_TCP or PROTO_UDP
 * @pkt:	Set to the packet
 * @flow:	Set to what it is
 * @vnet:	Set to its virtio header
 *
 * Return: 0 or -errno
 */
int scratch_read(struct scratch *scratch, uint8_t family, uint8_t proto, struct pkt *pkt, struct flow *flow,
		 struct vnet_hdr *vnet)
{
	for (;;) {
		int err;

		*pkt = pkt_init(scratch->buf, sizeof(scratch->buf), PKT_HEADROOM, 0);
		err = tun_read(scratch->tun, scratch->vnet_hdr_len, pkt, vnet);
		if (err == -EAGAIN)
			err = scratch_wait(scratch, scratch->tun, POLLIN);
		else if (!err && !parse_inner(pkt, flow) && flow->family == family && flow->proto == proto)
			return 0;
		if (err)
			return err;
	}
}

/**
 * scratch_headers() - Write the headers of a packet from the far end; L4 fields but ports and length stay 0
 * @out:	Room for the headers
 * @family:	4 or 6
 * @proto:	PROTO_TCP or PROTO_UDP
 * @payload:	Bytes that follow
 *
 * The L4 checksum is that of the pseudo-header, as the kernel leaves and takes unfinished ones.
 *
 * Return: bytes of all headers
 */
uint32_t scratch_headers(uint8_t *out, uint8_t family, uint8_t proto, uint32_t payload)
{
	uint32_t l3len = family == 4 ? IP4_LEN : IP6_LEN, l4len = proto == PROTO_TCP ? TCP_LEN : UDP_LEN;
	uint32_t addr_len = family == 4 ? 4 : 16;
	uint8_t *src = out + (family == 4 ? (int)IP4_SRC : (int)IP6_SRC), *l4 = out + l3len;
	uint16_t check;

	memset(out, 0, l3len + l4len);
	memcpy(src, family == 4 ? far4 : far6, addr_len);
	memcpy(src + addr_len, family == 4 ? near4 : near6, addr_len);
	if (family == 4) {
		out[IP4_VERSION_IHL] = 0x45;
		store16(out + IP4_TOTAL_LEN, (uint16_t)(l3len + l4len + payload));
		store16(out + IP4_FRAG, IP4_DF);
		out[IP4_TTL] = 64;
		out[IP4_PROTO] = proto;
		check = (uint16_t)~csum_fold(csum_add(out, IP4_LEN, 0));
		memcpy(out + IP4_CHECK, &check, sizeof(check));
	} else {
		out[0] = 0x60;
		store16(out + IP6_PAYLOAD_LEN, (uint16_t)(l4len + payload));
		out[IP6_NEXT] = proto;
		out[IP6_HOP_LIMIT] = 64;
	}
	store16(l4, SCRATCH_FAR_PORT);
	store16(l4 + 2, SCRATCH_PORT);
	if (proto == PROTO_UDP)
		store16(l4 + UDP_LENGTH, (uint16_t)(l4len + payload));
	else
		l4[TCP_DOFF] = 0x50;
	check = csum_fold(csum_pseudo(src, src + addr_len, addr_len, proto, l4len + payload));
	memcpy(l4 + (proto == PROTO_UDP ? UDP_CHECK : TCP_CHECK), &check, sizeof(check));
	return l3len + l4len;
}

/* --- what is sent --- */

/**
 * expected() - What stands at a place of all that is sent?
 * @at:		The place
 *
 * Return: the byte
 */
static uint8_t expected(uint32_t at)
{
	return (uint8_t)(at * 7 + (at >> 8));
}

/**
 * scratch_fill() - Write what is to be sent
 * @out:	Where to
 * @len:	Bytes
 */
void scratch_fill(uint8_t *out, uint32_t len)
{
	for (uint32_t i = 0; i < len; i++)
		out[i] = expected(i);
}

/**
 * scratch_is_whole() - Are these bytes as they were sent?
 * @data:	Bytes that came out
 * @at:		Their place in all that was sent
 * @len:	How many
 *
 * Return: true if they are
 */
bool scratch_is_whole(const uint8_t *data, uint32_t at, uint32_t len)
{
	for (uint32_t i = 0; i < len; i++) {
		if (data[i] != expected(at + i))
			return false;
	}
	return true;
}

/**
 * scratch_send_run() - Send bytes as one message that the kernel cuts
 * @fd:		Connected UDP socket
 * @total:	How many bytes
 *
 * Return: 0 or -errno
 */
int scratch_send_run(int fd, uint32_t total)
{
	uint8_t data[SCRATCH_SEGMENTS * SCRATCH_SIZE];
	_Alignas(16) uint8_t control[CMSG_SPACE(sizeof(uint16_t))] = {0};
	struct iovec iov = {.iov_base = data, .iov_len = total};
	struct mmsghdr message = {
		.msg_hdr = {
			.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)}};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&message.msg_hdr);
	uint16_t size = SCRATCH_SIZE;

	scratch_fill(data, total);
	cmsg->cmsg_level = SOL_UDP;
	cmsg->cmsg_type = UDP_SEGMENT;
	cmsg->cmsg_len = CMSG_LEN(sizeof(size));
	memcpy(CMSG_DATA(cmsg), &size, sizeof(size));
	return sys->sendmmsg(fd, &message, 1, MSG_DONTWAIT) == 1 ? 0 : -errno;
}

/**
 * scratch_receive() - Receive what scratch_send_run() sent, or what stands for it
 * @scratch:	The scratch network
 * @fd:		UDP socket
 * @total:	Bytes
 * @size:	Of each message but the last
 *
 * Return: 0; -EBADMSG if anything else came; -ETIMEDOUT
 */
int scratch_receive(const struct scratch *scratch, int fd, uint32_t total, uint32_t size)
{
	uint8_t data[SCRATCH_SEGMENTS * SCRATCH_SIZE + 1];

	for (uint32_t at = 0; at < total; at += size) {
		uint32_t len = total - at < size ? total - at : size;
		struct iovec iov = {.iov_base = data, .iov_len = sizeof(data)};
		struct mmsghdr message = {.msg_hdr = {.msg_iov = &iov, .msg_iovlen = 1}};
		int err = scratch_wait(scratch, fd, POLLIN);

		if (err)
			return err;
		if (sys->recvmmsg(fd, &message, 1, MSG_DONTWAIT, NULL) != 1)
			return -errno;
		if (message.msg_len != len || !scratch_is_whole(data, at, len))
			return -EBADMSG;
	}
	return 0;
}
