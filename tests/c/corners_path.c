/* SPDX-License-Identifier: Apache-2.0 */
/*
 * corners_path.c - whatever is odd about a packet, its peer or a call: it leaves right, or is counted for one reason.
 */
#include "answer.h"
#include "paths.h"
#include "tables.h"

enum { TIER = DP_TIER_MMSG | DP_TIER_UDP_GSO, OTHER_TX = KERNEL_RAW_TX + 1 };

static const struct sketch small = {.family = 4, .proto = PROTO_UDP, .peer = 1, .port = 1, .payload = 100};

/* What is changed of the next message that is received, or of the next datagram that is sent. */
static struct {
	uint32_t ifindex;
	bool is_truncated;
	bool is_v6;
	uint32_t queue_drops;
	uint32_t sent6, other; /* datagrams to IPv6, and by the second socket */
	uint8_t ttl;           /* of the last one; 0: the socket's */
} odd;

/**
 * odd_recvmmsg() - As kernel_recvmmsg(), and then what is odd
 * @fd:		Socket
 * @msgs:	Where to
 * @count:	How many fit
 * @flags:	MSG_DONTWAIT
 * @timeout:	NULL
 *
 * Return: as recvmmsg()
 */
static int odd_recvmmsg(int fd, struct mmsghdr *msgs, unsigned int count, int flags, struct timespec *timeout)
{
	int n = kernel_recvmmsg(fd, msgs, count, flags, timeout);

	for (int i = 0; i < n; i++) {
		struct msghdr *hdr = &msgs[i].msg_hdr;
		struct cmsghdr *cmsg = CMSG_FIRSTHDR(hdr);
		struct in_pktinfo *info = (struct in_pktinfo *)(void *)CMSG_DATA(cmsg);

		if (odd.ifindex)
			info->ipi_ifindex = (int)odd.ifindex;
		if (odd.is_truncated)
			hdr->msg_flags = MSG_TRUNC;
		if (odd.is_v6)
			((struct sockaddr *)hdr->msg_name)->sa_family = AF_INET6;
		if (!odd.queue_drops)
			continue;
		cmsg = (struct cmsghdr *)(void *)((uint8_t *)hdr->msg_control + hdr->msg_controllen);
		*cmsg = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SO_RXQ_OVFL, .cmsg_len = CMSG_LEN(4)};
		memcpy(CMSG_DATA(cmsg), &odd.queue_drops, 4);
		hdr->msg_controllen += CMSG_SPACE(4);
	}
	return n;
}

/**
 * odd_sendmmsg() - Count messages that kernel_sendmmsg() does not know
 * @fd:		Socket
 * @msgs:	Messages
 * @count:	How many
 * @flags:	MSG_DONTWAIT
 *
 * Return: as sendmmsg()
 */
static int odd_sendmmsg(int fd, struct mmsghdr *msgs, unsigned int count, int flags)
{
	struct msghdr *hdr = &msgs[0].msg_hdr;

	for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(hdr); cmsg; cmsg = CMSG_NXTHDR(hdr, cmsg))
		if (cmsg->cmsg_level == IPPROTO_IP && cmsg->cmsg_type == IP_TTL)
			odd.ttl = CMSG_DATA(cmsg)[0];
	if (((struct sockaddr *)hdr->msg_name)->sa_family == AF_INET6) {
		odd.sent6 += count;
		return (int)count;
	}
	odd.other += fd == OTHER_TX ? count : 0;
	return kernel_sendmmsg(fd == OTHER_TX ? KERNEL_UDP_TX : fd, msgs, count, flags);
}

/**
 * bare_write() - write() of a TUN without virtio headers
 * @fd:		KERNEL_TUN
 * @buf:	A packet
 * @len:	Its length
 *
 * Return: as write()
 */
static ssize_t bare_write(int fd, const void *buf, size_t len)
{
	CHECK(fd == KERNEL_TUN);
	kernel_keep(buf, (uint32_t)len, 0);
	return (ssize_t)len;
}

/**
 * bare_writev() - writev() of a TUN without virtio headers
 * @fd:		KERNEL_TUN
 * @iov:	Pieces of a packet
 * @count:	How many
 *
 * Return: as writev()
 */
static ssize_t bare_writev(int fd, const struct iovec *iov, int count)
{
	uint8_t whole[PKT_MAX];
	size_t len = 0;

	for (int i = 0; i < count; len += iov[i++].iov_len)
		memcpy(whole + len, iov[i].iov_base, iov[i].iov_len);
	return bare_write(fd, whole, len);
}

