/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wall_clock.c - preloaded into a process, lets a test set its wall clock, and no other.
 *
 * The file that WALL_CLOCK names holds by how many seconds the clock is off, as a native int64_t; it is mapped,
 * so whoever writes it sets the clock. Clocks that only go forward are the kernel's, as they are when a clock
 * is set. Waits that end at a moment of the wall clock get it as the kernel's clock has it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define WALL_MIN 1000000000 /* seconds: no uptime is as long, and no wall clock that early */

typedef long call_fn(long number, ...);
typedef int cond_fn(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until);
typedef int sem_fn(sem_t *sem, const struct timespec *until);

static const volatile int64_t nothing;
static const volatile int64_t *off_s = &nothing;

__attribute__((constructor)) static void map_file(void)
{
	const char *path = getenv("WALL_CLOCK");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *map = mmap(NULL, sizeof(*off_s), PROT_READ, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED)
		abort();
	off_s = map;
	close(fd);
}

static call_fn *kernel(void)
{
	static call_fn *found;

	if (!found)
		*(void **)&found = dlsym(RTLD_NEXT, "syscall");
	return found;
}

/* What the kernel's clock shows when ours shows `until`. */
static const struct timespec *at_kernel(const struct timespec *until, struct timespec *out)
{
	if (!until || until->tv_sec < WALL_MIN)
		return until;
	*out = *until;
	out->tv_sec -= *off_s;
	return out;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int err = (int)kernel()(SYS_clock_gettime, clock, now);

	if (!err && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE || clock == CLOCK_TAI))
		now->tv_sec += *off_s;
	return err;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	int err = (int)kernel()(SYS_gettimeofday, now, zone);

	if (!err)
		now->tv_sec += *off_s;
	return err;
}

time_t time(time_t *out)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (out)
		*out = now.tv_sec;
	return now.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
			   const struct timespec *restrict until)
{
	static cond_fn *next;
	struct timespec moment;

	if (!next)
		*(void **)&next = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
	if (!next)
		*(void **)&next = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
	return next(cond, mutex, at_kernel(until, &moment));
}

int sem_timedwait(sem_t *restrict sem, const struct timespec *restrict until)
{
	static sem_fn *next;
	struct timespec moment;

	if (!next)
		*(void **)&next = dlsym(RTLD_NEXT, "sem_timedwait");
	return next(sem, at_kernel(until, &moment));
}

/* Some libraries wait by the futex itself. */
long syscall(long number, ...)
{
	struct timespec moment;
	va_list list;
	long args[6];

	va_start(list, number);
	for (int i = 0; i < 6; i++)
		args[i] = va_arg(list, long);
	va_end(list);
	if (number == SYS_futex && (args[1] & FUTEX_CLOCK_REALTIME))
		args[3] = (long)at_kernel((const struct timespec *)args[3], &moment);
	return kernel()(number, args[0], args[1], args[2], args[3], args[4], args[5]);
}
