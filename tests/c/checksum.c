/* SPDX-License-Identifier: Apache-2.0 */
/*
 * checksum.c - sums read exactly their bytes and are those of a naive loop, whatever the vectors.
 *
 * checksum           every variant that this CPU can run; says which it cannot
 * checksum VARIANT   this one; ends with 77 if the CPU cannot
 */
#include <stdbool.h>

#include "check.h"
#include "csum.h"

enum { LEN_MAX = 2100, ALIGN = 64, WALL_LEN_MAX = 9001, SUPER_MAX = 65535, CANNOT = 77 };

typedef uint64_t add_fn(const uint8_t *data, size_t len, uint64_t sum);

struct variant {
	const char *name;
	add_fn *add;
	bool can_run;
};

enum kind { KIND_RANDOM, KIND_ONES, KIND_ZEROES, KIND_CARRIES, KIND_COUNT };

static uint8_t room[ALIGN + SUPER_MAX + 2 * ALIGN] __attribute__((aligned(ALIGN)));
static uint32_t sums[SUPER_MAX + 1];

/**
 * fill() - Make up data
 * @data:	Set to it
 * @len:	How many bytes
 * @kind:	Which sort: carries are words of mostly ones, so that nearly every addition overflows
 */
static void fill(uint8_t *data, size_t len, enum kind kind)
{
	uint64_t dice = 4;

	for (size_t i = 0; i < len; i++) {
		uint8_t byte = (uint8_t)roll(&dice);

		if (kind == KIND_ONES)
			byte = 0xff;
		else if (kind == KIND_ZEROES)
			byte = 0;
		else if (kind == KIND_CARRIES)
			byte = byte < 16 ? byte : 0xff;
		data[i] = byte;
	}
}

/**
 * add_naively() - Sum every prefix, a byte at a time
 * @data:	Bytes
 * @len:	How many; sums[0] to sums[@len] are set
 */
static void add_naively(const uint8_t *data, size_t len)
{
	uint32_t sum = 0;

	sums[0] = 0;
	for (size_t i = 0; i < len; i++) {
		sum += (uint32_t)data[i] << (i % 2 ? 0 : 8);
		sum = (sum & 0xffff) + (sum >> 16);
		sums[i + 1] = sum;
	}
}

/**
 * number() - A folded sum as a number
 * @sum:	From a variant
 *
 * Return: it
 */
static uint32_t number(uint64_t sum)
{
	uint16_t folded = csum_fold(sum);
	uint8_t bytes[2];

	memcpy(bytes, &folded, 2);
	return (uint32_t)bytes[0] << 8 | bytes[1];
}

/**
 * check_every_place() - Every length to LEN_MAX at every alignment of start and end, and super-packets
 * @add:	Variant
 * @kind:	Sort of data
 */
static void check_every_place(add_fn *add, enum kind kind)
{
	for (size_t align = 0; align < ALIGN; align++) {
		uint8_t *data = room + align;

		/* what lies around must not count, so it is not 0 */
		memset(room, 0xa5, sizeof(room));
		fill(data, LEN_MAX + 1, kind);
		add_naively(data, LEN_MAX);
		for (size_t len = 0; len <= LEN_MAX; len++)
			CHECK(number(add(data, len, 0)) == sums[len]);
	}
	for (size_t align = 0; align < 4; align++) {
		uint8_t *data = room + 31 * align;

		fill(data, SUPER_MAX, kind);
		add_naively(data, SUPER_MAX);
		for (size_t len = SUPER_MAX - 2 * ALIGN; len <= SUPER_MAX; len++)
			CHECK(number(add(data, len, 0)) == sums[len]);
	}
}

/**
 * check_walls() - Bytes that end or begin at a wall: one byte too far faults
 * @add:	Variant
 */
static void check_walls(add_fn *add)
{
	struct wall wall = wall_build();

	fill(room, WALL_LEN_MAX, KIND_RANDOM);
	add_naively(room, WALL_LEN_MAX);
	for (size_t len = 0; len <= WALL_LEN_MAX; len++) {
		CHECK(number(add(wall_before(&wall, room, len), len, 0)) == sums[len]);
		CHECK(number(add(wall_behind(&wall, room, len), len, 0)) == sums[len]);
	}
}

/**
 * check_pieces() - A sum that goes on in a second piece, from any running sum, loses no carry
 * @add:	Variant
 */
static void check_pieces(add_fn *add)
{
	static const uint64_t running[] = {0, 1, UINT64_MAX, UINT64_MAX - 1, 1ULL << 63, 0xffff0000ffff0000};

	fill(room, LEN_MAX, KIND_CARRIES);
	add_naively(room, LEN_MAX);
	for (size_t split = 0; split <= LEN_MAX; split += 2)
		CHECK(number(add(room + split, LEN_MAX - split, add(room, split, 0))) == sums[LEN_MAX]);
	for (size_t i = 0; i < sizeof(running) / sizeof(running[0]); i++) {
		for (size_t len = 0; len <= LEN_MAX; len++) {
			uint32_t sum = sums[len] + number(running[i]);

			CHECK(number(add(room, len, running[i])) == (sum & 0xffff) + (sum >> 16));
		}
	}
}

int main(int argc, char **argv)
{
	const struct variant variants[] = {
		{"csum_add", csum_add, true},
		{"csum_add_any", csum_add_any, true},
#ifdef __x86_64__
		{"csum_add_avx2", csum_add_avx2, __builtin_cpu_supports("avx2")},
		{"csum_add_avx512", csum_add_avx512, __builtin_cpu_supports("avx512f")},
#endif
	};
	int status = argc > 1 ? CANNOT : 0;

	for (size_t i = 0; i < sizeof(variants) / sizeof(variants[0]); i++) {
		const struct variant *variant = &variants[i];

		if (argc > 1 && strcmp(argv[1], variant->name))
			continue;
		printf("%s: %s\n", variant->name, variant->can_run ? "checked" : "not on this CPU");
		if (!variant->can_run)
			continue;
		for (enum kind kind = 0; kind < KIND_COUNT; kind++)
			check_every_place(variant->add, kind);
		check_walls(variant->add);
		check_pieces(variant->add);
		status = 0;
	}
	return status;
}