static struct sys odd_calls;

/**
 * begin() - Begin with an empty path
 * @tier:	Mask of enum dp_tier
 */
static void begin(uint32_t tier)
{
	paths_open(tier, 0);
	memset(&odd, 0, sizeof(odd));
	odd_calls = kernel_calls;
	odd_calls.recvmmsg = odd_recvmmsg;
	odd_calls.sendmmsg = odd_sendmmsg;
	sys = &odd_calls;
}

/**
 * put_table() - Use a table of one subnet, 10.0.1.0/24, from where a stranger may send too
 * @vtep:	How its peer is reached
 * @encap:	And in what
 */
static void put_table(struct dp_addr vtep, enum dp_encap encap)
{
	struct dp_subnet subnet = {.prefix = {.addr = {.family = 4, .bytes = {10, 0, 1}}, .len = 24},
				   .encap = (uint8_t)encap,
				   .vtep_mac = {2, 0, 0, 0, 4, 1},
				   .vtep = vtep,
				   .peer_id = 1};
	struct dp_peer peer = {.id = 1, .addr4 = {.family = 4, .bytes = {192, 0, 2, 101}}};
	struct dp_prefix allowed = {.addr = {.family = 4, .bytes = {10, 0, 2}}, .len = 24};
	int fd = table_build(0, &subnet, 1, &peer, allowed);

	dp_fib_close(lab.fib);
	CHECK(!dp_fib_open(fd, &lab.fib));
	close(fd);
	lab.path.fib = lab.fib;
}

/**
 * send_one() - A pod sends a packet: what becomes of it?
 * @sketch:	The packet
 *
 * Return: why it was dropped, DP_DROP_NONE if it left
 */
static enum dp_drop send_one(const struct sketch *sketch)
{
	kernel_from_pod(sketch);
	CHECK(tx_run(&lab.path, KERNEL_TUN, PATHS_ALL));
	for (enum dp_drop drop = 0; drop < DP_DROP_COUNT; drop++) {
		if (lab.counters.drops[DP_TX][drop]) {
			lab.counters.offered[DP_TX]--;
			lab.counters.drops[DP_TX][drop]--;
			CHECK(!paths_drops(DP_TX)); /* for one reason */
			return drop;
		}
	}
	return DP_DROP_NONE;
}

/**
 * no_way() - What cannot be carried as its table entry says is refused as that, and the next packet passes
 */
static void no_way(void)
{
	const struct dp_addr v6 = {.family = 6, .bytes = {0x20, 1}}, inside = {.family = 4, .bytes = {10, 0, 1, 5}};

	begin(TIER);
	lab.config.encaps = 0;
	CHECK(send_one(&small) == DP_DROP_NO_ENCAP);
	lab.config.encaps = packet_config.encaps;
	lab.fds[DP_FD_UDP4_TX] = -1;
	CHECK(send_one(&small) == DP_DROP_NO_ENCAP);
	lab.fds[DP_FD_UDP4_TX] = KERNEL_UDP_TX;
	CHECK(send_one(&small) == DP_DROP_NONE);
	put_table(v6, DP_ENCAP_IPIP);
	CHECK(send_one(&small) == DP_DROP_NO_ENCAP);
	put_table(inside, DP_ENCAP_VXLAN);
	CHECK(send_one(&small) == DP_DROP_LOOP);
	put_table(v6, DP_ENCAP_VXLAN);
	lab.fds[DP_FD_UDP6_TX] = KERNEL_UDP_TX;
	CHECK(send_one(&small) == DP_DROP_NONE && odd.sent6 == 1);
	CHECK(lab.counters.forwarded[DP_TX] == 2 && kernel.log->count == 1);
	dp_fib_close(lab.fib);
	free(lab.path.tx_buffers);
	free(lab.path.rx_buffers);
}

/**
 * errors() - Each errno of a send is counted as what it means, and the next packet passes
 */
