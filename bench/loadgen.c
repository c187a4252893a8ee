/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loadgen.c - numbered UDP packets at a given rate, counted exactly.
 *
 *   loadgen receive PORT                                    until it is killed
 *   loadgen send ADDRESS PORT SIZE RATE SECONDS [SEGMENTS]  one trial; prints JSON
 *   loadgen alone SIZE RATE SECONDS [SEGMENTS]              what the sender can do by itself; prints JSON
 *   loadgen flood ADDRESS PORT SIZE RATE SECONDS            from many ports, to who never answers; prints JSON
 *   loadgen awake SECONDS                                   one SCHED_IDLE burner per CPU
 *
 * RATE is in packets per second, 0 is as fast as it goes. Without SEGMENTS each packet is a message of its own
 * (sendmmsg, no UDP_SEGMENT: one skb each); with it, runs of that many leave as one message with UDP_SEGMENT.
 *
 * A trial ends with the sender's question in the same stream, which the receiver (receiver.c) answers with its
 * counts.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/udp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "loadgen.h"

#define NS_PER_S 1000000000LL

enum {
	SIZE_MOST = 1472,
	SEGMENTS_MAX = 64,
	RUN_BYTES_MAX = 64000,
	TICK_NS = 50000,      /* the least that a paced sender sleeps */
	SETTLE_NS = 50000000, /* what is late has this long to come in */
	ASK_TIMEOUT_US = 20000,
	ASK_TRIES = 150,
	FLOOD_SOCKETS = 16, /* each is a flow, so that every queue of the receiver gets its share */
};

/* What a sender is asked to do. */
struct order {
	size_t size;
	double rate;
	double seconds;
	size_t segments; /* 0: no UDP_SEGMENT */
};

struct sent {
	uint64_t packets;
	double seconds;
};

/**
 * fail() - Say which call failed, and end
 * @what:	The call
 */
void fail(const char *what)
{
	fprintf(stderr, "loadgen: %s: %s\n", what, strerror(errno));
	exit(1);
}

/**
 * now_ns() - Read the monotonic clock
 *
 * Return: nanoseconds
 */
static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

/**
 * sleep_ns() - Sleep
 * @ns:	How long
 */
static void sleep_ns(int64_t ns)
{
	struct timespec ts = {.tv_sec = ns / NS_PER_S, .tv_nsec = ns % NS_PER_S};

	nanosleep(&ts, NULL);
}

/**
 * read_number() - Parse a number of the command line
 * @text:	The word
 * @low:	Least that is allowed
 * @high:	Most that is allowed
 *
 * Return: the number; ends the program if it is none
 */
static double read_number(const char *text, double low, double high)
{
	char *end;
	double value = strtod(text, &end);

	if (*text == '\0' || *end != '\0' || !(value >= low && value <= high)) {
		fprintf(stderr, "loadgen: \"%s\" is not allowed; allowed are %g to %g\n", text, low, high);
		exit(2);
	}
	return value;
}

/**
 * fill() - Write packets with the numbers that come next
 * @out:	Room for them
 * @count:	How many
 * @order:	What is sent
 * @trial:	Names the trial
 * @number:	The first number
 */
static void fill(uint8_t *out, size_t count, const struct order *order, uint32_t trial, uint64_t number)
{
	for (size_t i = 0; i < count; i++, out += order->size, number++) {
		struct head head = {MAGIC, KIND_DATA, (uint16_t)order->size, trial, 0, number};
		uint64_t check = ~number;

		memcpy(out, &head, sizeof(head));
		memcpy(out + order->size - sizeof(check), &check, sizeof(check));
	}
}

/**
 * send_some() - Send the packets that are due, at most one system call's worth
 * @fd:		Connected socket
 * @order:	What is sent
 * @trial:	Names the trial
 * @number:	The first number
 * @due:	How many are due, at least 1
 *
 * A call that fails for want of room counts as sent: what a sender cannot get rid of is lost.
 *
 * Return: how many packets went
 */
static size_t send_some(int fd, const struct order *order, uint32_t trial, uint64_t number, uint64_t due)
{
	static uint8_t data[RUN_BYTES_MAX + BATCH * SIZE_MOST];
	struct iovec iov[BATCH];
	struct mmsghdr messages[BATCH];
	size_t count = order->segments ? order->segments : (due < BATCH ? due : BATCH);
	int put;

	fill(data, count, order, trial, number);
	if (order->segments) {
		if (send(fd, data, count * order->size, 0) < 0 && errno != ENOBUFS && errno != ECONNREFUSED)
			fail("send");
		return count;
	}
	for (size_t i = 0; i < count; i++) {
		iov[i] = (struct iovec){data + i * order->size, order->size};
		messages[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &iov[i], .msg_iovlen = 1}};
	}
	put = sendmmsg(fd, messages, (unsigned int)count, 0);
	if (put < 0 && errno != ENOBUFS && errno != ECONNREFUSED)
		fail("sendmmsg");
	return put < 1 ? 1 : (size_t)put;
}

