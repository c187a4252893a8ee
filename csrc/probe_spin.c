/* SPDX-License-Identifier: Apache-2.0 */
/* probe_spin.c - lets tests in Python ask spin.c; part of no build but theirs. */
#include <stdint.h>
#include <stdlib.h>

#include "dp.h"
#include "spin.h"
#include "probe.h"

/**
 * probe_spin_new() - Make a state that has learned nothing
 * @limit_ns:	As in struct spin
 *
 * Return: the state, for probe_spin_free(), or NULL
 */
struct spin *probe_spin_new(uint64_t limit_ns)
{
	struct spin *spin = calloc(1, sizeof(*spin));

	if (spin)
		spin->limit_ns = limit_ns;
	return spin;
}

/**
 * probe_spin_free() - Free a state
 * @spin:	From probe_spin_new()
 */
void probe_spin_free(struct spin *spin)
{
	free(spin);
}

/**
 * probe_spin_found() - spin_found()
 * @spin:	As there
 * @now_ns:	As there
 */
void probe_spin_found(struct spin *spin, uint64_t now_ns)
{
	spin_found(spin, now_ns);
}

/**
 * probe_spin_again() - spin_again()
 * @spin:	As there
 * @now_ns:	As there
 *
 * Return: 1 or 0
 */
uint8_t probe_spin_again(struct spin *spin, uint64_t now_ns)
{
	return spin_again(spin, now_ns);
}
