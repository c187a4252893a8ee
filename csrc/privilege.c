/* SPDX-License-Identifier: Apache-2.0 */
/* privilege.c - giving up what a forwarder never needs. */
#include <errno.h>
#include <linux/capability.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "dp.h"

/**
 * dp_hide_memory() - Let no other process of this user trace this one or read its memory, nor a core dump
 *
 * Return: 0 or -errno
 */
int dp_hide_memory(void)
{
	const struct rlimit none = {0, 0};

	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) || setrlimit(RLIMIT_CORE, &none))
		return -errno;
	return 0;
}

/**
 * dp_drop_privileges() - Give up all capabilities of this thread, for good
 *
 * Sets no_new_privs, empties the bounding and ambient sets (exec gives nothing
 * back, not even to root) and then the permitted, effective and inheritable
 * sets. Call it before any other thread exists. capabilities(7).
 *
 * Return: 0 or -errno
 */
int dp_drop_privileges(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3];

	memset(none, 0, sizeof(none));
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -errno;
	/* EPERM: we have no CAP_SETPCAP, so are not privileged to begin with. EINVAL: past the last one. */
	for (unsigned long cap = 0; !prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);)
		cap++;
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) && errno != EINVAL)
		return -errno;
	return syscall(SYS_capset, &header, none) ? -errno : 0;
}
