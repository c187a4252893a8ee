/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine_threads.c - while tables change and the engine pauses, every packet is counted once and none is misled.
 *
 * A whole engine runs on system calls made up here: the TUN and the socket never run dry, sends and writes fail
 * now and then, and runs of datagrams are refused now and then, in the end for good. In every table the VTEP
 * address, the VTEP MAC and the subnet of an entry carry the generation and the number of the entry, so a frame
 * made from two tables shows.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "packets.h"
#include "parse.h"
#include "sys.h"
#include "tables.h"
#include "underlay.h"

enum {
	PUBLISHES = 2000,
	SUBNETS = 20,
	STRANGE_SUBNETS = 4,
	IFINDEX = 7,
	PACKETS_MIN = 10000,
	VNET_LEN = 12,
	MTU = 1450
};
/* Of the worker, behind its eventfd: a TUN and a socket. */
enum { SOURCES = 2 };

enum { OUR_ADDR = 0xc0000201, PEER_ADDR = 0xc0000202, STRANGER_ADDR = 0xc0000242 };

/* What the made-up system calls did; written by the worker only, read when it has parked. */
static struct {
	uint64_t reads, writes, failed_writes, sends, failed_sends, receives, runs, refused_runs;
} done;
static _Atomic bool has_no_runs;  /* from now on the kernel refuses them with EIO */
static uint32_t refused_for_good; /* and did: the worker sends what it has queued, and makes no more */
static uint32_t refused_apart;    /* datagrams of a refused run that will be refused too */
static uint64_t dice = 9;

/* --- the system calls -------------------------------------------------------- */

/**
 * fake_read() - A packet from a pod to one of the subnets, some of which are nobody's
 * @fd:		The TUN
 * @buf:	Where to
 * @len:	Its size
 *
 * Return: as read()
 */
static ssize_t fake_read(int fd, void *buf, size_t len)
{
	uint8_t *ip = (uint8_t *)buf + VNET_LEN;
	uint32_t ip_len;

	if (len == sizeof(uint64_t)) /* the worker's own eventfd */
		return read(fd, buf, len);
	if (roll(&dice) % 16 == 0) {
		errno = EAGAIN;
		return -1;
	}
	memset(buf, 0, VNET_LEN);
	ip_len = packet_ip4(ip, PROTO_UDP, 0, 64);
	store32(ip + IP4_SRC, 0x0af40105);
	store32(ip + IP4_DST, 0x0a000005 + (roll(&dice) % (SUBNETS + STRANGE_SUBNETS) << 8));
	packet_repair(ip, ip_len);
	done.reads++;
	return VNET_LEN + ip_len;
}

/**
 * fake_write() - Take a packet for the TUN, or have no room for it
 * @fd:		The TUN
 * @buf:	Packet behind its virtio header
 * @len:	Its length
 *
 * Return: as write()
 */
static ssize_t fake_write(int fd, const void *buf, size_t len)
{
	(void)fd;
	CHECK(len > VNET_LEN && ((const uint8_t *)buf)[VNET_LEN] >> 4 == 4);
	if (roll(&dice) % 32 == 0) {
		done.failed_writes++;
		errno = roll(&dice) % 2 ? EIO : EAGAIN;
		return -1;
	}
	done.writes++;
	return (ssize_t)len;
}

/**
 * fake_writev() - Take a super-packet for the TUN, or have no room for it
 * @fd:		The TUN
 * @iov:	Its pieces, behind a virtio header
 * @count:	How many
 *
 * Return: as writev()
 */
static ssize_t fake_writev(int fd, const struct iovec *iov, int count)
{
	CHECK(count == 1); /* there is no TCP here, and no UDP with a checksum */
	return fake_write(fd, iov[0].iov_base, iov[0].iov_len);
}

/**
 * is_run() - Is a message to be cut into datagrams by the kernel?
 * @hdr:	The message
 *
 * Return: true if it is
 */
