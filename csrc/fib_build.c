/* SPDX-License-Identifier: Apache-2.0 */
/* fib_build.c - building a table into a sealed memfd; runs in control only. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fib_layout.h"

/* One prefix table while it is put together. */
struct build {
	uint8_t *base; /* writable mapping; NULL while sizes are counted */
	size_t used;   /* bytes */
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

/* Scratch memory for building, owned. */
struct scratch {
	struct lpm_prefix *list; /* for all prefixes twice: sorting needs as much again */
	size_t most;             /* prefixes there is room for */
	addr_t *starts;
	uint32_t *values;
	struct lpm_room room;
};

/**
 * put() - Copy an array into the snapshot
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

	if (count)
		memcpy(build->base + section.offset, array, count * size);
	return section;
}

/**
 * put_starts() - Copy first addresses of ranges into the snapshot
 * @build:	State
 * @starts:	Addresses
 * @count:	How many
 * @is_v6:	Their family
 *
 * Return: where they are
 */
static struct fib_section put_starts(struct build *build, const addr_t *starts, uint32_t count, bool is_v6)
{
	struct fib_section section;

	if (is_v6)
		return put(build, starts, count, sizeof(*starts));
	section = reserve(build, count, sizeof(uint32_t));
	for (uint32_t i = 0; i < count; i++)
		((uint32_t *)(void *)(build->base + section.offset))[i] = (uint32_t)starts[i];
	return section;
}

/**
 * put_table() - Build one prefix table into the snapshot
 * @build:	State
 * @scratch:	Scratch memory that holds the prefixes
 * @count:	How many
 * @table:	Which table
 * @is_v6:	Which family
 */
static void put_table(struct build *build, struct scratch *scratch, uint32_t count, enum fib_table table, bool is_v6)
{
	struct fib_header *header = &build->header;
	struct lpm_room *room = &scratch->room;

	count = lpm_build(scratch->list, scratch->list + scratch->most, count, is_v6 ? 128 : 32, scratch->starts,
			  scratch->values);
	room->nodes_count = room->index_count = 0;
	header->roots[is_v6][table] = lpm_index(scratch->starts, scratch->values, count, room);
	header->starts[is_v6][table] = put_starts(build, scratch->starts, count, is_v6);
	header->values[is_v6][table] = put(build, scratch->values, count, sizeof(uint32_t));
	header->nodes[is_v6][table] = put(build, room->nodes, room->nodes_count, sizeof(struct lpm_node));
	header->index[is_v6][table] = put(build, room->index, room->index_count, sizeof(uint32_t));
}

/**
 * size_max() - Upper bound of a snapshot's size
 * @spec:	What goes in
 *
 * Return: bytes
 */
static size_t size_max(const struct dp_table_spec *spec)
{
	uint64_t prefixes = (uint64_t)spec->subnets_count + 2ULL * spec->peers_count + spec->own_count +
			    spec->sources_count + 2ULL * spec->allowed_count;
	uint64_t ranges = LPM_RANGES(prefixes) + 2 * FIB_TABLE_COUNT;
	size_t range = sizeof(addr_t) + sizeof(uint32_t) + sizeof(struct lpm_node) + LPM_BUCKETS(sizeof(uint32_t));

	return sizeof(struct fib_header) + spec->subnets_count * sizeof(struct dp_subnet) +
	       spec->peers_count * sizeof(struct dp_peer) + ranges * range + 64 * FIB_ALIGN;
}

/**
 * fill() - Write a whole snapshot
 * @build:	State with a mapping of size_max() bytes
 * @spec:	What goes in
 * @scratch:	Scratch memory
 *
 * Return: 0 or -EINVAL
 */
static int fill(struct build *build, const struct dp_table_spec *spec, struct scratch *scratch)
{
	build->header = (struct fib_header){.magic = FIB_MAGIC, .abi = DP_ABI, .generation = spec->generation};
	reserve(build, 1, sizeof(struct fib_header));
	build->header.subnets = put(build, spec->subnets, spec->subnets_count, sizeof(struct dp_subnet));
	build->header.peers = put(build, spec->peers, spec->peers_count, sizeof(struct dp_peer));

	for (int is_v6 = 0; is_v6 < 2; is_v6++) {
		for (enum fib_table table = 0; table < FIB_TABLE_COUNT; table++) {
			uint32_t count;
			int err = collect(scratch->list, &count, spec, table, is_v6);

			if (err)
				return err;
			put_table(build, scratch, count, table, is_v6);
		}
	}
	build->header.size = build->used;
	memcpy(build->base, &build->header, sizeof(build->header));
	return 0;
}

/**
 * write_memfd() - Put finished bytes into a sealed memfd
 * @bytes:	The snapshot
 * @size:	Its length
 *
 * Return: the descriptor, owned by the caller, or -errno
 */
static int write_memfd(const uint8_t *bytes, size_t size)
{
	int fd = memfd_create("overlayd-fib", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int err;

	if (fd < 0)
		return -errno;
	for (size_t done = 0; done < size;) {
		ssize_t n = write(fd, bytes + done, size - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			goto close_fd;
		done += (size_t)n;
	}
	if (fcntl(fd, F_ADD_SEALS, FIB_SEALS))
		goto close_fd;
	return fd;

close_fd:
	err = errno ? -errno : -EIO;
	close(fd);
	return err;
}

/**
 * dp_fib_create() - Build a table into a sealed memfd
 * @spec:	What goes in; only read
 *
 * Return: descriptor owned by the caller; -EINVAL for an impossible address,
 * prefix, encapsulation or peer id, or for more than the index can tell apart;
 * -ENOMEM or another -errno of memfd_create(), write(), fcntl()
 */
int dp_fib_create(const struct dp_table_spec *spec)
{
	/* of one table and family; room that is not used costs no memory */
	size_t most = (size_t)spec->subnets_count + spec->peers_count + spec->own_count + spec->sources_count +
		      spec->allowed_count + 1;
	size_t ranges = LPM_RANGES(most);
	struct scratch scratch = {
		.most = most,
		.list = aligned_alloc(FIB_ALIGN, 2 * most * sizeof(*scratch.list)),
		.starts = aligned_alloc(FIB_ALIGN, ranges * sizeof(*scratch.starts)),
		.values = calloc(ranges, sizeof(*scratch.values)),
		.room = {.nodes = aligned_alloc(FIB_ALIGN, ranges * sizeof(*scratch.room.nodes)),
			 .index = calloc(LPM_BUCKETS(ranges), sizeof(*scratch.room.index))},
	};
	struct build build = {.base = calloc(1, size_max(spec))};
	int result = -ENOMEM;

	if (ranges > LPM_RANGES_MAX ||
	    !fib_are_entries_valid(spec->subnets, spec->subnets_count, spec->peers, spec->peers_count))
		result = -EINVAL;
	else if (scratch.list && scratch.starts && scratch.values && scratch.room.nodes && scratch.room.index &&
		 build.base)
		result = fill(&build, spec, &scratch);
	if (!result)
		result = write_memfd(build.base, build.used);
	free(build.base);
	free(scratch.room.index);
	free(scratch.room.nodes);
	free(scratch.values);
	free(scratch.starts);
	free(scratch.list);
	return result;
}