/**
 * send_all() - Send for as long as ordered, at the rate that is ordered
 * @fd:		Connected socket
 * @order:	What is sent
 * @trial:	Names the trial
 *
 * Return: how many packets in which time
 */
static struct sent send_all(int fd, const struct order *order, uint32_t trial)
{
	int64_t start = now_ns(), end = start + (int64_t)(order->seconds * (double)NS_PER_S), now;
	int segments = (int)order->size;
	uint64_t number = 0, due;

	if (order->segments && setsockopt(fd, SOL_UDP, UDP_SEGMENT, &segments, sizeof(segments)))
		fail("UDP_SEGMENT");
	for (now = start; now < end && number < PACKETS_MAX - SEGMENTS_MAX; now = now_ns()) {
		due = UINT64_MAX;
		if (order->rate > 0)
			due = (uint64_t)((double)(now - start) * order->rate / (double)NS_PER_S) + 1;
		if (due < number + (order->segments ? order->segments : 1)) {
			sleep_ns(TICK_NS);
			continue;
		}
		number += send_some(fd, order, trial, number, due - number);
	}
	return (struct sent){number, (double)(now_ns() - start) / (double)NS_PER_S};
}

/**
 * ask() - Ask the receiver for its counts
 * @fd:		Connected socket
 * @trial:	Names the trial
 * @answer:	The counts
 *
 * Return: whether it answered
 */
static bool ask(int fd, uint32_t trial, struct answer *answer)
{
	struct timeval timeout = {.tv_usec = ASK_TIMEOUT_US};
	uint8_t question[SIZE_LEAST] = {0};
	struct head head = {.magic = MAGIC, .kind = KIND_ASK, .trial = trial};
	int off = 0;

	memcpy(question, &head, sizeof(head));
	setsockopt(fd, SOL_UDP, UDP_SEGMENT, &off, sizeof(off));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	for (int i = 0; i < ASK_TRIES; i++) {
		if (send(fd, question, sizeof(question), 0) < 0)
			sleep_ns(ASK_TIMEOUT_US * 1000LL);
		while (recv(fd, answer, sizeof(*answer), 0) == (ssize_t)sizeof(*answer))
			if (answer->head.magic == MAGIC && answer->head.trial == trial)
				return true;
	}
	return false;
}

/**
 * open_sender() - Open a socket to the receiver
 * @address:	IPv4 address
 * @port:	UDP port
 *
 * Return: the descriptor
 */
static int open_sender(const char *address, uint16_t port)
{
	struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (inet_pton(AF_INET, address, &there.sin_addr) != 1) {
		fprintf(stderr, "loadgen: \"%s\" is no IPv4 address\n", address);
		exit(2);
	}
	prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
	if (fd < 0 || connect(fd, (const struct sockaddr *)&there, sizeof(there)))
		fail("sender's socket");
	return fd;
}

/**
 * run_trial() - Send, ask, print
 * @address:	The receiver's
 * @port:	The receiver's
 * @order:	What is sent
 *
 * Return: exit status
 */
static int run_trial(const char *address, uint16_t port, const struct order *order)
{
	int fd = open_sender(address, port);
	uint32_t trial = (uint32_t)now_ns() | 1u;
	struct answer answer = {0};
	struct sent sent = {0};

	if (!ask(fd, trial, &answer)) { /* clears the receiver's memory, and warms up the path */
		fprintf(stderr, "loadgen: no answer from %s\n", address);
		return 1;
	}
	sent = send_all(fd, order, trial);
	for (int tries = 0; tries < 2; tries++) {
		if (!ask(fd, trial, &answer)) {
			fprintf(stderr, "loadgen: no answer from %s after the trial\n", address);
			return 1;
		}
		if (answer.received == sent.packets)
			break;
		sleep_ns(SETTLE_NS);
	}
	printf("{\"sent\": %llu, \"seconds\": %.6f, \"received\": %llu, \"doubled\": %llu, \"reordered\": %llu, "
	       "\"changed\": %llu}\n",
	       (unsigned long long)sent.packets, sent.seconds, (unsigned long long)answer.received,
	       (unsigned long long)answer.doubled, (unsigned long long)answer.reordered,
	       (unsigned long long)answer.changed);
	return 0;
}

/**
 * run_flood() - Send from many sockets in turn, a system call each, to somebody who never answers
 * @address:	Whose
 * @port:	Whose
 * @order:	What is sent; no SEGMENTS
 *
 * Return: exit status
 */
