/* SPDX-License-Identifier: Apache-2.0 */
/*
 * receiver.c - the receiving end of loadgen.
 *
 * It remembers each number it saw: what is lost, doubled, reordered or changed is counted, not guessed.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "loadgen.h"

enum { RECEIVE_BUFFER = 1 << 20 };

static uint8_t seen[PACKETS_MAX / 8];

/**
 * note() - Count one data packet
 * @answer:	The counts of this trial
 * @last:	Highest number so far plus one
 * @head:	Its head
 * @data:	The packet
 * @len:	How long it is
 */
static void note(struct answer *answer, uint64_t *last, const struct head *head, const uint8_t *data, size_t len)
{
	uint64_t check, number = head->number;
	uint8_t bit = (uint8_t)(1u << (number & 7));

	memcpy(&check, data + len - sizeof(check), sizeof(check));
	if (len != head->size || check != ~number || number >= PACKETS_MAX) {
		answer->changed++;
		return;
	}
	if (seen[number >> 3] & bit) {
		answer->doubled++;
		return;
	}
	seen[number >> 3] |= bit;
	answer->received++;
	if (number < *last)
		answer->reordered++;
	else
		*last = number + 1;
}

/**
 * receive() - Count what comes, and answer questions, until killed
 * @port:	UDP port
 */
void receive(uint16_t port)
{
	static uint8_t data[BATCH][2048];
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)}, from[BATCH];
	struct iovec iov[BATCH];
	struct mmsghdr messages[BATCH];
	struct answer answer = {.head = {.magic = MAGIC, .kind = KIND_ANSWER}};
	uint64_t last = 0;
	int fd, got, bytes = RECEIVE_BUFFER;

	fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes)) ||
	    bind(fd, (const struct sockaddr *)&here, sizeof(here)))
		fail("receiver's socket");
	for (;;) {
		for (int i = 0; i < BATCH; i++) {
			iov[i] = (struct iovec){data[i], sizeof(data[i])};
			messages[i] = (struct mmsghdr){.msg_hdr = {.msg_name = &from[i],
								   .msg_namelen = sizeof(from[i]),
								   .msg_iov = &iov[i],
								   .msg_iovlen = 1}};
		}
		got = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
		if (got < 0 && errno != EINTR)
			fail("recvmmsg");
		for (int i = 0; i < got; i++) {
			struct head head;

			if (messages[i].msg_len < SIZE_LEAST)
				continue;
			memcpy(&head, data[i], sizeof(head));
			if (head.magic != MAGIC)
				continue;
			if (head.trial != answer.head.trial) {
				memset(seen, 0, last / 8 + 1);
				answer = (struct answer){
					.head = {.magic = MAGIC, .kind = KIND_ANSWER, .trial = head.trial}};
				last = 0;
			}
			if (head.kind == KIND_DATA)
				note(&answer, &last, &head, data[i], messages[i].msg_len);
			else if (head.kind == KIND_ASK)
				sendto(fd, &answer, sizeof(answer), 0, (struct sockaddr *)&from[i], sizeof(from[i]));
		}
	}
}