static void errors(void)
{
	static const struct {
		int err;
		enum dp_drop drop;
	} rows[] = {
		{EAGAIN, DP_DROP_SEND_FULL},        {ENOBUFS, DP_DROP_SEND_FULL},
		{ENOMEM, DP_DROP_SEND_FULL},        {EMSGSIZE, DP_DROP_TOO_BIG},
		{ENETUNREACH, DP_DROP_UNREACHABLE}, {EHOSTUNREACH, DP_DROP_UNREACHABLE},
		{ENETDOWN, DP_DROP_UNREACHABLE},    {EHOSTDOWN, DP_DROP_UNREACHABLE},
		{ENODEV, DP_DROP_UNREACHABLE},      {EPERM, DP_DROP_SEND_DENIED},
		{EACCES, DP_DROP_SEND_DENIED},      {EINVAL, DP_DROP_SEND_ERROR},
	};
	size_t count = sizeof(rows) / sizeof(*rows);

	begin(TIER);
	for (size_t i = 0; i < count; i++) {
		kernel.once_error = rows[i].err;
		CHECK(send_one(&small) == rows[i].drop);
		CHECK(send_one(&small) == DP_DROP_NONE);
	}
	CHECK(lab.counters.forwarded[DP_TX] == count);
	paths_close(DP_TX);
}

/**
 * sockets() - Flows are spread over the sockets there are, each in one system call, with the TTL that was asked for
 */
static void sockets(void)
{
	enum { FLOWS = 40 };

	begin(DP_TIER_MMSG);
	lab.config.sources = 2;
	lab.config.ttl_inherit = 1;
	lab.fds[path_slot(DP_FD_UDP4_TX, 1)] = OTHER_TX;
	for (uint16_t port = 0; port < FLOWS; port++) {
		struct sketch sketch = small;

		sketch.port = port;
		kernel_from_pod(&sketch);
	}
	CHECK(tx_run(&lab.path, KERNEL_TUN, 1) == 128 && lab.counters.forwarded[DP_TX] == 1); /* no more was wanted */
	CHECK(odd.ttl == 64);
	while (tx_run(&lab.path, KERNEL_TUN, PATHS_ALL))
		;
	CHECK(odd.other > 4 && odd.other < FLOWS - 4);
	paths_close(DP_TX);
}

/**
 * queue() - Let a packet of a peer in VXLAN wait to be received
 * @ip:		The packet
 * @len:	Its length
 */
static void queue(const uint8_t *ip, uint32_t len)
{
	static uint8_t message[VXLAN_PUSH + PKT_MAX];

	kernel_queue(message, packet_vxlan(message, ip, len), 0, SKETCH_VTEP + 1);
}

/**
 * receive_one() - A peer sends a packet: what becomes of it?
 * @sketch:	The packet
 * @dst:	Other inner destination; 0: that of the sketch
 *
 * Return: why it was dropped, DP_DROP_NONE if it was delivered
 */
static enum dp_drop receive_one(const struct sketch *sketch, uint32_t dst)
{
	uint8_t ip[2048];
	uint32_t len = sketch_packet(ip, sketch, false);

	store32(ip + IP4_DST, dst ? dst : load32(ip + IP4_DST));
	packet_repair(ip, len);
	queue(ip, len);
	CHECK(rx_run(&lab.path, DP_FD_UDP4, PATHS_ALL));
	for (enum dp_drop drop = 0; drop < DP_DROP_COUNT; drop++) {
		if (lab.counters.drops[DP_RX][drop]) {
			lab.counters.offered[DP_RX]--;
			lab.counters.drops[DP_RX][drop]--;
			CHECK(!paths_drops(DP_RX)); /* for one reason */
			return drop;
		}
	}
	return DP_DROP_NONE;
}

/**
 * strange() - What arrives elsewhere, in part, for others or from others is refused as that; the next passes
 */
static void strange(void)
{
	const struct sketch neighbour = {.family = 4, .proto = PROTO_UDP, .peer = 2, .port = 1, .payload = 100};

	begin(DP_TIER_MMSG);
	odd.ifindex = KERNEL_IFINDEX + 1;
	CHECK(receive_one(&small, 0) == DP_DROP_WRONG_IFACE);
	odd.ifindex = 0;
	odd.is_truncated = true;
	CHECK(receive_one(&small, 0) == DP_DROP_TRUNCATED);
	odd.is_truncated = false;
	odd.is_v6 = true;
	CHECK(receive_one(&small, 0) == DP_DROP_OUTER_DST);
	odd.is_v6 = false;
	CHECK(receive_one(&small, 0x0af40205) == DP_DROP_NOT_OURS);
	CHECK(receive_one(&neighbour, 0) == DP_DROP_SPOOFED);
	put_table((struct dp_addr){.family = 4, .bytes = {192, 0, 2, 101}}, DP_ENCAP_VXLAN);
	CHECK(receive_one(&neighbour, 0) == DP_DROP_NONE); /* --allow-source */
	odd.queue_drops = 17;
	CHECK(receive_one(&small, 0) == DP_DROP_NONE && lab.counters.queue_drops[DP_FD_UDP4] == 17);
	lab.path.max_peers = 1; /* counters of an older forwarder have no room for this peer */
	CHECK(receive_one(&small, 0) == DP_DROP_NONE && lab.peers[1].packets[DP_RX] == 2);
	lab.peers[1].packets[DP_RX]++;
	lab.peers[1].bytes[DP_RX] += 128;
	paths_close(DP_RX);
}

