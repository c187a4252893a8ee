/* SPDX-License-Identifier: Apache-2.0 */
/* corners_fib.c - a table that cannot be opened leaves nothing behind, and one that is still used is waited for. */
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "fib.h"

enum fails { FAILS_NOT, FAILS_FSTAT, FAILS_CALLOC, FAILS_MMAP };

static enum fails failing;
static struct fib_reader announcement;
static struct fib_slot in_force;
static struct fib *due; /* put in force while a reader announces the one before */
static uint32_t waits;

/**
 * fake_fstat() - fstat() that may fail
 * @fd:		As there
 * @stat:	As there
 *
 * Return: as there
 */
static int fake_fstat(int fd, struct stat *stat)
{
	return failing == FAILS_FSTAT ? -1 : fstat(fd, stat);
}

/**
 * fake_calloc() - calloc() that may fail
 * @count:	As there
 * @size:	As there
 *
 * Return: as there
 */
static void *fake_calloc(size_t count, size_t size)
{
	return failing == FAILS_CALLOC ? NULL : calloc(count, size);
}

/**
 * fake_mmap() - mmap() that may fail
 * @len:	Bytes
 * @fd:		The file
 *
 * Return: as there
 */
static void *fake_mmap(size_t len, int fd)
{
	return failing == FAILS_MMAP ? MAP_FAILED : mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);
}

/**
 * fake_yield() - The publisher waits: let the reader get on
 */
static void fake_yield(void);

/**
 * announce() - A reader announces a table; another one may be put in force right then
 * @at:		Its announcement
 * @fib:	The table
 */
static void announce(_Atomic(struct fib *) *at, struct fib *fib)
{
	atomic_store(at, fib);
	if (due)
		atomic_store(&in_force.current, due);
	due = NULL;
}

#undef atomic_store_explicit
#define atomic_store_explicit(at, value, order) announce(at, value)
#define fstat(fd, stat) fake_fstat(fd, stat)
#define calloc(count, size) fake_calloc(count, size)
#define mmap(at, len, prot, flags, fd, off) fake_mmap(len, fd)
#define sched_yield() fake_yield()
#include "fib.c"
#undef sched_yield

static void fake_yield(void)
{
	if (++waits == 3)
		fib_leave(&announcement);
}

/**
 * open_small() - Build and open a table of two peers, one subnet
 * @generation:	Its number
 * @err:	What opening it must return
 *
 * Return: the table, NULL if it cannot be opened
 */
static struct fib *open_small(uint64_t generation, int err)
{
	struct dp_subnet subnet = {.prefix = {.addr = {.family = 4, .bytes = {10}}, .len = 8}, .vtep = {.family = 4}};
	struct dp_peer peers[2] = {{.addr4 = {.family = 4, .bytes = {1}}},
				   {.addr6 = {.family = 6, .bytes = {1}}, .id = 1}};
	struct dp_table_spec spec = {
		.generation = generation, .peers = peers, .peers_count = 2, .subnets = &subnet, .subnets_count = 1};
	int fd = dp_fib_create(&spec);
	struct fib *fib = NULL;

	CHECK(fd >= 0);
	errno = ENOMEM;
	CHECK(dp_fib_open(fd, &fib) == err && !fib == !!err);
	close(fd);
	return fib;
}

int main(void)
{
	struct dp_subnet subnets[2];
	struct dp_peer peers[2];
	struct fib *one, *two, *three;

	for (failing = FAILS_FSTAT; failing <= FAILS_MMAP; failing++)
		open_small(1, -ENOMEM);
	failing = FAILS_NOT;
	dp_fib_close(NULL);
	one = open_small(1, 0);
	two = open_small(2, 0);
	three = open_small(3, 0);
	CHECK(dp_fib_subnets(one, subnets, 0) == 1 && dp_fib_subnets(one, subnets, 2) == 1);
	CHECK(dp_fib_peers(one, peers, 0) == 2 && dp_fib_peers(one, peers, 1) == 2 && dp_fib_peers(one, peers, 2) == 2);
	CHECK(!fib_publish(&in_force, &announcement, sizeof(announcement), 1, one));
	due = two;
	CHECK(fib_enter(&in_force, &announcement) == two); /* what was announced first is not what is used */
	CHECK(atomic_load(&announcement.using) == two);
	CHECK(fib_publish(&in_force, &announcement, sizeof(announcement), 1, three) == two);
	CHECK(waits == 3 && !atomic_load(&announcement.using));
	dp_fib_close(one);
	dp_fib_close(two);
	dp_fib_close(three);
	return 0;
}
