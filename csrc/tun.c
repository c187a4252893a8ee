/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tun.c - the overlay device.
 *
 * The device is made persistent, so that it, its addresses and its routes
 * outlive whoever holds it. Features are a ladder: each rung is tried, and what
 * the kernel refuses is left out; the rungs reached are the tier.
 */
#include "tun.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "steer.h"
#include "sys.h"

/* Since Linux 6.2; the header of the distribution may be older. */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

/* Without num_buffers; kernels before 2.6.34 know no other size. */
enum { VNET_HDR_OLD = 10 };

/* Most pieces of one write. */
enum { TUN_PIECES = 64 };

/**
 * attach() - Make the device, or take hold of it if it is there
 * @fd:		/dev/net/tun
 * @name:	Device name, shorter than IFNAMSIZ
 * @flags:	IFF_VNET_HDR or 0
 *
 * Return: 0 or -errno; -EINVAL if the name is no TUN's
 */
static int attach(int fd, const char *name, short flags)
{
	struct ifreq ifr = {.ifr_flags = (short)(IFF_TUN | IFF_NO_PI | IFF_MULTI_QUEUE | flags)};

	memcpy(ifr.ifr_name, name, strlen(name) + 1);
	return ioctl(fd, TUNSETIFF, &ifr) ? -errno : 0;
}

/**
 * set_vnet_hdr_len() - Agree with the kernel on the size of the virtio header
 * @fd:		Attached device with IFF_VNET_HDR
 *
 * Return: bytes in force, or -errno
 */
static int set_vnet_hdr_len(int fd)
{
	int len = sizeof(struct vnet_hdr);

	if (!ioctl(fd, TUNSETVNETHDRSZ, &len))
		return len;
	len = VNET_HDR_OLD;
	return ioctl(fd, TUNSETVNETHDRSZ, &len) ? -errno : len;
}

/**
 * offload_flags() - What to ask of the kernel for a tier
 * @tier:	Mask of enum dp_tier
 *
 * Return: mask of TUN_F_*
 */
static unsigned long offload_flags(uint32_t tier)
{
	unsigned long flags = tier & DP_TIER_TUN_CSUM ? TUN_F_CSUM : 0;

	if (tier & DP_TIER_TUN_TSO)
		flags |= TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
	if (tier & DP_TIER_TUN_USO)
		flags |= TUN_F_USO4 | TUN_F_USO6;
	return flags;
}

/**
 * set_offloads() - Ask the kernel to leave as much work to us as it can
 * @fd:		Attached device with IFF_VNET_HDR
 * @wanted:	Mask of enum dp_tier: what may be tried
 * @tier:	Gains what the kernel took
 *
 * Super-packets that we write need no consent: TCP ones are older than this
 * interface, UDP ones came together with TUN_F_USO4.
 *
 * Return: 0 or -errno
 */
static int set_offloads(int fd, uint32_t wanted, uint32_t *tier)
{
	static const uint32_t newest_first[] = {DP_TIER_TUN_USO, DP_TIER_TUN_TSO, DP_TIER_TUN_CSUM};
	uint32_t left = wanted & (DP_TIER_TUN_CSUM | DP_TIER_TUN_TSO | DP_TIER_TUN_USO);
	bool knows_uso = !ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6);
	size_t next = 0;

	if (!knows_uso)
		wanted &= ~(uint32_t)DP_TIER_TUN_UGRO;
	/* offloads of an earlier holder would stay in force, so none is set too */
	while (ioctl(fd, TUNSETOFFLOAD, offload_flags(left))) {
		if (next == sizeof(newest_first) / sizeof(*newest_first))
			return -errno;
		left &= ~newest_first[next++];
	}
	*tier |= left | (wanted & (DP_TIER_TUN_GRO | DP_TIER_TUN_UGRO));
	return 0;
}

/**
 * climb() - Attach and reach as many rungs as allowed and possible
 * @fd:		/dev/net/tun
 * @name:	Device name
 * @wanted:	Mask of enum dp_tier: rungs that may be tried
 * @tier:	Set to the rungs reached
 * @vnet_hdr_len:	Set to bytes in front of each packet, 0 for none
 *
 * Return: 0 or -errno
 */
static int climb(int fd, const char *name, uint32_t wanted, uint32_t *tier, uint32_t *vnet_hdr_len)
{
	int len, err = -EINVAL;

	*tier = 0;
	*vnet_hdr_len = 0;
	if (wanted & DP_TIER_TUN_VNET)
		err = attach(fd, name, IFF_VNET_HDR);
	if (err == -EBUSY || err == -EPERM)
		return err;
	if (err) {
		err = attach(fd, name, 0);
		/* as in set_offloads(): without virtio headers nobody would finish what the kernel leaves */
		return err ? err : ioctl(fd, TUNSETOFFLOAD, 0UL) ? -errno : 0;
	}
	len = set_vnet_hdr_len(fd);
	if (len < 0)
		return len;
	*vnet_hdr_len = (uint32_t)len;
	*tier = DP_TIER_TUN_VNET;
	return set_offloads(fd, wanted, tier);
}

