/* SPDX-License-Identifier: Apache-2.0 */
/* proof.c - what the TUN of a scratch network does with the packets that it is given and gives. */
#include "proof.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "csum.h"
#include "offload.h"
#include "split.h"
#include "tun.h"

/* --- out of the TUN --------------------------------------------------------------- */

/**
 * check_packet() - Is a packet whole, with the payload that it should have?
 * @flow:	What it is, or is a segment of
 * @ip:		Its bytes
 * @headers:	Of them headers
 * @at:		Where its payload begins in all that was sent
 * @len:	Bytes of payload
 *
 * Return: 0 or -EBADMSG
 */
static int check_packet(const struct flow *flow, const uint8_t *ip, uint32_t headers, uint32_t at, uint32_t len)
{
	uint32_t addr_len = flow->family == 4 ? 4 : 16, l4len = headers - flow->l3len + len;
	const uint8_t *src = ip + (flow->family == 4 ? (int)IP4_SRC : (int)IP6_SRC);
	uint64_t sum = csum_pseudo(src, src + addr_len, addr_len, flow->proto, l4len);

	if (csum_fold(csum_add(ip + flow->l3len, l4len, sum)) != 0xffff)
		return -EBADMSG;
	return scratch_is_whole(ip + headers, at, len) ? 0 : -EBADMSG;
}

/**
 * check_super() - Cut a super-packet, and check its segments
 * @pkt:	The super-packet
 * @flow:	The same, parsed
 * @vnet:	Its virtio header
 * @at:		Where its payload begins in all that was sent; moved behind it
 *
 * Return: 0 or -EBADMSG
 */
static int check_super(const struct pkt *pkt, const struct flow *flow, const struct vnet_hdr *vnet, uint32_t *at)
{
	uint8_t segment[SPLIT_HEADERS + PKT_MAX];
	struct split split;
	int err = split_plan(pkt, flow, vnet, &split) ? -EBADMSG : 0;

	for (uint32_t i = 0; !err && i < split.count; i++) {
		uint32_t len = split_header(pkt, &split, i, segment);

		memcpy(segment + split.headers, pkt->buf + pkt->off + split.headers + i * split.size, len);
		if (split.size != SCRATCH_SIZE)
			return -EBADMSG;
		err = check_packet(flow, segment, split.headers, *at, len);
		*at += len;
	}
	return err;
}

/**
 * read_all() - Read from the TUN what a socket sent
 * @scratch:	The scratch network
 * @family:	4 or 6
 * @proto:	PROTO_TCP or PROTO_UDP
 * @total:	Bytes of payload
 * @is_super:	It must come as super-packets
 *
 * Return: 0; -EBADMSG if the bytes are others; -EOPNOTSUPP if the kernel did the work itself; another -errno
 */
static int read_all(struct scratch *scratch, uint8_t family, uint8_t proto, uint32_t total, bool is_super)
{
	uint32_t at = 0, supers = 0;

	while (at < total) {
		struct vnet_hdr vnet;
		struct flow flow;
		struct pkt pkt;
		uint32_t headers;
		int err = scratch_read(scratch, family, proto, &pkt, &flow, &vnet);

		if (err)
			return err;
		headers = flow.l3len + (proto == PROTO_UDP ? (uint32_t)UDP_LEN
							   : (pkt.buf[pkt.off + flow.l3len + TCP_DOFF] >> 4) * 4U);
		if (flow.total_len == headers)
			continue; /* an acknowledgement */
		if (vnet.gso_type != VNET_GSO_NONE) {
			err = check_super(&pkt, &flow, &vnet, &at);
			supers++;
		} else {
			err = offload_complete(&pkt, &flow, &vnet) ? -EBADMSG : 0;
			if (!err)
				err = check_packet(&flow, pkt.buf + pkt.off, headers, at, flow.total_len - headers);
			at += flow.total_len - headers;
		}
		if (err)
			return err;
	}
	if (at != total)
		return -EBADMSG;
	return is_super && !supers ? -EOPNOTSUPP : 0;
}

/**
 * proof_csum() - Checksums of what the kernel sends into the TUN can be finished
 * @scratch:	The scratch network
 * @family:	4 or 6
 *
 * Return: 0 if so, or -errno
 */
