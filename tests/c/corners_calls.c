/* SPDX-License-Identifier: Apache-2.0 */
/* corners_calls.c - whatever a kernel says of a message or refuses of a TUN is understood, rung by rung. */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdarg.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "packets.h"
#include "sys.h"
#include "tun.h"
#include "underlay.h"

enum { FD = 77 };

static struct {
	uint32_t interrupts; /* calls that are interrupted first */
	ssize_t result;      /* of the one after them; negative: -errno */
	uint32_t calls;
} fake;

/**
 * answer() - What a system call returns
 *
 * Return: as it would
 */
static ssize_t answer(void)
{
	fake.calls++;
	errno = fake.interrupts ? EINTR : (int)-fake.result;
	if (fake.interrupts) {
		fake.interrupts--;
		return -1;
	}
	return fake.result < 0 ? -1 : fake.result;
}

/**
 * fake_read() - The TUN's read()
 * @fd:		FD
 * @buf:	Where to
 * @len:	Its size
 *
 * Return: as there
 */
static ssize_t fake_read(int fd, void *buf, size_t len)
{
	CHECK(fd == FD && buf && len);
	return answer();
}

/**
 * fake_write() - The TUN's write()
 * @fd:		FD
 * @buf:	A packet
 * @len:	Its length
 *
 * Return: as there
 */
static ssize_t fake_write(int fd, const void *buf, size_t len)
{
	CHECK(fd == FD && buf && len);
	return answer();
}

/**
 * fake_writev() - The TUN's writev()
 * @fd:		FD
 * @iov:	Pieces
 * @count:	How many
 *
 * Return: as there
 */
static ssize_t fake_writev(int fd, const struct iovec *iov, int count)
{
	CHECK(fd == FD && iov && count > 0);
	return answer();
}

/**
 * fake_sendmmsg() - A socket's sendmmsg()
 * @fd:		FD
 * @msgs:	Messages
 * @count:	How many
 * @flags:	MSG_DONTWAIT
 *
 * Return: as there
 */
static int fake_sendmmsg(int fd, struct mmsghdr *msgs, unsigned int count, int flags)
{
	CHECK(fd == FD && msgs && count && flags == MSG_DONTWAIT);
	return (int)answer();
}

/**
 * fake_recvmmsg() - A socket's recvmmsg()
 * @fd:		FD
 * @msgs:	Where to
 * @count:	How many fit
 * @flags:	MSG_DONTWAIT
 * @timeout:	NULL
 *
 * Return: as there
 */
static int fake_recvmmsg(int fd, struct mmsghdr *msgs, unsigned int count, int flags, struct timespec *timeout)
{
	CHECK(fd == FD && msgs && count && flags == MSG_DONTWAIT && !timeout);
	return (int)answer();
}

static const struct sys fake_calls = {.read = fake_read,
				      .write = fake_write,
				      .writev = fake_writev,
				      .recvmmsg = fake_recvmmsg,
				      .sendmmsg = fake_sendmmsg};

/* --- messages ------------------------------------------------------------------------ */

static struct underlay_batch batch;

/**
 * tell() - Let a received message say one thing
 * @level:	Protocol level
 * @type:	What
 * @data:	About it
 * @len:	Bytes of that
 *
 * Return: what is known of the message
 */
static struct underlay_meta tell(int level, int type, const void *data, size_t len)
{
	struct msghdr *hdr = &batch.msgs[0].msg_hdr;
	struct cmsghdr *cmsg = (struct cmsghdr *)(void *)batch.cmsg[0];
	struct underlay_meta meta;

	hdr->msg_control = batch.cmsg[0];
	hdr->msg_controllen = CMSG_SPACE(len);
	cmsg->cmsg_level = level;
	cmsg->cmsg_type = type;
	cmsg->cmsg_len = CMSG_LEN(len);
	memcpy(CMSG_DATA(cmsg), data, len);
	underlay_read_meta(&batch, 0, &meta);
	return meta;
}

/**
 * is_silent() - Is nothing known of a message but where it came from?
 * @meta:	What is known
 *
 * Return: true if so
 */
