/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fib_damage.c - a damaged snapshot is refused, or answers every question with something inside it.
 *
 * Whoever made it, the forwarder opens it: so damage is random, and its size field is repaired to get further.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "check.h"
#include "counters.h"
#include "fib_layout.h"
#include "tables.h"

enum { DAMAGES = 40000, SNAPSHOT_ROOM = 16384, ENTRIES = 12, LARGE = 64 << 20 };

/* A good snapshot to damage. */
static struct {
	uint8_t bytes[SNAPSHOT_ROOM];
	size_t len;
} good;

/**
 * build_good() - Build a table with entries of both families
 */
static void build_good(void)
{
	struct dp_subnet subnets[ENTRIES] = {0};
	struct dp_peer peers[ENTRIES] = {0};
	struct dp_prefix lists[2] = {{.addr = {.family = 4, .bytes = {10, 244, 1}}, .len = 24},
				     {.addr = {.family = 6, .bytes = {0xfd, 0, 1}}, .len = 64}};
	struct dp_table_spec spec = {.generation = 1,
				     .peers = peers,
				     .peers_count = ENTRIES,
				     .subnets = subnets,
				     .subnets_count = ENTRIES,
				     .own = lists,
				     .own_count = 2,
				     .sources = lists,
				     .sources_count = 2,
				     .allowed = lists,
				     .allowed_count = 2};
	ssize_t n;
	int fd;

	for (uint8_t i = 0; i < ENTRIES; i++) {
		uint8_t family = i % 2 ? 6 : 4;
		struct dp_addr vtep = {.family = family, .bytes = {192, 0, 2, i}};

		peers[i].id = i * 5000U;
		*(family == 4 ? &peers[i].addr4 : &peers[i].addr6) = vtep;
		subnets[i] =
			(struct dp_subnet){.prefix = {.addr = {.family = family, .bytes = {10, 244, i}}, .len = 24},
					   .encap = DP_ENCAP_VXLAN,
					   .vtep = vtep,
					   .peer_id = i * 5000U};
	}
	fd = dp_fib_create(&spec);
	CHECK(fd >= 0);
	n = pread(fd, good.bytes, sizeof(good.bytes), 0);
	CHECK(n > 0 && n < (ssize_t)sizeof(good.bytes));
	good.len = (size_t)n;
	close(fd);
}

/**
 * damage() - Open a snapshot with random words changed, and often a random length
 * @dice:	State of roll()
 *
 * Return: true if it was accepted
 */
static bool damage(uint64_t *dice)
{
	static uint8_t copy[SNAPSHOT_ROOM];
	uint64_t len = good.len, value;

	memcpy(copy, good.bytes, len);
	for (uint32_t i = roll(dice) % 3; i > 0; i--) {
		size_t reach = roll(dice) % 2 ? sizeof(struct fib_header) : len;

		value = roll(dice) % 2 ? roll(dice) % 4096 / 16 * 16 : (uint64_t)roll(dice) << 32 | roll(dice);
		memcpy(copy + roll(dice) % (reach / 8) * 8, &value, roll(dice) % 2 ? 8 : 1);
	}
	if (roll(dice) % 4 == 0)
		len = roll(dice) % len;
	if (roll(dice) % 4 && len >= sizeof(struct fib_header))
		memcpy(copy + offsetof(struct fib_header, size), &len, sizeof(len));
	return table_open(copy, len);
}

/**
 * check_wrapping() - A number of subnets whose size wraps is refused before the first one is read
 *
 * The file is full of good ones up to its end, and the kernel maps one this large right below the wall: who
 * believes the number runs into it.
 */
