/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker_calls.c - a worker that carries packets makes six system calls, sleeps, and allocates nothing.
 *
 * A real engine carries real packets over the loopback device while tables are replaced and it is paused. The
 * first time its worker polls, it is put under a seccomp filter of its own that kills the process at any
 * system call which worker.c does not promise (brk, mmap and munmap among them); calls of malloc() and its
 * kin are counted by this program's own.
 *
 *     worker_calls MILLISECONDS        plain build only: sanitizers make system calls of their own
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "packets.h"
#include "sys.h"
#include "tables.h"

enum { VNET_LEN = 12, PORT_FIRST = 20000, PORT_LAST = 29999, BUFFER_BYTES = 1 << 20, SUBNETS = 4 };

/* --- what a worker may do ------------------------------------------------------ */

static _Thread_local bool is_worker;
static _Atomic uint64_t allocations; /* by workers */

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t align, size_t size);
void __libc_free(void *old);

void *malloc(size_t size)
{
	allocations += is_worker;
	return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
	allocations += is_worker;
	return __libc_calloc(count, size);
}

void *realloc(void *old, size_t size)
{
	allocations += is_worker;
	return __libc_realloc(old, size);
}

void *aligned_alloc(size_t align, size_t size)
{
	allocations += is_worker;
	return __libc_memalign(align, size);
}

void free(void *old)
{
	allocations += is_worker;
	__libc_free(old);
}

#define ALLOW(call) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (call), 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

/**
 * restrict_thread() - Let this thread make the promised system calls, and no other, from now on
 */
static void restrict_thread(void)
{
	static struct sock_filter rules[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		ALLOW(SYS_read),
		ALLOW(SYS_write),
		ALLOW(SYS_writev),
		ALLOW(SYS_recvmmsg),
		ALLOW(SYS_sendmmsg),
#ifdef SYS_epoll_wait
		ALLOW(SYS_epoll_wait),
#endif
		ALLOW(SYS_epoll_pwait), /* where there is no other */
		ALLOW(SYS_sched_yield),
		ALLOW(SYS_futex),         /* to park */
		ALLOW(SYS_clock_gettime), /* where the vDSO has none */
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog program = {.len = sizeof(rules) / sizeof(*rules), .filter = rules};

	CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	is_worker = true;
	CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

/**
 * restricting_epoll_wait() - epoll_wait(), which restricts the thread when it comes here first
 * @epoll_fd:	As there
 * @events:	As there
 * @count:	As there
 * @timeout_ms:	As there
 *
 * Return: as there
 */
static int restricting_epoll_wait(int epoll_fd, struct epoll_event *events, int count, int timeout_ms)
{
	if (!is_worker)
		restrict_thread();
	return epoll_wait(epoll_fd, events, count, timeout_ms);
}

static const struct sys calls = {
	.read = read,
	.write = write,
	.writev = writev,
	.recvmmsg = recvmmsg,
	.sendmmsg = sendmmsg,
	.epoll_ctl = epoll_ctl,
	.epoll_wait = restricting_epoll_wait,
};

/* --- the engine ------------------------------------------------------------------ */

/* All ends of one engine on the loopback device. */
struct lab {
	struct dp_config config;
	int fds[DP_FD_SLOTS];
	int pods;    /* the other end of the TUN */
	int udp_out; /* the peer's sockets */
	int raw_out;
	dp_engine *engine;
	dp_counters *counters;
};

/**
 * make_table() - Subnets 0, 1 over VXLAN, 2, 3 over IPIP, all at the peer; subnet 4 is nobody's
 * @generation:	Which
 *
 * Return: the descriptor
 */
static int make_table(uint64_t generation)
{
	struct dp_addr vtep = {.family = 4, .bytes = {127, 0, 0, 2}};
	struct dp_subnet subnets[SUBNETS] = {0};
	struct dp_peer peer = {.id = 5, .addr4 = vtep};
	struct dp_prefix theirs = {.addr = {.family = 4, .bytes = {10, 244, 2}}, .len = 24};

	for (uint8_t i = 0; i < SUBNETS; i++)
		subnets[i] = (struct dp_subnet){.prefix = {.addr = {.family = 4, .bytes = {10, 0, i}}, .len = 24},
						.encap = i < 2 ? DP_ENCAP_VXLAN : DP_ENCAP_IPIP,
						.vtep = vtep,
						.peer_id = 5};
	return table_build(generation, subnets, SUBNETS, &peer, theirs);
}

/**
 * open_out() - Open a socket of the peer, 127.0.0.2
 * @type:	SOCK_DGRAM or SOCK_RAW
 * @proto:	IP protocol
 *
 * Return: the descriptor
 */
static int open_out(int type, int proto)
{
	struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002)};
	int fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, proto);

	if (fd < 0)
		return -1;
	CHECK(!bind(fd, (struct sockaddr *)&from, sizeof(from)));
	return fd;
}