static bool is_silent(struct underlay_meta meta)
{
	return !meta.is_truncated && !meta.tos && !meta.ifindex && !meta.queue_drops && !meta.segment && !meta.dst;
}

/**
 * received() - Every control message is read, and no other one is taken for it
 */
static void received(void)
{
	static const int levels[] = {IPPROTO_IP, IPPROTO_IPV6, SOL_UDP, SOL_SOCKET};
	struct in_pktinfo info4 = {.ipi_ifindex = 5, .ipi_addr.s_addr = htonl(0xc0000201)};
	struct in6_pktinfo info6 = {.ipi6_ifindex = 6, .ipi6_addr.s6_addr = {[15] = 9}};
	uint8_t nothing[sizeof(info6)] = {0xff}, tos = 3;
	int value = 3;

	batch.addrs[0].in4.sin_family = AF_INET;
	batch.addrs[0].in4.sin_addr.s_addr = htonl(0xc0000202);
	CHECK(tell(IPPROTO_IP, IP_PKTINFO, &info4, sizeof(info4)).dst == 0xc0000201);
	CHECK(tell(IPPROTO_IP, IP_PKTINFO, &info4, sizeof(info4)).ifindex == 5);
	CHECK(tell(IPPROTO_IP, IP_TOS, &tos, 1).tos == 3);
	CHECK(tell(SOL_UDP, UDP_GRO, &value, sizeof(value)).segment == 3);
	CHECK(tell(SOL_SOCKET, SO_RXQ_OVFL, &value, sizeof(value)).queue_drops == 3);
	CHECK(tell(SOL_SOCKET, SO_RXQ_OVFL, &value, sizeof(value)).src == 0xc0000202);
	for (int i = 0; i < 4; i++)
		CHECK(is_silent(tell(levels[i], 0x7777, nothing, sizeof(nothing))));
	CHECK(is_silent(tell(0x7777, IP_TOS, nothing, sizeof(nothing))));
	batch.msgs[0].msg_hdr.msg_flags = MSG_TRUNC;
	CHECK(tell(IPPROTO_IP, IP_TOS, &tos, 1).is_truncated);
	batch.msgs[0].msg_hdr.msg_flags = 0;
	batch.addrs[0].in6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_addr.s6_addr = {[15] = 7}};
	CHECK(tell(IPPROTO_IPV6, IPV6_PKTINFO, &info6, sizeof(info6)).dst == 9);
	CHECK(tell(IPPROTO_IPV6, IPV6_PKTINFO, &info6, sizeof(info6)).ifindex == 6);
	CHECK(tell(IPPROTO_IPV6, IPV6_TCLASS, &value, sizeof(value)).tos == 3);
	CHECK(tell(IPPROTO_IPV6, IPV6_TCLASS, &value, sizeof(value)).src == 7);
	CHECK(tell(IPPROTO_IPV6, IPV6_TCLASS, &value, sizeof(value)).family == 6);
}

/**
 * sent() - TOS and TTL go with a message of either family, and only where they differ from the socket's
 */
static void sent(void)
{
	static const struct dp_addr vteps[] = {{.family = 4, .bytes = {192, 0, 2, 1}}, {.family = 6, .bytes = {0x20}}};
	static struct underlay_sends sends;

	for (int i = 0; i < 2; i++) {
		struct msghdr *hdr = &sends.msgs[0].msg_hdr;
		struct cmsghdr *cmsg;

		underlay_address(&sends, 0, &vteps[i], 8472, 0);
		CHECK(!hdr->msg_controllen &&
		      ((struct sockaddr *)hdr->msg_name)->sa_family == (i ? AF_INET6 : AF_INET));
		underlay_address(&sends, 0, &vteps[i], 8472, 2);
		cmsg = CMSG_FIRSTHDR(hdr);
		CHECK(cmsg->cmsg_level == (i ? IPPROTO_IPV6 : IPPROTO_IP));
		CHECK(cmsg->cmsg_type == (i ? IPV6_TCLASS : IP_TOS) && CMSG_DATA(cmsg)[0] == 2);
		underlay_set_ttl(&sends, 0, 9);
		cmsg = CMSG_NXTHDR(hdr, cmsg);
		CHECK(cmsg->cmsg_level == (i ? IPPROTO_IPV6 : IPPROTO_IP));
		CHECK(cmsg->cmsg_type == (i ? IPV6_HOPLIMIT : IP_TTL) && CMSG_DATA(cmsg)[0] == 9);
	}
	fake.interrupts = 2;
	fake.result = 1;
	CHECK(underlay_send(FD, &sends, 0, 1) == 1 && !fake.interrupts);
	fake.result = -EPERM;
	CHECK(underlay_send(FD, &sends, 0, 1) == -EPERM);
}

