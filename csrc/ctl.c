/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ctl.c - the forwarder process: it listens on a socket and does what control says.
 *
 * DOC: Theory of operation
 *
 * One thread serves a listening SOCK_SEQPACKET socket and a few connections;
 * the workers never wait for it. Requests are struct dp_msg (dp.h) with
 * descriptors attached (parcel.c). What is not exactly one well-formed message
 * closes the connection it came over and touches nothing else.
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
 *
 * A hand-over to another forwarder: this one is told QUIESCE, the other one GO
 * with the turn (dp.h) that this one has, this one STOP, or RESUME if the other
 * one did not go. Whoever says so may die at any moment in between. Then this one
 * takes its turn again and goes on, unless the other one took it, which carries,
 * and this one ends. A GO that is read late finds its turn gone, and is refused.
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
#include "parcel.h"

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
	const char *version; /* of the product */
	uint64_t epoch;      /* newest met */
	enum dp_state state;
	struct engine *engine; /* NULL in DP_STATE_EMPTY */
	struct engine_identity identity;
	const struct connection *parked_by; /* in DP_STATE_QUIESCED: who is to say how it goes on */
	struct connection connections[CONNECTIONS_MAX];
	int poll_failures; /* in a row */
};

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
	err = engine_take_turn(next, request->msg.turn);
	if (err) {
		dp_engine_destroy(next);
		return err;
	}
	dp_engine_destroy(forwarder->engine);
	forwarder->engine = next;
	engine_go(next);
	forwarder->state = DP_STATE_RUNNING;
	return 0;
}

/**
 * resume() - Let parked workers go on, if nobody else carries
 * @forwarder:	With an engine
 * @turn:	As in counters_take_turn()
 *
 * Return: 0 or -EBUSY
 */
static int resume(struct forwarder *forwarder, uint64_t turn)
{
	int err;

	dp_engine_quiesce(forwarder->engine);
	err = engine_take_turn(forwarder->engine, turn);
	if (err)
		return err;
	forwarder->state = DP_STATE_RUNNING;
	return dp_engine_resume(forwarder->engine);
}

/**
 * command() - Do what only the newest control may ask
 * @forwarder:	State
 * @connection:	Of that control
 * @request:	The request
 *
 * Return: 0 or -errno
 */
static int command(struct forwarder *forwarder, const struct connection *connection, const struct parcel *request)
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
		forwarder->parked_by = connection;
		return dp_engine_quiesce(forwarder->engine);
	case DP_MSG_RESUME:
		return resume(forwarder, request->msg.turn);
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
	if (request->msg.abi < DP_ABI - 1 || request->msg.abi > DP_ABI + 1)
		return -EPROTO;
	if (request->msg.type == DP_MSG_INSPECT)
		return 0;
	if (request->msg.type == DP_MSG_HELLO) {
		if (request->msg.epoch < forwarder->epoch)
			return -ESTALE;
		if (request->msg.epoch > forwarder->epoch)
			forwarder->parked_by = connection; /* who parked us is not obeyed any more */
		forwarder->epoch = request->msg.epoch;
		connection->epoch = request->msg.epoch;
		connection->is_known = true;
		return 0;
	}
	if (!connection->is_known)
		return -EPERM;
	if (connection->epoch != forwarder->epoch)
		return -ESTALE;
	return command(forwarder, connection, request);
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
	case -EBUSY:
		return "another forwarder carries by now";
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
static void describe(const struct forwarder *forwarder, const struct parcel *request, int err, struct parcel *reply)
{
	uint16_t type = request->msg.type;

	memset(reply, 0, sizeof(*reply));
	memset(reply->fds, -1, sizeof(reply->fds));
	reply->msg.magic = DP_CTL_MAGIC;
	reply->msg.abi = request->msg.abi == DP_ABI - 1 ? DP_ABI - 1 : DP_ABI;
	reply->size = request->size; /* whoever is older could not read more */
	reply->msg.type = type;
	reply->msg.seq = request->msg.seq;
	reply->msg.error = err;
	reply->msg.epoch = forwarder->epoch;
	reply->msg.state = forwarder->state;
	reply->msg.pid = forwarder->identity.pid;
	reply->msg.is_confined = forwarder->is_confined;
	reply->msg.build = dp_build();
	reply->msg.fib_layout = DP_FIB_LAYOUT;
	reply->msg.counters_layout = DP_COUNTERS_LAYOUT;
	snprintf(reply->msg.version, sizeof(reply->msg.version), "%s", forwarder->version);
	if (err)
		snprintf(reply->msg.text, sizeof(reply->msg.text), "%s", explain(err));
	if (!forwarder->engine)
		return;
	reply->msg.config = *engine_config(forwarder->engine);
	reply->msg.generation = engine_generation(forwarder->engine);
	reply->msg.turn = engine_turn(forwarder->engine);
	if (!engine_has_turn(forwarder->engine))
		reply->msg.state = DP_STATE_QUIESCED; /* its workers found that out, or will */
	if (err || (type != DP_MSG_TAKE && type != DP_MSG_INSPECT))
		return;
	for (int i = 0; i < DP_FD_SLOTS; i++) {
		bool is_wanted = type == DP_MSG_TAKE || i == DP_FD_COUNTERS || i == DP_FD_FIB;

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
 * go_on_alone() - Control is gone: carry on, or end if another forwarder does
 * @forwarder:	State
 * @connection:	Of the control that is gone
 */
static void go_on_alone(struct forwarder *forwarder, const struct connection *connection)
{
	if (!forwarder->engine)
		return;
	if (!engine_has_turn(forwarder->engine))
		forwarder->is_stopping = true;
	else if (forwarder->state == DP_STATE_QUIESCED && forwarder->parked_by == connection)
		forwarder->is_stopping = resume(forwarder, engine_turn(forwarder->engine)) != 0;
}

/**
 * hang_up() - End a connection
 * @forwarder:	State
 * @connection:	The connection
 */
static void hang_up(struct forwarder *forwarder, struct connection *connection)
{
	close(connection->fd);
	if (connection->is_known && connection->epoch == forwarder->epoch)
		go_on_alone(forwarder, connection);
	*connection = (struct connection){.fd = -1};
}

/**
 * serve_request() - Receive, do and answer one request
 * @forwarder:	State
 * @connection:	Where it comes from; ended if it breaks the protocol
 */
static void serve_request(struct forwarder *forwarder, struct connection *connection)
{
	struct parcel request, reply;
	bool is_sound = parcel_receive(connection->fd, &request);
	int err;

	if (is_sound && !request.msg.magic)
		return; /* nothing there after all */
	if (!is_sound) {
		hang_up(forwarder, connection);
		return;
	}
	err = obey(forwarder, connection, &request);
	describe(forwarder, &request, err, &reply);
	parcel_close(&request);
	if (!parcel_send(connection->fd, &reply) || err == -EPROTO)
		hang_up(forwarder, connection);
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
 * @version:	What answers say: of the product
 *
 * Blocks SIGTERM and SIGINT in the calling thread and takes them as STOP.
 *
 * Return: 0 after STOP or a signal, -errno if it cannot serve
 */
int dp_serve(int listen_fd, int is_confined, const char *version)
{
	struct forwarder forwarder = {
		.listen_fd = listen_fd,
		.is_confined = is_confined,
		.version = version,
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
			close(forwarder.connections[i].fd);
	}
	close(forwarder.signal_fd);
	return err;
}
