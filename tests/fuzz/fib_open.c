/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever bytes a sealed memfd holds, opening it as a table refuses them, or no question leads outside of them.
 *
 * An input is one byte that says nothing, and the snapshot.
 */
#include "fuzz.h"
#include "memory.h"
#include "tables.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	return fuzz_count(table_open(data + 1, size - 1));
}

/**
 * find_section() - Where one of the arrays of a snapshot lies
 * @header:	Of the snapshot
 * @which:	Of its arrays
 * @element:	Set to the bytes of one element
 *
 * Return: what the header says of it
 */
static struct fib_section find_section(const struct fib_header *header, uint32_t which, uint32_t *element)
{
	uint32_t is_v6 = which / FIB_TABLE_COUNT % 2, table = which % FIB_TABLE_COUNT;

	*element = sizeof(uint32_t);
	switch (which / (2 * FIB_TABLE_COUNT)) {
	case 0:
		*element = is_v6 ? sizeof(addr_t) : sizeof(uint32_t);
		return header->starts[is_v6][table];
	case 1:
		return header->values[is_v6][table];
	case 2:
		*element = sizeof(struct lpm_node);
		return header->nodes[is_v6][table];
	default:
		return header->index[is_v6][table];
	}
}

/**
 * change_gently() - Change one number in an array of a snapshot, or bytes of a subnet
 * @bytes:	The snapshot, with a whole header
 * @size:	Its length
 * @dice:	State of roll()
 *
 * Any change elsewhere is nearly always refused.
 */
static void change_gently(uint8_t *bytes, size_t size, uint64_t *dice)
{
	struct fib_section section;
	struct fib_header header;
	uint32_t element = sizeof(struct dp_subnet), bit = roll(dice) % 12;
	size_t at;

	memcpy(&header, bytes, sizeof(header));
	section = header.subnets;
	if (roll(dice) % 2)
		section = find_section(&header, roll(dice) % (8 * FIB_TABLE_COUNT), &element);
	if (!section.count || section.count > size)
		return;
	at = section.offset + roll(dice) % (section.count * element);
	if (at >= size)
		return;
	bytes[at] ^= (uint8_t)(1 << bit % 8);
	if (element == sizeof(uint32_t) && at + 1 < size && bit > 8)
		bytes[at] = bytes[at + 1]; /* values and entries are small numbers */
}

/**
 * make_snapshot() - Build a table of a few prefixes
 * @out:	Where to
 * @room:	Bytes there
 * @dice:	State of roll()
 *
 * Return: its length, or 0 if it is longer
 */
static size_t make_snapshot(uint8_t *out, size_t room, uint64_t *dice)
{
	struct dp_subnet subnets[6] = {0};
	struct dp_prefix prefixes[6] = {0};
	struct dp_peer peers[6] = {0};
	struct dp_table_spec spec = {.generation = roll(dice), .peers = peers, .subnets = subnets, .own = prefixes};
	uint32_t count = roll(dice) % 7;
	ssize_t len;
	int fd;

	spec.peers_count = spec.subnets_count = spec.own_count = count;
	for (uint8_t i = 0; i < count; i++) {
		uint8_t family = roll(dice) % 2 ? 6 : 4;
		struct dp_addr addr = {.family = family, .bytes = {(uint8_t)roll(dice), i}};

		prefixes[i] = (struct dp_prefix){.addr = addr, .len = (uint8_t)(16 + 8 * (roll(dice) % 3))};
		subnets[i] = (struct dp_subnet){.prefix = prefixes[i], .vtep = addr, .peer_id = i};
		peers[i].id = i;
		*(family == 4 ? &peers[i].addr4 : &peers[i].addr6) = addr;
	}
	fd = dp_fib_create(&spec);
	CHECK(fd >= 0);
	len = lseek(fd, 0, SEEK_END);
	if (len > 0 && (size_t)len <= room)
		CHECK(pread(fd, out, (size_t)len, 0) == len);
	else
		len = 0;
	close(fd);
	return (size_t)len;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned int seed)
{
	uint64_t dice = seed | 1, len;

	if (seed % 8 == 0)
		return LLVMFuzzerMutate(data, size, room);
	if (seed % 2 || size < 1 + sizeof(struct fib_header)) { /* most that is kept was refused */
		len = make_snapshot(data + 1, room - 1, &dice);
		size = len ? (size_t)len + 1 : size;
	}
	if (size < 1 + sizeof(struct fib_header))
		return size;
	for (uint32_t i = 0; i < 1 + seed / 4 % 3; i++)
		change_gently(data + 1, size - 1, &dice);
	len = size - 1;
	memcpy(data + 1 + offsetof(struct fib_header, size), &len, sizeof(len));
	return size;
}
