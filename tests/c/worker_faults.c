/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker_faults.c - whichever system call of a worker fails, however and how often: it goes on, tells and rests.
 *
 * A made-up kernel lets one call fail once, 10 or 1000 times in a row, with each errno of a list. Of packets
 * that a failed send or write took along, each is counted for one reason; other failures are counted as faults.
 * Afterwards the next packet passes at once. How long the worker rests is what it asked for, not waited for.
 *
 * And the pages of its buffers are there before the first packet.
 *
 *     worker_faults [SCENARIO]
 */
#include <pthread.h>

static int fake_clockwait(pthread_cond_t *cond, pthread_mutex_t *mutex, clockid_t clock, const struct timespec *end);
#define pthread_cond_clockwait fake_clockwait

#include "paths.h"
#include "worker.c"

enum { TIER = DP_TIER_MMSG | DP_TIER_UDP_GSO | DP_TIER_TUN_GRO };
enum call { READ, READ_ORDER, RECVMMSG, EPOLL_WAIT, WRITE, WRITEV, SENDMMSG, CALLS };
/* Rounds in a row that may find nothing before there is a rest, what a rest is at most, and what is most of them. */
enum { ROUNDS_FREE = 16, REST_MS = 64, ROUNDS_SHORT = 6 };
enum { PAGE = 4096 };

static const char *const call_names[CALLS] = {"read",  "read order", "recvmmsg", "epoll_wait",
					      "write", "writev",     "sendmmsg"};
static const struct {
	int err;
	const char *name;
} errnos[] = {
	{EAGAIN, "EAGAIN"},
	{ENOBUFS, "ENOBUFS"},
	{ENOMEM, "ENOMEM"},
	{EINTR, "EINTR"},
	{EPERM, "EPERM"},
	{ENETUNREACH, "ENETUNREACH"},
	{EIO, "EIO"},
	{EHOSTUNREACH, "EHOSTUNREACH"},
	{EMSGSIZE, "EMSGSIZE"},
	{EINVAL, "EINVAL"},
	{ECONNREFUSED, "ECONNREFUSED"},
	{EBADFD, "EBADFD"},
};
enum { ERRNOS = sizeof(errnos) / sizeof(*errnos) };
static const uint32_t times[] = {1, 10, 1000};

static struct worker worker;

/* What fails, and what happened. */
static struct {
	enum call call;
	int err;
	uint32_t left, failed;
	uint32_t rests, rest_ms;
	int ready; /* where what is queued waits; 0: nowhere */
	bool has_order;
} fault;

/**
 * fails() - Does this call fail now?
 * @call:	Which
 *
 * Return: true, with errno set
 */
static bool fails(enum call call)
{
	if (call != fault.call || !fault.left)
		return false;
	fault.left--;
	fault.failed++;
	errno = fault.err;
	return true;
}

static int fake_clockwait(pthread_cond_t *cond, pthread_mutex_t *mutex, clockid_t clock, const struct timespec *end)
{
	struct timespec now;

	(void)cond;
	(void)mutex;
	CHECK(clock == CLOCK_MONOTONIC && !clock_gettime(clock, &now) && end->tv_nsec < 1000000000L);
	fault.rests++;
	/* rounded up: some time has passed since it was worked out */
	fault.rest_ms +=
		(uint32_t)((end->tv_sec - now.tv_sec) * 1000 + (end->tv_nsec - now.tv_nsec + 999999) / 1000000);
	return ETIMEDOUT;
}

static int fake_epoll_ctl(int epoll_fd, int op, int fd, struct epoll_event *event)
{
	(void)fd;
	CHECK(epoll_fd >= 0 && op == EPOLL_CTL_ADD && event->events == EPOLLIN);
	return 0;
}

static int fake_epoll_wait(int epoll_fd, struct epoll_event *events, int count, int timeout_ms)
{
	int ready = 0;

	CHECK(epoll_fd == worker.epoll_fd && count > 1);
	(void)timeout_ms;
	if (fails(EPOLL_WAIT))
		return -1;
	if (fault.has_order)
		events[ready++].data.u32 = 0;
	for (uint32_t i = 1; i < worker.count && kernel.first < kernel.count; i++) {
		if (worker.sources[i].fd == fault.ready)
			events[ready++].data.u32 = i;
	}
	return ready;
}

static ssize_t fake_read(int fd, void *buf, size_t len)
{
	if (fd == worker.wake_fd) {
		if (fails(READ_ORDER))
			return -1;
		fault.has_order = false;
		return (ssize_t)len;
	}
	return fails(READ) ? -1 : kernel_read(fd, buf, len);
}

static ssize_t fake_write(int fd, const void *buf, size_t len)
{
	return fails(WRITE) ? -1 : kernel_write(fd, buf, len);
}

static ssize_t fake_writev(int fd, const struct iovec *iov, int count)
{
	return fails(WRITEV) ? -1 : kernel_writev(fd, iov, count);
}

