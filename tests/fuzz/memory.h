/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory.h - fib_build.c and fib.c with a memfd that is memory, for the targets that build and open tables.
 *
 * Without system calls they are ten times as fast, and stricter: a mapping ends at a wall, where that of a real
 * memfd goes on to the end of its page. Real ones are for the tests of tests/c and tests/unit. There is one file at
 * a time, the last one made, and one mapping of it beside one that is of no file. From here on those calls are ours.
 */
#ifndef MEMORY_H
#define MEMORY_H

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"

/* No real descriptor has that number; what maps begins at a multiple of MEMORY_ALIGN. */
enum { MEMORY_FD = 1 << 20, MEMORY_ALIGN = 16, MEMORY_MAX = WALL_ROOM - FUZZ_BESIDE };

/* The file. */
static struct {
	size_t size;
	int seals;
	uint8_t bytes[MEMORY_MAX];
} memory_file;

/**
 * memory_create() - memfd_create(): the file is empty, and has no seals
 *
 * Return: its descriptor
 */
static inline int memory_create(void)
{
	memory_file.size = 0;
	memory_file.seals = 0;
	return MEMORY_FD;
}

/**
 * memory_write() - pwrite(): which the file must have room for, and no seal forbid
 * @fd:		MEMORY_FD
 * @data:	Bytes
 * @len:	How many
 * @at:		Where in the file
 *
 * Return: all of them
 */
static inline ssize_t memory_write(int fd, const void *data, size_t len, size_t at)
{
	CHECK(fd == MEMORY_FD && !memory_file.seals && at <= MEMORY_MAX && len <= MEMORY_MAX - at);
	if (at > memory_file.size)
		memset(memory_file.bytes + memory_file.size, 0, at - memory_file.size);
	if (len)
		memcpy(memory_file.bytes + at, data, len);
	if (at + len > memory_file.size)
		memory_file.size = at + len;
	return (ssize_t)len;
}

/**
 * memory_read() - pread() from the beginning
 * @fd:		MEMORY_FD
 * @out:	Where to
 * @len:	Bytes, no more than there are
 *
 * Return: all of them
 */
static inline ssize_t memory_read(int fd, void *out, size_t len)
{
	CHECK(fd == MEMORY_FD && len <= memory_file.size);
	memcpy(out, memory_file.bytes, len);
	return (ssize_t)len;
}

/**
 * memory_cut() - ftruncate()
 * @fd:		MEMORY_FD
 * @size:	Bytes of the file from now on
 *
 * Return: 0
 */
static inline int memory_cut(int fd, size_t size)
{
	if (size > memory_file.size)
		memory_write(fd, NULL, 0, size);
	CHECK(fd == MEMORY_FD && !memory_file.seals);
	memory_file.size = size;
	return 0;
}

/**
 * memory_control() - fcntl() for seals
 * @fd:		MEMORY_FD
 * @command:	F_GET_SEALS, or F_ADD_SEALS and which
 *
 * Return: the seals, or 0
 */
static inline int memory_control(int fd, int command, ...)
{
	va_list list;

	CHECK(fd == MEMORY_FD);
	if (command == F_GET_SEALS)
		return memory_file.seals;
	CHECK(command == F_ADD_SEALS);
	va_start(list, command);
	memory_file.seals |= va_arg(list, int);
	va_end(list);
	return 0;
}

/**
 * memory_stat() - fstat(), of which the size is all that anybody wants
 * @fd:		MEMORY_FD
 * @out:	Its size is set
 *
 * Return: 0
 */
static inline int memory_stat(int fd, struct stat *out)
{
	CHECK(fd == MEMORY_FD);
	out->st_size = (off_t)memory_file.size;
	return 0;
}

/**
 * memory_map() - Map the file, or memory that is of none and begins with zeroes
 * @len:	Bytes
 * @fd:		MEMORY_FD, or -1
 *
 * Return: where it is: it ends at a wall, or so few bytes before one that it begins at a multiple of MEMORY_ALIGN
 */
static inline void *memory_map(size_t len, int fd)
{
	static struct wall walls[2];
	const struct wall *wall = &walls[fd < 0];
	uint8_t *at;

	if (!walls[0].first) {
		walls[0] = wall_build();
		walls[1] = wall_build();
	}
	CHECK(len <= MEMORY_MAX && (fd < 0 || len == memory_file.size));
	at = wall->end - (len + MEMORY_ALIGN - 1) / MEMORY_ALIGN * MEMORY_ALIGN;
#if __has_feature(address_sanitizer)
	ASAN_UNPOISON_MEMORY_REGION(at, len);
	ASAN_POISON_MEMORY_REGION(at - FUZZ_BESIDE, FUZZ_BESIDE);
	ASAN_POISON_MEMORY_REGION(at + len, (size_t)(wall->end - at) - len);
#endif
	if (fd < 0)
		memset(at, 0, len);
	else
		memcpy(at, memory_file.bytes, len);
	return at;
}

#define memfd_create(name, flags) memory_create()
#define write(fd, data, len) memory_write(fd, data, len, 0)
#define pwrite(fd, data, len, at) memory_write(fd, data, len, (size_t)(at))
#define pread(fd, out, len, at) memory_read(fd, out, len)
#define lseek(fd, at, whence) ((off_t)memory_file.size)
#define ftruncate(fd, size) memory_cut(fd, (size_t)(size))
#define fcntl memory_control
#define fstat(fd, out) memory_stat(fd, out)
#define mmap(at, len, prot, flags, fd, offset) memory_map(len, fd)
#define munmap(at, len) ((void)(at))
#define close(fd) ((void)(fd))

#include "../../csrc/fib_build.c"
#include "../../csrc/fib.c" /* not the target of that name */

#endif
