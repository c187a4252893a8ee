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
 * read_permitted() - Which capabilities does this thread have?
 * @permitted:	Set to a mask of them
 *
 * Return: 0 or -errno
 */
static int read_permitted(uint64_t *permitted)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	memset(data, 0, sizeof(data));
	if (syscall(SYS_capget, &header, data))
		return -errno;
	*permitted = data[0].permitted | (uint64_t)data[1].permitted << 32;
	return 0;
}

/**
 * write_capabilities() - Set the three sets that a thread may lower
 * @permitted:	Mask: what it has, and uses
 * @inheritable:	Mask: what programs that it becomes may have
 *
 * Return: 0 or -errno
 */
static int write_capabilities(uint64_t permitted, uint64_t inheritable)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	for (int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
		data[i].permitted = data[i].effective = (uint32_t)(permitted >> 32 * i);
		data[i].inheritable = (uint32_t)(inheritable >> 32 * i);
	}
	return syscall(SYS_capset, &header, data) ? -errno : 0;
}

/**
 * dp_keep_capabilities() - Give up all capabilities of this thread but a few, for good
 * @kept:	Mask of what it keeps, of what it has
 * @children:	Mask of those that programs that it starts have, too
 *
 * Sets no_new_privs, and empties the bounding set (exec gives back nothing but
 * @children, not even to root) if it may: without CAP_SETPCAP others have seen
 * to that. Call it before any other thread exists. capabilities(7).
 *
 * Return: 0 or -errno
 */
int dp_keep_capabilities(uint64_t kept, uint64_t children)
{
	uint64_t permitted = 0;
	int err = read_permitted(&permitted);

	if (err)
		return err;
	kept &= permitted;
	children &= kept;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -errno;
	/* Before the bounding set is empty: it bounds what may become inheritable. */
	err = write_capabilities(permitted, children);
	if (err)
		return err;
	/* EPERM: no CAP_SETPCAP. EINVAL: past the last one. */
	for (unsigned long cap = 0; !prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);)
		cap++;
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) && errno != EINVAL)
		return -errno;
	err = write_capabilities(kept, children);
	for (unsigned long cap = 0; !err && cap < 64; cap++) {
		if (children >> cap & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0))
			err = -errno;
	}
	return err;
}

/**
 * dp_drop_privileges() - Give up all capabilities of this thread, for good
 *
 * Return: as dp_keep_capabilities()
 */
int dp_drop_privileges(void)
{
	return dp_keep_capabilities(0, 0);
}