static int fake_recvmmsg(int fd, struct mmsghdr *msgs, unsigned int count, int flags, struct timespec *timeout)
{
	return fails(RECVMMSG) ? -1 : kernel_recvmmsg(fd, msgs, count, flags, timeout);
}

static int fake_sendmmsg(int fd, struct mmsghdr *msgs, unsigned int count, int flags)
{
	return fails(SENDMMSG) ? -1 : kernel_sendmmsg(fd, msgs, count, flags);
}

static const struct sys calls = {
	.epoll_ctl = fake_epoll_ctl,
	.epoll_wait = fake_epoll_wait,
	.read = fake_read,
	.write = fake_write,
	.writev = fake_writev,
	.recvmmsg = fake_recvmmsg,
	.sendmmsg = fake_sendmmsg,
};

/**
 * open_worker() - Begin with a worker that has nothing to do
 */
static void open_worker(void)
{
	static const uint64_t turn = 1;
	static struct fib_slot slot;
	dp_fib *none;

	memset(&worker, 0, sizeof(worker));
	worker.turn = worker.our_turn = &turn;
	memset(&fault, 0, sizeof(fault));
	paths_open(TIER, 0);
	sys = &calls;
	lab.fds[DP_FD_BARE4] = -1; /* has the number of another one */
	lab.config.queues = 1;
	lab.config.threads = 1;
	free(lab.path.tx_buffers);
	free(lab.path.rx_buffers);
	worker.path = lab.path;
	none = fib_publish(&slot, NULL, 0, 0, lab.fib);
	CHECK(!none && !worker_init(&worker, &slot, 0));
	worker.order = WORKER_RUN;
}

/**
 * close_worker() - End
 */
static void close_worker(void)
{
	worker_free(&worker);
	dp_fib_close(fib_publish(worker.slot, NULL, 0, 0, NULL));
}

/**
 * begin() - Let a call fail from now on, with empty books
 * @call:	Which
 * @err:	With which errno
 * @count:	How often
 */
static void begin(enum call call, int err, uint32_t count)
{
	paths_again(TIER);
	memset(&fault, 0, sizeof(fault));
	fault.call = call;
	fault.err = err;
	fault.left = count;
	worker.vain = 0;
}

/**
 * queue() - Let a packet wait that makes a worker use a call
 * @call:	Which
 */
static void queue(enum call call)
{
	struct sketch packet = {.family = 4, .proto = PROTO_UDP, .peer = 1, .port = 1, .payload = 100};
	uint8_t inner[PACKET_ROOM], frame[PACKET_ROOM];
	uint32_t len;

	if (call == READ_ORDER)
		fault.has_order = true;
	fault.ready = call == RECVMMSG || call == WRITE || call == WRITEV ? KERNEL_UDP : KERNEL_TUN;
	if (fault.ready == KERNEL_TUN) {
		kernel_from_pod(&packet);
		return;
	}
	if (call == WRITEV) /* begins a super-packet */
		packet.proto = PROTO_TCP;
	len = sketch_packet(inner, &packet, false);
	kernel_queue(frame, packet_vxlan(frame, inner, len), 0, SKETCH_VTEP + 1);
}

/**
 * pass_one() - The next packet passes, in the next round
 * @call:	That failed
 */
static void pass_one(enum call call)
{
	uint32_t seen = kernel.log->count;

	queue(call);
	round_trip(&worker, true);
	CHECK(kernel.log->count == seen + 1 && kernel.first == kernel.count && !fault.has_order);
}

/**
 * dir_of() - Which way go the packets that a call is for?
 * @call:	Which
 *
 * Return: the direction
 */
static enum dp_dir dir_of(enum call call)
{
	return call == RECVMMSG || call == WRITE || call == WRITEV ? DP_RX : DP_TX;
}

/**
 * only_drop() - For which one reason were packets dropped?
 * @dir:	Which way
 * @count:	How many there must have been
 *
 * Return: the reason, DP_DROP_NONE if none was
 */
static enum dp_drop only_drop(enum dp_dir dir, uint32_t count)
{
	for (enum dp_drop drop = 0; drop < DP_DROP_COUNT; drop++) {
		if (!lab.counters.drops[dir][drop])
			continue;
		CHECK(lab.counters.drops[dir][drop] == count && paths_drops(dir) == count && !paths_drops(!dir));
		return drop;
	}
	CHECK(!paths_drops(!dir));
	return DP_DROP_NONE;
}

/**
 * lose() - A call that takes a packet along fails so often
 * @call:	Which
 * @err:	With which errno
 * @count:	How often
 *
 * Return: what was counted
 */
