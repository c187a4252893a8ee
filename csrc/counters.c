/* SPDX-License-Identifier: Apache-2.0 */
/*
 * counters.c - counters in shared memory.
 *
 * DOC: Theory of operation
 *
 * The memfd is made by control, written by the forwarder's workers and read by
 * whoever was given it. It outlives the forwarder: the next one adopts it, and
 * books what its predecessor had taken in but neither forwarded nor dropped as
 * DP_DROP_RESTART, so that offered = forwarded + drops holds again. Its size is
 * sealed, so a mapping cannot be cut short. Layout: dp.h.
 */
#include "counters.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define COUNTERS_MAGIC 0x64706374U

/**
 * size_of() - Bytes of a counters memfd
 * @threads:	Workers
 * @max_peers:	Peer ids there is room for
 *
 * Return: size in bytes
 */
static size_t size_of(uint32_t threads, uint32_t max_peers)
{
	return sizeof(struct dp_counters_header) +
	       threads * (sizeof(struct dp_thread_counters) + (size_t)max_peers * sizeof(struct dp_peer_counters));
}

/**
 * counters_now_ns() - The clock that all times in the counters are of
 *
 * Return: CLOCK_BOOTTIME in nanoseconds; the same in every process, and it never steps
 */
uint64_t counters_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

/**
 * dp_counters_create() - Make a memfd of zeroed counters
 * @threads:	Workers, 1 .. DP_MAX_THREADS
 * @max_peers:	Peer ids to make room for, 1 .. DP_MAX_PEERS; untouched room costs no memory
 *
 * Return: descriptor owned by the caller, or -errno
 */
int dp_counters_create(uint32_t threads, uint32_t max_peers)
{
	struct dp_counters_header header = {.magic = COUNTERS_MAGIC, .layout = DP_COUNTERS_LAYOUT};
	int fd, err;

	if (!threads || threads > DP_MAX_THREADS || !max_peers || max_peers > DP_MAX_PEERS)
		return -EINVAL;
	fd = memfd_create("overlayd-counters", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	header.threads = threads;
	header.max_peers = max_peers;
	header.size = size_of(threads, max_peers);
	header.start_ns = counters_now_ns();
	if (ftruncate(fd, (off_t)header.size) || pwrite(fd, &header, sizeof(header), 0) != (ssize_t)sizeof(header) ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW)) {
		err = -errno;
		close(fd);
		return err;
	}
	return fd;
}

/**
 * dp_counters_open() - Map counters
 * @fd:		memfd of dp_counters_create(), still the caller's
 * @writable:	1 for workers, 0 for readers
 * @out:	Set to the mapping, owned by the caller (dp_counters_close())
 *
 * Return: 0; -EPERM if its size is not sealed; -EPROTO for another version;
 * -EBADMSG if its header contradicts its size; another -errno
 */
