/* SPDX-License-Identifier: Apache-2.0 */
/* csum_simd.h - the sum of many bytes, by what the processor has. */
#ifndef CSUM_SIMD_H
#define CSUM_SIMD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that are summed at a time. */
enum { CSUM_BLOCK = 64 };

/* Ways to sum, the widest of each kind of processor last; the last one that this one can is taken. */
enum csum_way { CSUM_PORTABLE, CSUM_NEON, CSUM_AVX2, CSUM_AVX512, CSUM_WAYS };

bool csum_can(enum csum_way way);
uint64_t csum_blocks_by(enum csum_way way, const uint8_t *data, size_t len);
uint64_t csum_blocks(const uint8_t *data, size_t len);

#endif