/**
 * open_underlay() - Open the engine's sockets; raw ones only if we may
 * @lab:	Its config learns the port
 */
static void open_underlay(struct lab *lab)
{
	int granted;

	for (uint16_t port = PORT_FIRST; port < PORT_LAST && lab->fds[DP_FD_UDP4] < 0; port++) {
		lab->config.vxlan_port = port;
		lab->fds[DP_FD_UDP4] = dp_underlay_open(DP_FD_UDP4, &lab->config, "lo", BUFFER_BYTES, &granted);
	}
	lab->fds[DP_FD_UDP4_TX] = dp_underlay_open(DP_FD_UDP4_TX, &lab->config, "lo", BUFFER_BYTES, &granted);
	CHECK(lab->fds[DP_FD_UDP4] >= 0 && lab->fds[DP_FD_UDP4_TX] >= 0);
	lab->fds[DP_FD_RAW4] = dp_underlay_open(DP_FD_RAW4, &lab->config, "lo", BUFFER_BYTES, &granted);
	lab->fds[DP_FD_RAW4_TX] = dp_underlay_open(DP_FD_RAW4_TX, &lab->config, "lo", BUFFER_BYTES, &granted);
	lab->udp_out = open_out(SOCK_DGRAM, 0);
	lab->raw_out = open_out(SOCK_RAW, IPPROTO_IPIP);
}

/**
 * open_lab() - Start an engine
 * @lab:	Filled in
 */
static void open_lab(struct lab *lab)
{
	int tun[2];

	lab->config = packet_config;
	lab->config.tun_mtu = 1450;
	lab->config.vnet_hdr_len = VNET_LEN;
	lab->config.underlay_ifindex = if_nametoindex("lo");
	lab->config.underlay4 = (struct dp_addr){.family = 4, .bytes = {127, 0, 0, 1}};
	lab->config.icmp_per_s = 1000;
	lab->config.icmp_burst = 100;
	for (int i = 0; i < DP_FD_SLOTS; i++)
		lab->fds[i] = -1;
	CHECK(!socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, tun));
	lab->fds[DP_FD_TUN] = tun[0];
	lab->pods = tun[1];
	lab->fds[DP_FD_COUNTERS] = dp_counters_create(1, 64);
	lab->fds[DP_FD_FIB] = make_table(1);
	open_underlay(lab);
	CHECK(!dp_counters_open(lab->fds[DP_FD_COUNTERS], 0, &lab->counters));
	CHECK(!dp_engine_create(&lab->config, lab->fds, &lab->engine) && !dp_engine_start(lab->engine));
}

/* --- traffic ------------------------------------------------------------------------ */

/**
 * send_from_pods() - Give the engine a packet to every subnet, and to one that is nobody's
 * @lab:	The lab
 */
