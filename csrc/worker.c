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
 * that pays (spin.c), and then sleeps in epoll_wait(); while it looks, others that
 * wait for the processor come first. It makes no other system call,
 * and allocates nothing: buffers are mapped before it starts.
 *
 * What wakes it again and again for nothing (a read that fails, a device that was
 * deleted, a poll that fails) costs next to no processor time: it pauses between
 * its rounds then, ever longer, until something can be read. Calls that fail are
 * counted (faults).
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

/* Rounds in a row that were woken for nothing before it pauses; by how much, at first and at most. */
enum { VAIN_MAX = 16, PAUSE_MIN_MS = 1, PAUSE_MAX_MS = 64 };

/* Who has less than that at a time need not wait for the end of another's batch. */
enum { LITTLE_BYTES = 16 << 10 };

/* Of a buffer of the express path, what is there before the first packet: most are small. */
enum { EXPRESS_BYTES = 4096 };

/**
 * map_buffers() - Map the packet buffers of a path, PATH_BATCH for each direction
 * @path:	The path
 * @populate:	MAP_POPULATE: all pages are there before the first packet; 0: some of each buffer
 *
 * Return: whether there is memory for them; call unmap_buffers() in both cases
 */
static bool map_buffers(struct path *path, int populate)
{
	size_t size = (size_t)PATH_BATCH * PATH_STRIDE;
	uint8_t *both = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | populate, -1, 0);

	if (both == MAP_FAILED)
		return false;
	path->tx_buffers = both;
	path->rx_buffers = both + size;
	for (size_t i = 0; i < 2UL * PATH_BATCH; i++)
		both[i * PATH_STRIDE] = both[i * PATH_STRIDE + EXPRESS_BYTES - 1] = 0;
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
 * add_source() - Let a worker serve a descriptor
 * @worker:	The worker
 * @fd:		The descriptor; -1 is not added
 * @slot:	Its slot
 *
 * Return: 0 or -errno
 */
static int add_source(struct worker *worker, int fd, uint32_t slot)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u32 = worker->count};

	if (fd < 0)
		return 0;
	worker->sources[worker->count++] = (struct worker_source){.fd = fd, .slot = slot};
	return sys->epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

/**
 * add_slot() - Let a worker serve what lies in a slot
 * @worker:	The worker
 * @role:	What it is for
 * @index:	Which of those
 *
 * Return: 0 or -errno
 */
static int add_slot(struct worker *worker, enum dp_fd role, uint32_t index)
{
	uint32_t slot = path_slot(role, index);

	return add_source(worker, worker->path.fds[slot], slot);
}

/**
 * add_sources() - Let a worker serve its share of the queues
 * @worker:	The worker, with its eventfd
 * @index:	Which worker it is
 *
 * Return: 0 or -errno
 */
static int add_sources(struct worker *worker, uint32_t index)
{
	static const enum dp_fd sockets[] = {DP_FD_UDP4, DP_FD_UDP6, DP_FD_BARE4, DP_FD_RAW4};
	const struct dp_config *config = worker->path.config;
	int err = add_source(worker, worker->wake_fd, DP_FD_SLOTS);

	for (uint32_t i = index; !err && i < config->queues; i += config->threads) {
		for (uint32_t role = 0; !err && config->queues > 1 && role < 3; role++)
			err = add_slot(worker, sockets[role], i + 1);
		if (!err)
			err = add_slot(worker, DP_FD_TUN, i);
	}
	for (uint32_t role = 0; !err && !index && role < 4; role++)
		err = add_slot(worker, sockets[role], 0);
	return err;
}

/**
 * take() - Take packets from one source
 * @worker:	This worker
 * @path:	Which of its paths
 * @index:	Of the source
 * @most_bytes:	About how much
 *
 * Return: bytes taken
 */
static uint32_t take(struct worker *worker, struct path *path, uint32_t index, uint32_t most_bytes)
{
	struct worker_source *source = &worker->sources[index];
	uint32_t urgent = path->urgent, taken;

	if (source->slot % DP_FD_COUNT == DP_FD_TUN)
		taken = tx_run(path, source->fd, most_bytes);
	else
		taken = rx_run(path, source->slot, most_bytes);
	if (taken)
		source->is_patient = taken >= LITTLE_BYTES || path->urgent == urgent;
	return taken;
}

/**
 * find_ready() - Which sources have packets?
 * @worker:	This worker
 * @timeout_ms:	How long to wait for one
 *
 * Return: a bit for each that has, by index
 */
static uint64_t find_ready(struct worker *worker, int timeout_ms)
{
	struct epoll_event events[WORKER_SOURCES];
	int count = sys->epoll_wait(worker->epoll_fd, events, WORKER_SOURCES, timeout_ms);
	uint64_t ready = 0;

	if (count < 0)
		path_fault(&worker->path, errno);
	worker->is_woken = count; /* or not even asleep */
	for (int i = 0; i < count; i++)
		ready |= 1ULL << events[i].data.u32;
	return ready;
}

/**
 * carry_between() - In the middle of a batch: carry what others have, who cannot wait
 * @arg:	struct worker
 *
 * A flow has one source, so none is overtaken by itself.
 */
