/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fib_threads.c - readers never see a mixture of two tables, nor one that is gone, while tables are replaced.
 *
 * Every entry of a table carries its generation. Run it under ThreadSanitizer for races, and under
 * AddressSanitizer for what was freed too early. fib.c is included, so that threads can be made to stumble where
 * it matters most: right before a reader announces the table that it has just found in force.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#include "check.h"

/**
 * stumble() - Now and then let the others run first
 */
static void stumble(void)
{
	static _Thread_local uint64_t dice = 8;

	if (roll(&dice) % 4 == 0)
		sched_yield();
}

#undef atomic_store_explicit
#define atomic_store_explicit(at, value, order) (stumble(), __atomic_store_n(at, value, order))
#include "fib.c"

enum { READERS = 3, PUBLISHES = 5000, SUBNETS = 20 };

struct reader {
	struct fib_reader announcement; /* first: the publisher walks by stride */
	pthread_t thread;
	uint64_t rounds;
	uint64_t changes; /* of the generation, as seen from here */
};

static struct fib_slot slot;
static struct reader readers[READERS];
static _Atomic bool is_over;
static _Atomic uint64_t newest; /* generation that was published last */

/**
 * make_table() - Build and open a table whose every entry says its generation
 * @generation:	Not 0
 *
 * Return: the table
 */
static struct fib *make_table(uint32_t generation)
{
	struct dp_subnet subnets[SUBNETS] = {0};
	struct dp_peer peer = {.id = generation % DP_MAX_PEERS, .addr4 = {.family = 4, .bytes = {192, 0, 2, 1}}};
	struct dp_prefix own = {.addr = {.family = 4, .bytes = {10, 9}}, .len = 16};
	struct dp_table_spec spec = {.generation = generation,
				     .subnets = subnets,
				     .subnets_count = SUBNETS,
				     .peers = &peer,
				     .peers_count = 1,
				     .own = &own,
				     .own_count = generation % 2};
	struct fib *fib;
	int fd;

	for (uint8_t i = 0; i < SUBNETS; i++)
		subnets[i] = (struct dp_subnet){.prefix = {.addr = {.family = 4, .bytes = {10, 0, i}}, .len = 24},
						.vtep = {.family = 4},
						.mtu = generation};
	fd = dp_fib_create(&spec);
	CHECK(fd >= 0 && !dp_fib_open(fd, &fib));
	close(fd);
	return fib;
}

/**
 * look() - Ask a table everything and compare the answers
 * @fib:	Table in use
 *
 * Return: its generation
 */
static uint64_t look(const struct fib *fib)
{
	uint64_t generation = dp_fib_generation(fib);

	for (uint32_t i = 0; i < SUBNETS; i++) {
		const struct dp_subnet *subnet = fib_subnet(fib, 4, 0x0a000001 + (i << 8));

		CHECK(subnet && subnet->mtu == generation);
	}
	CHECK(fib_peer(fib, 4, 0xc0000201) == generation % DP_MAX_PEERS);
	CHECK(fib_holds(fib, FIB_OWN, 4, 0x0a090000) == (generation % 2 != 0));
	return generation;
}

/**
 * read_tables() - Use whatever table is in force until all is over
 * @arg:	struct reader
 *
 * Return: NULL
 */
static void *read_tables(void *arg)
{
	struct reader *reader = arg;
	uint64_t last = 0;

	while (!atomic_load(&is_over)) {
		uint64_t at_least = atomic_load(&newest), generation;

		generation = look(fib_enter(&slot, &reader->announcement));
		fib_leave(&reader->announcement);
		/* never back to an older table, and never older than what was published before we entered */
		CHECK(generation >= last && generation >= at_least);
		reader->changes += generation != last;
		reader->rounds++;
		last = generation;
		sched_yield(); /* preferably here, and not with a table in use for a whole time slice */
	}
	return NULL;
}

int main(void)
{
	uint64_t changes = 0;

	CHECK(!fib_publish(&slot, NULL, 0, 0, make_table(1)));
	for (int i = 0; i < READERS; i++)
		CHECK(!pthread_create(&readers[i].thread, NULL, read_tables, &readers[i]));
	for (uint32_t generation = 2; generation < PUBLISHES + 2; generation++) {
		struct fib *next = make_table(generation);
		struct fib *old = fib_publish(&slot, &readers[0].announcement, sizeof(struct reader), READERS, next);

		atomic_store(&newest, generation);
		CHECK(old && dp_fib_generation(old) == generation - 1);
		dp_fib_close(old);
	}
	atomic_store(&is_over, true);
	for (int i = 0; i < READERS; i++) {
		pthread_join(readers[i].thread, NULL);
		changes += readers[i].changes;
		CHECK(readers[i].rounds > 0);
	}
	CHECK(changes > PUBLISHES / 20); /* it was a race worth running */
	dp_fib_close(fib_publish(&slot, NULL, 0, 0, NULL));
	return 0;
}
