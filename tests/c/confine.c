/* SPDX-License-Identifier: Apache-2.0 */
/*
 * confine.c - under the filter of a forwarder its own calls work, and any other ends the process.
 *
 * Each call is tried in a child of its own, which exits with status 0 after it.
 *
 *     confine forbidden | allowed | refused | without     plain build only: sanitizers make system calls of their own
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "dp.h"

enum { PAGE = 4096 };

static int sock; /* UDP, opened before */

/* --- what a forwarder never does ------------------------------------------------- */

static void call_execve(void)
{
	char *const none[] = {NULL};

	execve("/bin/true", none, none);
}

static void call_open(void)
{
	(void)!open("/etc/passwd", O_RDONLY);
}

static void call_openat2(void)
{
	(void)!syscall(SYS_openat2, AT_FDCWD, "/", NULL, 0);
}

static void call_stat(void)
{
	struct stat stat;

	(void)!syscall(SYS_newfstatat, AT_FDCWD, "/etc/passwd", &stat, 0);
}

static void call_unlink(void)
{
	unlink("/nowhere");
}

static void call_socket(void)
{
	(void)!socket(AF_INET, SOCK_DGRAM, 0);
}

static void call_connect(void)
{
	(void)!connect(sock, NULL, 0);
}

static void call_bind(void)
{
	(void)!bind(sock, NULL, 0);
}

static void call_ptrace(void)
{
	ptrace(PTRACE_TRACEME, 0, NULL, NULL);
}

static void call_read_memory(void)
{
	(void)!syscall(SYS_process_vm_readv, 1, NULL, 0, NULL, 0, 0);
}

static void call_bpf(void)
{
	(void)!syscall(SYS_bpf, 0, NULL, 0);
}

static void call_unshare(void)
{
	(void)!unshare(CLONE_NEWUSER);
}

static void call_setns(void)
{
	(void)!setns(sock, 0);
}

static void call_mount(void)
{
	mount("none", "/nowhere", "tmpfs", 0, NULL);
}

static void call_fork(void)
{
	if (!fork())
		_exit(0);
}

static void call_vfork(void)
{
	if (!syscall(SYS_clone, CLONE_VM | CLONE_VFORK | SIGCHLD, 0, 0, 0, 0))
		_exit(0);
}

static void call_kill(void)
{
	kill(getppid(), 0);
}

static void call_tgkill(void)
{
	(void)!syscall(SYS_tgkill, 1, 1, SIGABRT);
}

static void call_own_kill(void)
{
	(void)!syscall(SYS_tgkill, getpid(), gettid(), 0);
}