static bool is_run(const struct msghdr *hdr)
{
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(hdr);
	uint16_t size;

	if (!cmsg) {
		CHECK(hdr->msg_iovlen == 1);
		return false;
	}
	CHECK(cmsg->cmsg_level == SOL_UDP && cmsg->cmsg_type == UDP_SEGMENT);
	memcpy(&size, CMSG_DATA(cmsg), sizeof(size));
	CHECK(hdr->msg_iovlen > 1 && hdr->msg_iovlen <= 64);
	for (size_t i = 0; i < hdr->msg_iovlen; i++)
		CHECK(hdr->msg_iov[i].iov_len == size);
	return true;
}

/**
 * check_message() - Is every frame of a message made from one entry of one table?
 * @hdr:	The message
 */
static void check_message(const struct msghdr *hdr)
{
	const struct sockaddr_in *to = hdr->msg_name;
	uint32_t vtep = ntohl(to->sin_addr.s_addr);

	done.runs += is_run(hdr);
	for (size_t i = 0; i < hdr->msg_iovlen; i++) {
		const uint8_t *frame = hdr->msg_iov[i].iov_base;
		const uint8_t *mac = frame + VXLAN_LEN + ETH_DST;
		uint32_t dst = load32(frame + VXLAN_PUSH + IP4_DST);

		CHECK(hdr->msg_iov[i].iov_len > VXLAN_PUSH + IP4_LEN);
		CHECK((vtep >> 8 & 0xffff) == load16(mac + 1));                           /* generation */
		CHECK((vtep & 0xff) == (dst >> 8 & 0xff) && mac[5] == (dst >> 8 & 0xff)); /* entry */
	}
	done.sends += hdr->msg_iovlen;
}

/**
 * fake_sendmmsg() - Send some of the messages, or none
 * @fd:		Socket
 * @msgs:	Messages
 * @count:	How many
 * @flags:	MSG_DONTWAIT
 *
 * Return: as sendmmsg()
 */
static int fake_sendmmsg(int fd, struct mmsghdr *msgs, unsigned int count, int flags)
{
	uint32_t sent = 1 + roll(&dice) % count;

	(void)fd;
	CHECK(flags & MSG_DONTWAIT);
	if (refused_apart || roll(&dice) % 8 == 0) {
		refused_apart -= !!refused_apart;
		done.failed_sends += msgs[0].msg_hdr.msg_iovlen;
		errno = ENOBUFS;
		return -1;
	}
	for (uint32_t i = 0; i < sent; i++) {
		bool is_refused = is_run(&msgs[i].msg_hdr) && (has_no_runs || roll(&dice) % 4 == 0);

		if (is_refused && i)
			return (int)i;
		if (is_refused) {
			refused_for_good += has_no_runs;
			CHECK(refused_for_good <= UNDERLAY_SENDS);
			done.refused_runs++;
			refused_apart = has_no_runs ? 0 : (uint32_t)msgs[0].msg_hdr.msg_iovlen;
			errno = has_no_runs ? EIO : EMSGSIZE;
			return -1;
		}
		check_message(&msgs[i].msg_hdr);
	}
	return (int)sent;
}

/**
 * receive_one() - Make up a tunnel packet from the peer, or from a stranger
 * @msg:	Where to
 */
static void receive_one(struct mmsghdr *msg)
{
	struct msghdr *hdr = &msg->msg_hdr;
	struct in_pktinfo info = {.ipi_ifindex = IFINDEX, .ipi_addr.s_addr = htonl(OUR_ADDR)};
	struct sockaddr_in from = {.sin_family = AF_INET};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(hdr);
	uint8_t inner[PACKET_ROOM];
	uint32_t len = packet_ip4(inner, PROTO_UDP, 0, 64);

	from.sin_addr.s_addr = htonl(roll(&dice) % 16 ? PEER_ADDR : STRANGER_ADDR);
	memcpy(hdr->msg_name, &from, sizeof(from));
	msg->msg_len = packet_vxlan(hdr->msg_iov[0].iov_base, inner, len);
	cmsg->cmsg_level = IPPROTO_IP;
	cmsg->cmsg_type = IP_PKTINFO;
	cmsg->cmsg_len = CMSG_LEN(sizeof(info));
	memcpy(CMSG_DATA(cmsg), &info, sizeof(info));
	hdr->msg_controllen = CMSG_SPACE(sizeof(info));
	hdr->msg_flags = 0;
}