static void send_from_pods(const struct lab *lab)
{
	uint8_t packet[VNET_LEN + PACKET_ROOM] = {0};
	uint8_t *ip = packet + VNET_LEN;

	for (uint32_t subnet = 0; subnet <= SUBNETS; subnet++) {
		uint32_t len = packet_ip4(ip, PROTO_UDP, 0, 200 * subnet);

		store32(ip + IP4_SRC, 0x0af40105);
		store32(ip + IP4_DST, 0x0a000005 + (subnet << 8));
		packet_repair(ip, len);
		(void)!write(lab->pods, packet, VNET_LEN + len);
	}
}

/**
 * send_from_peer() - Send the engine a packet in each encapsulation
 * @lab:	The lab
 * @is_good:	A good one, or one that is refused
 */
static void send_from_peer(const struct lab *lab, bool is_good)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(lab->config.vxlan_port)};
	uint8_t inner[PACKET_ROOM], frame[PACKET_ROOM + VXLAN_PUSH];
	uint32_t inner_len = packet_ip4(inner, PROTO_UDP, 0, 64), len;

	inner[IP4_TTL] = is_good ? inner[IP4_TTL] : 0;
	len = packet_vxlan(frame, inner, inner_len);
	to.sin_addr.s_addr = htonl(0x7f000001);
	(void)!sendto(lab->udp_out, frame, len, 0, (struct sockaddr *)&to, sizeof(to));
	to.sin_port = 0;
	if (lab->raw_out >= 0)
		(void)!sendto(lab->raw_out, inner, inner_len, 0, (struct sockaddr *)&to, sizeof(to));
}

/**
 * drain() - Take what the engine gave to the pods
 * @lab:	The lab
 */
static void drain(const struct lab *lab)
{
	uint8_t packet[PACKET_ROOM];

	while (read(lab->pods, packet, sizeof(packet)) > 0)
		;
}

/**
 * republish() - Put another table in force, and sometimes pause the engine meanwhile
 * @lab:	The lab
 * @generation:	Of the new table
 */
static void republish(struct lab *lab, uint64_t generation)
{
	int fd = make_table(generation);

	if (generation % 8 == 0)
		dp_engine_quiesce(lab->engine);
	CHECK(!dp_engine_publish(lab->engine, fd));
	close(fd);
	if (generation % 8 == 0)
		dp_engine_resume(lab->engine);
}

/**
 * now_ms() - The time
 *
 * Return: milliseconds of CLOCK_MONOTONIC
 */
static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
	uint64_t end_ms = now_ms() + (argc > 1 ? strtoul(argv[1], NULL, 10) : 1000), generation = 1;
	struct dp_thread_counters total;
	static struct lab lab;
	uint64_t known[DP_DIR_COUNT];

	sys = &calls;
	open_lab(&lab);
	for (uint32_t round = 0; now_ms() < end_ms; round++) {
		send_from_pods(&lab);
		send_from_peer(&lab, round % 4);
		drain(&lab);
		if (round % 64 == 0)
			republish(&lab, ++generation);
		if (round % 16 == 0)
			sched_yield();
	}
	dp_engine_quiesce(lab.engine);
	dp_counters_total(lab.counters, &total);
	for (int dir = 0; dir < DP_DIR_COUNT; dir++) {
		known[dir] = total.forwarded[dir];
		for (int drop = 0; drop < DP_DROP_COUNT; drop++)
			known[dir] += total.drops[dir][drop];
		CHECK(total.offered[dir] == known[dir] && total.forwarded[dir] > 100);
	}
	CHECK(total.drops[DP_TX][DP_DROP_NO_PEER] && total.icmp_sent && total.drops[DP_RX][DP_DROP_OUTER_DST]);
	CHECK(total.wakeups > 0 && generation > 10);
	CHECK(allocations == 0);
	printf("%lu packets out, %lu in, %lu tables\n", total.offered[DP_TX], total.offered[DP_RX], generation);
	fflush(stdout);
	_exit(0); /* the worker may not even end, under its filter */
}
