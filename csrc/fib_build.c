/* SPDX-License-Identifier: Apache-2.0 */
/* fib_build.c - building a table into a sealed memfd; runs in control only. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fib_layout.h"

/* Tables that need as much working memory as this get it in large pages, of which few are touched. */
enum { LARGE_PAGE = 2 << 20, LARGE_PAGES_FROM = 16 * LARGE_PAGE };

/* Working memory and where in it things are. Room that is not used is not touched. */
struct build {
	struct lpm_prefix *list; /* prefixes of one table, and room for as many to sort them */
	size_t most;             /* prefixes there is room for, without the room to sort */
	addr_t *starts;          /* what lpm_build() makes of them */
	uint32_t *values;
	struct lpm_room room; /* and lpm_index() of that */
	uint8_t *tables;      /* the snapshot from header.starts on: what is not copied from the spec */
	size_t tables_at;     /* where that begins in the snapshot */
	size_t used;          /* bytes of the snapshot */
	struct fib_header header;
};

/**
 * reserve() - Take room for an array in the snapshot
 * @build:	State
 * @count:	Elements
 * @size:	Bytes of one
 *
 * Return: where it is
 */
static struct fib_section reserve(struct build *build, uint64_t count, size_t size)
{
	struct fib_section section = {.offset = build->used, .count = count};

	build->used += (count * size + FIB_ALIGN - 1) / FIB_ALIGN * FIB_ALIGN;
	return section;
}

/**
 * collect_prefix() - Add a prefix to the input of lpm_build() if it is of the family
 * @list:	Input array
 * @count:	Elements in it, grown by one or not
 * @prefix:	The prefix
 * @is_v6:	Family wanted
 * @value:	Its answer
 *
 * Return: 0, or -EINVAL for an impossible prefix
 */
static int collect_prefix(struct lpm_prefix *list, uint32_t *count, const struct dp_prefix *prefix, bool is_v6,
			  uint32_t value)
{
	uint8_t bits = prefix->addr.family == 4 ? 32 : 128;
	addr_t key = parse_addr(prefix->addr.family, prefix->addr.bytes);

	if ((prefix->addr.family != 4 && prefix->addr.family != 6) || prefix->len > bits)
		return -EINVAL;
	if (prefix->len == 0 ? key != 0 : key << (128 - bits + prefix->len - 1) << 1 != 0)
		return -EINVAL; /* host bits */
	if ((prefix->addr.family == 6) == is_v6)
		list[(*count)++] = (struct lpm_prefix){.key = key, .value = value, .len = prefix->len};
	return 0;
}

/**
 * collect_list() - Add a list of plain prefixes
 * @list:	Input array of lpm_build()
 * @count:	Elements in it, grown
 * @prefixes:	The list
 * @prefixes_count:	Its length
 * @is_v6:	Family wanted
 *
 * Return: 0 or -EINVAL
 */
static int collect_list(struct lpm_prefix *list, uint32_t *count, const struct dp_prefix *prefixes,
			uint32_t prefixes_count, bool is_v6)
{
	int err = 0;

	for (uint32_t i = 0; i < prefixes_count && !err; i++)
		err = collect_prefix(list, count, &prefixes[i], is_v6, 1);
	return err;
}

/**
 * collect_vteps() - Add the underlay addresses of all peers
 * @list:	Input array of lpm_build()
 * @count:	Elements in it, grown
 * @spec:	Peers
 * @is_v6:	Family wanted
 *
 * Return: 0 or -EINVAL for an impossible address
 */
static int collect_vteps(struct lpm_prefix *list, uint32_t *count, const struct dp_table_spec *spec, bool is_v6)
{
	for (uint32_t i = 0; i < spec->peers_count; i++) {
		const struct dp_peer *peer = &spec->peers[i];
		struct dp_prefix host = {.addr = is_v6 ? peer->addr6 : peer->addr4, .len = is_v6 ? 128 : 32};
		int err;

		if (!host.addr.family)
			continue;
		err = collect_prefix(list, count, &host, is_v6, peer->id + 1);
		if (err)
			return err;
	}
	return 0;
}

