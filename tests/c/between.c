/* SPDX-License-Identifier: Apache-2.0 */
/*
 * between.c - in the middle of a long batch those come in between who have little, and nobody else.
 *
 *     between [SCENARIO]
 */
#include "paths.h"
#include "worker.c"

enum { OTHER = 2000, BULK_PACKETS = 8, BULK_PAYLOAD = 60000, BULK_SIZE = 1398, STEPS_NEVER = 1000 };

static struct worker worker;

/* The other source: a packet that waits there, and when it begins to. */
static struct {
	uint8_t bytes[KERNEL_VNET + PKT_MAX];
	uint32_t len;   /* 0: nothing waits */
	uint32_t steps; /* sends or writes of bulk until it does */
	struct sketch packet;
	struct epoll_event event; /* as the worker asked for it */
	uint32_t seen_after;      /* packets that had left when it came */
} other;

/**
 * step() - The kernel took something: perhaps that was what the other source waited for
 */
static void step(void)
{
	if (other.steps == STEPS_NEVER || --other.steps)
		return;
	other.steps = STEPS_NEVER;
	memset(other.bytes, 0, KERNEL_VNET);
	other.len = KERNEL_VNET + sketch_packet(other.bytes + KERNEL_VNET, &other.packet, true);
	other.seen_after = kernel.log->count;
}

static int fake_epoll_ctl(int epoll_fd, int op, int fd, struct epoll_event *event)
{
	CHECK(epoll_fd >= 0 && op == EPOLL_CTL_ADD && event->events == EPOLLIN);
	if (fd == OTHER)
		other.event = *event;
	return 0;
}

static int fake_epoll_wait(int epoll_fd, struct epoll_event *events, int count, int timeout_ms)
{
	CHECK(epoll_fd >= 0 && count > 1 && !timeout_ms);
	events[0] = other.event;
	return other.len ? 1 : 0;
}

static ssize_t fake_read(int fd, void *buf, size_t len)
{
	uint32_t taken = other.len;

	if (fd != OTHER)
		return kernel_read(fd, buf, len);
	if (!taken)
		return kernel_refuse(EAGAIN);
	CHECK(taken <= len);
	memcpy(buf, other.bytes, taken);
	other.len = 0;
	return taken;
}

static int fake_sendmmsg(int fd, struct mmsghdr *msgs, unsigned int count, int flags)
{
	int sent = kernel_sendmmsg(fd, msgs, count, flags);

	step();
	return sent;
}

static ssize_t fake_writev(int fd, const struct iovec *iov, int count)
{
	ssize_t written = kernel_writev(fd, iov, count);

	step();
	return written;
}

static const struct sys calls = {
	.epoll_ctl = fake_epoll_ctl,
	.epoll_wait = fake_epoll_wait,
	.read = fake_read,
	.write = kernel_write,
	.writev = fake_writev,
	.recvmmsg = kernel_recvmmsg,
	.sendmmsg = fake_sendmmsg,
};

/**
 * open_worker() - Begin with a worker that serves two queues of the TUN, and a socket
 */
static void open_worker(void)
{
	static struct fib_slot slot;

	paths_open(DP_TIER_MMSG | DP_TIER_UDP_GSO | DP_TIER_TUN_GRO, 0);
	sys = &calls;
	lab.config.queues = 2;
	lab.config.threads = 1;
	lab.fds[path_slot(DP_FD_TUN, 1)] = OTHER;
	memset(&worker, 0, sizeof(worker));
	memset(&other, 0, sizeof(other));
	other.steps = STEPS_NEVER;
	free(lab.path.tx_buffers);
	free(lab.path.rx_buffers);
	worker.path = lab.path;
	CHECK(!worker_init(&worker, &slot, 0));
	worker.path.fib = lab.fib;
}

/**
 * close_worker() - Check the books, and end
 */
static void close_worker(void)
{
	CHECK(kernel.first == kernel.count && !other.len);
	CHECK(!worker.path.out.count && !worker.express.out.count);
	CHECK(!worker.path.merge.count && !worker.express.merge.count);
	CHECK(lab.counters.offered[DP_TX] == lab.counters.forwarded[DP_TX]);
	CHECK(lab.counters.offered[DP_RX] == lab.counters.forwarded[DP_RX]);
	CHECK(lab.counters.forwarded[DP_TX] + lab.counters.forwarded[DP_RX] == kernel.log->count);
	worker_free(&worker);
	dp_fib_close(lab.fib);
}

/**
 * source() - Which of the worker's sources is it?
 * @fd:		Its descriptor
 *
 * Return: its index
 */
static uint32_t source(int fd)
{
	uint32_t i = 1;

	while (worker.sources[i].fd != fd)
		CHECK(++i < worker.count);
	return i;
}

/**
 * serve() - Let the worker take a batch from one source
 * @fd:		Its descriptor
 */
static void serve(int fd)
{
	worker.serving = source(fd);
	take(&worker, &worker.path, worker.serving, ALONE_BYTES);
}

