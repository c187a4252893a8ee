/* SPDX-License-Identifier: Apache-2.0 */
/*
 * confine.c - a forwarder that serves may make few system calls, and any other is its end.
 *
 * DOC: Theory of operation
 *
 * Whoever takes the forwarder over by a packet has what descriptors and system
 * calls it has. So once it listens, and before it is given a descriptor, it puts
 * itself under a filter (seccomp(2), classic BPF) that lets pass what the
 * functions of engine.c, worker.c, ctl.c and the C library under them call, and
 * kills the process at anything else: it opens nothing, connects to nothing,
 * starts nothing, traces and signals nobody, and makes no memory executable.
 * Threads inherit the filter. control starts another forwarder in place of one
 * that was killed (SIGSYS).
 *
 * A new system call in the forwarder needs a line in the list below.
 *
 * Calls of the packet path have no conditions: the kernel notes once that they
 * pass, and runs no filter for them.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "dp.h"

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "which system calls a forwarder makes is not known for this architecture"
#endif
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "LOW() is the first half");

enum { CHECKS_MAX = 2 };
enum { SIGCANCEL = 32, SIGSETXID = 33 };

/* argument & mask must be value; mask 0: not looked at */
struct check {
	uint32_t offset; /* in struct seccomp_data */
	uint32_t mask;
	uint32_t value;
};

struct rule {
	uint32_t number;
	struct check checks[CHECKS_MAX];
};

#define PASS(name)                   \
	{                            \
		.number = SYS_##name \
	}
#define PASS_IF(name, ...)                                      \
	{                                                       \
		.number = SYS_##name, .checks = { __VA_ARGS__ } \
	}

/* Halves of an argument. */
#define LOW(argument, mask, value)                                         \
	{                                                                  \
		offsetof(struct seccomp_data, args[argument]), mask, value \
	}
#define HIGH(argument, mask, value)                                                           \
	{                                                                                     \
		offsetof(struct seccomp_data, args[argument]) + sizeof(uint32_t), mask, value \
	}
#define IS(argument, value) LOW(argument, UINT32_MAX, value)

/* What makes a new task a thread of this process, and flags that would give it anything of its own. */
#define THREAD_FLAGS (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD)
#define OWN_FLAGS                                                                                                    \
	(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | \
	 CLONE_PTRACE | CLONE_UNTRACED | CLONE_VFORK | CLONE_PIDFD | CLONE_IO)

static const struct rule rules[] = {
/* packets (worker.c) */
#ifdef SYS_epoll_wait
	PASS(epoll_wait),
#endif
	PASS(epoll_pwait), /* where there is no other */
	PASS(recvmmsg),
	PASS(sendmmsg),
	PASS(read),
	PASS(write),
	PASS(writev),
	PASS(sched_yield),
	PASS(clock_gettime), /* where the vDSO has none */
	PASS(futex),
/* messages (ctl.c) */
#ifdef SYS_poll
	PASS(poll),
#endif
	PASS(ppoll),           /* where there is no other */
	PASS(restart_syscall), /* after SIGSTOP and SIGCONT */
	PASS(clock_nanosleep),
	PASS(accept4),
	PASS(recvmsg),
	PASS(sendmsg),
	PASS(close),
	PASS(getpid),
	PASS(signalfd4),
	/* other descriptors and tables (engine.c, counters.c, fib.c) */
	PASS_IF(fcntl, IS(1, F_DUPFD_CLOEXEC)),
	PASS_IF(fcntl, IS(1, F_GET_SEALS)),
	PASS(fstat),
	PASS_IF(newfstatat, LOW(3, AT_EMPTY_PATH, AT_EMPTY_PATH)), /* which is fstat(), too */
	PASS_IF(setsockopt, IS(1, SOL_UDP), IS(2, UDP_GRO)),
	PASS(epoll_create1),
	PASS(epoll_ctl),
	PASS(eventfd2),
	/* memory, never executable */
	PASS_IF(mmap, LOW(2, PROT_EXEC, 0)),
	PASS_IF(mprotect, LOW(2, PROT_EXEC, 0)),
	PASS(munmap),
	PASS(madvise),
	PASS(brk),
	PASS(getrandom), /* malloc(), the first time */
	/* threads */
	PASS_IF(clone, LOW(0, THREAD_FLAGS | OWN_FLAGS, THREAD_FLAGS), HIGH(0, UINT32_MAX, 0)),
	PASS(rt_sigprocmask),
	PASS_IF(rt_sigaction, IS(0, SIGCANCEL)), /* the C library's own, with the first thread */
	PASS_IF(rt_sigaction, IS(0, SIGSETXID)),
	PASS(set_robust_list),
	PASS(rseq),
	PASS(sched_getaffinity),
	PASS(exit),
	/* the end; in write_filter(): the signal by which the C library reports damage */
	PASS(exit_group),
	PASS(gettid),
};

