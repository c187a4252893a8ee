/* SPDX-License-Identifier: Apache-2.0 */
/*
 * decap_bare.c - no bare packet in UDP, cut or damaged anywhere, makes decapsulation touch a byte outside of it.
 *
 * Every packet ends, and then begins, at a page that may not be touched.
 */
#include "pure.h"

enum { DAMAGES = 300000 };

static struct wall wall;

/**
 * carry() - Carry a packet at both walls
 * @data:	The packet
 * @len:	Its length
 *
 * Return: DP_DROP_NONE or why it is refused
 */
static enum dp_drop carry(const uint8_t *data, uint32_t len)
{
	enum dp_drop before = pure_bare(wall_before(&wall, data, len), len, 0);
	enum dp_drop behind = pure_bare(wall_behind(&wall, data, len), len, 0);

	CHECK(before == behind);
	return before;
}

/**
 * cut() - Carry every prefix of a packet
 * @packet:	The packet
 * @len:	Its length
 * @drop:	What becomes of the whole of it
 */
static void cut(const uint8_t *packet, uint32_t len, enum dp_drop drop)
{
	for (uint32_t n = 0; n < len; n++) {
		enum dp_drop early = carry(packet, n);

		if (!n)
			CHECK(early == DP_DROP_SHORT);
		else
			CHECK(early == DP_DROP_INNER_HEADER || early == DP_DROP_INNER_LENGTH);
	}
	CHECK(carry(packet, len) == drop);
}

/**
 * damage() - Carry a packet with random bytes changed and a random length
 * @packet:	The packet
 * @len:	Its length
 * @dice:	State of roll()
 *
 * Return: true if it was accepted
 */
static bool damage(const uint8_t *packet, uint32_t len, uint64_t *dice)
{
	uint8_t copy[PACKET_ROOM];

	memcpy(copy, packet, len);
	for (uint32_t i = roll(dice) % 4; i > 0; i--)
		copy[roll(dice) % 48] = (uint8_t)roll(dice);
	if (roll(dice) % 2)
		packet_repair(copy, len);
	if (roll(dice) % 2)
		len -= roll(dice) % 30;
	return carry(copy, len) == DP_DROP_NONE;
}

int main(void)
{
	uint8_t packet[PACKET_ROOM];
	uint32_t accepted = 0, len;
	uint64_t dice = 3;

	wall = wall_build();
	for (int which = 0; (len = packet_good(packet, which)); which++) {
		bool is_v4 = packet[0] >> 4 == 4;

		cut(packet, len, is_v4 ? DP_DROP_NONE : DP_DROP_INNER_VERSION);
		for (int i = 0; is_v4 && i < DAMAGES / 4; i++)
			accepted += damage(packet, len, &dice);
	}
	CHECK(accepted > DAMAGES / 50 && accepted < DAMAGES / 2); /* both ways are well trodden */
	return 0;
}
