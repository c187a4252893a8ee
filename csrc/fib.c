/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fib.c - the published table.
 *
 * DOC: Theory of operation
 *
 * Control builds a whole table into a memfd with dp_fib_create() and seals it:
 * from then on nobody, control included, can change a byte or its size. The
 * forwarder maps it read-only and checks every offset, order and index once, in
 * dp_fib_open(); because of the seals what was checked stays true, and lookups
 * need no checks of their own.
 *
 * Workers read without locks. A reader announces the table it is about to use
 * (fib_enter), and looks again whether that is still the one in force: if not,
 * it announces the newer one. A publisher swaps the pointer and then waits until
 * no announcement names the old table; only then may it be unmapped. Readers
 * hold an announcement for one batch, which never blocks, so the wait is short.
 */
#include "fib.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fib_layout.h"

/* --- lookups ------------------------------------------------------------- */

/**
 * lookup() - Answer of one prefix table
 * @fib:	A table from dp_fib_open()
 * @table:	Which
 * @family:	4 or 6
 * @addr:	Host order
 *
 * Return: the raw answer, 0 for none
 */
static uint32_t lookup(const struct fib *fib, enum fib_table table, uint8_t family, addr_t addr)
{
	return family == 4 ? lpm_lookup4(&fib->lpm[0][table], (uint32_t)addr) : lpm_lookup6(&fib->lpm[1][table], addr);
}

/**
 * fib_subnet() - Where packets to an address go
 * @fib:	A table from dp_fib_open() or fib_enter()
 * @family:	4 or 6
 * @addr:	Inner destination, host order
 *
 * Return: the subnet entry, borrowed from the table, or NULL
 */
const struct dp_subnet *fib_subnet(const struct fib *fib, uint8_t family, addr_t addr)
{
	uint32_t answer = lookup(fib, FIB_DST, family, addr);

	return answer ? &fib->subnets[answer - 1] : NULL;
}

/**
 * fib_peer() - Whose underlay address this is
 * @fib:	A table from dp_fib_open() or fib_enter()
 * @family:	4 or 6
 * @addr:	Underlay address, host order
 *
 * Return: peer id, or DP_NO_PEER
 */
uint32_t fib_peer(const struct fib *fib, uint8_t family, addr_t addr)
{
	return lookup(fib, FIB_VTEP, family, addr) - 1; /* 0 - 1 is DP_NO_PEER */
}

/**
 * fib_holds() - Does a plain prefix table hold an address?
 * @fib:	A table from dp_fib_open() or fib_enter()
 * @table:	FIB_OWN, FIB_SRC or FIB_ALLOW
 * @family:	4 or 6
 * @addr:	Host order
 *
 * Return: true if it does
 */
bool fib_holds(const struct fib *fib, enum fib_table table, uint8_t family, addr_t addr)
{
	return lookup(fib, table, family, addr) != 0;
}

/* --- opening and checking (forwarder) -------------------------------------- */

/**
 * section_at() - Pointer to an array of the snapshot
 * @fib:	Mapped snapshot
 * @section:	Where it claims to be
 * @size:	Bytes of one element
 *
 * Return: pointer, or NULL if it is not wholly inside or not aligned
 */
static const void *section_at(const struct fib *fib, struct fib_section section, size_t size)
{
	if (section.offset % FIB_ALIGN || section.offset > fib->size ||
	    section.count > (fib->size - section.offset) / size)
		return NULL;
	return (const uint8_t *)fib->header + section.offset;
}

/**
 * open_table() - Check and set up one prefix table of a snapshot
 * @fib:	Mapped snapshot with its subnets and peers
 * @table:	Which table
 * @is_v6:	Which family
 *
 * Return: true if it may be looked up in
 */
