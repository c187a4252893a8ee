/* SPDX-License-Identifier: Apache-2.0 */
/* corners_cpu.c - a CPU that has only a part of the vectors takes what it has, and the sums are the same. */
#include "check.h"
#include "csum.h"

#ifdef __x86_64__
enum { LEN = 4096, AVX2 = 1 << 10 };

/* What __builtin_cpu_supports() looks at: of gcc's library, and of clang's. */
extern struct {
	uint32_t vendor, type, subtype, features[1];
} __cpu_model;

int main(void)
{
	static uint8_t data[LEN];
	uint64_t dice = 9;
	uint32_t all, masks[3];

	__builtin_cpu_init();
	all = __cpu_model.features[0];
	masks[0] = all;
	masks[1] = all & AVX2;
	masks[2] = 0;
	for (size_t i = 0; i < LEN; i++)
		data[i] = (uint8_t)roll(&dice);
	for (size_t len = 0; len < LEN; len += 61) {
		uint16_t sum = csum_fold(csum_add_any(data, len, 0));

		for (int i = 0; i < 3; i++) {
			__cpu_model.features[0] = masks[i];
			CHECK(!__builtin_cpu_supports("avx2") == !(masks[i] & AVX2));
			CHECK(i == 0 || !__builtin_cpu_supports("avx512vbmi2"));
			CHECK(csum_fold(csum_add(data, len, 0)) == sum);
		}
	}
	__cpu_model.features[0] = all;
	return 0;
}
#else
int main(void)
{
	return 0; /* there is one way to sum */
}
#endif