static void carry_between(void *arg)
{
	struct worker *worker = arg;
	uint64_t ready = find_ready(worker, 0) & ~(1ULL << worker->serving | 1);

	worker->express.fib = worker->path.fib;
	worker->express.now_ns = worker->path.now_ns;
	for (; ready; ready &= ready - 1) {
		uint32_t index = (uint32_t)__builtin_ctzll(ready);

		if (!worker->sources[index].is_patient)
			take(worker, &worker->express, index, LITTLE_BYTES);
	}
}

/**
 * worker_init() - Prepare a worker whose path names descriptors and counters
 * @worker:	Zeroed but for path.config, .fds, .counters, .peers, .max_peers, .icmp; turn, our_turn
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
	worker->express = worker->path;
	worker->express.twin = &worker->path;
	worker->path.twin = &worker->express;
	worker->path.between = carry_between;
	worker->path.between_arg = worker;
	worker->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (worker->wake_fd < 0 || worker->epoll_fd < 0)
		return -errno;
	if (!map_buffers(&worker->path, MAP_POPULATE) || !map_buffers(&worker->express, 0))
		return -ENOMEM;
	return add_sources(worker, index);
}

/**
 * worker_free() - Undo worker_init()
 * @worker:	Not started, or ended
 */
void worker_free(struct worker *worker)
{
	if (worker->epoll_fd >= 0)
		close(worker->epoll_fd);
	if (worker->wake_fd >= 0)
		close(worker->wake_fd);
	unmap_buffers(&worker->path);
	unmap_buffers(&worker->express);
	pthread_cond_destroy(&worker->changed);
	pthread_mutex_destroy(&worker->lock);
}

/**
 * look() - Which sources have packets? Orders are heard too
 * @worker:	This worker
 * @may_sleep:	Wait for one, or an order, if none has
 *
 * Return: a bit for each that has, by index
 */
static uint64_t look(struct worker *worker, bool may_sleep)
{
	uint64_t ready = find_ready(worker, may_sleep ? POLL_MS : 0), ignored;

	counters_add(&worker->path.counters->wakeups, may_sleep);
	if (ready & 1) {
		if (sys->read(worker->wake_fd, &ignored, sizeof(ignored)) > 0)
			worker->path.reads++;
		else
			path_fault(&worker->path, errno);
	}
	return ready & ~1ULL;
}

/**
 * carry() - One round: some packets from each source that has any
 * @worker:	This worker
 * @ready:	From look()
 *
 * Return: bytes taken from all sources
 */
static uint32_t carry(struct worker *worker, uint64_t ready)
{
	struct path *path = &worker->path;
	uint32_t most_bytes = ready & (ready - 1) ? AMONG_BYTES : ALONE_BYTES, taken = 0;

	path->fib = fib_enter(worker->slot, &worker->reader);
	for (; ready; ready &= ready - 1) {
		worker->serving = (uint32_t)__builtin_ctzll(ready);
		taken += take(worker, path, worker->serving, most_bytes);
	}
	fib_leave(&worker->reader);
	return taken;
}

/**
 * pause_if_vain() - After many rounds for which we were woken for nothing: wait, or for an order
 * @worker:	This worker
 * @is_vain:	This was one more
 */
static void pause_if_vain(struct worker *worker, bool is_vain)
{
	struct timespec end;
	uint32_t ms;

	worker->vain = is_vain ? worker->vain + 1 : 0;
	if (worker->vain <= VAIN_MAX)
		return;
	ms = (uint32_t)PAUSE_MIN_MS << (worker->vain - VAIN_MAX - 1);
	if (ms >= PAUSE_MAX_MS) {
		ms = PAUSE_MAX_MS;
		worker->vain--;
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_nsec += ms * 1000000L;
	end.tv_sec += end.tv_nsec / 1000000000L;
	end.tv_nsec %= 1000000000L;
	pthread_mutex_lock(&worker->lock);
	if (atomic_load(&worker->order) == WORKER_RUN)
		pthread_cond_clockwait(&worker->changed, &worker->lock, CLOCK_MONOTONIC, &end);
	pthread_mutex_unlock(&worker->lock);
}

/**
 * stand_still() - Park without an order, unless there is another one by now: another engine carries
 * @worker:	This worker
 */
static void stand_still(struct worker *worker)
{
	int order = WORKER_RUN;

	(void)atomic_compare_exchange_strong(&worker->order, &order, WORKER_PARK);
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
	uint32_t reads = worker->path.reads + worker->express.reads, taken;
	uint64_t ready = look(worker, may_sleep);
	bool is_woken = worker->is_woken;

	/* After the look, which may have taken any time: somebody took us for dead, and had others replace us. */
	if (__atomic_load_n(worker->turn, __ATOMIC_ACQUIRE) != __atomic_load_n(worker->our_turn, __ATOMIC_RELAXED)) {
		stand_still(worker);
		return false;
	}
	worker->path.now_ns = counters_now_ns();
	counters_add(&worker->path.counters->heartbeat, 1);
	taken = ready ? carry(worker, ready) : 0;
	if (is_woken)
		pause_if_vain(worker, worker->path.reads + worker->express.reads == reads);
	if (taken) {
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
