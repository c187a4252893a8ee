/* SPDX-License-Identifier: Apache-2.0 */
/* tables.h - tables to work with; opening bytes as a snapshot, and what must hold when that works. */
#ifndef TABLES_H
#define TABLES_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <unistd.h>

#include "check.h"
#include "fib_layout.h"

/**
 * table_build() - Build a table of a node that has 10.244.1.0/24 and one peer
 * @generation:	Its number
 * @subnets:	What goes to the peer
 * @count:	How many
 * @peer:	The peer
 * @allowed:	A prefix of other sources that packets may come from
 *
 * Return: the descriptor
 */
static inline int table_build(uint64_t generation, const struct dp_subnet *subnets, uint32_t count,
			      const struct dp_peer *peer, struct dp_prefix allowed)
{
	struct dp_prefix own = {.addr = {.family = 4, .bytes = {10, 244, 1}}, .len = 24};
	struct dp_table_spec spec = {.generation = generation,
				     .subnets = subnets,
				     .subnets_count = count,
				     .peers = peer,
				     .peers_count = 1,
				     .own = &own,
				     .own_count = 1,
				     .sources = &own,
				     .sources_count = 1,
				     .allowed = &allowed,
				     .allowed_count = 1};
	int fd = dp_fib_create(&spec);

	CHECK(fd >= 0);
	return fd;
}

/**
 * table_memfd() - Put bytes into a sealed memfd
 * @data:	Bytes
 * @len:	How many
 * @seals:	Seals to put on it
 *
 * Return: the descriptor
 */
static inline int table_memfd(const void *data, size_t len, int seals)
{
	int fd = memfd_create("snapshot", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	CHECK(fd >= 0 && write(fd, data, len) == (ssize_t)len);
	CHECK(!fcntl(fd, F_ADD_SEALS, seals));
	return fd;
}

/**
 * table_ask() - Ask a table about addresses everywhere
 * @fib:	An open table
 */
static inline void table_ask(const struct fib *fib)
{
	struct dp_subnet subnets[64];
	struct dp_peer peers[64];

	for (uint32_t i = 0; i < 512; i++) {
		uint8_t family = i % 2 ? 6 : 4;
		addr_t addr = (addr_t)(i / 2) << (family == 4 ? 24 : 120) | i;
		const struct dp_subnet *subnet = fib_subnet(fib, family, addr);
		uint32_t peer = fib_peer(fib, family, addr);

		CHECK(!subnet || (subnet >= fib->subnets && subnet < fib->subnets + fib->header->subnets.count));
		CHECK(!subnet || (subnet->peer_id < DP_MAX_PEERS && subnet->encap < DP_ENCAP_COUNT));
		CHECK(peer == DP_NO_PEER || peer < DP_MAX_PEERS);
		for (enum fib_table table = FIB_OWN; table < FIB_TABLE_COUNT; table++)
			(void)fib_holds(fib, table, family, addr);
	}
	CHECK(dp_fib_subnets(fib, subnets, 64) == fib->header->subnets.count);
	CHECK(dp_fib_peers(fib, peers, 64) <= fib->lpm[0][FIB_VTEP].count + fib->lpm[1][FIB_VTEP].count);
}

/**
 * table_open() - Open bytes as a snapshot, and ask it if that works
 * @data:	Bytes
 * @len:	How many
 *
 * Return: true if it was accepted
 */
static inline bool table_open(const uint8_t *data, size_t len)
{
	int fd = table_memfd(data, len, FIB_SEALS);
	struct fib *fib;
	int err = dp_fib_open(fd, &fib);

	close(fd); /* the mapping lives without it */
	CHECK(!err || err == -EBADMSG || err == -EPROTO);
	if (err)
		return false;
	table_ask(fib);
	dp_fib_close(fib);
	return true;
}

#endif