/**
 * dp_tun_open() - Open a queue of the overlay device, which is made if it is not there, and made persistent
 * @name:	Device name, 1 .. IFNAMSIZ - 1 bytes
 * @wanted_tier:	Mask of enum dp_tier: rungs that may be tried
 * @tier:	Set to the rungs reached (DP_TIER_TUN_*)
 * @vnet_hdr_len:	Set to the bytes of virtio header in front of each packet, 0 for none
 *
 * Return: non-blocking descriptor owned by the caller; -ENOENT or -ENODEV
 * without TUN support, -EPERM without CAP_NET_ADMIN, -EINVAL if a device of
 * another kind has the name. Whoever holds queues of the device already is not
 * asked.
 */
int dp_tun_open(const char *name, uint32_t wanted_tier, uint32_t *tier, uint32_t *vnet_hdr_len)
{
	size_t len = strlen(name);
	int fd, err;

	if (!len || len >= IFNAMSIZ)
		return -EINVAL;
	fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	err = climb(fd, name, wanted_tier, tier, vnet_hdr_len);
	if (!err && ioctl(fd, TUNSETPERSIST, 1))
		err = -errno;
	if (!err)
		return fd;
	close(fd);
	return err;
}

/**
 * dp_tun_prepare_steering() - Do what of dp_tun_steer() needs CAP_BPF, once for all devices
 *
 * Return: as steer_load()
 */
int dp_tun_prepare_steering(void)
{
	return steer_load();
}

/**
 * dp_tun_steer() - Let each flow keep to one queue of the device
 * @fd:		Any queue of it
 *
 * Return: as steer_by_flow()
 */
int dp_tun_steer(int fd)
{
	return steer_by_flow(fd);
}

/**
 * tun_read() - Read one packet that the kernel routed to the overlay
 * @fd:		The device
 * @vnet_hdr_len:	Bytes of virtio header in front of it
 * @pkt:	Buffer with PKT_HEADROOM; becomes the packet
 * @vnet:	Set to its virtio header, zeroed if there is none
 *
 * Return: 0; -EAGAIN when there is none; -EBADFD when the device is gone; another -errno
 */
int tun_read(int fd, uint32_t vnet_hdr_len, struct pkt *pkt, struct vnet_hdr *vnet)
{
	uint8_t *at = pkt->buf + PKT_HEADROOM - vnet_hdr_len;
	ssize_t n;

	do
		n = sys->read(fd, at, pkt->cap - PKT_HEADROOM + vnet_hdr_len);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if ((size_t)n < vnet_hdr_len)
		return -EIO;
	memset(vnet, 0, sizeof(*vnet));
	memcpy(vnet, at, vnet_hdr_len);
	pkt->off = PKT_HEADROOM;
	pkt->len = (uint32_t)n - vnet_hdr_len;
	return 0;
}

/**
 * tun_write() - Hand one packet to the kernel as received from the overlay
 * @fd:		The device
 * @vnet_hdr_len:	Bytes of virtio header it expects
 * @pkt:	The packet; what stands in front of it, at least as much, is as before in the end
 * @vnet:	Its virtio header
 *
 * Return: 0; -EIO when the device is down; another -errno
 */
int tun_write(int fd, uint32_t vnet_hdr_len, struct pkt *pkt, const struct vnet_hdr *vnet)
{
	struct pkt framed = *pkt;
	uint8_t *at = pkt_push(&framed, vnet_hdr_len);
	struct vnet_hdr before;
	ssize_t n;
	int err;

	if (!at)
		return -ENOBUFS;
	memcpy(&before, at, vnet_hdr_len);
	memcpy(at, vnet, vnet_hdr_len);
	do
		n = sys->write(fd, at, framed.len);
	while (n < 0 && errno == EINTR);
	err = n < 0 ? -errno : 0;
	memcpy(at, &before, vnet_hdr_len); /* in a run of bare packets, the end of the one before */
	return err;
}

/**
 * tun_write_pieces() - Hand one super-packet to the kernel as received from the overlay
 * @fd:		The device
 * @vnet_hdr_len:	Bytes of virtio header it expects
 * @head:	The first packet with its headers and payload, as for tun_write()
 * @vnet:	Its virtio header
 * @pieces:	Payload; the first one is @head's and not looked at
 * @count:	How many, 1 .. TUN_PIECES
 *
 * Return: as tun_write()
 */
int tun_write_pieces(int fd, uint32_t vnet_hdr_len, struct pkt *head, const struct vnet_hdr *vnet,
		     const struct iovec *pieces, uint32_t count)
{
	struct iovec iov[TUN_PIECES];
	struct pkt framed = *head;
	uint8_t *at = pkt_push(&framed, vnet_hdr_len);
	struct vnet_hdr before;
	ssize_t n;
	int err;

	if (!at || count > TUN_PIECES)
		return -ENOBUFS;
	memcpy(&before, at, vnet_hdr_len);
	memcpy(at, vnet, vnet_hdr_len);
	iov[0] = (struct iovec){.iov_base = at, .iov_len = framed.len};
	for (uint32_t i = 1; i < count; i++)
		iov[i] = pieces[i];
	do
		n = sys->writev(fd, iov, (int)count);
	while (n < 0 && errno == EINTR);
	err = n < 0 ? -errno : 0;
	memcpy(at, &before, vnet_hdr_len);
	return err;
}