/* --- packets ------------------------------------------------------------------------- */

/**
 * packets() - Interrupted calls are made again, and what cannot be a packet is none
 */
static void packets(void)
{
	uint8_t buf[PKT_HEADROOM + 64] = {0};
	struct pkt pkt = pkt_init(buf, sizeof(buf), PKT_HEADROOM, 40), bare = pkt_init(buf, 64, 0, 40);
	struct iovec pieces[2] = {{0}, {buf, 10}};
	struct vnet_hdr vnet = {0};

	fake.interrupts = 2;
	fake.result = 52;
	CHECK(!tun_read(FD, 12, &pkt, &vnet) && pkt.len == 40 && !fake.interrupts);
	fake.result = 11;
	CHECK(tun_read(FD, 12, &pkt, &vnet) == -EIO); /* less than a virtio header */
	fake.result = -EBADFD;
	CHECK(tun_read(FD, 12, &pkt, &vnet) == -EBADFD);
	fake.interrupts = 2;
	fake.result = 52;
	CHECK(!tun_write(FD, 12, &pkt, &vnet) && !fake.interrupts);
	fake.interrupts = 2;
	CHECK(!tun_write_pieces(FD, 12, &pkt, &vnet, pieces, 2) && !fake.interrupts);
	fake.result = -EIO;
	CHECK(tun_write(FD, 12, &pkt, &vnet) == -EIO && tun_write_pieces(FD, 12, &pkt, &vnet, pieces, 2) == -EIO);
	fake.calls = 0;
	CHECK(tun_write(FD, 12, &bare, &vnet) == -ENOBUFS); /* no room for the virtio header */
	CHECK(tun_write_pieces(FD, 12, &bare, &vnet, pieces, 2) == -ENOBUFS);
	CHECK(tun_write_pieces(FD, 12, &pkt, &vnet, pieces, 65) == -ENOBUFS && !fake.calls);
}

/* --- the ladder ---------------------------------------------------------------------- */

static struct {
	int open_error;
	int vnet_error;    /* of attaching with a virtio header */
	int plain_error;   /* of attaching without one */
	bool has_old_size; /* 10 bytes of virtio header, not 12 */
	bool has_no_size;
	unsigned long refused; /* TUN_F_* that it does not know */
	bool refuses_all;      /* TUNSETOFFLOAD */
	int persist_error;
	uint32_t opened, closed;
} tun;

/**
 * fail() - Fail as a system call does
 * @err:	Positive errno, or 0
 *
 * Return: -1, or 0
 */
static int fail(int err)
{
	errno = err;
	return err ? -1 : 0;
}

int open(const char *path, int flags, ...)
{
	if (strcmp(path, "/dev/net/tun")) /* others than us open files, too */
		return (int)syscall(SYS_openat, AT_FDCWD, path, flags, 0600);
	CHECK((flags & O_NONBLOCK) && (flags & O_CLOEXEC));
	tun.opened += !tun.open_error;
	return tun.open_error ? fail(tun.open_error) : eventfd(0, EFD_CLOEXEC);
}

