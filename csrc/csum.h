/* SPDX-License-Identifier: Apache-2.0 */
/* csum.h - the internet checksum (RFC 1071), pseudo-headers, incremental update (RFC 1624). */
#ifndef CSUM_H
#define CSUM_H

#include <stddef.h>
#include <stdint.h>

uint64_t csum_add(const uint8_t *data, size_t len, uint64_t sum);
uint16_t csum_fold(uint64_t sum);
uint64_t csum_pseudo(const uint8_t *saddr, const uint8_t *daddr, uint32_t addr_len, uint8_t proto, uint32_t l4len);
void csum_replace16(uint8_t *check, uint16_t old, uint16_t now);

#endif