static int run_flood(const char *address, uint16_t port, const struct order *order)
{
	int64_t start = now_ns(), end = start + (int64_t)(order->seconds * (double)NS_PER_S), now;
	uint64_t due, number = 0;
	int fds[FLOOD_SOCKETS];

	for (size_t i = 0; i < FLOOD_SOCKETS; i++)
		fds[i] = open_sender(address, port);
	for (size_t turn = 0; (now = now_ns()) < end && number < PACKETS_MAX; turn++) {
		due = UINT64_MAX;
		if (order->rate > 0)
			due = (uint64_t)((double)(now - start) * order->rate / (double)NS_PER_S) + 1;
		if (due <= number) {
			sleep_ns(TICK_NS);
			continue;
		}
		number += send_some(fds[turn % FLOOD_SOCKETS], order, 1, number, due - number);
	}
	printf("{\"sent\": %llu, \"seconds\": %.6f}\n", (unsigned long long)number,
	       (double)(now_ns() - start) / (double)NS_PER_S);
	return 0;
}

/**
 * run_alone() - Send to a socket of our own that never reads, and print how much that was
 * @order:	What is sent
 *
 * Return: exit status
 */
static int run_alone(const struct order *order)
{
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(here);
	int fd, bytes = 1, sink = socket(AF_INET, SOCK_DGRAM, 0);
	struct sent sent;

	if (sink < 0 || setsockopt(sink, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes)) ||
	    bind(sink, (const struct sockaddr *)&here, sizeof(here)) ||
	    getsockname(sink, (struct sockaddr *)&here, &len))
		fail("sink's socket");
	fd = open_sender("127.0.0.1", ntohs(here.sin_port));
	sent = send_all(fd, order, 1);
	printf("{\"sent\": %llu, \"seconds\": %.6f}\n", (unsigned long long)sent.packets, sent.seconds);
	return 0;
}

/**
 * burn() - Run a loop on one CPU whenever nothing else wants it
 * @cpu:	Which
 * @seconds:	For how long
 */
static void burn(int cpu, double seconds)
{
	const struct sched_param idle = {0};
	int64_t end = now_ns() + (int64_t)(seconds * (double)NS_PER_S);
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET((size_t)cpu, &cpus);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (sched_setaffinity(0, sizeof(cpus), &cpus) || sched_setscheduler(0, SCHED_IDLE, &idle))
		fail("SCHED_IDLE");
	while (now_ns() < end)
		;
	exit(0);
}

/**
 * keep_awake() - Burn on every CPU that we may use
 * @seconds:	For how long
 *
 * Return: exit status
 */
static int keep_awake(double seconds)
{
	cpu_set_t cpus;
	int status, failed = 0;

	if (sched_getaffinity(0, sizeof(cpus), &cpus))
		fail("sched_getaffinity");
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET((size_t)cpu, &cpus) && fork() == 0)
			burn(cpu, seconds);
	while (wait(&status) > 0)
		failed |= status;
	return failed != 0;
}

/**
 * read_order() - Parse SIZE RATE SECONDS [SEGMENTS]
 * @count:	How many words
 * @words:	The words
 *
 * Return: the order; ends the program if it is none
 */
static struct order read_order(int count, char **words)
{
	struct order order = {
		.size = (size_t)read_number(words[0], SIZE_LEAST, SIZE_MOST),
		.rate = read_number(words[1], 0, 1e9),
		.seconds = read_number(words[2], 0.001, 3600),
	};

	if (count > 3) {
		double most = (double)RUN_BYTES_MAX / (double)order.size;

		order.segments = (size_t)read_number(words[3], 1, most < SEGMENTS_MAX ? most : SEGMENTS_MAX);
	}
	return order;
}

int main(int argc, char **argv)
{
	struct order order;

	if (argc > 1)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (argc == 3 && !strcmp(argv[1], "receive"))
		receive((uint16_t)read_number(argv[2], 1, UINT16_MAX));
	if ((argc == 7 || argc == 8) && !strcmp(argv[1], "send")) {
		order = read_order(argc - 4, argv + 4);
		return run_trial(argv[2], (uint16_t)read_number(argv[3], 1, UINT16_MAX), &order);
	}
	if (argc == 7 && !strcmp(argv[1], "flood")) {
		order = read_order(3, argv + 4);
		return run_flood(argv[2], (uint16_t)read_number(argv[3], 1, UINT16_MAX), &order);
	}
	if ((argc == 5 || argc == 6) && !strcmp(argv[1], "alone")) {
		order = read_order(argc - 2, argv + 2);
		return run_alone(&order);
	}
	if (argc == 3 && !strcmp(argv[1], "awake"))
		return keep_awake(read_number(argv[2], 0.001, 86400));
	fprintf(stderr, "loadgen: see the head of bench/loadgen.c\n");
	return 2;
}
