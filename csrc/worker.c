/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker.c - one thread that carries packets both ways.
 *
 * DOC: Theory of operation
 *
 * A worker runs to completion: it takes a batch from each source in turn and
 * carries every packet of it to its end before it looks for more, so packets of
 * a flow are never reordered and nothing is handed between threads. When all
 * sources are dry it looks again for a moment, if that pays (spin.c), and then
 * sleeps in ppoll(). It makes no other system call, and allocates nothing:
 * buffers are mapped before it starts.
 *
 * Control pauses it with an order and a write to its eventfd, and waits until it
 * has parked, between two batches: then no packet is in flight. A worker starts
 * parked. The heartbeat counts rounds; it stands still in a worker that hangs,
 * not in one that is idle.
 */
#include "worker.h"

#include <errno.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sys.h"

enum { POLL_MS = 250 };

/* Sources a worker polls, and what serves them. */
enum { SOURCE_WAKE, SOURCE_TUN, SOURCE_UDP4, SOURCE_UDP6, SOURCE_RAW4, SOURCE_COUNT };

/**
 * map_buffers() - Map the packet buffers of one direction
 *
 * Pages cost nothing until a packet is long enough to touch them.
 *
 * Return: PATH_BATCH buffers, or NULL
 */
static uint8_t *map_buffers(void)
{
	void *buffers = mmap(NULL, (size_t)PATH_BATCH * PATH_STRIDE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return buffers == MAP_FAILED ? NULL : buffers;
}

/**
 * worker_init() - Prepare a worker whose path names descriptors and counters
 * @worker:	Zeroed but for path.config, .fds, .counters, .peers, .max_peers
 * @slot:	Where the table hangs, borrowed for the worker's life
 *
 * Return: 0 or -errno; call worker_free() in both cases
 */
int worker_init(struct worker *worker, struct fib_slot *slot)
{
	worker->slot = slot;
	worker->order = WORKER_PARK;
	worker->spin.limit_ns = worker->path.config->spin_us * 1000ULL;
	pthread_mutex_init(&worker->lock, NULL);
	pthread_cond_init(&worker->changed, NULL);
	worker->path.out.has_runs = worker->path.config->tier & DP_TIER_UDP_GSO;
	outbox_clear(&worker->path.out);
	worker->path.merge.is_off = !(worker->path.config->tier & DP_TIER_TUN_GRO);
	worker->path.merge.has_udp = worker->path.config->tier & DP_TIER_TUN_UGRO;
	worker->path.tx_buffers = map_buffers();
	worker->path.rx_buffers = map_buffers();
	worker->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (worker->wake_fd < 0)
		return -errno;
	return worker->path.tx_buffers && worker->path.rx_buffers ? 0 : -ENOMEM;
}

/**
 * worker_free() - Undo worker_init()
 * @worker:	Not started, or ended
 */
void worker_free(struct worker *worker)
{
	if (worker->wake_fd >= 0)
		close(worker->wake_fd);
	if (worker->path.rx_buffers)
		munmap(worker->path.rx_buffers, (size_t)PATH_BATCH * PATH_STRIDE);
	if (worker->path.tx_buffers)
		munmap(worker->path.tx_buffers, (size_t)PATH_BATCH * PATH_STRIDE);
	pthread_cond_destroy(&worker->changed);
	pthread_mutex_destroy(&worker->lock);
}

/**
 * carry() - One round: a batch from each source
 * @worker:	This worker
 *
 * Return: packets taken from all sources
 */
static uint32_t carry(struct worker *worker)
{
	struct path *path = &worker->path;
	uint32_t taken = 0;

	path->now_ns = counters_now_ns();
	path->fib = fib_enter(worker->slot, &worker->reader);
	if (path->fds[DP_FD_UDP4] >= 0)
		taken += rx_run(path, DP_FD_UDP4);
	if (path->fds[DP_FD_UDP6] >= 0)
		taken += rx_run(path, DP_FD_UDP6);
	if (path->fds[DP_FD_RAW4] >= 0)
		taken += rx_run(path, DP_FD_RAW4);
	if (!path->is_tun_gone)
		taken += tx_run(path);
	fib_leave(&worker->reader);
	counters_add(&path->counters->heartbeat, 1);
	return taken;
}

/**
 * wait_for_packets() - Sleep until a source has packets, or an order came
 * @worker:	This worker
 */
static void wait_for_packets(struct worker *worker)
{
	const int *fds = worker->path.fds;
	struct timespec timeout = {.tv_nsec = POLL_MS * 1000000L};
	struct pollfd polls[SOURCE_COUNT] = {
		[SOURCE_WAKE] = {.fd = worker->wake_fd, .events = POLLIN},
		[SOURCE_TUN] = {.fd = worker->path.is_tun_gone ? -1 : fds[DP_FD_TUN], .events = POLLIN},
		[SOURCE_UDP4] = {.fd = fds[DP_FD_UDP4], .events = POLLIN},
		[SOURCE_UDP6] = {.fd = fds[DP_FD_UDP6], .events = POLLIN},
		[SOURCE_RAW4] = {.fd = fds[DP_FD_RAW4], .events = POLLIN},
	};

	sys->ppoll(polls, SOURCE_COUNT, &timeout, NULL);
	counters_add(&worker->path.counters->wakeups, 1);
	if (polls[SOURCE_TUN].revents & (POLLERR | POLLNVAL))
		worker->path.is_tun_gone = true; /* deleted; would wake us for ever */
	if (polls[SOURCE_WAKE].revents & POLLIN) {
		uint64_t ignored;

		(void)!sys->read(worker->wake_fd, &ignored, sizeof(ignored));
	}
}

/**
 * park() - Stand still until told otherwise
 * @worker:	This worker
 */
static void park(struct worker *worker)
{
	pthread_mutex_lock(&worker->lock);
	worker->is_parked = true;
	pthread_cond_broadcast(&worker->changed);
	while (atomic_load(&worker->order) == WORKER_PARK)
		pthread_cond_wait(&worker->changed, &worker->lock);
	worker->is_parked = false;
	pthread_mutex_unlock(&worker->lock);
}

/**
 * run() - The worker thread
 * @arg:	struct worker
 *
 * Return: NULL
 */
static void *run(void *arg)
{
	struct worker *worker = arg;

	for (;;) {
		switch (atomic_load_explicit(&worker->order, memory_order_acquire)) {
		case WORKER_EXIT:
			return NULL;
		case WORKER_PARK:
			park(worker);
			break;
		default:
			if (carry(worker))
				spin_found(&worker->spin, worker->path.now_ns);
			else if (!spin_again(&worker->spin, worker->path.now_ns))
				wait_for_packets(worker);
		}
	}
}

/**
 * worker_start() - Create the thread, parked and deaf to signals
 * @worker:	After worker_init()
 *
 * Return: 0 or -errno
 */
int worker_start(struct worker *worker)
{
	sigset_t all, old;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(&worker->thread, NULL, run, worker);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -err;
}

/**
 * give_order() - Change what a worker does
 * @worker:	A started worker
 * @order:	What to do from now on
 */
static void give_order(struct worker *worker, enum worker_order order)
{
	uint64_t one = 1;

	pthread_mutex_lock(&worker->lock);
	atomic_store_explicit(&worker->order, order, memory_order_release);
	pthread_cond_broadcast(&worker->changed);
	pthread_mutex_unlock(&worker->lock);
	(void)!write(worker->wake_fd, &one, sizeof(one)); /* full means it is awake anyway */
}

/**
 * worker_park() - Pause a worker; returns when no packet is in flight
 * @worker:	A started worker
 */
void worker_park(struct worker *worker)
{
	give_order(worker, WORKER_PARK);
	pthread_mutex_lock(&worker->lock);
	while (!worker->is_parked)
		pthread_cond_wait(&worker->changed, &worker->lock);
	pthread_mutex_unlock(&worker->lock);
}

/**
 * worker_resume() - Let a parked worker go on
 * @worker:	A started worker
 */
void worker_resume(struct worker *worker)
{
	give_order(worker, WORKER_RUN);
}

/**
 * worker_end() - End the thread after the batch it is in
 * @worker:	A started worker
 */
void worker_end(struct worker *worker)
{
	give_order(worker, WORKER_EXIT);
	pthread_join(worker->thread, NULL);
}
