/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker.c - one thread that carries packets both ways.
 *
 * DOC: Theory of operation
 *
 * A worker runs to completion: it takes a batch from each source that has
 * packets and carries every packet of it to its end before it looks for more,
 * so packets of a flow are never reordered and nothing is handed between
 * threads. Flows are spread over queues, each of which is one worker's: by the
 * kernel, from pods by steer.c, from the underlay by addresses and ports. A flow
 * with few packets thus does not wait behind all of one with many, even if one
 * worker serves both: between two steps of a long batch those come in who have
 * little, unless it only acknowledges what a bulk transfer brought. When all sources are dry it looks again for a moment, if
 * that pays (spin.c), and then sleeps in ppoll(); while it looks, others that
 * wait for the processor come first. It makes no other system call,
 * and allocates nothing: buffers are mapped before it starts.
 *
 * Control pauses it with an order and a write to its eventfd, and waits until it
 * has parked, between two batches: then no packet is in flight. A worker starts
 * parked. The heartbeat counts rounds; it stands still in a worker that hangs,
 * not in one that is idle.
 */
#include "worker.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sys.h"

enum { POLL_MS = 250 };

/*
 * What is taken from a source in one round: enough to amortise what a round
 * costs, while what is read is still in the cache when it is sent; and less if
 * others wait, who have little (a bulk flow fills its own queue).
 */
enum { ALONE_BYTES = 1 << 20, AMONG_BYTES = 256 << 10 };

/* Who has less than that at a time need not wait for the end of another's batch. */
enum { LITTLE_BYTES = 16 << 10 };

/**
 * map_buffers() - Map the packet buffers of a path, PATH_BATCH for each direction
 * @path:	The path
 *
 * Pages cost nothing until a packet is long enough to touch them.
 *
 * Return: whether there is memory for them; call unmap_buffers() in both cases
 */
static bool map_buffers(struct path *path)
{
	size_t size = (size_t)PATH_BATCH * PATH_STRIDE;
	uint8_t *both =
		mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (both == MAP_FAILED)
		return false;
	path->tx_buffers = both;
	path->rx_buffers = both + size;
	return true;
}

/**
 * unmap_buffers() - Undo map_buffers()
 * @path:	The path
 */
static void unmap_buffers(struct path *path)
{
	if (path->tx_buffers)
		munmap(path->tx_buffers, 2 * (size_t)PATH_BATCH * PATH_STRIDE);
}

/**
 * add_poll() - Let a worker serve a descriptor
 * @worker:	The worker
 * @fd:		The descriptor; -1 is not added
 * @slot:	Its slot
 */
static void add_poll(struct worker *worker, int fd, uint32_t slot)
{
	if (fd < 0)
		return;
	worker->polls[worker->polls_count] = (struct pollfd){.fd = fd, .events = POLLIN};
	worker->slots[worker->polls_count++] = slot;
}

/**
 * add_polls() - Let a worker serve its share of the queues
 * @worker:	The worker, with its eventfd
 * @index:	Which worker it is
 */
static void add_polls(struct worker *worker, uint32_t index)
{
	const struct dp_config *config = worker->path.config;
	const int *fds = worker->path.fds;

	add_poll(worker, worker->wake_fd, DP_FD_SLOTS);
	for (uint32_t i = index; i < config->queues; i += config->threads) {
		if (config->queues > 1) {
			add_poll(worker, fds[path_slot(DP_FD_UDP4, i + 1)], path_slot(DP_FD_UDP4, i + 1));
			add_poll(worker, fds[path_slot(DP_FD_UDP6, i + 1)], path_slot(DP_FD_UDP6, i + 1));
		}
		add_poll(worker, fds[path_slot(DP_FD_TUN, i)], path_slot(DP_FD_TUN, i));
	}
	if (index)
		return;
	add_poll(worker, fds[DP_FD_UDP4], DP_FD_UDP4);
	add_poll(worker, fds[DP_FD_UDP6], DP_FD_UDP6);
	add_poll(worker, fds[DP_FD_RAW4], DP_FD_RAW4);
}

/**
 * take() - Take packets from one source
 * @worker:	This worker
 * @path:	Which of its paths
 * @index:	Of the source among polls
 * @most_bytes:	About how much
 *
 * Return: bytes taken
 */
static uint32_t take(struct worker *worker, struct path *path, uint32_t index, uint32_t most_bytes)
{
	uint32_t slot = worker->slots[index], urgent = path->urgent, taken;

	if (slot % DP_FD_COUNT == DP_FD_TUN)
		taken = tx_run(path, worker->polls[index].fd, most_bytes);
	else
		taken = rx_run(path, slot, most_bytes);
	if (taken)
		worker->is_patient[index] = taken >= LITTLE_BYTES || path->urgent == urgent;
	return taken;
}

/**
 * carry_between() - In the middle of a batch: carry what others have, who cannot wait
 * @arg:	struct worker
 *
 * A flow has one source, so none is overtaken by itself.
 */