enum { RULES = sizeof(rules) / sizeof(*rules) };

/* A filter being written: head, three lines and a check or two of three for each rule, tail. */
struct filter {
	struct sock_filter lines[16 + (RULES + 1) * (3 + 3 * CHECKS_MAX)];
	uint16_t count;
};

/**
 * add() - Write a line
 * @filter:	The filter
 * @line:	BPF_STMT() or BPF_JUMP()
 */
static void add(struct filter *filter, struct sock_filter line)
{
	filter->lines[filter->count++] = line;
}

/**
 * add_load() - Load a word of what is known of a system call
 * @filter:	The filter
 * @offset:	In struct seccomp_data
 */
static void add_load(struct filter *filter, uint32_t offset)
{
	add(filter, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset));
}

/**
 * add_return() - End with a verdict
 * @filter:	The filter
 * @verdict:	SECCOMP_RET_*
 */
static void add_return(struct filter *filter, uint32_t verdict)
{
	add(filter, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, verdict));
}

/**
 * add_rule() - Let a system call pass
 * @filter:	The filter; begins with the number loaded, and so does what comes next
 * @rule:	Which, and with which arguments
 */
static void add_rule(struct filter *filter, const struct rule *rule)
{
	uint32_t checks = 0, left;

	while (checks < CHECKS_MAX && rule->checks[checks].mask)
		checks++;
	left = 3 * checks + (checks ? 2 : 1); /* lines after the first jump */
	add(filter, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, rule->number, 0, (uint8_t)left));
	for (uint32_t i = 0; i < checks; i++) {
		const struct check *check = &rule->checks[i];

		left -= 3;
		add_load(filter, check->offset);
		add(filter, (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, check->mask));
		/* Otherwise to the line that loads the number again. */
		add(filter,
		    (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, check->value, 0, (uint8_t)(left - 1)));
	}
	add_return(filter, SECCOMP_RET_ALLOW);
	if (checks)
		add_load(filter, offsetof(struct seccomp_data, nr));
}

/**
 * write_filter() - Write the whole filter
 * @filter:	Filled in
 */
static void write_filter(struct filter *filter)
{
	const struct rule abort_self = PASS_IF(tgkill, IS(0, (uint32_t)getpid()), IS(2, SIGABRT));

	filter->count = 0;
	add_load(filter, offsetof(struct seccomp_data, arch));
	add(filter, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0));
	add_return(filter, SECCOMP_RET_KILL_PROCESS);
	add_load(filter, offsetof(struct seccomp_data, nr));
	for (int i = 0; i < RULES; i++)
		add_rule(filter, &rules[i]);
	add_rule(filter, &abort_self);
	/* Its flags lie in memory, where no filter can look: without it, the C library calls clone(). */
	add(filter, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1));
	add_return(filter, SECCOMP_RET_ERRNO | ENOSYS);
	add_return(filter, SECCOMP_RET_KILL_PROCESS);
}

/**
 * dp_confine() - Let all threads of this process make no other system calls than a forwarder's, for good
 *
 * Needs no_new_privs, or CAP_SYS_ADMIN.
 *
 * Return: 0; -ENOSYS or -EINVAL if this kernel cannot; another -errno
 */
int dp_confine(void)
{
	/* No stranger's code runs in here: so no kernel need make speculation slow because of the filter. */
	const unsigned int flags[] = {SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_SPEC_ALLOW,
				      SECCOMP_FILTER_FLAG_TSYNC};
	struct filter filter;
	struct sock_fprog program;
	long done = -1;

	write_filter(&filter);
	program = (struct sock_fprog){.len = filter.count, .filter = filter.lines};
	for (int i = 0; i < 2 && done < 0; i++) {
		done = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags[i], &program);
		if (done < 0 && errno != EINVAL)
			break;
	}
	if (done > 0) /* the thread that cannot be confined */
		return -ESRCH;
	return done ? -errno : 0;
}
