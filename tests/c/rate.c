/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rate.c - token buckets: never more than a burst and what the time brought, by however many threads; and no less.
 */
#include "rate.h"

#include <pthread.h>

#include "check.h"

enum { THREADS = 4, TAKES = 200000 };
#define S 1000000000ULL

static rate_bucket shared;
static uint64_t taken[THREADS];

/**
 * take_all() - Take as long as there is something
 * @bucket:	From where
 * @now_ns:	Now
 * @per_s:	Rate
 * @burst:	Burst
 *
 * Return: how much there was
 */
static uint32_t take_all(rate_bucket *bucket, uint64_t now_ns, uint32_t per_s, uint32_t burst)
{
	uint32_t count = 0;

	while (count < 1000000 && rate_take(bucket, now_ns, per_s, burst))
		count++;
	return count;
}

/**
 * alone() - A burst at first, then as many as come, and a burst again after a rest of any length
 */
static void alone(void)
{
	static const uint32_t rates[] = {1, 3, 10, 1000, 999983, 1000000};
	static const uint32_t bursts[] = {1, 7, 50};

	for (uint32_t i = 0; i < 18; i++) {
		uint32_t per_s = rates[i / 3], burst = bursts[i % 3], count = 0;
		uint64_t now = 5 * S, each = (S + per_s - 1) / per_s;
		rate_bucket bucket = 0;

		CHECK(take_all(&bucket, now, per_s, burst) == burst);
		CHECK(!rate_take(&bucket, now + each - 1, per_s, burst));
		CHECK(take_all(&bucket, now + each, per_s, burst) == 1);
		for (uint64_t step = 1; step <= 1000; step++)
			count += take_all(&bucket, now + each + step * each / 2, per_s, burst);
		CHECK(count == 500 || (each == 1 && count <= 500));
		CHECK(take_all(&bucket, now + (1ULL << 62), per_s, burst) == burst);
		CHECK(!rate_take(&bucket, now, per_s, burst)); /* a thread whose clock is behind finds nothing */
	}
}

/**
 * none() - No rate, or no burst: nothing
 */
static void none(void)
{
	rate_bucket bucket = 0;

	CHECK(!rate_take(&bucket, S, 0, 50) && !rate_take(&bucket, S, 1000, 0) && !bucket);
}

/**
 * shares() - One sender, and all who send to one peer, leave something to the others
 */
static void shares(void)
{
	static struct rates rates;
	const struct dp_config config = {.icmp_per_s = 1000, .icmp_burst = 50};
	uint32_t count = 0;

	for (uint32_t i = 0; i < 100; i++)
		count += rate_allows(&rates, S, &config, 0x0af40105, 1);
	CHECK(count == 5); /* of one pod */
	CHECK(!rate_allows(&rates, S, &config, 0x0af40105, 2));
	for (uint32_t i = 0; i < 100; i++)
		count += rate_allows(&rates, S, &config, 0x0af40206 + i, 1);
	CHECK(count == 25); /* to one peer */
	CHECK(rate_allows(&rates, S, &config, 0x0af40301, 2) &&
	      rate_allows(&rates, S, &config, 0x0af40302, DP_NO_PEER));
	for (uint32_t i = 0; i < 1000; i++)
		count += rate_allows(&rates, S, &config, 0x0af40401 + i, i);
	CHECK(count == 48); /* by all */
	CHECK(!rate_allows(&rates, S, &config, 0x0af40901, 77777));
	CHECK(rate_allows(&rates, S + S / 1000, &config, 0x0af40901, 77778));
}

/**
 * take_shared() - A thread that takes what it can while its time passes
 * @arg:	Where it counts
 *
 * Return: NULL
 */
static void *take_shared(void *arg)
{
	uint64_t *count = arg;

	for (uint64_t i = 0; i < TAKES; i++)
		*count += rate_take(&shared, S + i * 10000, 1000, 50); /* 2 s in all */
	return NULL;
}

/**
 * together() - Threads together get what one would get
 */
static void together(void)
{
	pthread_t threads[THREADS];
	uint64_t all = 0;

	for (uint32_t i = 0; i < THREADS; i++)
		CHECK(!pthread_create(&threads[i], NULL, take_shared, &taken[i]));
	for (uint32_t i = 0; i < THREADS; i++) {
		CHECK(!pthread_join(threads[i], NULL));
		all += taken[i];
	}
	CHECK(all <= 2000 + 50);
	CHECK(all >= 1990); /* however they ran, the last one saw the end of the time */
}

int main(void)
{
	alone();
	none();
	shares();
	together();
	return 0;
}
