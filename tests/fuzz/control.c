/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever a control sends to a forwarder is answered, or ends its connection; no descriptor stays behind.
 *
 * An input is a list of requests: a byte that says how, one with the type, one with the epoch, two with the mask
 * of descriptors, one with how many really come along, one that names a byte of the configuration to change and
 * one to change it to; of messages of another version or length the last byte says which. ctl.c is included, to reach
 * what serves one connection. Engines that get going are real; their TUN and sockets are eventfds, on which nothing
 * ever arrives. Their workers are threads only in few inputs, which say so, since making one and waiting for it takes
 * longer than all the rest: worker.c is included for that.
 */
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include "fuzz.h"
#include "packets.h"
#include "ctl.c"
#include "parcel.c"

static int create_perhaps(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg);
static int wait_perhaps(pthread_cond_t *changed, pthread_mutex_t *lock);
static int join_perhaps(pthread_t thread, void **result);

#define pthread_create create_perhaps
#define pthread_cond_wait wait_perhaps
#define pthread_join join_perhaps
#include "worker.c"
#undef pthread_create
#undef pthread_cond_wait
#undef pthread_join

/* More descriptors than this program ever has, and more than ctl.c has room for (padding makes it one more). */
enum { FDS_MAX = 512, FDS_SENT_MAX = DP_FD_SLOTS + 2 };
enum { REQUEST_LEN = 8, REQUESTS_MAX = 16 };
enum { HOW_SHORT = 1, HOW_LONG = 2, HOW_MAGIC = 4, HOW_ABI = 8, HOW_NO_READER = 16, HOW_WRONG_FD = 32 };
enum { HOW_THREADS = 64 }; /* of the first request */

/* Good descriptors by enum dp_fd, to send along. */
static int good_fds[DP_FD_COUNT];

/* Both ends of a connection, the forwarder's first; as long as it is not ended, it serves the next input, too. */
static int ends[2] = {-1, -1};

static bool has_threads;

/**
 * create_perhaps() - pthread_create(), where workers are threads
 * @thread:	Set
 * @attr:	Of the thread
 * @start:	What it runs
 * @arg:	Of that
 *
 * Return: 0, or an error
 */
static int create_perhaps(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg)
{
	return has_threads ? pthread_create(thread, attr, start, arg) : 0;
}

/**
 * wait_perhaps() - pthread_cond_wait(); where workers are no threads, they have done what they are waited for
 * @changed:	Of a worker
 * @lock:	Of the same
 *
 * Return: 0
 */
static int wait_perhaps(pthread_cond_t *changed, pthread_mutex_t *lock)
{
	if (has_threads)
		return pthread_cond_wait(changed, lock);
	((struct worker *)(void *)((char *)lock - offsetof(struct worker, lock)))->is_parked = true;
	return 0;
}

/**
 * join_perhaps() - pthread_join(), where workers are threads
 * @thread:	Which
 * @result:	Of it
 *
 * Return: 0, or an error
 */
static int join_perhaps(pthread_t thread, void **result)
{
	return has_threads ? pthread_join(thread, result) : 0;
}

/**
 * open_good() - Open what a working engine needs
 */
static void open_good(void)
{
	struct dp_table_spec spec = {.generation = 1};

	for (int i = 0; i < DP_FD_COUNT; i++)
		good_fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	close(good_fds[DP_FD_COUNTERS]);
	close(good_fds[DP_FD_FIB]);
	good_fds[DP_FD_COUNTERS] = dp_counters_create(1, 16);
	good_fds[DP_FD_FIB] = dp_fib_create(&spec);
	CHECK(good_fds[DP_FD_COUNTERS] >= 0 && good_fds[DP_FD_FIB] >= 0);
}

/**
 * count_open() - Count open descriptors
 *
 * The lowest free one would tell nothing: what leaks lies above the sockets of this program.
 *
 * Return: how many there are
 */
