/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever a table is built from is refused, or every address has the answers of a loop over all of it.
 *
 * An input is operations of OP_LEN bytes: what is added, a prefix length, two bytes of its address, and what is wrong
 * with it or whose it is.
 */
#include "fuzz.h"
#include "memory.h"

enum { OP_LEN = 5, ENTRIES_MAX = 24, LISTS = 3 };
enum { ADD_PEER = LISTS, ADD_SUBNET, ADD_COUNT }; /* below LISTS: to own, sources, allowed */
enum { IS_V6 = 0x40, IS_WRONG = 0x80 };

static struct dp_peer peers[ENTRIES_MAX];
static struct dp_subnet subnets[ENTRIES_MAX];
static struct dp_prefix lists[LISTS][ENTRIES_MAX];

/**
 * number() - The number of an address
 * @addr:	The address
 *
 * Return: host order
 */
static addr_t number(const struct dp_addr *addr)
{
	addr_t value = 0;

	for (int i = 0; i < (addr->family == 4 ? 4 : 16); i++)
		value = value << 8 | addr->bytes[i];
	return value;
}

/**
 * make_prefix() - Make the prefix that an operation describes
 * @op:		OP_LEN bytes
 *
 * Return: a prefix without host bits
 */
static struct dp_prefix make_prefix(const uint8_t *op)
{
	struct dp_prefix prefix = {.addr = {.family = op[0] & IS_V6 ? 6 : 4}};
	int len = op[0] & IS_V6 ? 16 : 4;

	/* bytes at both ends, so that prefixes of any length meet */
	prefix.len = (uint8_t)(op[1] % (8 * len + 1));
	prefix.addr.bytes[0] = op[2];
	prefix.addr.bytes[len - 2] = op[3] & 0x80 ? 0xff : 0;
	prefix.addr.bytes[len - 1] = op[3] & 0x7f;
	for (int bit = prefix.len; bit < 8 * len; bit++)
		prefix.addr.bytes[bit / 8] &= (uint8_t) ~(0x80 >> bit % 8);
	return prefix;
}

/**
 * is_same() - Are two prefixes the same?
 * @one:	One
 * @other:	The other
 *
 * Return: true if they are
 */
static bool is_same(const struct dp_prefix *one, const struct dp_prefix *other)
{
	return !memcmp(one, other, sizeof(*one));
}

/**
 * holds() - Is an address in a prefix?
 * @prefix:	The prefix
 * @family:	4 or 6
 * @addr:	The address
 *
 * Return: true if it is
 */
static bool holds(const struct dp_prefix *prefix, uint8_t family, addr_t addr)
{
	uint32_t bits = family == 4 ? 32 : 128;

	return prefix->addr.family == family &&
	       (!prefix->len || (addr ^ number(&prefix->addr)) >> (bits - prefix->len) == 0);
}

/**
 * add_host() - Add a peer with one address
 * @spec:	What a table is built from
 * @op:		OP_LEN bytes
 *
 * Return: false if a table must not be built from it
 */
static bool add_host(struct dp_table_spec *spec, const uint8_t *op)
{
	struct dp_prefix host = make_prefix((uint8_t[]){op[0], (op[0] & IS_V6) ? 128 : 32, op[2], op[3], 0});
	struct dp_peer *peer = &peers[spec->peers_count];

	*peer = (struct dp_peer){.id = op[4]};
	*(op[0] & IS_V6 ? &peer->addr6 : &peer->addr4) = host.addr;
	for (uint32_t i = 0; i < spec->peers_count; i++)
		if (!memcmp(&peers[i].addr4, &peer->addr4, 2 * sizeof(peer->addr4)))
			return true; /* the address is taken */
	if (op[0] & IS_WRONG)
		peer->id = DP_MAX_PEERS;
	spec->peers_count++;
	return !(op[0] & IS_WRONG);
}

/**
 * add_subnet() - Add a subnet
 * @spec:	What a table is built from
 * @op:		OP_LEN bytes
 *
 * Return: false if a table must not be built from it
 */
static bool add_subnet(struct dp_table_spec *spec, const uint8_t *op)
{
	struct dp_subnet *subnet = &subnets[spec->subnets_count];

	*subnet = (struct dp_subnet){.prefix = make_prefix(op),
				     .encap = DP_ENCAP_VXLAN,
				     .vtep = {.family = op[4] & 1 ? 6 : 4},
				     .peer_id = op[4]};
	for (uint32_t i = 0; i < spec->subnets_count; i++)
		if (is_same(&subnets[i].prefix, &subnet->prefix))
			return true;
	spec->subnets_count++;
	if (!(op[0] & IS_WRONG))
		return true;
	switch (op[4] % 5) {
	case 0:
		subnet->encap = DP_ENCAP_COUNT;
		break;
	case 1:
		subnet->vtep.family = op[4] / 5 == 4 || op[4] / 5 == 6 ? 0 : op[4] / 5;
		break;
	case 2:
		subnet->peer_id = DP_MAX_PEERS;
		break;
	case 3:
		subnet->prefix.addr.family = 5;
		break;
	default:
		subnet->prefix.len = 129;
	}
	return false;
}

/**
 * add_prefix() - Add a prefix to one of the lists
 * @which:	Of the lists
 * @count:	Its length
 * @op:		OP_LEN bytes
 *
 * Return: false if a table must not be built from it
 */