int proof_csum(struct scratch *scratch, uint8_t family)
{
	uint8_t data[SCRATCH_SIZE];
	int fd = scratch_socket(family, SOCK_DGRAM, true), err = 0;

	if (fd < 0)
		return fd;
	scratch_fill(data, sizeof(data));
	if (send(fd, data, sizeof(data), MSG_DONTWAIT) < 0)
		err = -errno;
	if (!err)
		err = read_all(scratch, family, PROTO_UDP, sizeof(data), false);
	close(fd);
	return err;
}

/**
 * proof_uso() - UDP super-packets come out of the TUN
 * @scratch:	The scratch network
 * @family:	4 or 6
 *
 * Return: 0 if so, or -errno
 */
int proof_uso(struct scratch *scratch, uint8_t family)
{
	int fd = scratch_socket(family, SOCK_DGRAM, true), err;

	if (fd < 0)
		return fd;
	err = scratch_send_run(fd, SCRATCH_TOTAL);
	if (!err)
		err = read_all(scratch, family, PROTO_UDP, SCRATCH_TOTAL, true);
	close(fd);
	return err;
}

/* --- into the TUN ------------------------------------------------------------------ */

/* A TCP connection whose far end we play. */
struct far_end {
	int fd; /* its near end */
	uint8_t family;
	uint16_t port; /* of that */
	uint32_t seq;  /* of the next byte from the far end */
	uint32_t ack;  /* of the next byte from the near one */
};

/**
 * write_packet() - Write a packet from the far end to the TUN, as a super-packet if it is long
 * @scratch:	The scratch network
 * @pkt:	The packet, its L4 checksum that of the pseudo-header
 * @headers:	Bytes of its headers
 * @proto:	PROTO_TCP or PROTO_UDP
 *
 * Return: 0 or -errno
 */
static int write_packet(struct scratch *scratch, struct pkt *pkt, uint32_t headers, uint8_t proto)
{
	bool is4 = pkt->buf[pkt->off] >> 4 == 4;
	uint32_t payload = pkt->len - headers, count = 1;
	struct iovec pieces[SCRATCH_SEGMENTS];
	struct vnet_hdr vnet = {.flags = VNET_NEEDS_CSUM,
				.hdr_len = (uint16_t)headers,
				.csum_start = is4 ? IP4_LEN : IP6_LEN,
				.csum_offset = proto == PROTO_UDP ? UDP_CHECK : TCP_CHECK};

	for (uint32_t at = SCRATCH_SIZE; at < payload; at += SCRATCH_SIZE)
		pieces[count++] = (struct iovec){.iov_base = pkt->buf + pkt->off + headers + at,
						 .iov_len = payload - at < SCRATCH_SIZE ? payload - at : SCRATCH_SIZE};
	if (count > 1) {
		vnet.gso_size = SCRATCH_SIZE;
		vnet.gso_type = proto == PROTO_UDP ? VNET_GSO_UDP_L4 : is4 ? VNET_GSO_TCP4 : VNET_GSO_TCP6;
		pkt->len = headers + SCRATCH_SIZE;
	}
	return tun_write_pieces(scratch->tun, scratch->vnet_hdr_len, pkt, &vnet, pieces, count);
}

/**
 * make_packet() - Begin a packet from the far end
 * @scratch:	The scratch network, whose buffer it lies in
 * @family:	4 or 6
 * @proto:	PROTO_TCP or PROTO_UDP
 * @payload:	Bytes of payload, which are filled in
 * @headers:	Set to the bytes in front of it
 *
 * Return: the packet
 */
static struct pkt make_packet(struct scratch *scratch, uint8_t family, uint8_t proto, uint32_t payload,
			      uint32_t *headers)
{
	struct pkt pkt = pkt_init(scratch->buf, sizeof(scratch->buf), PKT_HEADROOM, 0);

	*headers = scratch_headers(pkt.buf + pkt.off, family, proto, payload);
	pkt.len = *headers + payload;
	scratch_fill(pkt.buf + pkt.off + *headers, payload);
	return pkt;
}

/**
 * proof_ugro() - UDP super-packets can be written to the TUN
 * @scratch:	The scratch network
 * @family:	4 or 6
 *
 * Return: 0 if so, or -errno
 */
int proof_ugro(struct scratch *scratch, uint8_t family)
{
	int fd = scratch_socket(family, SOCK_DGRAM, true), err;
	uint32_t headers;
	struct pkt pkt = make_packet(scratch, family, PROTO_UDP, SCRATCH_TOTAL, &headers);

	if (fd < 0)
		return fd;
	err = write_packet(scratch, &pkt, headers, PROTO_UDP);
	if (!err)
		err = scratch_receive(scratch, fd, SCRATCH_TOTAL, SCRATCH_SIZE);
	close(fd);
	return err;
}

