/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine.c - the workers, the table they share and the descriptors they use.
 *
 * An engine owns duplicates of every descriptor it was given. It is created
 * with its workers parked, so that all that can fail has failed before the one
 * it replaces is stopped. All functions are for one controlling thread.
 */
#include "engine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "counters.h"
#include "fib.h"
#include "worker.h"

_Static_assert(DP_MAX_BARE == DP_FD_EACH - 1, "only the last slot is one too many");

struct engine {
	struct dp_config config;
	struct engine_identity identity;
	int fds[DP_FD_SLOTS]; /* owned; -1: not there */
	struct fib_slot slot;
	struct counters *counters;
	struct rates icmp;      /* of errors to pods, by all workers */
	uint64_t turn;          /* ours; 0: none yet */
	uint32_t workers_count; /* started */
	struct worker *workers;
};

/**
 * has_all() - Are there none, or as many descriptors of a role as there should be?
 * @fds:	All descriptors
 * @role:	The role
 * @count:	How many
 *
 * Return: true if so
 */
static bool has_all(const int fds[DP_FD_SLOTS], enum dp_fd role, uint32_t count)
{
	for (uint32_t i = 1; i < count && fds[role] >= 0; i++) {
		if (fds[path_slot(role, i)] < 0)
			return false;
	}
	return true;
}

/**
 * check_config() - Is a configuration one we can run?
 * @config:	From another process
 * @fds:	Descriptors that came with it
 *
 * Return: 0, or -EINVAL
 */
static int check_config(const struct dp_config *config, const int fds[DP_FD_SLOTS])
{
	uint32_t hdr = config->vnet_hdr_len;
	uint32_t sockets = config->queues > 1 ? config->queues + 1U : 1;
	uint32_t bare = sockets < DP_MAX_BARE ? sockets : DP_MAX_BARE;

	if (!config->threads || config->threads > config->queues || config->queues > DP_MAX_QUEUES ||
	    !config->sources || config->sources > DP_MAX_SOURCES || config->vni > VXLAN_VNI_MAX ||
	    config->tun_mtu < 68 || config->tun_mtu > PKT_MAX)
		return -EINVAL;
	if (hdr != 0 && hdr != sizeof(struct vnet_hdr) && hdr != sizeof(struct vnet_hdr) - sizeof(uint16_t))
		return -EINVAL;
	if (fds[DP_FD_TUN] < 0 || fds[DP_FD_COUNTERS] < 0 || fds[DP_FD_FIB] < 0)
		return -EINVAL;
	if (fds[path_slot(DP_FD_BARE4, DP_MAX_BARE)] >= 0) /* more than one worker can serve */
		return -EINVAL;
	return has_all(fds, DP_FD_TUN, config->queues) && has_all(fds, DP_FD_UDP4, sockets) &&
			       has_all(fds, DP_FD_UDP6, sockets) && has_all(fds, DP_FD_UDP4_TX, config->sources) &&
			       has_all(fds, DP_FD_UDP6_TX, config->sources) && has_all(fds, DP_FD_BARE4, bare)
		       ? 0
		       : -EINVAL;
}

/**
 * take_fds() - Duplicate descriptors
 * @engine:	Owner of the duplicates
 * @fds:	The caller's
 *
 * Return: 0 or -errno
 */
static int take_fds(struct engine *engine, const int fds[DP_FD_SLOTS])
{
	for (int i = 0; i < DP_FD_SLOTS; i++) {
		if (fds[i] < 0)
			continue;
		engine->fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);
		if (engine->fds[i] < 0)
			return -errno;
	}
	return 0;
}

/**
 * set_gro() - Let the kernel join datagrams, or not, as the configuration says
 * @engine:	With descriptors
 */
static void set_gro(const struct engine *engine)
{
	for (uint32_t slot = 0; slot < DP_FD_SLOTS; slot++) {
		uint32_t role = slot % DP_FD_COUNT;

		if (engine->fds[slot] >= 0 && (role == DP_FD_UDP4 || role == DP_FD_UDP6 || role == DP_FD_BARE4))
			underlay_set_gro(engine->fds[slot], engine->config.tier & DP_TIER_UDP_GRO);
	}
}

