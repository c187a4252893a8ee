/* SPDX-License-Identifier: Apache-2.0 */
/*
 * offload_faults.c - the self-test finds the offload that does not work, and no other.
 *
 * The real kernel does all the work, on scratch devices; system calls in between are made to fail or to damage.
 *
 *     offload_faults [SCENARIO]         as root
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "dp.h"
#include "pkt.h"
#include "sys.h"
#include "wire.h"

enum { ALL = (1 << DP_OFFLOADS) - 1, TRIED = ALL & ~DP_TIER_MMSG, LONG = 500 };

static const struct sys *linux_calls;

/* What is made to go wrong. */
static struct {
	int super_error;       /* of writes of super-packets of this type */
	uint8_t super_type;    /* VNET_GSO_*; of TCP, both families' */
	int run_error;         /* of messages to be cut */
	bool damages_writes;   /* a byte of each super-packet that is written */
	bool damages_messages; /* of each message that is received */
	bool damages_reads;    /* of each long packet from the TUN */
	bool is_dry;           /* nothing comes from the TUN */
} fault;

static bool is_meant(const struct vnet_hdr *vnet)
{
	bool is_tcp = vnet->gso_type == VNET_GSO_TCP4 || vnet->gso_type == VNET_GSO_TCP6;

	return vnet->gso_type == fault.super_type || (is_tcp && fault.super_type == VNET_GSO_TCP4);
}

static ssize_t fake_writev(int fd, const struct iovec *iov, int count)
{
	struct vnet_hdr vnet;
	uint8_t last[2000];
	struct iovec pieces[8];

	memcpy(&vnet, iov[0].iov_base, sizeof(vnet));
	if (!vnet.gso_type || !is_meant(&vnet))
		return linux_calls->writev(fd, iov, count);
	if (fault.super_error) {
		errno = fault.super_error;
		return -1;
	}
	CHECK(count <= 8 && iov[count - 1].iov_len <= sizeof(last));
	memcpy(pieces, iov, (size_t)count * sizeof(*iov));
	memcpy(last, iov[count - 1].iov_base, iov[count - 1].iov_len);
	last[0] ^= fault.damages_writes;
	pieces[count - 1].iov_base = last;
	return linux_calls->writev(fd, pieces, count);
}

static int fake_sendmmsg(int fd, struct mmsghdr *msgs, unsigned int count, int flags)
{
	if (!fault.run_error)
		return linux_calls->sendmmsg(fd, msgs, count, flags);
	errno = fault.run_error;
	return -1;
}

static int fake_recvmmsg(int fd, struct mmsghdr *msgs, unsigned int count, int flags, struct timespec *timeout)
{
	int received = linux_calls->recvmmsg(fd, msgs, count, flags, timeout);

	if (received > 0 && fault.damages_messages)
		((uint8_t *)msgs[0].msg_hdr.msg_iov[0].iov_base)[LONG - 1] ^= 1;
	return received;
}

static ssize_t fake_read(int fd, void *buf, size_t len)
{
	ssize_t n = linux_calls->read(fd, buf, len);

	if (fault.is_dry && n >= 0) {
		errno = EAGAIN;
		return -1;
	}
	if (fault.damages_reads && n > LONG)
		((uint8_t *)buf)[n - 1] ^= 1;
	return n;
}

/**
 * descriptors() - How many are open?
 *
 * Return: the number, including the one that it takes to look
 */
static uint32_t descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	uint32_t count = 0;

	CHECK(dir);
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

/**
 * find() - Run the self-test, and compare what it found
 * @wanted:	Offloads to be tried
 * @broken:	Of them those that must be found to fail ...
 * @err:	... with this error
 */
