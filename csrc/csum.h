/* SPDX-License-Identifier: Apache-2.0 */
/* csum.h - the internet checksum (RFC 1071), pseudo-headers, incremental update (RFC 1624). */
#ifndef CSUM_H
#define CSUM_H

#include <stddef.h>
#include <stdint.h>

/* Bytes from which it pays to ask for the widest vectors of the CPU, and to align their loads. */
enum { CSUM_WIDE = 128, CSUM_LONG = 1024 };

uint64_t csum_add(const uint8_t *data, size_t len, uint64_t sum);
uint16_t csum_fold(uint64_t sum);
uint64_t csum_pseudo(const uint8_t *saddr, const uint8_t *daddr, uint32_t addr_len, uint8_t proto, uint32_t l4len);
void csum_replace16(uint8_t *check, uint16_t old, uint16_t now);

/* What csum_add() chooses from; for tests. csum_add_any() runs everywhere: SSE2 on x86-64, NEON on arm64. */
uint64_t csum_add_any(const uint8_t *data, size_t len, uint64_t sum);
#ifdef __x86_64__
uint64_t csum_add_avx2(const uint8_t *data, size_t len, uint64_t sum);
uint64_t csum_add_avx512(const uint8_t *data, size_t len, uint64_t sum);
#endif

#endif