/**
 * write_tcp() - Write a TCP packet from the far end, with its fields
 * @scratch:	The scratch network
 * @far:	The connection
 * @flags:	TCP flags
 * @payload:	Bytes of payload
 *
 * Return: 0 or -errno
 */
static int write_tcp(struct scratch *scratch, const struct far_end *far, uint8_t flags, uint32_t payload)
{
	/* a SYN may say how long segments may be, in what is payload by the headers' account */
	static const uint8_t mss[4] = {2, 4, SCRATCH_SIZE >> 8, SCRATCH_SIZE & 0xff};
	bool is_syn = flags & TCP_FLAG_SYN;
	uint32_t headers;
	struct pkt pkt = make_packet(scratch, far->family, PROTO_TCP, is_syn ? sizeof(mss) : payload, &headers);
	uint8_t *tcp = pkt.buf + pkt.off + headers - TCP_LEN;

	store16(tcp + 2, far->port);
	store32(tcp + TCP_SEQ, far->seq);
	store32(tcp + TCP_ACK, far->ack);
	store16(tcp + TCP_WINDOW, 65535);
	tcp[TCP_FLAGS] = flags;
	if (is_syn) {
		tcp[TCP_DOFF] = 0x60;
		memcpy(tcp + TCP_LEN, mss, sizeof(mss));
	}
	return write_packet(scratch, &pkt, headers, PROTO_TCP);
}

/**
 * establish() - Establish a TCP connection through the TUN
 * @scratch:	The scratch network
 * @family:	4 or 6
 * @far:	Set to the connection; close its fd
 *
 * Return: 0 or -errno
 */
static int establish(struct scratch *scratch, uint8_t family, struct far_end *far)
{
	struct vnet_hdr vnet;
	struct flow flow;
	struct pkt pkt;
	const uint8_t *tcp;
	int err;

	*far = (struct far_end){.fd = scratch_socket(family, SOCK_STREAM, true), .family = family, .seq = 1000};
	if (far->fd < 0)
		return far->fd;
	err = scratch_read(scratch, family, PROTO_TCP, &pkt, &flow, &vnet);
	if (err)
		return err;
	tcp = pkt_at(&pkt, flow.l3len, TCP_LEN);
	if (!tcp || !(tcp[TCP_FLAGS] & TCP_FLAG_SYN))
		return -EBADMSG;
	far->port = load16(tcp);
	far->ack = load32(tcp + TCP_SEQ) + 1;
	err = write_tcp(scratch, far, TCP_FLAG_SYN | TCP_FLAG_ACK, 0);
	far->seq++;
	return err ? err : scratch_wait(scratch, far->fd, POLLOUT);
}

/**
 * proof_tso() - TCP super-packets come out of the TUN
 * @scratch:	The scratch network
 * @family:	4 or 6
 *
 * Return: 0 if so, or -errno
 */
int proof_tso(struct scratch *scratch, uint8_t family)
{
	uint8_t data[SCRATCH_TOTAL];
	struct far_end far;
	int err = establish(scratch, family, &far);

	scratch_fill(data, sizeof(data));
	if (!err && send(far.fd, data, sizeof(data), MSG_DONTWAIT | MSG_NOSIGNAL) != sizeof(data))
		err = -errno;
	if (!err)
		err = read_all(scratch, family, PROTO_TCP, SCRATCH_TOTAL, true);
	if (far.fd >= 0)
		close(far.fd);
	return err;
}

/**
 * proof_gro() - TCP super-packets can be written to the TUN
 * @scratch:	The scratch network
 * @family:	4 or 6
 *
 * Return: 0 if so, or -errno
 */
int proof_gro(struct scratch *scratch, uint8_t family)
{
	uint8_t data[SCRATCH_TOTAL + 1];
	struct far_end far;
	int err = establish(scratch, family, &far);

	if (!err)
		err = write_tcp(scratch, &far, TCP_FLAG_ACK | TCP_FLAG_PSH, SCRATCH_TOTAL);
	if (!err)
		err = scratch_wait(scratch, far.fd, POLLIN);
	if (!err && (recv(far.fd, data, sizeof(data), MSG_DONTWAIT) != SCRATCH_TOTAL ||
		     !scratch_is_whole(data, 0, SCRATCH_TOTAL)))
		err = -EBADMSG;
	if (far.fd >= 0)
		close(far.fd);
	return err;
}