static bool open_table(struct fib *fib, int table, int is_v6)
{
	struct fib_section starts = fib->header->starts[is_v6][table], values = fib->header->values[is_v6][table];
	struct fib_section nodes = fib->header->nodes[is_v6][table], index = fib->header->index[is_v6][table];
	const void *start = section_at(fib, starts, is_v6 ? sizeof(addr_t) : sizeof(uint32_t));
	struct lpm *lpm = &fib->lpm[is_v6][table];
	uint32_t value_max = 1;

	if (table == FIB_DST)
		value_max = (uint32_t)fib->header->subnets.count;
	if (table == FIB_VTEP)
		value_max = DP_MAX_PEERS;
	*lpm = (struct lpm){
		.root = fib->header->roots[is_v6][table],
		.count = (uint32_t)starts.count,
		.nodes_count = (uint32_t)nodes.count,
		.index_count = (uint32_t)index.count,
		.start4 = is_v6 ? NULL : start,
		.start6 = is_v6 ? start : NULL,
		.value = section_at(fib, values, sizeof(uint32_t)),
		.node = section_at(fib, nodes, sizeof(struct lpm_node)),
		.index = section_at(fib, index, sizeof(uint32_t)),
	};
	return start && lpm->value && lpm->node && lpm->index && starts.count == values.count &&
	       starts.count <= UINT32_MAX && nodes.count <= UINT32_MAX && index.count <= UINT32_MAX &&
	       lpm_is_valid(lpm, value_max);
}

/**
 * open_tables() - Check and set up the prefix tables of a snapshot
 * @fib:	Mapped snapshot with its subnets and peers
 *
 * Return: true if every one may be looked up in
 */
static bool open_tables(struct fib *fib)
{
	for (int is_v6 = 0; is_v6 < 2; is_v6++) {
		for (int table = 0; table < FIB_TABLE_COUNT; table++) {
			if (!open_table(fib, table, is_v6))
				return false;
		}
	}
	return true;
}

/**
 * fib_are_subnets_valid() - Check subnet entries
 * @subnets:	The entries
 * @count:	How many
 *
 * Return: true if all ids, families and encapsulations are in range
 */
bool fib_are_subnets_valid(const struct dp_subnet *subnets, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		const struct dp_subnet *subnet = &subnets[i];

		if (subnet->peer_id >= DP_MAX_PEERS || subnet->encap >= DP_ENCAP_COUNT ||
		    (subnet->vtep.family != 4 && subnet->vtep.family != 6))
			return false;
	}
	return true;
}

/**
 * check() - Check a mapped snapshot and set up its tables
 * @fib:	Mapped snapshot
 *
 * Return: 0, -EPROTO for another version, -EBADMSG for one that is damaged
 */
static int check(struct fib *fib)
{
	const struct fib_header *header = fib->header;

	if (header->magic != FIB_MAGIC || header->layout != DP_FIB_LAYOUT)
		return -EPROTO;
	fib->subnets = section_at(fib, header->subnets, sizeof(struct dp_subnet));
	if (header->size != fib->size || !fib->subnets || header->subnets.count > UINT32_MAX - 1 ||
	    !fib_are_subnets_valid(fib->subnets, header->subnets.count) || !open_tables(fib))
		return -EBADMSG;
	return 0;
}

/**
 * dp_fib_open() - Map a snapshot and check all of it
 * @fd:		memfd of dp_fib_create(), still the caller's
 * @out:	Set to the table, owned by the caller (dp_fib_close())
 *
 * Return: 0; -EPERM if it is not sealed; -EPROTO for another version;
 * -EBADMSG if damaged; another -errno of fstat() or mmap()
 */
int dp_fib_open(int fd, dp_fib **out)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat stat;
	struct fib *fib;
	int err;

	if (seals < 0 || (seals & FIB_SEALS) != FIB_SEALS)
		return -EPERM; /* what is no memfd has no seals to ask for: -1, all bits set */
	if (fstat(fd, &stat))
		return -errno;
	if ((size_t)stat.st_size < sizeof(struct fib_header))
		return -EBADMSG;
	fib = calloc(1, sizeof(*fib));
	if (!fib)
		return -ENOMEM;
	fib->size = (size_t)stat.st_size;
	fib->header = mmap(NULL, fib->size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
	err = -errno;
	if (fib->header == MAP_FAILED)
		goto free_fib;
	err = check(fib);
	if (err)
		goto unmap;
	*out = fib;
	return 0;

unmap:
	munmap((void *)(uintptr_t)fib->header, fib->size);
free_fib:
	free(fib);
	return err;
}

/**
 * dp_fib_close() - Unmap a snapshot
 * @fib:	From dp_fib_open(), or NULL; no reader may use it any more
 */