static void check_wrapping(void)
{
	struct dp_subnet subnets[FIB_ALIGN];
	struct fib_header header;
	uint8_t *wall = mmap(NULL, LARGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int fd = memfd_create("snapshot", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct fib *fib;

	memcpy(&header, good.bytes, sizeof(header));
	header.size = LARGE;
	memcpy(subnets, good.bytes + header.subnets.offset, sizeof(subnets[0]));
	for (int i = 1; i < FIB_ALIGN; i++)
		subnets[i] = subnets[0];
	header.subnets =
		(struct fib_section){.offset = LARGE % sizeof(subnets) + sizeof(subnets) * 64, .count = 1ULL << 63};
	CHECK(wall != MAP_FAILED && fd >= 0 && !ftruncate(fd, LARGE));
	CHECK(pwrite(fd, good.bytes, good.len, 0) == (ssize_t)good.len);
	CHECK(pwrite(fd, &header, sizeof(header), 0) == (ssize_t)sizeof(header));
	for (size_t at = header.subnets.offset; at < LARGE; at += sizeof(subnets))
		CHECK(pwrite(fd, subnets, sizeof(subnets), (off_t)at) == (ssize_t)sizeof(subnets));
	CHECK(!fcntl(fd, F_ADD_SEALS, FIB_SEALS));
	CHECK(dp_fib_open(fd, &fib) == -EBADMSG);
	close(fd);
	munmap(wall, LARGE);
}

/**
 * check_unsealed() - What cannot be sealed, or is not, is not opened
 */
static void check_unsealed(void)
{
	int plain = open(P_tmpdir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600), counters_fd = dp_counters_create(1, 8);
	int unsealed = table_memfd(good.bytes, good.len, F_SEAL_SHRINK);
	struct counters *counters;
	struct fib *fib;

	if (plain >= 0) /* not every file system can */
		CHECK(write(plain, good.bytes, good.len) == (ssize_t)good.len);
	CHECK(dp_fib_open(plain, &fib) == -EPERM && dp_fib_open(unsealed, &fib) == -EPERM);
	CHECK(dp_counters_open(plain, 1, &counters) == -EPERM && dp_counters_open(unsealed, 1, &counters) == -EPERM);
	CHECK(dp_counters_open(-1, 1, &counters) == -EPERM);
	CHECK(counters_fd >= 0 && !dp_counters_open(counters_fd, 1, &counters));
	dp_counters_close(counters);
	close(counters_fd);
	close(unsealed);
	close(plain);
}

/**
 * check_counters() - Counters whose header contradicts their size are not opened
 */
static void check_counters(void)
{
	static uint8_t bytes[1 << 16];
	struct dp_counters_header header;
	struct counters *counters;
	int fd = dp_counters_create(1, 8), seals = F_SEAL_SHRINK | F_SEAL_GROW;
	ssize_t len = pread(fd, bytes, sizeof(bytes), 0);
	uint64_t dice = 7;

	CHECK(len > (ssize_t)sizeof(header) && len < (ssize_t)sizeof(bytes));
	memcpy(&header, bytes, sizeof(header));
	close(fd);
	for (int i = 0; i < 20000; i++) {
		struct dp_counters_header damaged = header;
		size_t size = roll(&dice) % 2 ? (size_t)len : roll(&dice) % (size_t)len;
		uint32_t word = roll(&dice) % 2 ? roll(&dice) : roll(&dice) % 20;
		int err;

		memcpy((uint8_t *)&damaged + roll(&dice) % 4 * sizeof(word), &word, sizeof(word));
		memcpy(bytes, &damaged, sizeof(damaged));
		fd = table_memfd(bytes, size, seals);
		err = dp_counters_open(fd, 0, &counters);
		close(fd);
		CHECK(!err || err == -EPROTO || err == -EBADMSG);
		if (err)
			continue;
		CHECK(size == (size_t)len && damaged.threads == header.threads);
		dp_counters_close(counters);
	}
}

int main(void)
{
	uint32_t accepted = 0;
	uint64_t dice = 6;

	build_good();
	CHECK(table_open(good.bytes, good.len));
	for (int i = 0; i < DAMAGES; i++)
		accepted += damage(&dice);
	CHECK(accepted > DAMAGES / 20 && accepted < DAMAGES / 2); /* both ways are well trodden */
	check_wrapping();
	check_unsealed();
	check_counters();
	return 0;
}