static int count_open(void)
{
	static struct pollfd fds[FDS_MAX];
	int count = 0;

	for (int fd = 0; fd < FDS_MAX; fd++)
		fds[fd] = (struct pollfd){.fd = fd};
	CHECK(poll(fds, FDS_MAX, 0) >= 0); /* one call, where asking for each would be most of the work */
	for (int fd = 0; fd < FDS_MAX; fd++)
		count += !(fds[fd].revents & POLLNVAL);
	return count;
}

/**
 * make_request() - Make a request as an input says
 * @op:		REQUEST_LEN bytes
 * @request:	Filled in; descriptors are borrowed
 *
 * Return: descriptors to send along
 */
static uint32_t make_request(const uint8_t *op, struct parcel *request)
{
	uint16_t mask = load16(op + 3);
	uint32_t count = 0;

	memset(request, 0, sizeof(*request));
	request->msg.magic = op[0] & HOW_MAGIC ? 0x12345678 : DP_CTL_MAGIC;
	request->msg.abi = op[0] & HOW_ABI ? (uint16_t)(DP_ABI - 3 + op[7] % 7) : DP_ABI;
	request->msg.type = op[1] % (DP_MSG_COUNT + 2);
	request->msg.epoch = op[2];
	request->msg.fd_mask[0] = mask & 0x7fff;
	request->msg.fd_mask[2] = mask & 0x8000 ? 1ULL << 40 : 0; /* no slot */
	request->msg.config = packet_config;
	request->msg.config.tun_mtu = 1450;
	((uint8_t *)&request->msg.config)[op[6] % sizeof(struct dp_config)] = op[7];
	for (int i = 0; i < DP_FD_SLOTS; i++) {
		if (parcel_has(&request->msg, i))
			request->fds[count++] = good_fds[(i + (op[0] & HOW_WRONG_FD ? op[5] : 0)) % DP_FD_COUNT];
	}
	for (uint32_t i = count; i < DP_FD_SLOTS; i++)
		request->fds[i] = good_fds[DP_FD_TUN];
	if (op[5] & 0x80)
		count = op[5] % (FDS_SENT_MAX + 1U); /* more or fewer than it says */
	return count;
}

/**
 * send_request() - Send a request as an input says
 * @fd:		Control's end of the connection
 * @op:		REQUEST_LEN bytes
 *
 * Return: bytes that its answer must have, 0 if it must end the connection
 */