void dp_fib_close(dp_fib *fib)
{
	if (!fib)
		return;
	munmap((void *)(uintptr_t)fib->header, fib->size);
	free(fib);
}

/**
 * dp_fib_generation() - Which table this is
 * @fib:	From dp_fib_open()
 *
 * Return: the generation it was built with
 */
uint64_t dp_fib_generation(const dp_fib *fib)
{
	return fib->header->generation;
}

/**
 * dp_fib_subnets() - Copy the subnet entries out
 * @fib:	From dp_fib_open()
 * @out:	Room for them
 * @capacity:	Entries that fit
 *
 * Return: how many there are; only @capacity were copied if that is less
 */
uint32_t dp_fib_subnets(const dp_fib *fib, struct dp_subnet *out, uint32_t capacity)
{
	uint32_t count = (uint32_t)fib->header->subnets.count;

	memcpy(out, fib->subnets, (count < capacity ? count : capacity) * sizeof(*out));
	return count;
}

/**
 * show() - Write an address down
 * @family:	4 or 6
 * @addr:	Host order
 *
 * Return: the address in wire order
 */
static struct dp_addr show(uint8_t family, addr_t addr)
{
	struct dp_addr out = {.family = family};
	int len = family == 4 ? 4 : 16;

	for (int i = 0; i < len; i++)
		out.bytes[i] = (uint8_t)(addr >> 8 * (len - 1 - i));
	return out;
}

/**
 * dp_fib_peers() - Read the peers off the table of their addresses
 * @fib:	From dp_fib_open()
 * @out:	Room for one entry per address: who has two is there twice
 * @capacity:	Entries that fit
 *
 * Return: how many there are; only @capacity were written if that is less
 */
uint32_t dp_fib_peers(const dp_fib *fib, struct dp_peer *out, uint32_t capacity)
{
	uint32_t count = 0;

	for (int is_v6 = 0; is_v6 < 2; is_v6++) {
		const struct lpm *lpm = &fib->lpm[is_v6][FIB_VTEP];

		for (uint32_t i = 0; i + LPM_SEARCH < lpm->count; i++) {
			struct dp_peer peer = {.id = lpm->value[i] - 1};

			if (!lpm->value[i])
				continue;
			if (is_v6)
				peer.addr6 = show(6, lpm->start6[i]);
			else
				peer.addr4 = show(4, lpm->start4[i]);
			if (count < capacity)
				out[count] = peer;
			count++;
		}
	}
	return count;
}

/* --- publishing ------------------------------------------------------------ */

/**
 * fib_enter() - Begin to use the table in force
 * @slot:	Where it hangs
 * @reader:	This thread's announcement, not in use
 *
 * Return: the table, valid until fib_leave()
 */
struct fib *fib_enter(struct fib_slot *slot, struct fib_reader *reader)
{
	struct fib *fib = atomic_load_explicit(&slot->current, memory_order_acquire);

	for (;;) {
		struct fib *now;

		atomic_store_explicit(&reader->using, fib, memory_order_seq_cst);
		now = atomic_load_explicit(&slot->current, memory_order_seq_cst);
		if (now == fib)
			return fib;
		fib = now;
	}
}

/**
 * fib_leave() - Stop using a table
 * @reader:	This thread's announcement
 */
void fib_leave(struct fib_reader *reader)
{
	atomic_store_explicit(&reader->using, NULL, memory_order_release);
}

/**
 * fib_publish() - Put a table in force and wait until the old one is unused
 * @slot:	Where it hangs; only one thread at a time may publish
 * @readers:	First reader's announcement
 * @readers_stride:	Bytes from one reader to the next
 * @readers_count:	How many there are
 * @next:	The new table, owned by the slot from now on
 *
 * Return: the old table, which no reader uses any more: the caller's to close; may be NULL
 */
struct fib *fib_publish(struct fib_slot *slot, struct fib_reader *readers, size_t readers_stride,
			uint32_t readers_count, struct fib *next)
{
	struct fib *old = atomic_exchange_explicit(&slot->current, next, memory_order_seq_cst);

	for (uint32_t i = 0; old && i < readers_count; i++) {
		struct fib_reader *reader = (struct fib_reader *)((char *)readers + i * readers_stride);

		while (atomic_load_explicit(&reader->using, memory_order_seq_cst) == old)
			sched_yield();
	}
	return old;
}
