/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pkt.h - a view of a packet in a buffer with headroom: the only door to packet bytes.
 *
 * struct pkt never owns memory. [off, off + len) is the packet as the current
 * layer sees it; bytes before off are headroom. Every access states offset and
 * length and gets NULL when it does not lie inside the packet.
 */
#ifndef PKT_H
#define PKT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct pkt {
	uint8_t *buf; /* borrowed */
	uint32_t cap; /* bytes in buf */
	uint32_t off; /* first byte of the packet */
	uint32_t len; /* bytes of the packet */
};

/**
 * pkt_init() - View part of a buffer as a packet
 * @buf:	Buffer, borrowed for as long as the view is used
 * @cap:	Bytes in @buf
 * @off:	First byte of the packet
 * @len:	Bytes of the packet
 *
 * Return: the view, of length 0 if it would not fit
 */
static inline struct pkt pkt_init(uint8_t *buf, uint32_t cap, uint32_t off, uint32_t len)
{
	bool fits = off <= cap && len <= cap - off;
	struct pkt pkt = {.buf = buf, .cap = cap, .off = fits ? off : 0, .len = fits ? len : 0};
	return pkt;
}

/**
 * pkt_at() - Reach into a packet
 * @pkt:	The packet
 * @off:	Offset from its first byte
 * @len:	Bytes that must be there
 *
 * Return: pointer to @len readable and writable bytes, NULL if they are not all inside
 */
static inline uint8_t *pkt_at(const struct pkt *pkt, uint32_t off, uint32_t len)
{
	if (off > pkt->len || len > pkt->len - off)
		return NULL;
	return pkt->buf + pkt->off + off;
}

/**
 * pkt_pull() - Take bytes off the front
 * @pkt:	The packet, moved past them
 * @len:	How many
 *
 * Return: pointer to the bytes taken, NULL (and nothing moved) if there are fewer
 */
static inline uint8_t *pkt_pull(struct pkt *pkt, uint32_t len)
{
	uint8_t *head = pkt_at(pkt, 0, len);

	if (head) {
		pkt->off += len;
		pkt->len -= len;
	}
	return head;
}

/**
 * pkt_push() - Add bytes in front, out of the headroom
 * @pkt:	The packet, grown by them
 * @len:	How many
 *
 * Return: pointer to the new first byte, NULL (and nothing moved) if the headroom is smaller
 */
static inline uint8_t *pkt_push(struct pkt *pkt, uint32_t len)
{
	if (len > pkt->off)
		return NULL;
	pkt->off -= len;
	pkt->len += len;
	return pkt->buf + pkt->off;
}

/**
 * pkt_trim() - Cut a packet to a length
 * @pkt:	The packet
 * @len:	Its new length in bytes
 *
 * Return: true, or false (and nothing changed) if it is shorter than that
 */
static inline bool pkt_trim(struct pkt *pkt, uint32_t len)
{
	if (len > pkt->len)
		return false;
	pkt->len = len;
	return true;
}

/**
 * load16() - Read 16 bits in network order
 * @at:		Two readable bytes, any alignment
 *
 * Return: the value in host order
 */
static inline uint16_t load16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

/**
 * load32() - Read 32 bits in network order
 * @at:		Four readable bytes, any alignment
 *
 * Return: the value in host order
 */
static inline uint32_t load32(const uint8_t *at)
{
	return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/**
 * load64() - Read 64 bits in network order
 * @at:		Eight readable bytes, any alignment
 *
 * Return: the value in host order
 */
static inline uint64_t load64(const uint8_t *at)
{
	return (uint64_t)load32(at) << 32 | load32(at + 4);
}

/**
 * store16() - Write 16 bits in network order
 * @at:		Two writable bytes, any alignment
 * @value:	Host order
 */
static inline void store16(uint8_t *at, uint16_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

/**
 * store32() - Write 32 bits in network order
 * @at:		Four writable bytes, any alignment
 * @value:	Host order
 */
static inline void store32(uint8_t *at, uint32_t value)
{
	store16(at, (uint16_t)(value >> 16));
	store16(at + 2, (uint16_t)value);
}

#endif
