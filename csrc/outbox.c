/* SPDX-License-Identifier: Apache-2.0 */
/* outbox.c - packets on their way to the underlay, joined into runs. */
#include "outbox.h"

#include <string.h>

enum { NONE = UNDERLAY_SENDS };
_Static_assert(NONE <= 255, "outbox.newest holds it");

/**
 * outbox_clear() - Begin with nothing queued
 * @out:	The outbox
 */
void outbox_clear(struct outbox *out)
{
	out->count = 0;
	out->pieces = 0;
	out->used = 0;
	memset(out->newest, NONE, sizeof(out->newest));
}

/**
 * outbox_is_full() - Might the datagrams of one more packet not fit?
 * @out:	The outbox
 * @datagrams:	How many
 * @header_bytes:	Bytes of outbox_headers() for all of them
 *
 * Return: true if what is queued must be sent first
 */
bool outbox_is_full(const struct outbox *out, uint32_t datagrams, uint32_t header_bytes)
{
	uint32_t messages = out->has_runs ? 2 + datagrams / 8 : datagrams;

	return out->count + messages > UNDERLAY_SENDS || out->pieces + 2 * (datagrams + OUTBOX_RUN) > OUTBOX_PIECES ||
	       out->used + header_bytes > OUTBOX_HEADERS;
}

/**
 * outbox_headers() - Room for headers that lie nowhere else
 * @out:	The outbox, not full
 * @len:	Bytes
 *
 * Return: the bytes, valid until outbox_clear()
 */
uint8_t *outbox_headers(struct outbox *out, uint32_t len)
{
	uint8_t *at = out->headers + out->used;

	out->used += (len + 7) & ~7U;
	return at;
}

/**
 * can_join() - May a datagram be the next one of a message?
 * @message:	The message
 * @item:	The datagram
 * @len:	Its bytes
 *
 * Return: true if the kernel would cut the message where one datagram ends
 */
static bool can_join(const struct outbox_message *message, const struct outbox_item *item, uint32_t len)
{
	return message->subnet == item->subnet && message->fd == item->fd && message->tos == item->tos &&
	       message->ttl == item->ttl && !message->is_closed && len <= message->size &&
	       message->units < OUTBOX_RUN && message->pieces + 2 <= message->room &&
	       message->total + len <= OUTBOX_BYTES;
}

/**
 * place_of() - Where the newest message of a datagram's peer and socket is noted
 * @item:	The datagram
 *
 * Others may share the place; then less is joined.
 *
 * Return: index into outbox.newest
 */
static uint32_t place_of(const struct outbox_item *item)
{
	return (item->subnet->peer_id * DP_MAX_SOURCES + (uint32_t)item->fd) % UNDERLAY_SENDS;
}

/**
 * open_message() - Begin a message
 * @out:	The outbox, not full
 * @item:	Its first datagram
 * @len:	Bytes of that
 *
 * Return: the message
 */
static struct outbox_message *open_message(struct outbox *out, const struct outbox_item *item, uint32_t len)
{
	struct outbox_message *message = &out->messages[out->count];
	uint32_t most = OUTBOX_BYTES / len < OUTBOX_RUN ? OUTBOX_BYTES / len : OUTBOX_RUN;
	uint32_t room = out->has_runs && item->port ? 2 * most : 2;

	if (room > OUTBOX_PIECES - out->pieces)
		room = OUTBOX_PIECES - out->pieces;
	*message = (struct outbox_message){.subnet = item->subnet,
					   .dst = item->dst,
					   .size = len,
					   .room = room,
					   .iov = out->pieces,
					   .fd = item->fd,
					   .tos = item->tos,
					   .ttl = item->ttl,
					   .family = item->family};
	out->pieces += room;
	underlay_address(&out->sends, out->count, &item->subnet->vtep, item->port, item->tos);
	if (item->ttl)
		underlay_set_ttl(&out->sends, out->count, item->ttl);
	out->newest[place_of(item)] = (uint8_t)out->count;
	out->count++;
	return message;
}

/**
 * add_piece() - Append bytes to a message
 * @out:	The outbox
 * @message:	One of its messages, with room
 * @data:	The bytes, borrowed
 * @len:	How many; nothing is added for 0
 */
static void add_piece(struct outbox *out, struct outbox_message *message, const void *data, uint32_t len)
{
	if (!len)
		return;
	out->iov[message->iov + message->pieces] = (struct iovec){.iov_base = (void *)data, .iov_len = len};
	message->pieces++;
}

/**
 * outbox_add() - Queue a datagram
 * @out:	The outbox, not full
 * @item:	The datagram
 *
 * It joins the newest message of its peer and socket if that can take it, and begins a
 * new one otherwise: never an older one, so nothing overtakes.
 *
 * Return: the index of the message if it is a new one, -1 otherwise
 */
int outbox_add(struct outbox *out, const struct outbox_item *item)
{
	uint32_t len = item->head_len + item->tail_len;
	uint8_t newest = out->newest[place_of(item)];
	struct outbox_message *message = newest == NONE ? NULL : &out->messages[newest];
	bool is_new = !out->has_runs || !item->port || !message || !can_join(message, item, len);

	if (is_new)
		message = open_message(out, item, len);
	message->is_closed = len < message->size;
	message->units++;
	message->total += len;
	message->bytes += item->bytes;
	add_piece(out, message, item->head, item->head_len);
	add_piece(out, message, item->tail, item->tail_len);
	return is_new ? (int)out->count - 1 : -1;
}

/**
 * outbox_finish() - Complete all messages for the system call
 * @out:	The outbox
 */
void outbox_finish(struct outbox *out)
{
	for (uint32_t i = 0; i < out->count; i++) {
		const struct outbox_message *message = &out->messages[i];

		underlay_set_pieces(&out->sends, i, out->iov + message->iov, message->pieces);
		if (message->units > 1)
			underlay_set_segment(&out->sends, i, (uint16_t)message->size);
	}
}