int ioctl(int fd, unsigned long request, ...)
{
	unsigned long value;
	va_list list;

	(void)fd;
	va_start(list, request);
	value = va_arg(list, unsigned long);
	va_end(list);
	switch (request) {
	case TUNSETIFF:
		return fail(((struct ifreq *)value)->ifr_flags & IFF_VNET_HDR ? tun.vnet_error : tun.plain_error);
	case TUNSETVNETHDRSZ:
		return fail(tun.has_no_size || (tun.has_old_size && *(int *)value != 10) ? EINVAL : 0);
	case TUNSETOFFLOAD:
		return fail(tun.refuses_all || (value & tun.refused) ? EINVAL : 0);
	default:
		CHECK(request == TUNSETPERSIST);
		return fail(tun.persist_error);
	}
}

/**
 * climb() - Open a TUN on the kernel that is set up, and set up one that refuses nothing
 * @wanted:	Mask of enum dp_tier
 * @tier:	Set to the rungs reached
 * @vnet_hdr_len:	Set to the bytes of virtio header
 *
 * Return: 0 or -errno
 */
static int climb(uint32_t wanted, uint32_t *tier, uint32_t *vnet_hdr_len)
{
	int fd = dp_tun_open("overlay0", wanted, tier, vnet_hdr_len);

	if (fd >= 0)
		close(fd);
	memset(&tun, 0, sizeof(tun));
	return fd < 0 ? fd : 0;
}

/**
 * ladder() - Each rung that a kernel refuses is left out alone, and what cannot work at all says so
 */
static void ladder(void)
{
	const uint32_t all = DP_TIER_TUN_VNET | DP_TIER_TUN_CSUM | DP_TIER_TUN_TSO | DP_TIER_TUN_USO | DP_TIER_TUN_GRO |
			     DP_TIER_TUN_UGRO;
	const unsigned long uso = 0x20 | 0x40;
	uint32_t tier, len;

	CHECK(dp_tun_open("", all, &tier, &len) == -EINVAL);
	CHECK(dp_tun_open("a-name-of-16-ch.", all, &tier, &len) == -EINVAL && !tun.opened);
	CHECK(!climb(all, &tier, &len) && tier == all && len == 12);
	CHECK(!climb(0, &tier, &len) && !tier && !len);
	CHECK(!climb(DP_TIER_TUN_VNET, &tier, &len) && tier == DP_TIER_TUN_VNET && len == 12);
	tun.has_old_size = true;
	CHECK(!climb(all, &tier, &len) && tier == all && len == 10);
	tun.has_no_size = true;
	CHECK(climb(all, &tier, &len) == -EINVAL);
	tun.refused = uso;
	CHECK(!climb(all, &tier, &len) && tier == (all & ~(uint32_t)(DP_TIER_TUN_USO | DP_TIER_TUN_UGRO)));
	tun.refused = uso | TUN_F_TSO4;
	CHECK(!climb(all, &tier, &len));
	CHECK(tier == (DP_TIER_TUN_VNET | DP_TIER_TUN_CSUM | DP_TIER_TUN_GRO));
	tun.refused = ~0UL;
	CHECK(!climb(all, &tier, &len) && tier == (DP_TIER_TUN_VNET | DP_TIER_TUN_GRO));
	tun.refuses_all = true;
	CHECK(climb(all, &tier, &len) == -EINVAL);
	tun.open_error = ENOENT;
	CHECK(climb(all, &tier, &len) == -ENOENT);
	tun.vnet_error = EBUSY;
	CHECK(climb(all, &tier, &len) == -EBUSY);
	tun.vnet_error = EPERM;
	CHECK(climb(all, &tier, &len) == -EPERM);
	tun.vnet_error = EINVAL;
	CHECK(!climb(all, &tier, &len) && !tier && !len);
	tun.vnet_error = tun.plain_error = EINVAL;
	CHECK(climb(all, &tier, &len) == -EINVAL);
	tun.refuses_all = true;
	CHECK(climb(0, &tier, &len) == -EINVAL);
	tun.persist_error = EPERM;
	CHECK(climb(all, &tier, &len) == -EPERM);
}

int main(void)
{
	sys = &fake_calls;
	received();
	sent();
	packets();
	ladder();
	return 0;
}