static void call_prctl(void)
{
	prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

static void call_ioctl(void)
{
	(void)!syscall(SYS_ioctl, sock, 0, 0);
}

static void call_setsockopt(void)
{
	(void)!setsockopt(sock, SOL_SOCKET, SO_MARK, &(int){1}, sizeof(int));
}

static void call_fcntl(void)
{
	(void)!fcntl(sock, F_SETFL, 0);
}

static void call_handle_signal(void)
{
	signal(SIGTERM, SIG_IGN);
}

static void call_map_code(void)
{
	mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void call_make_code(void)
{
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	mprotect(page, PAGE, PROT_READ | PROT_EXEC);
}

static void call_make_keyed_code(void)
{
	(void)!syscall(SYS_pkey_mprotect, NULL, 0, PROT_EXEC, -1);
}

static void call_seccomp(void)
{
	(void)!syscall(SYS_seccomp, 0, 0, NULL);
}

static void call_io_uring(void)
{
	(void)!syscall(SYS_io_uring_setup, 1, NULL);
}

static void call_memfd(void)
{
	(void)!memfd_create("x", 0);
}

static void call_unknown(void)
{
	(void)!syscall(9999);
}

#ifdef __x86_64__
static void call_x32(void)
{
	(void)!syscall(0x40000000 | SYS_read, -1, NULL, 0);
}

static void call_32_bits(void)
{
	long number = 20; /* getpid() there, writev() here */

	__asm__ volatile("int $0x80" : "+a"(number) : : "memory", "r8", "r9", "r10", "r11");
}
#endif

struct call {
	const char *name;
	void (*make)(void);
};

static const struct call forbidden[] = {
	{"execve", call_execve},
	{"open", call_open},
	{"openat2", call_openat2},
	{"stat", call_stat},
	{"unlink", call_unlink},
	{"socket", call_socket},
	{"connect", call_connect},
	{"bind", call_bind},
	{"ptrace", call_ptrace},
	{"process_vm_readv", call_read_memory},
	{"bpf", call_bpf},
	{"unshare", call_unshare},
	{"setns", call_setns},
	{"mount", call_mount},
	{"fork", call_fork},
	{"vfork", call_vfork},
	{"kill", call_kill},
	{"tgkill of another", call_tgkill},
	{"tgkill of ourselves", call_own_kill},
	{"prctl", call_prctl},
	{"ioctl", call_ioctl},
	{"setsockopt", call_setsockopt},
	{"fcntl", call_fcntl},
	{"rt_sigaction", call_handle_signal},
	{"mmap of code", call_map_code},
	{"mprotect to code", call_make_code},
	{"pkey_mprotect", call_make_keyed_code},
	{"seccomp", call_seccomp},
	{"io_uring_setup", call_io_uring},
	{"memfd_create", call_memfd},
	{"no call at all", call_unknown},
#ifdef __x86_64__
	{"x32", call_x32},
	{"32 bits", call_32_bits},
#endif
};

/* --- what it does ---------------------------------------------------------------- */

static void *run(void *arg)
{
	sched_yield();
	return arg;
}

static void use_threads(void)
{
	pthread_t threads[4];

	for (int i = 0; i < 4; i++)
		CHECK(!pthread_create(&threads[i], NULL, run, NULL));
	for (int i = 0; i < 4; i++)
		CHECK(!pthread_join(threads[i], NULL));
}

static void use_memory(void)
{
	for (size_t size = 16; size < 64 << 20; size *= 2) {
		void *volatile memory = calloc(1, size);

		CHECK(memory);
		free(memory);
	}
}

static void use_descriptors(void)
{
	const struct timespec pause = {.tv_nsec = 1};
	struct epoll_event event = {.events = EPOLLIN};
	int epoll_fd = epoll_create1(EPOLL_CLOEXEC), wake_fd = eventfd(1, EFD_NONBLOCK), off = 0;
	struct stat stat;
	uint64_t one;

	CHECK(epoll_fd >= 0 && wake_fd >= 0);
	CHECK(!epoll_ctl(epoll_fd, EPOLL_CTL_ADD, wake_fd, &event) && epoll_wait(epoll_fd, &event, 1, 0) == 1);
	CHECK(read(wake_fd, &one, sizeof(one)) == sizeof(one) && write(wake_fd, &one, sizeof(one)) == sizeof(one));
	CHECK(fcntl(wake_fd, F_DUPFD_CLOEXEC, 3) > 0 && fcntl(wake_fd, F_GET_SEALS) < 0);
	CHECK(!fstat(wake_fd, &stat) && !close(wake_fd));
	CHECK(!setsockopt(sock, SOL_UDP, UDP_GRO, &off, sizeof(off)));
	CHECK(!poll(NULL, 0, 0) && !nanosleep(&pause, NULL));
}

static const struct call allowed[] = {
	{"threads", use_threads},
	{"memory", use_memory},
	{"descriptors", use_descriptors},
};

/* --- trying ---------------------------------------------------------------------- */

/**
 * try() - Make a call in a child that is confined
 * @call:	Which
 *
 * Return: what waitpid() says of the child
 */
static int try(const struct call *call)
{
	pid_t pid = fork();
	int status;

	CHECK(pid >= 0);
	if (!pid) {
		CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
		CHECK(!dp_confine());
		call->make();
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	return status;
}

static void check_forbidden(void)
{
	for (size_t i = 0; i < sizeof(forbidden) / sizeof(*forbidden); i++) {
		int status = try(&forbidden[i]);

		if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSYS) {
			fprintf(stderr, "%s: not killed, status %#x\n", forbidden[i].name, status);
			exit(1);
		}
	}
}

void __stack_chk_fail(void); /* what the compiler calls */

static void check_allowed(void)
{
	const struct call damages[] = {{"abort", abort}, {"smashed stack", __stack_chk_fail}};

	for (size_t i = 0; i < sizeof(allowed) / sizeof(*allowed); i++)
		CHECK(!try(&allowed[i]));
	for (size_t i = 0; i < sizeof(damages) / sizeof(*damages); i++) {
		int status = try(&damages[i]); /* how the C library ends a process that is damaged is not hidden */

		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	}
}

static void call_clone3(void)
{
	struct clone_args args = {.exit_signal = SIGCHLD};

	CHECK(syscall(SYS_clone3, &args, sizeof(args)) == -1 && errno == ENOSYS);
}

static void check_refused(void)
{
	const struct call call = {"clone3", call_clone3};

	CHECK(!try(&call));
}

/* Run where there are no filters. */
static void check_without(void)
{
	int err = dp_confine();

	CHECK(err == -ENOSYS || err == -EINVAL);
	CHECK(open("/", O_RDONLY) >= 0);
}

int main(int argc, char **argv)
{
	const struct call scenarios[] = {
		{"forbidden", check_forbidden},
		{"allowed", check_allowed},
		{"refused", check_refused},
		{"without", check_without},
	};

	sock = socket(AF_INET, SOCK_DGRAM, 0);
	CHECK(argc == 2 && sock >= 0);
	for (size_t i = 0; i < sizeof(scenarios) / sizeof(*scenarios); i++) {
		if (strcmp(argv[1], scenarios[i].name))
			continue;
		scenarios[i].make();
		return 0;
	}
	return 1;
}
