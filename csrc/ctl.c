/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ctl.c - the forwarder process: it listens on a socket and does what control says.
 *
 * DOC: Theory of operation
 *
 * One thread serves a listening SOCK_SEQPACKET socket and a few connections;
 * the workers never wait for it. Requests are struct dp_msg (dp.h) with
 * descriptors attached. What is not exactly one well-formed message closes the
 * connection it came over and touches nothing else.
 *
 * A control introduces itself by HELLO with its epoch, a number that grows with
 * each control that is started on the run directory. The forwarder obeys only
 * the newest epoch it has met: a control that was stopped and is woken up after
 * a newer one took over is told -ESTALE.
 *
 * GO sets up a second engine, parked, before the first one is stopped: if that
 * fails, the first one goes on as if nothing had been said.
 *
 * A system call that fails ends a connection at most, and the thread pauses where
 * it would fail again at once. If it cannot poll for a second, the process ends.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "counters.h"
#include "dp.h"
#include "engine.h"

enum { CONNECTIONS_MAX = 8, PAUSE_MS = 10 /* after a failure */, POLL_FAILURES_MAX = 100 /* in a row */ };

/* A connected control, or somebody who only inspects. */
struct connection {
	int fd;         /* -1: free */
	bool is_known;  /* said HELLO */
	uint64_t epoch; /* with which epoch */
};

struct forwarder {
	int listen_fd; /* the caller's */
	int signal_fd;
	bool is_stopping;
	bool is_confined;
	uint64_t epoch; /* newest met */
	enum dp_state state;
	struct engine *engine; /* NULL in DP_STATE_EMPTY */
	struct engine_identity identity;
	struct connection connections[CONNECTIONS_MAX];
	int poll_failures; /* in a row */
};

/* A request or an answer with its descriptors, by slot; -1: none. */
struct parcel {
	struct dp_msg msg;
	int fds[DP_FD_SLOTS];
};

/* Control message buffer for all descriptors a parcel can have. */
union fd_space {
	struct cmsghdr align;
	uint8_t bytes[CMSG_SPACE(sizeof(int) * DP_FD_SLOTS)];
};

/* --- messages --------------------------------------------------------------- */

/**
 * has_slot() - Does a message say that a descriptor came along?
 * @msg:	The message
 * @slot:	Which
 *
 * Return: true if it does
 */
static bool has_slot(const struct dp_msg *msg, int slot)
{
	return msg->fd_mask[slot / 64] >> slot % 64 & 1;
}

/**
 * close_fds() - Close the descriptors of a parcel
 * @parcel:	The parcel
 */
static void close_fds(struct parcel *parcel)
{
	for (int i = 0; i < DP_FD_SLOTS; i++) {
		if (parcel->fds[i] >= 0)
			close(parcel->fds[i]);
		parcel->fds[i] = -1;
	}
}

/**
 * sort_fds() - Put received descriptors where the message says they belong
 * @parcel:	Message received; descriptors are filled in
 * @hdr:	Header with control messages
 *
 * Return: true, or false if their number is not what the message says; all are closed then
 */