static const char *lose(enum call call, int err, uint32_t count)
{
	enum dp_dir dir = dir_of(call);
	enum dp_drop drop;

	begin(call, err, count);
	for (uint32_t i = 0; i < count && fault.left; i++) {
		if (kernel.count == KERNEL_QUEUE)
			kernel.first = kernel.count = kernel.used = 0;
		queue(call);
		round_trip(&worker, false);
		CHECK(kernel.first == kernel.count);
	}
	CHECK(fault.failed == count && !lab.counters.faults && !fault.rests);
	drop = only_drop(dir, count);
	pass_one(call);
	CHECK(lab.counters.offered[dir] == lab.counters.forwarded[dir] + paths_drops(dir));
	CHECK((drop == DP_DROP_NONE) == (err == EINTR)); /* a call that was interrupted is made again */
	return drop ? dp_drop_name(drop) : "again";
}

/**
 * stall() - A call that only looks for packets, while one waits, fails so often
 * @call:	Which
 * @err:	With which errno
 * @count:	How often
 *
 * Return: what was counted
 */
static const char *stall(enum call call, int err, uint32_t count)
{
	bool is_fault = err != EAGAIN && err != EINTR, is_retried = call == READ && err == EINTR;
	uint32_t rounds = 0;

	begin(call, err, count);
	if (call == READ_ORDER)
		fault.has_order = true;
	else
		queue(call);
	for (; fault.left || kernel.first < kernel.count; rounds++) {
		CHECK(rounds <= count);
		round_trip(&worker, true);
		CHECK(!fault.left || kernel.log->count == 0);
	}
	CHECK(fault.failed == count && rounds <= count + 1);
	CHECK(is_retried || rounds >= count);
	CHECK(lab.counters.faults == (is_fault ? count : 0));
	if (count > ROUNDS_FREE + ROUNDS_SHORT && !is_retried)
		CHECK(fault.rest_ms >= (count - ROUNDS_FREE - ROUNDS_SHORT - 1) * REST_MS);
	CHECK(fault.rests <= (count > ROUNDS_FREE ? count - ROUNDS_FREE : 0));
	pass_one(call);
	CHECK(!paths_drops(DP_TX) && !paths_drops(DP_RX) && !worker.vain);
	return is_fault ? "fault" : "again";
}

/**
 * matrix() - Each call fails with each errno, once, 10 and 1000 times in a row
 */
static void matrix(void)
{
	open_worker();
	for (enum call call = 0; call < CALLS; call++) {
		fprintf(stderr, "%-10s", call_names[call]);
		for (size_t i = 0; i < ERRNOS; i++) {
			const char *told = "";

			for (size_t j = 0; j < sizeof(times) / sizeof(*times); j++)
				told = (call < WRITE ? stall : lose)(call, errnos[i].err, times[j]);
			fprintf(stderr, " %s:%s", errnos[i].name, told);
		}
		fprintf(stderr, "\n");
	}
	close_worker();
}

/**
 * orders() - An order ends a rest, and nothing rests that was woken for something
 */
static void orders(void)
{
	open_worker();
	begin(RECVMMSG, EIO, 1000);
	queue(RECVMMSG);
	worker.order = WORKER_PARK;
	for (uint32_t i = 0; i < 2 * ROUNDS_FREE; i++)
		round_trip(&worker, true);
	CHECK(!fault.rests); /* it is told to stand still, so it does not wait before */
	worker.order = WORKER_RUN;
	round_trip(&worker, true);
	CHECK(fault.rests == 1);
	fault.left = 0;
	round_trip(&worker, true);
	pass_one(RECVMMSG);
	for (uint32_t i = 0; i < 2 * ROUNDS_FREE; i++)
		round_trip(&worker, true); /* times out: nobody was woken */
	CHECK(fault.rests == 1);
	close_worker();
}

/**
 * are_there() - Are the pages of all buffers of a path there?
 * @path:	The path
 * @bytes:	Of each buffer
 *
 * Return: whether
 */
static bool are_there(const struct path *path, size_t bytes)
{
	static unsigned char there[2 * PATH_BATCH * PATH_STRIDE / PAGE];

	CHECK(!mincore(path->tx_buffers, sizeof(there) * PAGE, there));
	for (size_t i = 0; i < 2UL * PATH_BATCH * PATH_STRIDE / PAGE * PAGE; i++)
		if (i % PATH_STRIDE < bytes && !(there[i / PAGE] & 1))
			return false;
	return true;
}

/**
 * buffers() - No packet waits for a page: those of the path are there before the first one
 *
 * The express path has small ones, and a large one now and then, which may wait.
 */
static void buffers(void)
{
	open_worker();
	CHECK(are_there(&worker.path, PATH_STRIDE));
	CHECK(are_there(&worker.express, 2048 + PKT_HEADROOM));
	CHECK(!are_there(&worker.express, PATH_STRIDE));
	close_worker();
}

int main(int argc, char **argv)
{
	static const struct scenario scenarios[] = {{"matrix", matrix}, {"orders", orders}, {"buffers", buffers}};

	return paths_run(scenarios, sizeof(scenarios) / sizeof(*scenarios), argc > 1 ? argv[1] : NULL);
}
