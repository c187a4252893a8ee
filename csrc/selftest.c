/* SPDX-License-Identifier: Apache-2.0 */
/*
 * selftest.c - does each offload do what the kernel says it does?
 *
 * DOC: Theory of operation
 *
 * Kernels and drivers that take an offload and then damage packets have been
 * released more than once. So before anything is carried, each offload is used
 * once, by real packets of both families on a scratch network (scratch.c), and
 * every byte that comes out is compared:
 *
 *  - what sockets send into the TUN is read there, finished and cut as tx.c does (proof.c);
 *  - what is written to the TUN as a super-packet must reach a socket (proof.c);
 *  - runs of datagrams are sent over the loopback device, and received joined.
 *
 * It takes some milliseconds. What could not be tried in time is not held
 * against anybody: the packet path gives up what is refused later, too.
 */
#include <errno.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "dp.h"
#include "proof.h"
#include "scratch.h"

#define MOST_NS 500000000ULL

/**
 * send_over_loopback() - Send runs to ourselves
 * @scratch:	The scratch network
 * @family:	4 or 6
 * @is_joined:	They are received joined again, or datagram by datagram
 *
 * Return: 0 or -errno
 */
static int send_over_loopback(struct scratch *scratch, uint8_t family, int is_joined)
{
	union underlay_addr near;
	socklen_t len = scratch_address(&near, family, false);
	int in = scratch_socket(family, SOCK_DGRAM, false), out, err = 0;

	if (in < 0)
		return in;
	out = socket(near.sa.sa_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (out < 0 || connect(out, &near.sa, len) ||
	    (is_joined && setsockopt(in, SOL_UDP, UDP_GRO, &is_joined, sizeof(is_joined))))
		err = -errno;
	/* a short last one, and all of one length, which some kernels treat differently */
	for (uint32_t total = SCRATCH_TOTAL; !err && total <= SCRATCH_SEGMENTS * SCRATCH_SIZE;
	     total += SCRATCH_SEGMENTS * SCRATCH_SIZE - SCRATCH_TOTAL) {
		err = scratch_send_run(out, total);
		if (!err)
			err = scratch_receive(scratch, in, total, is_joined ? total : SCRATCH_SIZE);
	}
	if (out >= 0)
		close(out);
	close(in);
	return err;
}

/**
 * prove_udp_gso() - The kernel cuts runs of datagrams
 * @scratch:	The scratch network
 * @family:	4 or 6
 *
 * Return: 0 if so, or -errno
 */
static int prove_udp_gso(struct scratch *scratch, uint8_t family)
{
	return send_over_loopback(scratch, family, 0);
}

/**
 * prove_udp_gro() - The kernel joins datagrams
 * @scratch:	The scratch network
 * @family:	4 or 6
 *
 * Return: 0 if so, or -errno
 */
static int prove_udp_gro(struct scratch *scratch, uint8_t family)
{
	return send_over_loopback(scratch, family, 1);
}

/* --- all ----------------------------------------------------------------------------- */

/* What an offload must do; those that others need stand first. */
static const struct {
	enum dp_tier offload;
	int (*prove)(struct scratch *scratch, uint8_t family);
} proofs[] = {
	{DP_TIER_TUN_VNET, proof_csum},   {DP_TIER_TUN_CSUM, proof_csum}, {DP_TIER_UDP_GSO, prove_udp_gso},
	{DP_TIER_UDP_GRO, prove_udp_gro}, {DP_TIER_TUN_TSO, proof_tso},   {DP_TIER_TUN_USO, proof_uso},
	{DP_TIER_TUN_GRO, proof_gro},     {DP_TIER_TUN_UGRO, proof_ugro},
};

/**
 * prove_all() - Try what is wanted and the kernel says it can
 * @scratch:	The scratch network
 * @wanted:	Mask of enum dp_tier
 * @out:	Filled in
 */
static void prove_all(struct scratch *scratch, uint32_t wanted, struct dp_selftest *out)
{
	uint32_t can = (scratch->tier | dp_socket_tier()) & wanted;

	for (size_t i = 0; i < sizeof(proofs) / sizeof(*proofs) && !scratch_is_over(scratch); i++) {
		uint32_t offload = proofs[i].offload;
		int err = 0;

		if (!(can & offload))
			continue;
		for (uint8_t family = 4; !err && family <= (scratch->has_ip6 ? 6 : 4); family += 2)
			err = proofs[i].prove(scratch, family);
		if (err == -ETIMEDOUT && scratch_is_over(scratch))
			break; /* no time was left for it */
		if (err)
			out->errors[__builtin_ctz(offload)] = err;
		else
			out->proved |= offload;
	}
}

/* What the thread is told and tells. */
struct order {
	uint32_t wanted;
	struct dp_selftest *out;
	int err;
};

/**
 * run() - The thread, whose network namespace ends with it
 * @arg:	struct order
 *
 * Return: NULL
 */
static void *run(void *arg)
{
	static struct scratch scratch; /* too large for a stack; tests run one at a time */
	struct order *order = arg;

	memset(&scratch, 0, sizeof(scratch));
	order->err = scratch_open(&scratch, order->wanted, MOST_NS);
	if (order->err)
		return NULL;
	prove_all(&scratch, order->wanted, order->out);
	scratch_close(&scratch);
	return NULL;
}

/**
 * dp_selftest() - Use each offload once, on scratch devices that nothing else can reach
 * @wanted:	Mask of enum dp_tier: what is to be tried, as far as the kernel says it can
 * @out:	Set to what was found
 *
 * Takes half a second at most. Not to be called by several threads at once.
 *
 * Return: 0, or -errno if nothing can be tried here
 */
int dp_selftest(uint32_t wanted, struct dp_selftest *out)
{
	struct order order = {.wanted = wanted, .out = out};
	sigset_t all, old;
	pthread_t thread;
	int err;

	memset(out, 0, sizeof(*out));
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(&thread, NULL, run, &order);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (err)
		return -err;
	pthread_join(thread, NULL);
	return order.err;
}