/**
 * fake_recvmmsg() - Receive a few tunnel packets
 * @fd:		Socket
 * @msgs:	Where to
 * @count:	How many fit
 * @flags:	MSG_DONTWAIT
 * @timeout:	NULL
 *
 * Return: as recvmmsg()
 */
static int fake_recvmmsg(int fd, struct mmsghdr *msgs, unsigned int count, int flags, struct timespec *timeout)
{
	uint32_t received = roll(&dice) % (count < 12 ? count + 1 : 12);

	(void)fd;
	CHECK(count && (flags & MSG_DONTWAIT) && !timeout);
	if (!received) {
		errno = EAGAIN;
		return -1;
	}
	for (uint32_t i = 0; i < received; i++)
		receive_one(&msgs[i]);
	done.receives += received;
	return (int)received;
}

/**
 * fake_epoll_wait() - Find out about orders; some of the other descriptors, or none, have packets
 * @epoll_fd:	Where the worker's eventfd is the first source
 * @events:	Set to what is ready
 * @count:	Room for how many
 * @timeout_ms:	What the worker would wait
 *
 * Return: as epoll_wait()
 */
static int fake_epoll_wait(int epoll_fd, struct epoll_event *events, int count, int timeout_ms)
{
	int ready;

	CHECK(count > SOURCES && timeout_ms >= 0);
	sched_yield();
	ready = epoll_wait(epoll_fd, events, count, 0); /* the others are eventfds too, and never ready */
	for (uint32_t i = 1; i <= SOURCES; i++) {
		if (roll(&dice) % 4)
			events[ready++] = (struct epoll_event){.events = EPOLLIN, .data.u32 = i};
	}
	return ready;
}

static const struct sys fakes = {
	.read = fake_read,
	.write = fake_write,
	.writev = fake_writev,
	.recvmmsg = fake_recvmmsg,
	.sendmmsg = fake_sendmmsg,
	.epoll_ctl = epoll_ctl,
	.epoll_wait = fake_epoll_wait,
};

/* --- control ------------------------------------------------------------------- */

/**
 * make_table() - Build a table whose entries all carry its generation
 * @generation:	Below 65536
 *
 * Return: the descriptor
 */
static int make_table(uint32_t generation)
{
	struct dp_subnet subnets[SUBNETS] = {0};
	struct dp_peer peer = {.id = 5, .addr4 = {.family = 4, .bytes = {192, 0, 2, 2}}};
	struct dp_prefix theirs = {.addr = {.family = 4, .bytes = {10, 244, 2}}, .len = 24};
	uint8_t high = (uint8_t)(generation >> 8), low = (uint8_t)generation;

	for (uint8_t i = 0; i < SUBNETS; i++)
		subnets[i] = (struct dp_subnet){.prefix = {.addr = {.family = 4, .bytes = {10, 0, i}}, .len = 24},
						.encap = DP_ENCAP_VXLAN,
						.vtep_mac = {2, high, low, 0, 0, i},
						.vtep = {.family = 4, .bytes = {127, high, low, i}},
						.peer_id = i};
	return table_build(generation, subnets, SUBNETS, &peer, theirs);
}

/**
 * check_books() - With no packet in flight, all that came in is accounted for
 * @counters:	The engine's
 *
 * Return: packets offered so far, both ways
 */
static uint64_t check_books(const dp_counters *counters)
{
	struct dp_thread_counters total;

	dp_counters_total(counters, &total);
	for (int dir = 0; dir < DP_DIR_COUNT; dir++) {
		uint64_t known = total.forwarded[dir];

		for (int drop = 0; drop < DP_DROP_COUNT; drop++)
			known += total.drops[dir][drop];
		CHECK(total.offered[dir] == known);
	}
	CHECK(total.offered[DP_TX] == done.reads && total.offered[DP_RX] == done.receives);
	CHECK(total.forwarded[DP_TX] == done.sends && total.drops[DP_TX][DP_DROP_SEND_FULL] == done.failed_sends);
	CHECK(total.forwarded[DP_RX] + total.icmp_sent == done.writes);
	CHECK(total.drops[DP_TX][DP_DROP_RESTART] == 0 && total.drops[DP_RX][DP_DROP_RESTART] == 0);
	return total.offered[DP_TX] + total.offered[DP_RX];
}

