/* SPDX-License-Identifier: Apache-2.0 */
/* fib_build.c - building a table into a sealed memfd; runs in control only. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fib_layout.h"

enum { LARGE_PAGE = 2 << 20 };

/* A snapshot while it is put together. */
struct build {
	int fd;
	int err;                 /* the first one that there was */
	size_t used;             /* bytes of the snapshot */
	struct lpm_prefix *list; /* prefixes of the table in hand */
	struct lpm_room room;    /* that table; start4 and start6 are the same memory */
	struct fib_header header;
};

/**
 * write_at() - Write to the snapshot
 * @build:	State
 * @bytes:	What to write
 * @size:	How much
 * @at:		Where
 */
static void write_at(struct build *build, const void *bytes, size_t size, size_t at)
{
	for (size_t done = 0; done < size && !build->err;) {
		ssize_t n = pwrite(build->fd, (const uint8_t *)bytes + done, size - done, (off_t)(at + done));

		if (n > 0)
			done += (size_t)n;
		else if (!n || errno != EINTR)
			build->err = n ? -errno : -EIO;
	}
}

/**
 * put() - Write an array behind what is there
 * @build:	State
 * @array:	The array
 * @count:	Elements
 * @size:	Bytes of one
 *
 * Return: where it is
 */
static struct fib_section put(struct build *build, const void *array, uint64_t count, size_t size)
{
	struct fib_section section = {.offset = build->used, .count = count};

	write_at(build, array, count * size, build->used);
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
	addr_t key;

	if ((prefix->addr.family != 4 && prefix->addr.family != 6) || prefix->len > bits)
		return -EINVAL;
	if ((prefix->addr.family == 6) != is_v6)
		return 0; /* its turn comes */
	key = parse_addr(prefix->addr.family, prefix->addr.bytes);
	if (prefix->len == 0 ? key != 0 : key << (128 - bits + prefix->len - 1) << 1 != 0)
		return -EINVAL; /* host bits */
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
 * put_table() - Build one prefix table into the snapshot
 * @build:	State with the prefixes
 * @count:	How many
 * @table:	Which table
 * @is_v6:	Which family
 */
static void put_table(struct build *build, uint32_t count, enum fib_table table, bool is_v6)
{
	struct fib_header *header = &build->header;
	struct lpm_room room = build->room;
	struct lpm lpm;

	room.start4 = is_v6 ? NULL : room.start4;
	room.start6 = is_v6 ? room.start6 : NULL;
	lpm = lpm_build(build->list, count, &room);
	header->roots[is_v6][table] = lpm.root;
	header->starts[is_v6][table] = is_v6 ? put(build, lpm.start6, lpm.count, sizeof(*lpm.start6))
					     : put(build, lpm.start4, lpm.count, sizeof(*lpm.start4));
	header->values[is_v6][table] = put(build, lpm.value, lpm.count, sizeof(*lpm.value));
	header->nodes[is_v6][table] = put(build, lpm.node, lpm.nodes_count, sizeof(*lpm.node));
	header->index[is_v6][table] = put(build, lpm.index, lpm.index_count, sizeof(*lpm.index));
}

/**
 * fill() - Write a whole snapshot
 * @build:	State with working memory
 * @spec:	What goes in
 *
 * Return: 0, -EINVAL, or -errno of pwrite()
 */
static int fill(struct build *build, const struct dp_table_spec *spec)
{
	struct fib_header *header = &build->header;

	*header = (struct fib_header){.magic = FIB_MAGIC, .layout = DP_FIB_LAYOUT, .generation = spec->generation};
	put(build, header, 1, sizeof(*header));
	header->subnets = put(build, spec->subnets, spec->subnets_count, sizeof(*spec->subnets));
	for (int is_v6 = 0; is_v6 < 2; is_v6++) {
		for (enum fib_table table = 0; table < FIB_TABLE_COUNT; table++) {
			uint32_t count;
			int err = collect(build->list, &count, spec, table, is_v6);

			if (err)
				return err;
			put_table(build, count, table, is_v6);
		}
	}
	header->size = build->used;
	write_at(build, header, sizeof(*header), 0);
	if (!build->err && ftruncate(build->fd, (off_t)build->used))
		build->err = -errno; /* the last array may end before a multiple of FIB_ALIGN */
	return build->err;
}

/**
 * take() - Cut a piece off the working memory
 * @memory:	All of it, NULL while sizes are added up
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
 * @prefixes:	Prefixes that one table may have
 *
 * Return: bytes that it takes
 */
static size_t lay_out(struct build *build, uint8_t *memory, size_t prefixes)
{
	struct lpm_room *room = &build->room;
	size_t used = 0;

	build->list = take(memory, &used, prefixes * sizeof(*build->list));
	room->spare = take(memory, &used, prefixes * sizeof(*room->spare));
	room->start6 = take(memory, &used, LPM_RANGES(prefixes) * sizeof(*room->start6));
	room->start4 = (uint32_t *)(void *)room->start6;
	room->value = take(memory, &used, LPM_RANGES(prefixes) * sizeof(*room->value));
	room->node = take(memory, &used, LPM_RANGES(prefixes) * sizeof(*room->node));
	room->index = take(memory, &used, LPM_BUCKETS(prefixes) * sizeof(*room->index));
	return used;
}

/**
 * write_memfd() - Write a snapshot into a memfd and seal it
 * @build:	State with working memory
 * @spec:	What goes in
 *
 * Return: the descriptor, owned by the caller, or -errno
 */
static int write_memfd(struct build *build, const struct dp_table_spec *spec)
{
	int err;

	build->fd = memfd_create("overlayd-fib", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (build->fd < 0)
		return -errno;
	err = fill(build, spec);
	if (!err && fcntl(build->fd, F_ADD_SEALS, FIB_SEALS))
		err = -errno;
	if (!err)
		return build->fd;
	close(build->fd);
	return err;
}

/**
 * are_peers_valid() - Check the ids of peers
 * @spec:	Peers
 *
 * Return: true if all are in range
 */
static bool are_peers_valid(const struct dp_table_spec *spec)
{
	for (uint32_t i = 0; i < spec->peers_count; i++) {
		if (spec->peers[i].id >= DP_MAX_PEERS)
			return false;
	}
	return true;
}

/**
 * most_prefixes() - How many prefixes one table of a spec may have
 * @spec:	The spec
 *
 * Return: the number for the largest table
 */
static size_t most_prefixes(const struct dp_table_spec *spec)
{
	size_t sources = (size_t)spec->sources_count + spec->allowed_count;
	size_t most = spec->subnets_count > spec->peers_count ? spec->subnets_count : spec->peers_count;

	most = most > spec->own_count ? most : spec->own_count;
	return most > sources ? most : sources;
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
	size_t prefixes = most_prefixes(spec);
	struct build build = {.fd = -1};
	size_t size = lay_out(&build, NULL, prefixes);
	uint8_t *memory;
	int result;

	if (LPM_RANGES(prefixes) > LPM_RANGES_MAX || !fib_are_subnets_valid(spec->subnets, spec->subnets_count) ||
	    !are_peers_valid(spec))
		return -EINVAL;
	/* What is not used is not touched. */
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return -errno;
	if (prefixes * sizeof(*build.list) >= LARGE_PAGE)
		(void)madvise(memory, size, MADV_HUGEPAGE); /* a page fault for every 4 KiB takes longer */
	lay_out(&build, memory, prefixes);
	result = write_memfd(&build, spec);
	munmap(memory, size);
	return result;
}