int dp_counters_open(int fd, int writable, dp_counters **out)
{
	const int wanted = F_SEAL_SHRINK | F_SEAL_GROW;
	const struct dp_counters_header *header;
	int seals = fcntl(fd, F_GET_SEALS);
	struct counters *counters;
	struct stat stat;
	int err;

	if (seals < 0 || (seals & wanted) != wanted)
		return -EPERM; /* what is no memfd has no seals to ask for: -1, all bits set */
	if (fstat(fd, &stat))
		return -errno;
	if ((size_t)stat.st_size < sizeof(*header))
		return -EBADMSG;
	counters = calloc(1, sizeof(*counters));
	if (!counters)
		return -ENOMEM;
	counters->size = (size_t)stat.st_size;
	counters->header = mmap(NULL, counters->size, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
	err = -errno;
	if (counters->header == MAP_FAILED)
		goto free_counters;

	header = counters->header;
	counters->threads = header->threads;
	counters->max_peers = header->max_peers;
	err = -EPROTO;
	if (header->magic != COUNTERS_MAGIC || header->layout != DP_COUNTERS_LAYOUT)
		goto unmap;
	err = -EBADMSG;
	if (!counters->threads || counters->threads > DP_MAX_THREADS || counters->max_peers > DP_MAX_PEERS ||
	    size_of(counters->threads, counters->max_peers) != counters->size)
		goto unmap;
	*out = counters;
	return 0;

unmap:
	munmap(counters->header, counters->size);
free_counters:
	free(counters);
	return err;
}

/**
 * dp_counters_close() - Unmap counters
 * @counters:	From dp_counters_open(), or NULL
 */
void dp_counters_close(dp_counters *counters)
{
	if (!counters)
		return;
	munmap(counters->header, counters->size);
	free(counters);
}

/**
 * counters_thread() - One worker's counters
 * @counters:	The mapping
 * @thread:	Its index, below counters->threads
 *
 * Return: borrowed from the mapping
 */
struct dp_thread_counters *counters_thread(const struct counters *counters, uint32_t thread)
{
	return (struct dp_thread_counters *)(counters->header + 1) + thread;
}

/**
 * counters_peers() - One worker's counters per peer
 * @counters:	The mapping
 * @thread:	Its index, below counters->threads
 *
 * Return: array of counters->max_peers, borrowed from the mapping
 */
struct dp_peer_counters *counters_peers(const struct counters *counters, uint32_t thread)
{
	struct dp_peer_counters *first = (struct dp_peer_counters *)counters_thread(counters, counters->threads);

	return first + (size_t)thread * counters->max_peers;
}

/**
 * book_lost() - Book packets in flight when the last forwarder ended
 * @thread:	A worker's counters; nobody writes them now
 * @dir:	enum dp_dir
 */
static void book_lost(struct dp_thread_counters *thread, int dir)
{
	uint64_t known = thread->forwarded[dir];

	for (int drop = 0; drop < DP_DROP_COUNT; drop++)
		known += thread->drops[dir][drop];
	if (thread->offered[dir] > known)
		counters_add(&thread->drops[dir][DP_DROP_RESTART], thread->offered[dir] - known);
}

/**
 * counters_adopt() - Take counters over from the forwarder before
 * @counters:	The mapping; no worker runs on it yet
 * @start_ns:	CLOCK_BOOTTIME when this process began; tells one forwarder from the next
 * @pid:	This process, as it sees itself
 */
void counters_adopt(const struct counters *counters, uint64_t start_ns, uint64_t pid)
{
	struct dp_counters_header *header = counters->header;

	for (uint32_t i = 0; i < counters->threads; i++) {
		for (int dir = 0; dir < DP_DIR_COUNT; dir++)
			book_lost(counters_thread(counters, i), dir);
		counters_set(&counters_thread(counters, i)->refused_tier, 0); /* the next one tries again */
		for (int slot = 0; slot < DP_FD_SLOTS; slot++)
			counters_set(&counters_thread(counters, i)->queue_drops[slot], 0); /* sockets tell totals */
	}
	if (header->forwarder_ns && header->forwarder_ns != start_ns)
		counters_add(&header->restarts, 1);
	counters_set(&header->forwarder_ns, start_ns);
	counters_set(&header->forwarder_pid, pid);
}

/**
 * counters_take_turn() - From now on let nobody else carry packets with these counters
 * @counters:	The mapping
 * @turn:	Take it only if it is still this one; 0: whatever it is
 *
 * Return: our turn, or 0 if somebody else took it
 */
uint64_t counters_take_turn(const struct counters *counters, uint64_t turn)
{
	uint64_t *word = &counters->header->turn;

	if (!turn)
		return __atomic_add_fetch(word, 1, __ATOMIC_SEQ_CST);
	if (!__atomic_compare_exchange_n(word, &turn, turn + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		return 0;
	return turn + 1;
}

/**
 * counters_set_generation() - Tell readers which table is in force
 * @counters:	The mapping
 * @generation:	Of the table
 */
void counters_set_generation(const struct counters *counters, uint64_t generation)
{
	counters_set(&counters->header->generation, generation);
}

/**
 * counters_note_last() - Remember who was last
 * @last:	Where
 * @now_ns:	CLOCK_BOOTTIME
 * @family:	4 or 6, or 0 if the address is not known
 * @addr:	Host order
 */
void counters_note_last(struct dp_last *last, uint64_t now_ns, uint8_t family, addr_t addr)
{
	uint64_t words[2] = {0, 0};

	if (family == 4)
		words[0] = __builtin_bswap32((uint32_t)addr);
	if (family == 6) {
		words[0] = __builtin_bswap64((uint64_t)(addr >> 64));
		words[1] = __builtin_bswap64((uint64_t)addr);
	}
	counters_set(&last->words[0], words[0]);
	counters_set(&last->words[1], words[1]);
	counters_set(&last->family, family);
	counters_set(&last->time_ns, now_ns);
}

/**
 * dp_counters_header() - Copy the header out
 * @counters:	From dp_counters_open()
 * @out:	Where to
 */
void dp_counters_header(const dp_counters *counters, struct dp_counters_header *out)
{
	*out = *counters->header;
}

/**
 * add_words() - Add an array of counters to another
 * @to:		Sums
 * @from:	What to add, maybe being written
 * @count:	Words
 */
static void add_words(uint64_t *to, const uint64_t *from, size_t count)
{
	for (size_t i = 0; i < count; i++)
		to[i] += __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}

/**
 * dp_counters_total() - Sum the counters of all workers
 * @counters:	From dp_counters_open()
 * @out:	Sums; last is the latest of any worker, faults those of the serving thread, too
 */
void dp_counters_total(const dp_counters *counters, struct dp_thread_counters *out)
{
	size_t sums = offsetof(struct dp_thread_counters, last) / sizeof(uint64_t);
	size_t lasts = sizeof(out->last) / sizeof(struct dp_last);

	memset(out, 0, sizeof(*out));
	out->faults = __atomic_load_n(&counters->header->faults, __ATOMIC_RELAXED);
	for (uint32_t i = 0; i < counters->threads; i++) {
		const struct dp_thread_counters *thread = counters_thread(counters, i);
		const struct dp_last *from = &thread->last[0][0];
		struct dp_last *to = &out->last[0][0];

		uint64_t refused = out->refused_tier | thread->refused_tier;

		add_words(&out->heartbeat, &thread->heartbeat, sums);
		add_words(&out->faults, &thread->faults, 1);
		out->refused_tier = refused; /* a mask */
		for (size_t j = 0; j < lasts; j++) {
			if (__atomic_load_n(&from[j].time_ns, __ATOMIC_RELAXED) > to[j].time_ns)
				to[j] = from[j];
		}
	}
}

/**
 * dp_counters_peer() - Sum one peer's counters over all workers
 * @counters:	From dp_counters_open()
 * @peer_id:	Which peer
 * @out:	Sums
 *
 * Return: 0, or -EINVAL for an id there is no room for
 */
int dp_counters_peer(const dp_counters *counters, uint32_t peer_id, struct dp_peer_counters *out)
{
	if (peer_id >= counters->max_peers)
		return -EINVAL;
	memset(out, 0, sizeof(*out));
	for (uint32_t i = 0; i < counters->threads; i++)
		add_words((uint64_t *)out, (const uint64_t *)&counters_peers(counters, i)[peer_id],
			  sizeof(*out) / sizeof(uint64_t));
	return 0;
}

/**
 * dp_counters_bytes() - Sum the bytes that went to and came from each peer, over all workers
 * @counters:	From dp_counters_open()
 * @count:	Of peers, ids from 0 on; no more than there is room for are read
 * @tx:		Room for so many sums
 * @rx:		Room for so many sums
 */
void dp_counters_bytes(const dp_counters *counters, uint32_t count, uint64_t *tx, uint64_t *rx)
{
	memset(tx, 0, count * sizeof(*tx));
	memset(rx, 0, count * sizeof(*rx));
	if (count > counters->max_peers)
		count = counters->max_peers;
	for (uint32_t i = 0; i < counters->threads; i++) {
		const struct dp_peer_counters *peers = counters_peers(counters, i);

		for (uint32_t id = 0; id < count; id++) {
			tx[id] += __atomic_load_n(&peers[id].bytes[DP_TX], __ATOMIC_RELAXED);
			rx[id] += __atomic_load_n(&peers[id].bytes[DP_RX], __ATOMIC_RELAXED);
		}
	}
}