/**
 * queue_bulk() - Let super-packets of a flow to peer 1 wait at the first queue
 */
static void queue_bulk(void)
{
	struct sketch bulk = {
		.family = 4, .proto = PROTO_TCP, .peer = 1, .port = 1, .payload = BULK_PAYLOAD, .size = BULK_SIZE};

	for (uint32_t i = 0; i < BULK_PACKETS; i++, bulk.seq += BULK_PAYLOAD)
		kernel_from_pod(&bulk);
}

/**
 * offer() - Let the other source have a packet from now on, or in the middle of what comes next
 * @packet:	The packet
 * @steps:	Sends or writes until then; 0: now
 */
static void offer(const struct sketch *packet, uint32_t steps)
{
	other.packet = *packet;
	other.packet.peer = 2;
	other.steps = steps;
	if (!steps) {
		other.steps = 1;
		step();
	}
}

/**
 * place() - Where in the order of all packets is that of the other source?
 *
 * Return: its index
 */
static uint32_t place(void)
{
	uint32_t found = KERNEL_SEEN;

	for (uint32_t i = 0; i < kernel.log->count; i++) {
		if (kernel.log->seen[i].where == SKETCH_VTEP + 2)
			found = i;
	}
	return found;
}

static const struct sketch ping = {.family = 4, .proto = PROTO_UDP, .port = 9, .payload = 64};
static const struct sketch ack = {.family = 4, .proto = PROTO_TCP, .port = 9};
static const struct sketch much = {.family = 4, .proto = PROTO_UDP, .port = 9, .payload = LITTLE_BYTES};

/**
 * carry_bulk() - Carry bulk, while something comes after two steps
 * @packet:	What comes
 *
 * Return: whether it left in between, at once
 */
static bool carry_bulk(const struct sketch *packet)
{
	uint32_t first = kernel.log->count, at;

	queue_bulk();
	offer(packet, 2);
	serve(KERNEL_TUN);
	CHECK(other.steps == STEPS_NEVER && kernel.first == kernel.count);
	at = place();
	if (other.len) {
		CHECK(at == KERNEL_SEEN || at < first);
		serve(OTHER);
		CHECK(place() == kernel.log->count - 1);
		return false;
	}
	CHECK(at == other.seen_after && at < kernel.log->count - 1);
	return true;
}

/**
 * sent() - A ping leaves between the messages of a batch from the TUN
 */
static void sent(void)
{
	open_worker();
	CHECK(carry_bulk(&ping) && carry_bulk(&ping));
	close_worker();
}

/**
 * received() - It leaves between the super-packets of a batch from the underlay, too
 */
static void received(void)
{
	static uint8_t message[OUTBOX_BYTES];

	open_worker();
	for (uint32_t i = 0; i < BULK_PACKETS; i++) {
		uint32_t len = 0, size = 0;

		for (uint32_t j = 0; j < 40; j++) {
			struct sketch bulk = {.family = 4,
					      .proto = PROTO_TCP,
					      .peer = 1,
					      .port = 1,
					      .payload = BULK_SIZE,
					      .seq = (i * 40 + j) * BULK_SIZE};
			uint8_t inner[PACKET_ROOM];
			uint32_t inner_len = sketch_packet(inner, &bulk, false);

			size = packet_vxlan(message + len, inner, inner_len);
			len += size;
		}
		kernel_queue(message, len, size, SKETCH_VTEP + 1);
	}
	offer(&ping, 2);
	serve(KERNEL_UDP);
	CHECK(lab.counters.forwarded[DP_RX] == 40 * BULK_PACKETS);
	CHECK(!other.len && place() == other.seen_after && place() < kernel.log->count - 1);
	close_worker();
}

/**
 * acknowledgements() - A source that only acknowledges waits, until it has something else
 */
static void acknowledgements(void)
{
	open_worker();
	CHECK(carry_bulk(&ack)); /* nothing was known of it */
	CHECK(!carry_bulk(&ack) && !carry_bulk(&ping));
	CHECK(carry_bulk(&ping));
	close_worker();
}

/**
 * bulk() - A source that had much waits, until it has little
 */
static void bulk(void)
{
	open_worker();
	offer(&much, 0);
	serve(OTHER);
	CHECK(!carry_bulk(&ping));
	CHECK(carry_bulk(&ping));
	close_worker();
}

/**
 * refusal() - What the kernel refuses on one path is not tried on the other
 */
static void refusal(void)
{
	open_worker();
	kernel.run_error = EIO;
	queue_bulk();
	serve(KERNEL_TUN);
	CHECK(kernel.refusals && !worker.path.out.has_runs && !worker.express.out.has_runs);
	close_worker();
}

int main(int argc, char **argv)
{
	static const struct scenario scenarios[] = {
		{"sent", sent}, {"received", received}, {"acknowledgements", acknowledgements},
		{"bulk", bulk}, {"refusal", refusal},
	};

	return paths_run(scenarios, sizeof(scenarios) / sizeof(*scenarios), argc > 1 ? argv[1] : NULL);
}