/**
 * portions() - No more is taken than was asked for, message by message without batches
 */
static void portions(void)
{
	uint8_t ip[2048];
	uint32_t len = sketch_packet(ip, &small, false);

	for (uint32_t tier = 0; tier <= DP_TIER_MMSG; tier += DP_TIER_MMSG) {
		begin(tier);
		for (int i = 0; i < 20; i++)
			queue(ip, len);
		CHECK(rx_run(&lab.path, DP_FD_UDP4, 0) == VXLAN_PUSH + len); /* at least one */
		lab.path.message_bytes = 149;
		CHECK(rx_run(&lab.path, DP_FD_UDP4, 750) == 5 * (VXLAN_PUSH + len));
		while (rx_run(&lab.path, DP_FD_UDP4, PATHS_ALL))
			;
		CHECK(lab.counters.forwarded[DP_RX] == 20);
		paths_close(DP_RX);
	}
}

/**
 * refused() - Each errno of a write to the TUN is counted as what it means, and takes no offload from others
 */
static void refused(void)
{
	static const struct {
		int err;
		enum dp_drop drop;
	} rows[] = {{EIO, DP_DROP_TUN_DOWN},     {EBADFD, DP_DROP_TUN_DOWN}, {EAGAIN, DP_DROP_TUN_FULL},
		    {ENOBUFS, DP_DROP_TUN_FULL}, {ENOMEM, DP_DROP_TUN_FULL}, {EPERM, DP_DROP_TUN_ERROR},
		    {EINVAL, DP_DROP_TUN_ERROR}};

	for (uint32_t gro = 0; gro <= DP_TIER_TUN_GRO; gro += DP_TIER_TUN_GRO) {
		struct sketch sketch = small;

		sketch.proto = PROTO_TCP; /* alone in its super-packet, or none at all */
		begin(DP_TIER_MMSG | gro);
		for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
			kernel.once_error = rows[i].err;
			CHECK(receive_one(&sketch, 0) == rows[i].drop);
			CHECK(receive_one(&sketch, 0) == DP_DROP_NONE);
		}
		CHECK(!lab.counters.refused_tier);
		paths_close(DP_RX);
	}
}

/**
 * make_super() - A kernel peer on the same machine sends what it left uncut, and unsummed
 * @ip:		Room for it
 * @options:	Bytes of IPv6 options in front of TCP; 0: none, and it is IPv4
 * @payload:	Bytes
 *
 * Return: its length
 */
static uint32_t make_super(uint8_t *ip, uint32_t options, uint32_t payload)
{
	struct sketch sketch = {.family = options ? 6 : 4, .proto = PROTO_TCP, .peer = 1, .payload = options + payload};
	uint32_t len = sketch_packet(ip, &sketch, false), l3len = options ? IP6_LEN + options : IP4_LEN;
	uint8_t *tcp = ip + l3len, *addrs = ip + (options ? IP6_SRC : IP4_SRC);
	uint32_t addr_len = options ? 16 : 4;
	uint16_t sum;

	if (options) {
		memmove(tcp, ip + IP6_LEN, TCP_LEN);
		memset(ip + IP6_LEN, 0, options);
		ip[IP6_NEXT] = PROTO_DSTOPTS;
		ip[IP6_LEN] = PROTO_TCP;
		ip[IP6_LEN + 1] = (uint8_t)(options / 8 - 1);
	}
	sum = csum_fold(csum_pseudo(addrs, addrs + addr_len, addr_len, PROTO_TCP, len - l3len));
	memcpy(tcp + TCP_CHECK, &sum, 2);
	return len;
}

/**
 * of_kernel_peers() - What a kernel peer left to do is done here where the TUN cannot be told of it
 */
