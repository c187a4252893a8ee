/* SPDX-License-Identifier: Apache-2.0 */
/*
 * refused_options.c - a socket option that the kernel refuses is done without, or the socket is not opened.
 *
 * setsockopt() is this program's own, and refuses what it is told to. No packet is sent.
 *
 *     refused_options [SCENARIO]       without one, all of them
 */
#include <fcntl.h>
#include <sys/syscall.h>

#include "paths.h"

enum { PORT_FIRST = 20000, PORT_LAST = 29999, BUFFER_BYTES = 64 << 10 };

static struct {
	int level, name, err; /* this option fails with that; err 0: none does */
	uint32_t nth;         /* the one after so many calls fails with EPERM; 0: none does */
	uint32_t calls;
} refused;

/**
 * setsockopt() - The system call, or a refusal
 * @fd:		As there
 * @level:	As there
 * @name:	As there
 * @value:	As there
 * @len:	As there
 *
 * Return: as there
 */
int setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	refused.calls++;
	if (refused.calls == refused.nth)
		return kernel_refuse(EPERM);
	if (refused.err && refused.level == level && refused.name == name)
		return kernel_refuse(refused.err);
	return (int)syscall(SYS_setsockopt, fd, level, name, value, len);
}

/**
 * refuse() - Let one option fail
 * @level:	Its level
 * @name:	Its name
 * @err:	Errno; 0: all are granted again
 */
static void refuse(int level, int name, int err)
{
	memset(&refused, 0, sizeof(refused));
	refused.level = level;
	refused.name = name;
	refused.err = err;
}

/**
 * next_fd() - Which descriptor would be opened next?
 *
 * Return: it; the same as before if none was left open
 */
static int next_fd(void)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	CHECK(fd >= 0);
	close(fd);
	return fd;
}

/**
 * open_socket() - Open one on the loopback device, on a port that is free
 * @slot:	What for
 * @granted:	Set to the bytes of buffer
 *
 * Return: as dp_underlay_open()
 */
static int open_socket(uint32_t slot, int *granted)
{
	struct dp_config config = packet_config;
	int fd = -EADDRINUSE;

	config.underlay4 = (struct dp_addr){.family = 4, .bytes = {127, 0, 0, 1}};
	for (uint16_t port = PORT_FIRST; port <= PORT_LAST && fd == -EADDRINUSE; port++) {
		config.vxlan_port = port;
		refused.calls = 0;
		fd = dp_underlay_open(slot, &config, "lo", BUFFER_BYTES, granted);
	}
	return fd;
}

/**
 * unknown_offloads() - An option that this kernel does not know is missing in the tier, and no other
 */
static void unknown_offloads(void)
{
	static const int errors[] = {ENOPROTOOPT, EINVAL, EPERM};
	const uint32_t all = DP_TIER_MMSG | DP_TIER_UDP_GSO | DP_TIER_UDP_GRO;
	int before = next_fd();

	refuse(0, 0, 0);
	CHECK(dp_socket_tier() == all);
	for (uint32_t i = 0; i < sizeof(errors) / sizeof(*errors); i++) {
		refuse(SOL_UDP, UDP_SEGMENT, errors[i]);
		CHECK(dp_socket_tier() == (all & ~(uint32_t)DP_TIER_UDP_GSO));
		refuse(SOL_UDP, UDP_GRO, errors[i]);
		CHECK(dp_socket_tier() == (all & ~(uint32_t)DP_TIER_UDP_GRO));
	}
	CHECK(next_fd() == before);
}

/**
 * gro_refused() - A socket that cannot join datagrams delivers them one by one
 *
 * Nothing is told: datagrams that come one by one are what the packet path takes anyway.
 */
static void gro_refused(void)
{
	int granted, value = -1, fd;
	socklen_t len = sizeof(value);

	refuse(SOL_UDP, UDP_GRO, ENOPROTOOPT);
	fd = open_socket(DP_FD_UDP4, &granted);
	CHECK(fd >= 0);
	underlay_set_gro(fd, true);
	CHECK(refused.calls && !getsockopt(fd, SOL_UDP, UDP_GRO, &value, &len) && !value);
	refuse(0, 0, 0);
	underlay_set_gro(fd, true);
	CHECK(!getsockopt(fd, SOL_UDP, UDP_GRO, &value, &len) && value);
	close(fd);
}

/**
 * small_buffers() - Who may not exceed the system's limit gets a buffer within it, and is told how large
 */
static void small_buffers(void)
{
	static const struct {
		uint32_t slot;
		int force, plain;
	} kinds[] = {{DP_FD_UDP4, SO_RCVBUFFORCE, SO_RCVBUF}, {DP_FD_UDP4_TX, SO_SNDBUFFORCE, SO_SNDBUF}};

	for (uint32_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
		int granted = 0, before = next_fd(), fd;

		refuse(SOL_SOCKET, kinds[i].force, EPERM);
		fd = open_socket(kinds[i].slot, &granted);
		CHECK(fd >= 0 && granted == BUFFER_BYTES);
		close(fd);
		CHECK(next_fd() == before);
	}
}

/**
 * any_refused() - Whichever option is refused, the socket is opened without it, or the error is told and none is left
 *
 * Only the size of the buffer is an option that can be done without.
 */
static void any_refused(void)
{
	static const uint32_t slots[] = {DP_FD_UDP4, DP_FD_UDP4_TX, DP_FD_UDP4 + DP_FD_COUNT};

	for (uint32_t i = 0; i < sizeof(slots) / sizeof(*slots); i++) {
		int granted, before = next_fd(), fd;
		uint32_t calls, opened = 0;

		refuse(0, 0, 0);
		fd = open_socket(slots[i], &granted);
		CHECK(fd >= 0);
		close(fd);
		calls = refused.calls;
		CHECK(calls >= 4);
		for (uint32_t nth = 1; nth <= calls; nth++) {
			refused.nth = nth;
			fd = open_socket(slots[i], &granted);
			CHECK(fd >= 0 || fd == -EPERM);
			opened += fd >= 0;
			if (fd >= 0)
				close(fd);
			CHECK(next_fd() == before);
		}
		CHECK(opened == 1);
	}
}

int main(int argc, char **argv)
{
	static const struct scenario scenarios[] = {
		{"unknown_offloads", unknown_offloads},
		{"gro_refused", gro_refused},
		{"small_buffers", small_buffers},
		{"any_refused", any_refused},
	};

	return paths_run(scenarios, sizeof(scenarios) / sizeof(*scenarios), argc > 1 ? argv[1] : NULL);
}
