/* SPDX-License-Identifier: Apache-2.0 */
/* slice.c - how long a thread runs at a time, where others want its processor too. */
#include <errno.h>
#include <linux/sched.h>
#include <linux/sched/types.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "dp.h"

/**
 * dp_shorten_slice() - Run for less time at once, and be served sooner for it
 * @slice_ns:	For how long; the kernel takes from 100 us to 100 ms
 *
 * Its share of the processor stays as it is. This thread's; those that it starts
 * begin with the same. Since Linux 6.12; earlier kernels take no notice. One that
 * somebody has put under another policy than that of most is left alone.
 *
 * Return: 0 or -errno
 */
int dp_shorten_slice(uint64_t slice_ns)
{
	struct sched_attr attr;

	memset(&attr, 0, sizeof(attr));
	if (syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0))
		return -errno;
	if (attr.sched_policy != SCHED_NORMAL && attr.sched_policy != SCHED_BATCH)
		return 0;
	attr.size = sizeof(attr);
	attr.sched_runtime = slice_ns;
	return syscall(SYS_sched_setattr, 0, &attr, 0) ? -errno : 0;
}
