/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever the TUN hands over leaves in right headers to the peer that holds it, or is counted for one reason.
 *
 * An input is one byte that says how (tiers, encapsulation, a kernel that refuses runs, a narrow path), then packets:
 * two bytes of length, a virtio header, and the packet. They go through all of tx.c, on the kernel of kernel.h.
 */
#include "mutate.h"
#include "paths.h"

enum { HOW_BATCHES = 1, HOW_RUNS = 2, HOW_ENCAP = 4, HOW_NARROW = 0x10, HOW_REFUSED = 0x20, HOW_QUIET = 0x40 };
enum { NARROW = 600, NS_BETWEEN = 1000000, PACKETS_MAX = 24, FRAME = 2 + sizeof(struct vnet_hdr) };

/**
 * begin() - Make ready what an input asks for
 * @how:	Its first byte
 *
 * Tables are made once.
 */
static void begin(uint8_t how)
{
	static const enum dp_encap encaps[] = {DP_ENCAP_VXLAN, DP_ENCAP_IPIP, DP_ENCAP_FLANNEL_UDP};
	static dp_fib *fibs[3][2];
	uint32_t which = how / HOW_ENCAP % 4 % 3;
	bool is_narrow = how & HOW_NARROW;
	uint32_t tier = (how & HOW_BATCHES ? DP_TIER_MMSG : 0) | (how & HOW_RUNS ? DP_TIER_UDP_GSO : 0);

	paths_encap = encaps[which];
	paths_mtu = is_narrow ? NARROW : 0;
	if (!lab.fib) {
		paths_open(tier, 0);
		dp_fib_close(lab.fib);
	}
	if (!fibs[which][is_narrow])
		fibs[which][is_narrow] = paths_table();
	lab.fib = fibs[which][is_narrow];
	paths_again(tier);
	lab.path.fib = lab.fib;
	lab.config.icmp_per_s = how & HOW_QUIET ? 0 : 1000;
	lab.config.icmp_burst = 4;
	lab.path.now_ns += NS_BETWEEN;
	kernel.push = paths_encap == DP_ENCAP_VXLAN ? VXLAN_PUSH : 0;
	kernel.run_error = how & HOW_REFUSED ? EIO : 0;
}

/**
 * check_headers() - Is what left for a peer right in its headers?
 * @seen:	The datagram
 */
static void check_headers(const struct kernel_bytes *seen)
{
	uint8_t *bytes = kernel.log->bytes + seen->at, *ip = bytes + kernel.push;
	struct pkt pkt = pkt_init(bytes, seen->len, kernel.push, seen->len - kernel.push);
	uint8_t peer = (uint8_t)(seen->where - SKETCH_VTEP), expected[VXLAN_PUSH];
	struct flow flow;

	CHECK(peer >= 1 && peer <= SKETCH_PEERS && !parse_inner(&pkt, &flow) && flow.total_len == pkt.len);
	if (flow.family == 4)
		CHECK(load32(ip + IP4_SRC) >> 8 == 0x0af401 && load32(ip + IP4_DST) >> 8 == 0x0a0000U + peer);
	else
		CHECK(load64(ip + IP6_SRC) == 0xfd00024400000001 && load64(ip + IP6_DST) == 0xfd00001000000000 + peer);
	CHECK(flow.family == 4 || paths_encap == DP_ENCAP_VXLAN);
	CHECK(!paths_mtu || peer != 1 || pkt.len <= paths_mtu);
	if (!kernel.push)
		return;
	memcpy(expected, (uint8_t[]){VXLAN_FLAG_I, 0, 0, 0}, 4);
	store32(expected + VXLAN_VNI, PACKET_VNI << 8);
	memcpy(expected + VXLAN_LEN, (uint8_t[]){2, 0, 0, 0, flow.family, peer}, MAC_LEN);
	memcpy(expected + VXLAN_LEN + ETH_SRC, flow.family == 4 ? packet_config.vtep_mac4 : packet_config.vtep_mac6,
	       MAC_LEN);
	store16(expected + VXLAN_LEN + ETH_TYPE, flow.family == 4 ? 0x0800 : 0x86dd);
	CHECK(!memcmp(bytes, expected, VXLAN_PUSH));
}

/**
 * find_plain() - Did a packet that needed nothing done to it leave as it was?
 * @packet:	The packet
 * @len:	Its length
 * @is_taken:	Which datagrams were found already
 *
 * Return: true if it left
 */
static bool find_plain(const uint8_t *packet, uint32_t len, bool *is_taken)
{
	for (uint32_t i = 0; i < kernel.log->count; i++) {
		const struct kernel_bytes *seen = &kernel.log->seen[i];

		if (is_taken[i] || !seen->where || seen->len != kernel.push + len ||
		    memcmp(kernel.log->bytes + seen->at + kernel.push, packet, len))
			continue;
		is_taken[i] = true;
		return true;
	}
	return false;
}

/**
 * is_plain() - Must a packet leave, and as it is?
 * @at:		Its virtio header, and the packet
 * @len:	Bytes of both
 * @total_len:	Set to its length without padding
 *
 * Return: true if it must
 */
