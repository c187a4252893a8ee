/* SPDX-License-Identifier: Apache-2.0 */
/*
 * steer.c - which queue of the TUN a packet goes to.
 *
 * DOC: Theory of operation
 *
 * Left alone, a TUN with several queues moves a flow to the queue through which
 * packets of the other direction were last written, while packets still wait in
 * the old one: they would overtake each other. A program of a few instructions
 * takes the choice away from it (TUNSETSTEERINGEBPF, Linux 4.16): it hashes
 * addresses and ports, so a flow keeps its queue for life. Fragments are hashed
 * without ports, which only the first one has.
 */
#include "steer.h"

#include <errno.h>
#include <linux/bpf.h>
#include <linux/if_tun.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "dp.h"
#include "pkt.h"
#include "wire.h"

/* A multiplier that spreads its input over all bits (2^32 divided by the golden ratio). */
#define SPREAD ((int32_t)0x9e3779b1)

/* The instructions, as their fields: code, destination, source, jump, constant. */
#define INSN(c, d, s, o, i) ((struct bpf_insn){.code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i)})
#define COPY(d, s) INSN(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define LOAD(size, at) INSN(BPF_LD | BPF_ABS | (size), 0, 0, 0, at)        /* r0 = packet[at] */
#define LOAD_BEHIND(reg, at) INSN(BPF_LD | BPF_IND | BPF_W, 0, reg, 0, at) /* r0 = packet[reg + at] */
#define ALU(op, d, i) INSN(BPF_ALU | (op) | BPF_K, d, 0, 0, i)             /* on 32 bits */
#define XOR(d, s) INSN(BPF_ALU | BPF_XOR | BPF_X, d, s, 0, 0)
#define JUMP(op, d, i, skip) INSN(BPF_JMP | (op) | BPF_K, d, 0, skip, i)
#define SKIP(skip) INSN(BPF_JMP | BPF_JA, 0, 0, skip, 0)
#define EXIT INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)
#define MIX(d, s) XOR(d, s), ALU(BPF_MUL, d, SPREAD)

enum { R0, R1, R6 = 6, R7, R8 };

/*
 * r6: the packet, as BPF_ABS wants it. r7: bytes before the ports. r8: the hash.
 * A load beyond the end ends the program with 0, which is a queue like another.
 */
static const struct bpf_insn program[] = {
	COPY(R6, R1),
	ALU(BPF_MOV, R8, 0),
	LOAD(BPF_B, 0),
	COPY(R7, R0),
	ALU(BPF_RSH, R0, 4),
	JUMP(BPF_JEQ, R0, 6, 14), /* to IPv6 */
	LOAD(BPF_W, IP4_SRC),
	MIX(R8, R0),
	LOAD(BPF_W, IP4_DST),
	MIX(R8, R0),
	ALU(BPF_AND, R7, 15),
	ALU(BPF_LSH, R7, 2),
	LOAD(BPF_H, IP4_FRAG),
	JUMP(BPF_JSET, R0, IP4_MF | IP4_OFFSET_MASK, 20), /* to the end */
	LOAD(BPF_B, IP4_PROTO),
	JUMP(BPF_JEQ, R0, PROTO_TCP, 15), /* to the ports */
	JUMP(BPF_JEQ, R0, PROTO_UDP, 14),
	SKIP(16), /* to the end */
	/* IPv6 */
	LOAD(BPF_W, IP6_SRC + 8),
	MIX(R8, R0),
	LOAD(BPF_W, IP6_SRC + 12),
	MIX(R8, R0),
	LOAD(BPF_W, IP6_DST + 12),
	MIX(R8, R0),
	ALU(BPF_MOV, R7, IP6_LEN),
	LOAD(BPF_B, IP6_NEXT),
	JUMP(BPF_JEQ, R0, PROTO_TCP, 1),
	JUMP(BPF_JNE, R0, PROTO_UDP, 3), /* to the end */
	/* ports */
	LOAD_BEHIND(R7, 0),
	MIX(R8, R0),
	/* end */
	COPY(R0, R8),
	ALU(BPF_RSH, R0, 16),
	EXIT,
};

static int program_fd = -1; /* once loaded, for the life of the process */

/**
 * steer_load() - Load the program, for any device, unless that was done
 *
 * Not to be called by several threads at once.
 *
 * Return: 0 or -errno: -EPERM without CAP_BPF (where the system wants it),
 * -EINVAL before Linux 4.16
 */
int steer_load(void)
{
	union bpf_attr attr;

	if (program_fd >= 0)
		return 0;
	memset(&attr, 0, sizeof(attr));
	attr.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
	attr.insns = (uint64_t)(uintptr_t)program;
	attr.insn_cnt = sizeof(program) / sizeof(program[0]);
	attr.license = (uint64_t)(uintptr_t) "";
	program_fd = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));
	return program_fd < 0 ? -errno : 0;
}

/**
 * dp_tun_steering() - The loaded program as a descriptor, which a process that is to follow this one may inherit
 *
 * Return: borrowed, or -1 if there is none
 */
int dp_tun_steering(void)
{
	return program_fd;
}

/**
 * dp_tun_adopt_steering() - Use a program that this process loaded before it was what it is now
 * @fd:	Of dp_tun_steering(), ours from now on
 */
void dp_tun_adopt_steering(int fd)
{
	program_fd = fd;
}

/**
 * steer_by_flow() - Let the queue of a packet depend on its flow alone
 * @tun_fd:	Any queue of a TUN
 *
 * Return: 0 or -errno, as steer_load() or of the device
 */
int steer_by_flow(int tun_fd)
{
	int err = steer_load();

	if (err)
		return err;
	return ioctl(tun_fd, TUNSETSTEERINGEBPF, &program_fd) ? -errno : 0;
}