/**
 * start_workers() - Make and start the workers, parked
 * @engine:	With descriptors, table and counters
 *
 * Return: 0 or -errno
 */
static int start_workers(struct engine *engine)
{
	set_gro(engine);
	engine->workers = aligned_alloc(_Alignof(struct worker), engine->config.threads * sizeof(struct worker));
	if (!engine->workers)
		return -ENOMEM;
	memset(engine->workers, 0, engine->config.threads * sizeof(struct worker));
	for (uint32_t i = 0; i < engine->config.threads; i++) {
		struct worker *worker = &engine->workers[i];
		int err;

		worker->path.config = &engine->config;
		worker->path.fds = engine->fds;
		worker->path.tun_fd = engine->fds[path_slot(DP_FD_TUN, i)];
		worker->path.counters = counters_thread(engine->counters, i);
		worker->path.peers = counters_peers(engine->counters, i);
		worker->path.max_peers = engine->counters->max_peers;
		worker->path.icmp = &engine->icmp;
		worker->turn = &engine->counters->header->turn;
		worker->our_turn = &engine->turn;
		err = worker_init(worker, &engine->slot, i);
		if (!err)
			err = worker_start(worker);
		if (err) {
			worker_free(worker);
			return err;
		}
		engine->workers_count++;
	}
	return 0;
}

/**
 * engine_create() - Set up an engine with its workers parked
 * @config:	What to do; copied
 * @fds:	Descriptors by slot, -1 for none; duplicated
 * @identity:	Of this process; copied
 * @out:	Set to the engine
 *
 * Return: 0; -EINVAL for a configuration or descriptors that cannot work;
 * what dp_fib_open() and dp_counters_open() return; another -errno
 */
int engine_create(const struct dp_config *config, const int fds[DP_FD_SLOTS], const struct engine_identity *identity,
		  struct engine **out)
{
	struct engine *engine;
	struct fib *fib = NULL;
	int err = check_config(config, fds);

	if (err)
		return err;
	engine = calloc(1, sizeof(*engine));
	if (!engine)
		return -ENOMEM;
	engine->config = *config;
	engine->identity = *identity;
	memset(engine->fds, -1, sizeof(engine->fds));
	err = take_fds(engine, fds);
	if (!err)
		err = dp_counters_open(engine->fds[DP_FD_COUNTERS], 1, &engine->counters);
	if (!err && engine->counters->threads < config->threads)
		err = -EINVAL;
	if (!err)
		err = dp_fib_open(engine->fds[DP_FD_FIB], &fib);
	if (!err) {
		fib_publish(&engine->slot, NULL, 0, 0, fib);
		err = start_workers(engine);
	}
	if (err) {
		dp_engine_destroy(engine);
		return err;
	}
	*out = engine;
	return 0;
}

/**
 * dp_engine_create() - Set up an engine in this process
 * @config:	What to do; copied
 * @fds:	Descriptors by slot, -1 for none; duplicated
 * @out:	Set to the engine, owned by the caller (dp_engine_destroy())
 *
 * Return: 0 or -errno as engine_create()
 */
int dp_engine_create(const struct dp_config *config, const int fds[DP_FD_SLOTS], dp_engine **out)
{
	struct engine_identity identity = {.start_ns = counters_now_ns(), .pid = (uint64_t)getpid()};

	return engine_create(config, fds, &identity, out);
}

/**
 * engine_take_turn() - Be the one of all engines with these counters that may carry
 * @engine:	Parked
 * @turn:	As in counters_take_turn()
 *
 * Return: 0, or -EBUSY if another one took its turn meanwhile
 */
int engine_take_turn(struct engine *engine, uint64_t turn)
{
	turn = counters_take_turn(engine->counters, turn);
	if (!turn)
		return -EBUSY;
	__atomic_store_n(&engine->turn, turn, __ATOMIC_RELAXED);
	return 0;
}

/**
 * engine_has_turn() - May this engine carry?
 * @engine:	In any state
 *
 * Return: false if another one took its turn
 */
bool engine_has_turn(const struct engine *engine)
{
	return __atomic_load_n(&engine->counters->header->turn, __ATOMIC_ACQUIRE) == engine->turn;
}