static void find(uint32_t wanted, uint32_t broken, int err)
{
	struct sys calls = *sys;
	struct timespec begun, ended;
	struct dp_selftest found;
	uint32_t open = descriptors();

	linux_calls = sys;
	calls.writev = fake_writev;
	calls.sendmmsg = fake_sendmmsg;
	calls.recvmmsg = fake_recvmmsg;
	calls.read = fake_read;
	sys = &calls;
	clock_gettime(CLOCK_MONOTONIC, &begun);
	CHECK(!dp_selftest(wanted, &found));
	clock_gettime(CLOCK_MONOTONIC, &ended);
	sys = linux_calls;
	CHECK(ended.tv_sec - begun.tv_sec <= 1 && descriptors() == open);
	for (uint32_t bit = 0; bit < DP_OFFLOADS; bit++)
		CHECK(found.errors[bit] == (broken >> bit & 1 ? -err : 0));
	CHECK(found.proved == (wanted & TRIED & ~broken));
	memset(&fault, 0, sizeof(fault));
}

static void nothing(void)
{
	find(ALL, 0, 0);
	find(ALL, 0, 0);
	find(ALL & ~(DP_TIER_TUN_UGRO | DP_TIER_UDP_GSO), 0, 0); /* what is not wanted is not tried */
}

static void super_refused(void)
{
	fault.super_error = EINVAL;
	fault.super_type = VNET_GSO_TCP4;
	find(ALL, DP_TIER_TUN_GRO, EINVAL);
	fault.super_error = EINVAL;
	fault.super_type = VNET_GSO_UDP_L4;
	find(ALL, DP_TIER_TUN_UGRO, EINVAL);
}

static void super_damaged(void)
{
	fault.damages_writes = true;
	fault.super_type = VNET_GSO_TCP4;
	find(ALL, DP_TIER_TUN_GRO, EBADMSG);
	fault.damages_writes = true;
	fault.super_type = VNET_GSO_UDP_L4;
	find(ALL, DP_TIER_TUN_UGRO, EBADMSG);
}

static void run_refused(void)
{
	fault.run_error = EIO;
	find(ALL, DP_TIER_UDP_GSO | DP_TIER_UDP_GRO | DP_TIER_TUN_USO, EIO);
}

static void run_damaged(void)
{
	fault.damages_messages = true;
	find(ALL, DP_TIER_UDP_GSO | DP_TIER_UDP_GRO | DP_TIER_TUN_UGRO, EBADMSG);
}

static void read_damaged(void)
{
	fault.damages_reads = true;
	find(ALL, DP_TIER_TUN_VNET | DP_TIER_TUN_CSUM | DP_TIER_TUN_TSO | DP_TIER_TUN_USO, EBADMSG);
}

static void read_nothing(void)
{
	fault.is_dry = true; /* all that follows finds no time left */
	find(DP_TIER_TUN_VNET | DP_TIER_TUN_CSUM, DP_TIER_TUN_VNET | DP_TIER_TUN_CSUM, ETIMEDOUT);
}

static void unprivileged(void)
{
	pid_t child = fork();
	int status;

	if (!child) {
		struct dp_selftest found;

		if (setresuid(65534, 65534, 65534))
			_exit(1);
		_exit(dp_selftest(ALL, &found) == -EPERM && !found.proved ? 0 : 2);
	}
	CHECK(waitpid(child, &status, 0) == child && !status);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} scenarios[] = {
		{"nothing", nothing},           {"super_refused", super_refused}, {"super_damaged", super_damaged},
		{"run_refused", run_refused},   {"run_damaged", run_damaged},     {"read_damaged", read_damaged},
		{"read_nothing", read_nothing}, {"unprivileged", unprivileged},
	};
	uint32_t ran = 0;

	for (size_t i = 0; i < sizeof(scenarios) / sizeof(*scenarios); i++) {
		if (argc > 1 && strcmp(argv[1], scenarios[i].name) != 0)
			continue;
		printf("%s\n", scenarios[i].name);
		fflush(stdout);
		scenarios[i].run();
		ran++;
	}
	return ran ? 0 : 2;
}