static bool is_plain(const uint8_t *at, uint32_t len, uint32_t *total_len)
{
	static uint8_t copy[PKT_MAX];
	struct vnet_hdr vnet;
	struct flow flow;
	struct pkt pkt;
	bool is_peer1;

	memcpy(&vnet, at, sizeof(vnet));
	memcpy(copy, at + sizeof(vnet), len - sizeof(vnet));
	pkt = pkt_init(copy, sizeof(copy), 0, (uint32_t)(len - sizeof(vnet)));
	if (vnet.gso_type || vnet.flags & VNET_NEEDS_CSUM || parse_inner(&pkt, &flow))
		return false;
	*total_len = flow.total_len;
	if (flow.family == 6) {
		is_peer1 = flow.dst >> 64 == 0xfd00001000000001;
		return paths_encap == DP_ENCAP_VXLAN && flow.src >> 64 == 0xfd00024400000001 &&
		       flow.dst >> 64 > 0xfd00001000000000 && flow.dst >> 64 <= 0xfd00001000000000 + SKETCH_PEERS &&
		       !(paths_mtu && is_peer1 && flow.total_len > paths_mtu);
	}
	is_peer1 = flow.dst >> 8 == 0x0a0001;
	return flow.src >> 8 == 0x0af401 && flow.dst >> 8 > 0x0a0000 && flow.dst >> 8 <= 0x0a0000 + SKETCH_PEERS &&
	       !(paths_mtu && is_peer1 && flow.total_len > paths_mtu);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static bool is_taken[KERNEL_SEEN];
	uint32_t lens[PACKETS_MAX], count = 0, total_len;
	const uint8_t *packets[PACKETS_MAX];

	if (!size || size > PKT_MAX)
		return 0;
	begin(data[0]);
	for (size_t at = 1; at + FRAME <= size && count < PACKETS_MAX; at += 2 + lens[count++]) {
		size_t left = size - at - 2, wanted = load16(data + at) + sizeof(struct vnet_hdr);

		packets[count] = data + at + 2;
		lens[count] = (uint32_t)(wanted < left ? wanted : left);
		kernel_queue(packets[count], lens[count], 0, 0);
	}
	while (tx_run(&lab.path, KERNEL_TUN, PATHS_ALL))
		;
	paths_check(DP_TX);
	memset(is_taken, 0, kernel.log->count);
	for (uint32_t i = 0; i < kernel.log->count; i++)
		if (kernel.log->seen[i].where)
			check_headers(&kernel.log->seen[i]);
	for (uint32_t i = 0; i < count; i++)
		if (is_plain(packets[i], lens[i], &total_len))
			CHECK(find_plain(packets[i] + sizeof(struct vnet_hdr), total_len, is_taken));
	return fuzz_count(lab.counters.forwarded[DP_TX]);
}

/**
 * repair_frame() - Make a packet one between our pods and those of a peer, and its virtio header agree with it
 * @vnet:	The virtio header, and the packet behind it
 * @len:	Bytes of the packet
 * @dice:	State of roll()
 */
static void repair_frame(uint8_t *vnet, uint32_t len, uint64_t *dice)
{
	uint8_t *ip = vnet + sizeof(struct vnet_hdr);
	uint32_t l3len = mutate_ip(ip, len);
	struct sketch sketch = {.family = ip[0] >> 4, .peer = (uint8_t)(1 + roll(dice) % SKETCH_PEERS)};
	struct vnet_hdr hdr;

	if (!l3len)
		return;
	sketch_addresses(ip, &sketch, true);
	memcpy(&hdr, vnet, sizeof(hdr));
	hdr.flags &= VNET_NEEDS_CSUM;
	if (!hdr.flags)
		hdr.gso_type = 0;
	if (hdr.flags && mutate_ports(ip, l3len, len)) {
		bool is_tcp = ip[sketch.family == 4 ? IP4_PROTO : IP6_NEXT] == PROTO_TCP;

		hdr.csum_start = (uint16_t)l3len;
		hdr.csum_offset = is_tcp ? TCP_CHECK : UDP_CHECK;
		hdr.gso_size = (uint16_t)(32 + hdr.gso_size % 2016);
		if (hdr.gso_type)
			hdr.gso_type = !is_tcp ? VNET_GSO_UDP_L4 : sketch.family == 4 ? VNET_GSO_TCP4 : VNET_GSO_TCP6;
		mutate_l4(ip, l3len, len, true);
	}
	memcpy(vnet, &hdr, sizeof(hdr));
	packet_repair(ip, len);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned int seed)
{
	uint64_t dice = seed | 1;

	size = LLVMFuzzerMutate(data, size, room);
	for (size_t at = 1; at + FRAME < size;) {
		size_t left = size - at - FRAME, len = load16(data + at);

		if (len > left || len < IP4_LEN) {
			len = left < 200 ? left : IP4_LEN + roll(&dice) % 180;
			store16(data + at, (uint16_t)len);
		}
		if (roll(&dice) % MUTATE_UNREPAIRED)
			repair_frame(data + at + 2, (uint32_t)len, &dice);
		at += FRAME + len;
	}
	return size;
}