/**
 * churn() - Replace the table again and again, with pauses
 * @engine:	Running
 * @counters:	Its counters
 */
static void churn(dp_engine *engine, const dp_counters *counters)
{
	for (uint32_t generation = 2; generation < PUBLISHES; generation++) {
		int fd = make_table(generation);
		struct dp_counters_header header;
		uint64_t before;

		CHECK(!dp_engine_publish(engine, fd));
		close(fd);
		dp_counters_header(counters, &header);
		CHECK(header.generation == generation);
		has_no_runs = generation > PUBLISHES / 2;
		if (generation % 10)
			continue;
		CHECK(!dp_engine_quiesce(engine));
		before = check_books(counters);
		fd = make_table(generation);
		CHECK(!dp_engine_publish(engine, fd)); /* while it is parked, too */
		close(fd);
		CHECK(check_books(counters) == before);
		CHECK(!dp_engine_resume(engine));
	}
}

/**
 * offered() - How much has come in?
 * @counters:	The engine's
 *
 * Return: packets, both ways
 */
static uint64_t offered(const dp_counters *counters)
{
	struct dp_thread_counters total;

	dp_counters_total(counters, &total);
	return total.offered[DP_TX] + total.offered[DP_RX];
}

/**
 * check_end() - All that could happen did, and was counted
 * @counters:	Of an engine that is gone
 */
static void check_end(const dp_counters *counters)
{
	struct dp_thread_counters total;

	CHECK(check_books(counters) > PACKETS_MIN);
	CHECK(done.runs && done.refused_runs && refused_for_good);
	dp_counters_total(counters, &total);
	CHECK(total.drops[DP_TX][DP_DROP_NO_PEER] && total.drops[DP_TX][DP_DROP_SEND_FULL]);
	CHECK(total.drops[DP_RX][DP_DROP_UNKNOWN_VTEP] && total.drops[DP_RX][DP_DROP_TUN_DOWN]);
	CHECK(total.drops[DP_RX][DP_DROP_TUN_FULL] && total.icmp_sent && total.heartbeat);
}

int main(void)
{
	struct dp_config config = packet_config;
	int fds[DP_FD_SLOTS];
	dp_counters *counters;
	dp_engine *engine;

	sys = &fakes;
	for (int i = 0; i < DP_FD_SLOTS; i++)
		fds[i] = -1;
	config.tun_mtu = MTU;
	config.vnet_hdr_len = VNET_LEN;
	config.tier = DP_TIER_UDP_GSO | DP_TIER_MMSG | DP_TIER_TUN_GRO;
	config.vxlan_port = 8472;
	config.underlay_ifindex = IFINDEX;
	config.underlay4 = (struct dp_addr){.family = 4, .bytes = {192, 0, 2, 1}};
	config.icmp_per_s = 100000;
	config.icmp_burst = 100;
	fds[DP_FD_COUNTERS] = dp_counters_create(1, 64);
	fds[DP_FD_FIB] = make_table(1);
	fds[DP_FD_TUN] = eventfd(0, EFD_CLOEXEC);
	fds[DP_FD_UDP4] = eventfd(0, EFD_CLOEXEC);
	fds[DP_FD_UDP4_TX] = eventfd(0, EFD_CLOEXEC);
	CHECK(!dp_counters_open(fds[DP_FD_COUNTERS], 0, &counters));
	CHECK(!dp_engine_create(&config, fds, &engine) && !dp_engine_start(engine));
	churn(engine, counters);
	while (offered(counters) <= PACKETS_MIN)
		sched_yield(); /* on a busy machine the worker is slower than the publisher */
	dp_engine_destroy(engine);
	check_end(counters);
	dp_counters_close(counters);
	for (int i = 0; i < DP_FD_SLOTS; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
	}
	return 0;
}