static void carry_between(void *arg)
{
	static const struct timespec now;
	struct worker *worker = arg;
	struct pollfd polls[WORKER_POLLS];
	uint32_t sources[WORKER_POLLS], count = 0;

	for (uint32_t i = 1; i < worker->polls_count; i++) {
		if (worker->is_patient[i] || i == worker->serving)
			continue;
		sources[count] = i;
		polls[count++] = (struct pollfd){.fd = worker->polls[i].fd, .events = POLLIN};
	}
	if (!count || sys->ppoll(polls, count, &now, NULL) <= 0)
		return;
	worker->express.fib = worker->path.fib;
	worker->express.now_ns = worker->path.now_ns;
	for (uint32_t i = 0; i < count; i++) {
		if (polls[i].revents & POLLIN)
			take(worker, &worker->express, sources[i], LITTLE_BYTES);
	}
}

/**
 * worker_init() - Prepare a worker whose path names descriptors and counters
 * @worker:	Zeroed but for path.config, .fds, .counters, .peers, .max_peers
 * @slot:	Where the table hangs, borrowed for the worker's life
 * @index:	Which of the engine's workers it is
 *
 * Return: 0 or -errno; call worker_free() in both cases
 */
int worker_init(struct worker *worker, struct fib_slot *slot, uint32_t index)
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
	worker->path.icmp = &worker->icmp;
	worker->express = worker->path;
	worker->express.twin = &worker->path;
	worker->path.twin = &worker->express;
	worker->path.between = carry_between;
	worker->path.between_arg = worker;
	worker->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (worker->wake_fd < 0)
		return -errno;
	add_polls(worker, index);
	return map_buffers(&worker->path) && map_buffers(&worker->express) ? 0 : -ENOMEM;
}

/**
 * worker_free() - Undo worker_init()
 * @worker:	Not started, or ended
 */
void worker_free(struct worker *worker)
{
	if (worker->wake_fd >= 0)
		close(worker->wake_fd);
	unmap_buffers(&worker->path);
	unmap_buffers(&worker->express);
	pthread_cond_destroy(&worker->changed);
	pthread_mutex_destroy(&worker->lock);
}

/**
 * look() - Which sources have packets?
 * @worker:	This worker
 * @may_sleep:	Wait for one, or an order, if none has
 *
 * Return: how many have
 */
static uint32_t look(struct worker *worker, bool may_sleep)
{
	struct timespec timeout = {.tv_nsec = may_sleep ? POLL_MS * 1000000L : 0};
	int ready = sys->ppoll(worker->polls, worker->polls_count, &timeout, NULL);

	counters_add(&worker->path.counters->wakeups, may_sleep);
	if (ready <= 0)
		return 0;
	if (worker->polls[0].revents & POLLIN) {
		uint64_t ignored;

		(void)!sys->read(worker->wake_fd, &ignored, sizeof(ignored));
		ready--;
	}
	return (uint32_t)ready;
}

/**
 * serve() - Take packets from one source that has some
 * @worker:	This worker
 * @index:	Of the source among polls
 * @is_alone:	No other source has packets
 *
 * Return: packets taken
 */
static uint32_t serve(struct worker *worker, uint32_t index, bool is_alone)
{
	struct pollfd *poll = &worker->polls[index];
	uint32_t taken;

	worker->serving = index;
	taken = take(worker, &worker->path, index, is_alone ? ALONE_BYTES : AMONG_BYTES);
	if (worker->path.is_tun_gone || poll->revents & (POLLERR | POLLNVAL))
		poll->fd = -1; /* the device was deleted, and would wake us for ever */
	return taken;
}

/**
 * carry() - One round: some packets from each source that has any
 * @worker:	This worker, after look()
 * @ready:	Sources that have
 *
 * Return: packets taken from all sources
 */
static uint32_t carry(struct worker *worker, uint32_t ready)
{
	struct path *path = &worker->path;
	uint32_t taken = 0;

	path->fib = fib_enter(worker->slot, &worker->reader);
	for (uint32_t i = 1; i < worker->polls_count; i++) {
		if (worker->polls[i].revents)
			taken += serve(worker, i, ready == 1);
	}
	fib_leave(&worker->reader);
	return taken;
}

/**
 * round_trip() - Look for packets, and carry them
 * @worker:	This worker
 * @may_sleep:	If there are none, wait
 *
 * Return: whether the next one may sleep
 */
static bool round_trip(struct worker *worker, bool may_sleep)
{
	uint32_t ready = look(worker, may_sleep);

	worker->path.now_ns = counters_now_ns();
	counters_add(&worker->path.counters->heartbeat, 1);
	if (ready && carry(worker, ready)) {
		spin_found(&worker->spin, worker->path.now_ns);
		return false;
	}
	if (!spin_again(&worker->spin, worker->path.now_ns))
		return true;
	sched_yield(); /* who waits for this processor is perhaps whom our next packet comes from */
	return false;
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
	bool may_sleep = false;

	for (;;) {
		switch (atomic_load_explicit(&worker->order, memory_order_acquire)) {
		case WORKER_EXIT:
			return NULL;
		case WORKER_PARK:
			park(worker);
			break;
		default:
			may_sleep = round_trip(worker, may_sleep);
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