/**
 * collect() - Gather the prefixes of one table
 * @list:	Input array of lpm_build(), large enough for all of @spec
 * @count:	Set to the elements written
 * @spec:	Where they come from
 * @table:	Which table
 * @is_v6:	Which family
 *
 * Return: 0, or -EINVAL for an impossible entry
 */
static int collect(struct lpm_prefix *list, uint32_t *count, const struct dp_table_spec *spec, enum fib_table table,
		   bool is_v6)
{
	int err = 0;

	*count = 0;
	switch (table) {
	case FIB_DST:
		for (uint32_t i = 0; i < spec->subnets_count && !err; i++)
			err = collect_prefix(list, count, &spec->subnets[i].prefix, is_v6, i + 1);
		return err;
	case FIB_VTEP:
		return collect_vteps(list, count, spec, is_v6);
	case FIB_OWN:
		return collect_list(list, count, spec->own, spec->own_count, is_v6);
	case FIB_SRC:
		err = collect_list(list, count, spec->sources, spec->sources_count, is_v6);
		return err ? err : collect_list(list, count, spec->allowed, spec->allowed_count, is_v6);
	case FIB_ALLOW:
		return collect_list(list, count, spec->allowed, spec->allowed_count, is_v6);
	case FIB_TABLE_COUNT:
		break;
	}
	return -EINVAL;
}

/**
 * put() - Copy an array to the tables of the snapshot
 * @build:	State
 * @array:	The array
 * @count:	Elements
 * @size:	Bytes of one
 *
 * Return: where it is
 */
static struct fib_section put(struct build *build, const void *array, uint64_t count, size_t size)
{
	struct fib_section section = reserve(build, count, size);

	memcpy(build->tables + (section.offset - build->tables_at), array, count * size);
	return section;
}

/**
 * put_table() - Build one prefix table into the snapshot
 * @build:	State with the prefixes
 * @count:	How many
 * @table:	Which table
 * @is_v6:	Which family
 */
static void put_table(struct build *build, uint32_t count, enum fib_table table, bool is_v6)
{
	struct fib_header *header = &build->header;
	struct lpm_room *room = &build->room;
	uint32_t *starts4 = (uint32_t *)(void *)build->starts;

	count = lpm_build(build->list, build->list + build->most, count, is_v6 ? 128 : 32, build->starts,
			  build->values);
	room->nodes_count = room->index_count = 0;
	header->roots[is_v6][table] = lpm_index(build->starts, build->values, count, room);
	for (uint32_t i = 0; i < count && !is_v6; i++)
		starts4[i] = (uint32_t)build->starts[i]; /* each is read before it is written over */
	header->starts[is_v6][table] = put(build, build->starts, count, is_v6 ? sizeof(addr_t) : sizeof(uint32_t));
	header->values[is_v6][table] = put(build, build->values, count, sizeof(uint32_t));
	header->nodes[is_v6][table] = put(build, room->nodes, room->nodes_count, sizeof(struct lpm_node));
	header->index[is_v6][table] = put(build, room->index, room->index_count, sizeof(uint32_t));
}

/**
 * fill() - Make a whole snapshot, but for what is copied from the spec
 * @build:	State with working memory
 * @spec:	What goes in
 *
 * Return: 0 or -EINVAL
 */
static int fill(struct build *build, const struct dp_table_spec *spec)
{
	build->header = (struct fib_header){.magic = FIB_MAGIC, .abi = DP_ABI, .generation = spec->generation};
	reserve(build, 1, sizeof(struct fib_header));
	build->header.subnets = reserve(build, spec->subnets_count, sizeof(struct dp_subnet));
	build->header.peers = reserve(build, spec->peers_count, sizeof(struct dp_peer));
	build->tables_at = build->used;

	for (int is_v6 = 0; is_v6 < 2; is_v6++) {
		for (enum fib_table table = 0; table < FIB_TABLE_COUNT; table++) {
			uint32_t count;
			int err = collect(build->list, &count, spec, table, is_v6);

			if (err)
				return err;
			put_table(build, count, table, is_v6);
		}
	}
	build->header.size = build->used;
	return 0;
}

/**
 * write_at() - Write to a memfd
 * @fd:		The memfd
 * @bytes:	What to write
 * @size:	How much
 * @at:		Where
 *
 * Return: 0 or -errno
 */
