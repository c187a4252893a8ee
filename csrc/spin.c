/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spin.c - when a worker that found nothing looks again at once, instead of sleeping.
 *
 * DOC: Theory of operation
 *
 * To be woken from sleep costs a packet tens of microseconds, in a virtual
 * machine more than all the rest of its way; to look for it meanwhile costs
 * processor time that others may want. So a worker looks only while that pays:
 *
 *  - It keeps a moving average of the looks that met a packet, and sleeps at
 *    once while most do not. Then only one gap of many is tried again, and only
 *    one of a kind that was short: packets that come seldom cost no look at all.
 *  - One look lasts limit_ns at most.
 *  - If the processor was taken from us in the middle of a look, somebody else
 *    wanted it, or a quota is used up. Then we rest, twice as long each time.
 */
#include "spin.h"

/* A gap that we slept through contains two wake-ups, ours and the other side's; looking would shorten it. */
enum { SLEPT_FACTOR = 4 };
/* How much one look moves the average: 1/8 of what it is off. */
enum { WEIGHT = 8 };
/* Looking pays above that average. */
enum { WORTH_MIN = SPIN_ALL / 4 };
/* Below it, one in so many short gaps is tried. */
enum { HOPES = 32 };
/* Two looks are about 2 us apart; that much more, and something else ran in between. */
#define STOLEN_NS 500000ULL
#define REST_MIN_NS 100000000ULL
#define REST_MAX_NS 10000000000ULL

/**
 * spin_found() - Packets have come
 * @spin:	State
 * @now_ns:	When, on any clock that does not go back
 */
void spin_found(struct spin *spin, uint64_t now_ns)
{
	if (!spin->dry_ns)
		return;
	if (spin->look_ns)
		spin->worth += (SPIN_ALL - spin->worth) / WEIGHT;
	else if (spin->worth < WORTH_MIN && now_ns - spin->dry_ns < SLEPT_FACTOR * spin->limit_ns &&
		 ++spin->hopes == HOPES) {
		spin->worth = WORTH_MIN;
		spin->hopes = 0;
	}
	spin->dry_ns = 0;
	spin->look_ns = 0;
}

/**
 * rest() - The processor was taken from us: give up for a while
 * @spin:	State
 * @now_ns:	Now
 *
 * A rest that followed the last one closely is twice as long.
 */
static void rest(struct spin *spin, uint64_t now_ns)
{
	bool is_again = spin->rest_ns && now_ns - spin->until_ns < 10 * spin->rest_ns;

	spin->rest_ns = is_again ? 2 * spin->rest_ns : REST_MIN_NS;
	if (spin->rest_ns > REST_MAX_NS)
		spin->rest_ns = REST_MAX_NS;
	spin->until_ns = now_ns + spin->rest_ns;
}

/**
 * spin_again() - No packet has come: look again, or sleep?
 * @spin:	State
 * @now_ns:	Now
 *
 * Return: true to look again at once, false to sleep
 */
bool spin_again(struct spin *spin, uint64_t now_ns)
{
	if (!spin->limit_ns)
		return false;
	if (!spin->dry_ns) {
		spin->dry_ns = now_ns;
		if (spin->worth < WORTH_MIN || now_ns < spin->until_ns)
			return false;
		spin->look_ns = now_ns;
		return true;
	}
	if (!spin->look_ns)
		return false; /* woken for nothing */
	if (now_ns - spin->look_ns > STOLEN_NS) {
		rest(spin, now_ns);
		spin->look_ns = 0;
		return false;
	}
	spin->look_ns = now_ns;
	if (now_ns - spin->dry_ns < spin->limit_ns)
		return true;
	spin->look_ns = 0;
	spin->worth -= spin->worth / WEIGHT;
	return false;
}