/**
 * engine_go() - Take over the counters and carry packets; nobody else may still write them
 * @engine:	Parked, and it is its turn
 */
void engine_go(struct engine *engine)
{
	counters_adopt(engine->counters, engine->identity.start_ns, engine->identity.pid);
	counters_set_generation(engine->counters, engine_generation(engine));
	dp_engine_resume(engine);
}

/**
 * dp_engine_start() - Take over the counters and carry packets
 * @engine:	From dp_engine_create(), not running
 *
 * Return: 0
 */
int dp_engine_start(dp_engine *engine)
{
	int err = engine_take_turn(engine, 0);

	if (!err)
		engine_go(engine);
	return err;
}

/**
 * dp_engine_publish() - Put another table in force
 * @engine:	Running or quiesced
 * @fib_fd:	memfd of dp_fib_create(); duplicated
 *
 * Returns when no worker uses the old table any more; no packet is lost or
 * sent by a mixture of the two.
 *
 * Return: 0 or -errno of dp_fib_open(); then the old table stays in force
 */
int dp_engine_publish(dp_engine *engine, int fib_fd)
{
	struct fib *next, *old;
	int own_fd = fcntl(fib_fd, F_DUPFD_CLOEXEC, 3);
	int err;

	if (own_fd < 0)
		return -errno;
	err = dp_fib_open(own_fd, &next);
	if (err) {
		close(own_fd);
		return err;
	}
	old = fib_publish(&engine->slot, &engine->workers[0].reader, sizeof(struct worker), engine->workers_count,
			  next);
	counters_set_generation(engine->counters, dp_fib_generation(next));
	dp_fib_close(old);
	close(engine->fds[DP_FD_FIB]);
	engine->fds[DP_FD_FIB] = own_fd;
	return 0;
}

/**
 * dp_engine_quiesce() - Stop carrying packets; returns when none is in flight
 * @engine:	Running or quiesced
 *
 * Return: 0
 */
int dp_engine_quiesce(dp_engine *engine)
{
	for (uint32_t i = 0; i < engine->workers_count; i++)
		worker_park(&engine->workers[i]);
	return 0;
}

/**
 * dp_engine_resume() - Carry packets (again)
 * @engine:	Running or quiesced
 *
 * Return: 0
 */
int dp_engine_resume(dp_engine *engine)
{
	for (uint32_t i = 0; i < engine->workers_count; i++)
		worker_resume(&engine->workers[i]);
	return 0;
}

/**
 * dp_engine_destroy() - Stop and free an engine
 * @engine:	In any state, or NULL
 */
void dp_engine_destroy(dp_engine *engine)
{
	if (!engine)
		return;
	for (uint32_t i = 0; i < engine->workers_count; i++) {
		worker_end(&engine->workers[i]);
		worker_free(&engine->workers[i]);
	}
	free(engine->workers);
	dp_fib_close(fib_publish(&engine->slot, NULL, 0, 0, NULL));
	dp_counters_close(engine->counters);
	for (int i = 0; i < DP_FD_SLOTS; i++) {
		if (engine->fds[i] >= 0)
			close(engine->fds[i]);
	}
	free(engine);
}

/**
 * engine_count_fault() - Count a system call that failed the thread which serves control
 * @engine:	In any state
 */
void engine_count_fault(struct engine *engine)
{
	counters_add(&engine->counters->header->faults, 1);
}

/**
 * engine_fds() - The descriptors an engine works with
 * @engine:	The engine
 *
 * Return: DP_FD_SLOTS descriptors, borrowed
 */
const int *engine_fds(const struct engine *engine)
{
	return engine->fds;
}

/**
 * engine_config() - The configuration an engine works by
 * @engine:	The engine
 *
 * Return: borrowed from the engine
 */
const struct dp_config *engine_config(const struct engine *engine)
{
	return &engine->config;
}

/**
 * engine_generation() - Which table is in force
 * @engine:	The engine
 *
 * Return: its generation
 */
uint64_t engine_generation(const struct engine *engine)
{
	return dp_fib_generation(engine->slot.current);
}

/**
 * engine_turn() - Which turn is this engine's?
 * @engine:	The engine
 *
 * Return: 0 before the first
 */
uint64_t engine_turn(const struct engine *engine)
{
	return engine->turn;
}