static bool sort_fds(struct parcel *parcel, struct msghdr *hdr)
{
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(hdr);
	bool has_fds = cmsg && cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS;
	size_t count = has_fds ? (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;
	size_t used = 0;
	bool is_whole = !(parcel->msg.fd_mask[DP_FD_SLOTS / 64] >> DP_FD_SLOTS % 64);

	for (int i = 0; i < DP_FD_SLOTS && is_whole; i++) {
		if (!has_slot(&parcel->msg, i))
			continue;
		is_whole = used < count;
		if (is_whole)
			memcpy(&parcel->fds[i], CMSG_DATA(cmsg) + used++ * sizeof(int), sizeof(int));
	}
	if (is_whole && used == count)
		return true;
	for (; used < count; used++) {
		int fd;

		memcpy(&fd, CMSG_DATA(cmsg) + used * sizeof(int), sizeof(int));
		close(fd);
	}
	close_fds(parcel);
	return false;
}

/**
 * receive() - Receive one request
 * @fd:		Connection
 * @parcel:	Filled in; its descriptors are the caller's to close
 *
 * Return: true, or false if the connection ended or broke the protocol
 */
static bool receive(int fd, struct parcel *parcel)
{
	union fd_space space;
	uint8_t surplus; /* one byte more than a message is how an oversized one shows */
	struct iovec iov[2] = {{&parcel->msg, sizeof(parcel->msg)}, {&surplus, 1}};
	struct msghdr hdr = {.msg_iov = iov, .msg_iovlen = 2, .msg_control = &space, .msg_controllen = sizeof(space)};
	ssize_t n = recvmsg(fd, &hdr, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	memset(parcel->fds, -1, sizeof(parcel->fds));
	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	if (n != (ssize_t)sizeof(parcel->msg))
		memset(parcel->msg.fd_mask, 0xff, sizeof(parcel->msg.fd_mask)); /* sort_fds() closes what came along */
	if (!sort_fds(parcel, &hdr))
		return false;
	if (parcel->msg.magic != DP_CTL_MAGIC || (hdr.msg_flags & MSG_CTRUNC)) {
		close_fds(parcel);
		return false;
	}
	return true;
}

/**
 * answer() - Send an answer
 * @fd:		Connection
 * @parcel:	Message, and borrowed descriptors for the bits of its fd_mask
 *
 * Return: true, or false if the other side does not take it
 */
static bool answer(int fd, const struct parcel *parcel)
{
	union fd_space space;
	struct iovec iov = {(void *)(uintptr_t)&parcel->msg, sizeof(parcel->msg)};
	struct msghdr hdr = {.msg_iov = &iov, .msg_iovlen = 1};
	size_t count = 0;

	memset(&space, 0, sizeof(space));
	for (int i = 0; i < DP_FD_SLOTS; i++) {
		if (has_slot(&parcel->msg, i))
			memcpy(CMSG_DATA(&space.align) + count++ * sizeof(int), &parcel->fds[i], sizeof(int));
	}
	if (count) {
		hdr.msg_control = &space;
		hdr.msg_controllen = CMSG_SPACE(count * sizeof(int));
		space.align = (struct cmsghdr){
			.cmsg_len = CMSG_LEN(count * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
	}
	return sendmsg(fd, &hdr, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)sizeof(parcel->msg);
}

/* --- what each request does -------------------------------------------------- */

/**
 * go() - Start, or start anew, with the descriptors of a request
 * @forwarder:	State
 * @request:	GO
 *
 * Return: 0 or -errno; then nothing has changed
 */
static int go(struct forwarder *forwarder, const struct parcel *request)
{
	struct engine *next;
	int err = engine_create(&request->msg.config, request->fds, &forwarder->identity, &next);

	if (err)
		return err;
	dp_engine_destroy(forwarder->engine);
	forwarder->engine = next;
	dp_engine_start(next);
	forwarder->state = DP_STATE_RUNNING;
	return 0;
}

/**
 * command() - Do what only the newest control may ask
 * @forwarder:	State
 * @request:	The request
 *
 * Return: 0 or -errno
 */
static int command(struct forwarder *forwarder, const struct parcel *request)
{
	uint16_t type = request->msg.type;

	if (type == DP_MSG_GO)
		return go(forwarder, request);
	if (type == DP_MSG_STOP) {
		forwarder->is_stopping = true;
		return 0;
	}
	if (!forwarder->engine)
		return -ENOTCONN;
	switch (type) {
	case DP_MSG_TAKE:
		return 0;
	case DP_MSG_PUBLISH:
		return request->fds[DP_FD_FIB] < 0 ? -EINVAL
						   : dp_engine_publish(forwarder->engine, request->fds[DP_FD_FIB]);
	case DP_MSG_QUIESCE:
		forwarder->state = DP_STATE_QUIESCED;
		return dp_engine_quiesce(forwarder->engine);
	case DP_MSG_RESUME:
		forwarder->state = DP_STATE_RUNNING;
		return dp_engine_resume(forwarder->engine);
	default:
		return -EOPNOTSUPP;
	}
}

/**
 * obey() - Do what a request says, if its sender may say it
 * @forwarder:	State
 * @connection:	Who asks
 * @request:	The request
 *
 * Return: 0; -EPROTO for another version; -EPERM before HELLO; -ESTALE for a
 * control older than one met before; -errno of what was tried
 */
static int obey(struct forwarder *forwarder, struct connection *connection, const struct parcel *request)
{
	if (request->msg.abi != DP_ABI)
		return -EPROTO;
	if (request->msg.type == DP_MSG_INSPECT)
		return 0;
	if (request->msg.type == DP_MSG_HELLO) {
		if (request->msg.epoch < forwarder->epoch)
			return -ESTALE;
		forwarder->epoch = request->msg.epoch;
		connection->epoch = request->msg.epoch;
		connection->is_known = true;
		return 0;
	}
	if (!connection->is_known)
		return -EPERM;
	if (connection->epoch != forwarder->epoch)
		return -ESTALE;
	return command(forwarder, request);
}

/**
 * explain() - Say in words why a request failed
 * @err:	-errno of obey()
 *
 * Return: static text
 */
static const char *explain(int err)
{
	switch (err) {
	case -EPROTO:
		return "this forwarder speaks another version of the protocol";
	case -ESTALE:
		return "a newer control has taken over";
	case -EPERM:
		return "say HELLO first";
	case -ENOTCONN:
		return "this forwarder has no descriptors yet";
	case -EINVAL:
		return "configuration or descriptors that cannot work";
	case -EBADMSG:
		return "damaged table or counters";
	case -EOPNOTSUPP:
		return "unknown request";
	default:
		return strerror(-err);
	}
}

/**
 * describe() - Fill in what every answer says, and the descriptors this one carries
 * @forwarder:	State
 * @request:	What is answered
 * @err:	0 or -errno of obey()
 * @reply:	Filled in; descriptors are borrowed
 */
static void describe(const struct forwarder *forwarder, const struct dp_msg *request, int err, struct parcel *reply)
{
	memset(reply, 0, sizeof(*reply));
	memset(reply->fds, -1, sizeof(reply->fds));
	reply->msg.magic = DP_CTL_MAGIC;
	reply->msg.abi = DP_ABI;
	reply->msg.type = request->type;
	reply->msg.seq = request->seq;
	reply->msg.error = err;
	reply->msg.epoch = forwarder->epoch;
	reply->msg.state = forwarder->state;
	reply->msg.pid = forwarder->identity.pid;
	reply->msg.is_confined = forwarder->is_confined;
	if (err)
		snprintf(reply->msg.text, sizeof(reply->msg.text), "%s", explain(err));
	if (!forwarder->engine)
		return;
	reply->msg.config = *engine_config(forwarder->engine);
	reply->msg.generation = engine_generation(forwarder->engine);
	if (err || (request->type != DP_MSG_TAKE && request->type != DP_MSG_INSPECT))
		return;
	for (int i = 0; i < DP_FD_SLOTS; i++) {
		bool is_wanted = request->type == DP_MSG_TAKE || i == DP_FD_COUNTERS || i == DP_FD_FIB;

		reply->fds[i] = engine_fds(forwarder->engine)[i];
		if (is_wanted && reply->fds[i] >= 0)
			reply->msg.fd_mask[i / 64] |= 1ULL << i % 64;
	}
}

/* --- connections -------------------------------------------------------------- */

/**
 * rest() - Take a system call that failed, and perhaps would again: count it and wait a moment
 * @forwarder:	State
 * @err:	Positive errno; that there was nothing to do, or a signal came, is no fault
 */
static void rest(struct forwarder *forwarder, int err)
{
	const struct timespec pause = {.tv_nsec = PAUSE_MS * 1000000L};

	if (forwarder->engine && err != EAGAIN && err != EINTR)
		engine_count_fault(forwarder->engine);
	nanosleep(&pause, NULL);
}

/**
 * hang_up() - End a connection
 * @connection:	The connection
 */
static void hang_up(struct connection *connection)
{
	close(connection->fd);
	*connection = (struct connection){.fd = -1};
}

/**
 * serve_request() - Receive, do and answer one request
 * @forwarder:	State
 * @connection:	Where it comes from; ended if it breaks the protocol
 */
static void serve_request(struct forwarder *forwarder, struct connection *connection)
{
	struct parcel request = {.msg = {.type = 0}}, reply;
	bool is_sound = receive(connection->fd, &request);
	int err;

	if (is_sound && !request.msg.magic)
		return; /* nothing there after all */
	if (!is_sound) {
		hang_up(connection);
		return;
	}
	err = obey(forwarder, connection, &request);
	describe(forwarder, &request.msg, err, &reply);
	close_fds(&request);
	if (!answer(connection->fd, &reply) || err == -EPROTO)
		hang_up(connection);
}

/**
 * welcome() - Accept a connection
 * @forwarder:	State; with all places taken, the newcomer is turned away
 */
static void welcome(struct forwarder *forwarder)
{
	int fd = accept4(forwarder->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	for (int i = 0; fd >= 0 && i < CONNECTIONS_MAX; i++) {
		if (forwarder->connections[i].fd >= 0)
			continue;
		forwarder->connections[i].fd = fd;
		return;
	}
	if (fd >= 0)
		close(fd);
	else
		rest(forwarder, errno);
}

/**
 * serve_round() - Wait for something to happen and see to it
 * @forwarder:	State
 *
 * Return: 0, or -errno of poll() if that fails for ever
 */
static int serve_round(struct forwarder *forwarder)
{
	struct pollfd polls[2 + CONNECTIONS_MAX];
	int err;

	polls[0] = (struct pollfd){.fd = forwarder->signal_fd, .events = POLLIN};
	polls[1] = (struct pollfd){.fd = forwarder->listen_fd, .events = POLLIN};
	for (int i = 0; i < CONNECTIONS_MAX; i++)
		polls[2 + i] = (struct pollfd){.fd = forwarder->connections[i].fd, .events = POLLIN};
	if (poll(polls, 2 + CONNECTIONS_MAX, -1) < 0) {
		err = errno;
		rest(forwarder, err);
		return ++forwarder->poll_failures < POLL_FAILURES_MAX ? 0 : -err;
	}
	forwarder->poll_failures = 0;
	if (polls[0].revents)
		forwarder->is_stopping = true;
	for (int i = 0; i < CONNECTIONS_MAX; i++) {
		if (polls[2 + i].revents)
			serve_request(forwarder, &forwarder->connections[i]);
	}
	if (polls[1].revents)
		welcome(forwarder);
	return 0;
}

/**
 * open_signals() - Turn SIGTERM and SIGINT into something to poll
 *
 * Return: descriptor owned by the caller, or -errno
 */
static int open_signals(void)
{
	sigset_t set;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	if (pthread_sigmask(SIG_BLOCK, &set, NULL))
		return -EINVAL;
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

/**
 * dp_serve() - Be a forwarder until told to stop
 * @listen_fd:	Listening SOCK_SEQPACKET socket, still the caller's
 * @is_confined:	What answers say: dp_confine() was called
 *
 * Blocks SIGTERM and SIGINT in the calling thread and takes them as STOP.
 *
 * Return: 0 after STOP or a signal, -errno if it cannot serve
 */
int dp_serve(int listen_fd, int is_confined)
{
	struct forwarder forwarder = {
		.listen_fd = listen_fd,
		.is_confined = is_confined,
		.identity = {.start_ns = counters_now_ns(), .pid = (uint64_t)getpid()},
	};
	int err = 0;

	for (int i = 0; i < CONNECTIONS_MAX; i++)
		forwarder.connections[i].fd = -1;
	forwarder.signal_fd = open_signals();
	if (forwarder.signal_fd < 0)
		return forwarder.signal_fd;
	while (!forwarder.is_stopping && !err)
		err = serve_round(&forwarder);
	dp_engine_destroy(forwarder.engine);
	for (int i = 0; i < CONNECTIONS_MAX; i++) {
		if (forwarder.connections[i].fd >= 0)
			hang_up(&forwarder.connections[i]);
	}
	close(forwarder.signal_fd);
	return err;
}