static size_t send_request(int fd, const uint8_t *op)
{
	union {
		struct cmsghdr align;
		uint8_t bytes[CMSG_SPACE(sizeof(int) * FDS_SENT_MAX)];
	} space;
	static uint8_t bytes[DP_MSG_BYTES_MIN + 4 * UINT8_MAX];
	struct parcel request;
	uint32_t count = make_request(op, &request);
	int fds[FDS_SENT_MAX];
	bool is_sound;
	struct iovec iov = {bytes, sizeof(struct dp_msg)};
	struct msghdr hdr = {.msg_iov = &iov, .msg_iovlen = 1};

	memcpy(bytes, &request.msg, sizeof(request.msg));
	memcpy(fds, request.fds, sizeof(request.fds));
	for (int i = DP_FD_SLOTS; i < FDS_SENT_MAX; i++)
		fds[i] = good_fds[DP_FD_TUN];
	if (op[0] & HOW_SHORT)
		iov.iov_len = op[7];
	if (op[0] & HOW_LONG)
		iov.iov_len = DP_MSG_BYTES_MIN + 4U * op[7];
	if (count) {
		hdr.msg_control = &space;
		hdr.msg_controllen = CMSG_SPACE(count * sizeof(int));
		memset(&space, 0, sizeof(space));
		space.align = (struct cmsghdr){
			.cmsg_len = CMSG_LEN(count * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(&space.align), fds, count * sizeof(int));
	}
	CHECK(sendmsg(fd, &hdr, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)iov.iov_len);
	is_sound = iov.iov_len >= DP_MSG_BYTES_MIN && iov.iov_len <= DP_MSG_BYTES_MAX && count <= DP_FD_SLOTS;
	if (iov.iov_len > sizeof(struct dp_msg))
		iov.iov_len = sizeof(struct dp_msg);
	return is_sound ? iov.iov_len : 0;
}

/**
 * take_answer() - Receive the answer, and check it
 * @fd:		Control's end of the connection
 * @connection:	The forwarder's end
 * @size:	Bytes that it must have
 * @must_answer:	Silence is allowed only on a connection that was ended
 *
 * Return: true if there was one, and it said that a command was carried out
 */
static bool take_answer(int fd, const struct connection *connection, size_t size, bool must_answer)
{
	struct parcel reply;

	/* As many descriptors as it says, or it is not sound. */
	if (!parcel_receive(fd, &reply) || !reply.msg.magic) {
		CHECK(!must_answer || connection->fd < 0);
		return false;
	}
	CHECK(reply.size == size && (reply.msg.abi == DP_ABI || reply.msg.abi == DP_ABI - 1));
	CHECK(reply.msg.error <= 0 && (reply.msg.error == 0) == (reply.msg.text[0] == 0));
	CHECK(memchr(reply.msg.text, 0, sizeof(reply.msg.text)));
	parcel_close(&reply);
	return !reply.msg.error && reply.msg.type != DP_MSG_HELLO && reply.msg.type != DP_MSG_INSPECT;
}

/**
 * serve() - Let a forwarder serve the requests of an input on one connection after the other
 * @forwarder:	State
 * @data:	Requests
 * @size:	Bytes of them
 *
 * Return: true if a command was obeyed
 */
static bool serve(struct forwarder *forwarder, const uint8_t *data, size_t size)
{
	struct connection *connection = &forwarder->connections[0];
	bool is_obeyed = false;

	connection->fd = ends[0];
	for (size_t at = 0; at + REQUEST_LEN <= size && at < REQUEST_LEN * REQUESTS_MAX; at += REQUEST_LEN) {
		size_t answered;

		if (connection->fd < 0) {
			CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends));
			*connection = (struct connection){.fd = ends[0]};
		}
		answered = send_request(ends[1], data + at);
		if (data[at] & HOW_NO_READER)
			shutdown(ends[1], SHUT_RD);
		serve_request(forwarder, connection);
		CHECK((answered && !(data[at] & HOW_NO_READER)) || connection->fd < 0);
		if (take_answer(ends[1], connection, answered, !(data[at] & HOW_NO_READER)))
			is_obeyed = true;
		if (connection->fd < 0) {
			close(ends[1]);
			ends[0] = ends[1] = -1;
		}
	}
	return is_obeyed;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct forwarder forwarder = {.listen_fd = -1, .signal_fd = -1, .identity = {.pid = 1}, .version = "1"};
	int before, kept = ends[0] < 0 ? 0 : 2;
	static bool is_ready;
	bool is_obeyed;

	if (!is_ready)
		open_good();
	is_ready = true;
	before = count_open() - kept;
	has_threads = size && data[0] & HOW_THREADS;
	for (int i = 0; i < CONNECTIONS_MAX; i++)
		forwarder.connections[i].fd = -1;
	is_obeyed = serve(&forwarder, data, size);
	CHECK((forwarder.state == DP_STATE_EMPTY) == !forwarder.engine);
	dp_engine_destroy(forwarder.engine);
	CHECK(count_open() == before + (ends[0] < 0 ? 0 : 2));
	return fuzz_count(is_obeyed);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned int seed)
{
	static const uint8_t started[2 * REQUEST_LEN] = {0, DP_MSG_HELLO, 5, 0,    0,    0, 0,  0,
							 0, DP_MSG_GO,    5, 0x00, 0x07, 0, 40, 1};

	size = LLVMFuzzerMutate(data, size, room);
	if (seed % 4 && size >= sizeof(started)) {
		memcpy(data, started, sizeof(started)); /* nothing else works before that */
		if (seed % 4 > 1 && size > sizeof(started) + 1)
			data[sizeof(started)] = 0;
	}
	if (size)
		data[0] = (uint8_t)((data[0] & ~HOW_THREADS) | (seed / 4 % 64 ? 0 : HOW_THREADS));
	return size;
}