static void of_kernel_peers(void)
{
	static uint8_t ip[PKT_MAX];
	struct flow flow;
	uint32_t len;
	struct pkt pkt;

	begin(DP_TIER_MMSG | DP_TIER_TUN_GRO);
	lab.config.vnet_hdr_len = 0;
	odd_calls.write = bare_write;
	odd_calls.writev = bare_writev;
	len = make_super(ip, 0, 4000);
	queue(ip, len);
	CHECK(rx_run(&lab.path, DP_FD_UDP4, PATHS_ALL) && kernel.log->count == 3); /* 1410 bytes each */
	len = make_super(ip, 0, 100);
	queue(ip, len);
	CHECK(rx_run(&lab.path, DP_FD_UDP4, PATHS_ALL) && kernel.log->count == 4);
	for (uint32_t i = 0; i < 4; i++) {
		const struct kernel_bytes *seen = &kernel.log->seen[i];
		uint8_t *at = kernel.log->bytes + seen->at, *addrs = at + IP4_SRC;
		uint64_t sum;

		pkt = pkt_init(at, seen->len, 0, seen->len);
		CHECK(!parse_inner(&pkt, &flow) && flow.total_len == seen->len);
		sum = csum_pseudo(addrs, addrs + 4, 4, PROTO_TCP, seen->len - IP4_LEN);
		CHECK(csum_fold(csum_add(at + IP4_LEN, seen->len - IP4_LEN, sum)) == 0xffff);
	}
	paths_close(DP_RX);
}

/**
 * uncuttable() - A super-packet that cannot be cut here is handed over as it is, and counted as the packets it stands for
 */
static void uncuttable(void)
{
	static uint8_t ip[PKT_MAX];
	uint32_t len = make_super(ip, 200, 4000);

	begin(DP_TIER_MMSG);
	kernel.super_error = EINVAL;
	queue(ip, len);
	CHECK(rx_run(&lab.path, DP_FD_UDP4, PATHS_ALL) && !kernel.log->count);
	CHECK(lab.counters.drops[DP_RX][DP_DROP_TUN_ERROR] == 4 && lab.counters.offered[DP_RX] == 4);
	lab.counters.offered[DP_RX] = lab.counters.drops[DP_RX][DP_DROP_TUN_ERROR] = 0;
	CHECK(receive_one(&small, 0) == DP_DROP_NONE);
	paths_close(DP_RX);
}

/**
 * unsent() - What could not be sent and is no packet is answered with nothing, and the next one with an error
 */
static void unsent(void)
{
	static const struct dp_subnet subnet = {.encap = DP_ENCAP_VXLAN, .peer_id = 1};
	static uint8_t bytes[60000];
	struct outbox_message message = {.subnet = &subnet, .pieces = 1, .size = 10, .units = 1};
	uint8_t ip[256];

	begin(TIER);
	lab.config.icmp_per_s = lab.config.icmp_burst = 100;
	lab.path.now_ns = 1000000000000;
	lab.path.out.iov[0] = (struct iovec){.iov_base = bytes, .iov_len = 10};
	answer_unsent(&lab.path, &message, EHOSTUNREACH); /* shorter than its encapsulation */
	lab.path.out.iov[0].iov_len = sizeof(bytes);
	lab.path.out.iov[1] = lab.path.out.iov[0];
	message.pieces = 2;
	message.size = 2 * sizeof(bytes);
	answer_unsent(&lab.path, &message, EHOSTUNREACH); /* longer than any packet, and none */
	CHECK(!kernel.log->count && !lab.counters.icmp_sent && !lab.counters.icmp_limited);
	message.pieces = 1;
	message.size = packet_vxlan(bytes, ip, sketch_packet(ip, &small, true));
	lab.path.out.iov[0].iov_len = message.size;
	answer_unsent(&lab.path, &message, EHOSTUNREACH);
	CHECK(kernel.log->count == 1 && lab.counters.icmp_sent == 1);
	paths_close(DP_TX);
}

int main(int argc, char **argv)
{
	static const struct scenario scenarios[] = {
		{"no_way", no_way},         {"errors", errors},     {"sockets", sockets},
		{"strange", strange},       {"portions", portions}, {"refused", refused},
		{"uncuttable", uncuttable}, {"unsent", unsent},     {"of_kernel_peers", of_kernel_peers},
	};

	return paths_run(scenarios, sizeof(scenarios) / sizeof(*scenarios), argc > 1 ? argv[1] : NULL);
}
