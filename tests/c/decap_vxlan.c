/* SPDX-License-Identifier: Apache-2.0 */
/*
 * decap_vxlan.c - no UDP payload, cut or damaged anywhere, makes decapsulation touch a byte outside of it.
 *
 * Every payload ends, and then begins, at a page that may not be touched.
 */
#include "pure.h"

enum { DAMAGES = 300000 };

static const struct dp_config *const config = &packet_config;
static struct wall wall;

/**
 * carry() - Carry a payload at both walls
 * @data:	The payload
 * @len:	Its length
 * @outer_tos:	TOS byte of the outer header
 *
 * Return: DP_DROP_NONE or why it is refused
 */
static enum dp_drop carry(const uint8_t *data, uint32_t len, uint8_t outer_tos)
{
	enum dp_drop before = pure_vxlan(wall_before(&wall, data, len), len, config, outer_tos);
	enum dp_drop behind = pure_vxlan(wall_behind(&wall, data, len), len, config, outer_tos);

	CHECK(before == behind);
	return before;
}

/**
 * cut() - Carry every prefix of a good payload
 * @frame:	The payload
 * @len:	Its length
 */
static void cut(const uint8_t *frame, uint32_t len)
{
	for (uint32_t n = 0; n < len; n++) {
		enum dp_drop drop = carry(frame, n, 0);

		if (n < VXLAN_PUSH)
			CHECK(drop == DP_DROP_SHORT);
		else
			CHECK(drop == DP_DROP_INNER_HEADER || drop == DP_DROP_INNER_LENGTH);
	}
	CHECK(carry(frame, len, 0) == DP_DROP_NONE);
}

/**
 * damage() - Carry a payload with random bytes changed and a random length
 * @frame:	The payload
 * @len:	Its length
 * @dice:	State of roll()
 *
 * Return: true if it was accepted
 */
static bool damage(const uint8_t *frame, uint32_t len, uint64_t *dice)
{
	uint8_t copy[PACKET_ROOM];

	memcpy(copy, frame, len);
	for (uint32_t i = roll(dice) % 4; i > 0; i--)
		copy[(roll(dice) % 8 ? VXLAN_PUSH : 0U) + roll(dice) % 56] = (uint8_t)roll(dice);
	if (roll(dice) % 2)
		packet_repair(copy + VXLAN_PUSH, len - VXLAN_PUSH);
	if (roll(dice) % 2)
		len -= roll(dice) % 30;
	return carry(copy, len, (uint8_t)roll(dice)) == DP_DROP_NONE;
}

int main(void)
{
	uint8_t inner[PACKET_ROOM], frame[PACKET_ROOM + VXLAN_PUSH];
	uint32_t accepted = 0, len;
	uint64_t dice = 1;

	wall = wall_build();
	for (int which = 0; (len = packet_good(inner, which)); which++) {
		len = packet_vxlan(frame, inner, len);
		cut(frame, len);
		for (int i = 0; i < DAMAGES / 7; i++)
			accepted += damage(frame, len, &dice);
	}
	CHECK(accepted > DAMAGES / 50 && accepted < DAMAGES / 2); /* both ways are well trodden */
	return 0;
}