static bool add_prefix(int which, uint32_t *count, const uint8_t *op)
{
	struct dp_prefix *prefix = &lists[which][*count];
	int last = op[0] & IS_V6 ? 15 : 3;

	*prefix = make_prefix(op);
	for (uint32_t i = 0; i < *count; i++)
		if (is_same(&lists[which][i], prefix))
			return true;
	++*count;
	if (!(op[0] & IS_WRONG))
		return true;
	if (prefix->len == 8 * (last + 1))
		prefix->len++;
	else
		prefix->addr.bytes[last] |= 1; /* a host bit */
	return false;
}

/**
 * ask_naively() - Find the answers for an address, and compare
 * @fib:	The table
 * @spec:	What it was built from
 * @family:	4 or 6
 * @addr:	The address
 */
static void ask_naively(const struct fib *fib, const struct dp_table_spec *spec, uint8_t family, addr_t addr)
{
	const uint32_t counts[LISTS] = {spec->own_count, spec->sources_count, spec->allowed_count};
	const struct dp_subnet *found = fib_subnet(fib, family, addr), *best = NULL;
	uint32_t peer = DP_NO_PEER;
	bool held[LISTS] = {0};

	for (uint32_t i = 0; i < spec->subnets_count; i++)
		if (holds(&subnets[i].prefix, family, addr) && (!best || subnets[i].prefix.len > best->prefix.len))
			best = &subnets[i];
	CHECK(!found == !best && (!found || !memcmp(found, best, sizeof(*found))));
	for (uint32_t i = 0; i < spec->peers_count; i++) {
		const struct dp_addr *own = family == 4 ? &peers[i].addr4 : &peers[i].addr6;

		if (own->family == family && number(own) == addr)
			peer = peers[i].id;
	}
	CHECK(fib_peer(fib, family, addr) == peer);
	for (int which = 0; which < LISTS; which++)
		for (uint32_t i = 0; i < counts[which]; i++)
			held[which] |= holds(&lists[which][i], family, addr);
	CHECK(fib_holds(fib, FIB_OWN, family, addr) == held[0]);
	CHECK(fib_holds(fib, FIB_SRC, family, addr) == (held[1] || held[2]));
	CHECK(fib_holds(fib, FIB_ALLOW, family, addr) == held[2]);
}

/**
 * ask_around() - Ask at both ends of a prefix, and beside them
 * @fib:	The table
 * @spec:	What it was built from
 * @prefix:	The prefix
 */
static void ask_around(const struct fib *fib, const struct dp_table_spec *spec, const struct dp_prefix *prefix)
{
	addr_t top = prefix->addr.family == 4 ? (addr_t)UINT32_MAX : ~(addr_t)0, first = number(&prefix->addr);
	uint32_t bits = prefix->addr.family == 4 ? 32 : 128;
	addr_t last = first | (prefix->len ? ((addr_t)1 << (bits - prefix->len)) - 1 : top);
	const addr_t around[] = {first, (first - 1) & top, last, (last + 1) & top};

	for (int i = 0; i < 4; i++)
		ask_naively(fib, spec, prefix->addr.family, around[i]);
}

/**
 * compare() - Ask a table about everything in it
 * @fd:		Its memfd
 * @spec:	What it was built from
 */
static void compare(int fd, const struct dp_table_spec *spec)
{
	const uint32_t counts[LISTS] = {spec->own_count, spec->sources_count, spec->allowed_count};
	struct fib *fib;

	CHECK(!dp_fib_open(fd, &fib) && dp_fib_generation(fib) == spec->generation);
	for (uint32_t i = 0; i < spec->subnets_count; i++)
		ask_around(fib, spec, &subnets[i].prefix);
	for (uint32_t i = 0; i < spec->peers_count; i++) {
		struct dp_addr *addr = peers[i].addr4.family ? &peers[i].addr4 : &peers[i].addr6;

		ask_around(fib, spec, &(struct dp_prefix){.addr = *addr, .len = addr->family == 4 ? 32 : 128});
	}
	for (int which = 0; which < LISTS; which++)
		for (uint32_t i = 0; i < counts[which]; i++)
			ask_around(fib, spec, &lists[which][i]);
	dp_fib_close(fib);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct dp_table_spec spec = {
		.generation = size, .peers = peers, .subnets = subnets, .own = lists[0], .sources = lists[1]};
	uint32_t *counts[LISTS] = {&spec.own_count, &spec.sources_count, &spec.allowed_count};
	bool is_right = true;
	int fd;

	spec.allowed = lists[2];
	for (size_t at = 0; at + OP_LEN <= size && at < ENTRIES_MAX * OP_LEN; at += OP_LEN) {
		const uint8_t *op = data + at;
		int which = (op[0] & 0x3f) % ADD_COUNT;

		if (which == ADD_PEER)
			is_right &= add_host(&spec, op);
		else if (which == ADD_SUBNET)
			is_right &= add_subnet(&spec, op);
		else
			is_right &= add_prefix(which, counts[which], op);
	}
	fd = dp_fib_create(&spec);
	CHECK(is_right ? fd >= 0 : fd == -EINVAL);
	if (fd >= 0) {
		compare(fd, &spec);
		close(fd);
	}
	return fuzz_count(fd >= 0);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned int seed)
{
	size = LLVMFuzzerMutate(data, size, room);
	for (size_t at = 0; seed % 4 && at < size; at += OP_LEN)
		data[at] &= (uint8_t)~IS_WRONG;
	return size;
}
