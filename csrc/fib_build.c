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
	struct lpm_prefix *list;
	addr_t *starts;
	uint32_t *values;
};

/**
 * copy_ranges() - Put built ranges into the snapshot
 * @build:	State
 * @scratch:	What lpm_build() made
 * @count:	Ranges
 * @table:	Which table
 * @is_v6:	Which family
 */
static void copy_ranges(struct build *build, const struct scratch *scratch, uint32_t count, enum fib_table table,
			bool is_v6)
{
	struct fib_section starts = reserve(build, count, is_v6 ? sizeof(addr_t) : sizeof(uint32_t));
	struct fib_section values = reserve(build, count, sizeof(uint32_t));

	build->header.starts[is_v6][table] = starts;
	build->header.values[is_v6][table] = values;
	memcpy(build->base + values.offset, scratch->values, count * sizeof(uint32_t));
	for (uint32_t i = 0; i < count; i++) {
		uint32_t start4 = (uint32_t)scratch->starts[i];

		if (is_v6)
			memcpy(build->base + starts.offset + i * sizeof(addr_t), &scratch->starts[i], sizeof(addr_t));
		else
			memcpy(build->base + starts.offset + i * sizeof(start4), &start4, sizeof(start4));
	}
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
	size_t ranges = (size_t)(LPM_RANGES(prefixes) + 2 * 2 * FIB_TABLE_COUNT) * (sizeof(addr_t) + sizeof(uint32_t));

	return sizeof(struct fib_header) + spec->subnets_count * sizeof(struct dp_subnet) +
	       spec->peers_count * sizeof(struct dp_peer) + ranges + 64 * FIB_ALIGN;
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
	build->header.subnets = reserve(build, spec->subnets_count, sizeof(struct dp_subnet));
	build->header.peers = reserve(build, spec->peers_count, sizeof(struct dp_peer));
	if (spec->subnets_count)
		memcpy(build->base + build->header.subnets.offset, spec->subnets,
		       spec->subnets_count * sizeof(struct dp_subnet));
	if (spec->peers_count)
		memcpy(build->base + build->header.peers.offset, spec->peers,
		       spec->peers_count * sizeof(struct dp_peer));

	for (int is_v6 = 0; is_v6 < 2; is_v6++) {
		for (enum fib_table table = 0; table < FIB_TABLE_COUNT; table++) {
			uint32_t count;
			int err = collect(scratch->list, &count, spec, table, is_v6);

			if (err)
				return err;
			count = lpm_build(scratch->list, count, is_v6 ? 128 : 32, scratch->starts, scratch->values);
			copy_ranges(build, scratch, count, table, is_v6);
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
 * prefix, encapsulation or peer id; -ENOMEM or another -errno of memfd_create(), write(), fcntl()
 */
int dp_fib_create(const struct dp_table_spec *spec)
{
	size_t most = (size_t)spec->subnets_count + 2 * (size_t)spec->peers_count + spec->own_count +
		      spec->sources_count + spec->allowed_count + 1;
	struct scratch scratch = {
		.list = calloc(most, sizeof(*scratch.list)),
		.starts = aligned_alloc(FIB_ALIGN, LPM_RANGES(most) * sizeof(*scratch.starts)),
		.values = calloc(LPM_RANGES(most), sizeof(*scratch.values)),
	};
	struct build build = {.base = calloc(1, size_max(spec))};
	int result = -ENOMEM;

	if (!fib_are_entries_valid(spec->subnets, spec->subnets_count, spec->peers, spec->peers_count))
		result = -EINVAL;
	else if (scratch.list && scratch.starts && scratch.values && build.base)
		result = fill(&build, spec, &scratch);
	if (!result)
		result = write_memfd(build.base, build.used);
	free(build.base);
	free(scratch.values);
	free(scratch.starts);
	free(scratch.list);
	return result;
}