static int write_at(int fd, const void *bytes, size_t size, size_t at)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = pwrite(fd, (const uint8_t *)bytes + done, size - done, (off_t)(at + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

/**
 * write_memfd() - Put a snapshot into a sealed memfd
 * @build:	State after fill()
 * @spec:	What fill() got
 *
 * Return: the descriptor, owned by the caller, or -errno
 */
static int write_memfd(const struct build *build, const struct dp_table_spec *spec)
{
	const struct fib_header *header = &build->header;
	int fd = memfd_create("overlayd-fib", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int err;

	if (fd < 0)
		return -errno;
	err = write_at(fd, header, sizeof(*header), 0);
	if (!err)
		err = write_at(fd, spec->subnets, spec->subnets_count * sizeof(*spec->subnets), header->subnets.offset);
	if (!err)
		err = write_at(fd, spec->peers, spec->peers_count * sizeof(*spec->peers), header->peers.offset);
	if (!err)
		err = write_at(fd, build->tables, build->used - build->tables_at, build->tables_at);
	if (!err && fcntl(fd, F_ADD_SEALS, FIB_SEALS))
		err = -errno;
	if (!err)
		return fd;
	close(fd);
	return err;
}

/**
 * take() - Cut a piece off the working memory
 * @memory:	The rest of it, NULL while sizes are added up
 * @used:	Bytes taken, grown by the piece
 * @size:	Bytes of the piece
 *
 * Return: the piece, NULL while sizes are added up
 */
static void *take(uint8_t *memory, size_t *used, size_t size)
{
	void *piece = memory ? memory + *used : NULL;

	*used += (size + FIB_ALIGN - 1) / FIB_ALIGN * FIB_ALIGN;
	return piece;
}

/**
 * lay_out() - Divide the working memory
 * @build:	Set to its parts
 * @memory:	The memory, or NULL to learn how much it must be
 * @prefixes:	Prefixes that the spec holds, each as often as it is in tables
 *
 * Return: bytes that it takes
 */
static size_t lay_out(struct build *build, uint8_t *memory, size_t prefixes)
{
	size_t ranges = LPM_RANGES(prefixes), all = ranges + 2 * FIB_TABLE_COUNT * LPM_RANGES((size_t)0);
	size_t range = sizeof(addr_t) + sizeof(uint32_t) + sizeof(struct lpm_node) + LPM_BUCKETS(sizeof(uint32_t));
	size_t used = 0;

	build->most = prefixes;
	build->list = take(memory, &used, 2 * prefixes * sizeof(*build->list));
	build->starts = take(memory, &used, ranges * sizeof(*build->starts));
	build->values = take(memory, &used, ranges * sizeof(*build->values));
	build->room.nodes = take(memory, &used, ranges * sizeof(*build->room.nodes));
	build->room.index = take(memory, &used, LPM_BUCKETS(ranges) * sizeof(*build->room.index));
	build->tables = take(memory, &used, all * range + 4 * 2 * FIB_TABLE_COUNT * FIB_ALIGN);
	return used;
}

/**
 * dp_fib_create() - Build a table into a sealed memfd
 * @spec:	What goes in; only read
 *
 * Return: descriptor owned by the caller; -EINVAL for an impossible address,
 * prefix, encapsulation or peer id, or for more than the index can tell apart;
 * -ENOMEM or another -errno of mmap(), memfd_create(), pwrite(), fcntl()
 */
int dp_fib_create(const struct dp_table_spec *spec)
{
	size_t prefixes = (size_t)spec->subnets_count + 2 * (size_t)spec->peers_count + spec->own_count +
			  spec->sources_count + 2 * (size_t)spec->allowed_count;
	struct build build = {0};
	size_t size = lay_out(&build, NULL, prefixes);
	uint8_t *memory;
	int result;

	if (LPM_RANGES(prefixes) > LPM_RANGES_MAX ||
	    !fib_are_entries_valid(spec->subnets, spec->subnets_count, spec->peers, spec->peers_count))
		return -EINVAL;
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return -errno;
	if (size >= LARGE_PAGES_FROM)
		madvise(memory, size, MADV_HUGEPAGE); /* quicker if it works */
	lay_out(&build, memory, prefixes);
	result = fill(&build, spec);
	if (!result)
		result = write_memfd(&build, spec);
	munmap(memory, size);
	return result;
}
