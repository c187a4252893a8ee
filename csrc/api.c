/* SPDX-License-Identifier: Apache-2.0 */
/* api.c - name tables and size asserts for what dp.h declares. */
#include <stddef.h>
#include <stdint.h>

#include "dp.h"

#ifndef DP_BUILD /* by build_native.py: a digest of the sources */
#define DP_BUILD 1
#endif

static const char *const drop_names[] = {
	[DP_DROP_NONE] = "none",
	[DP_DROP_RESTART] = "restart",
	[DP_DROP_TRUNCATED] = "truncated",
	[DP_DROP_INNER_VERSION] = "inner_version",
	[DP_DROP_INNER_HEADER] = "inner_header",
	[DP_DROP_INNER_LENGTH] = "inner_length",
	[DP_DROP_INNER_CSUM] = "inner_csum",
	[DP_DROP_INNER_TTL] = "inner_ttl",
	[DP_DROP_MARTIAN] = "martian",
	[DP_DROP_MULTICAST] = "multicast",
	[DP_DROP_NESTED] = "nested",
	[DP_DROP_VNET_HEADER] = "vnet_header",
	[DP_DROP_FOREIGN_SOURCE] = "foreign_source",
	[DP_DROP_NO_PEER] = "no_peer",
	[DP_DROP_NO_ENCAP] = "no_encap",
	[DP_DROP_LOOP] = "loop",
	[DP_DROP_TOO_BIG] = "too_big",
	[DP_DROP_UNREACHABLE] = "unreachable",
	[DP_DROP_SEND_FULL] = "send_full",
	[DP_DROP_SEND_DENIED] = "send_denied",
	[DP_DROP_SEND_ERROR] = "send_error",
	[DP_DROP_WRONG_IFACE] = "wrong_iface",
	[DP_DROP_OUTER_DST] = "outer_dst",
	[DP_DROP_UNKNOWN_VTEP] = "unknown_vtep",
	[DP_DROP_SHORT] = "short",
	[DP_DROP_VXLAN_FLAGS] = "vxlan_flags",
	[DP_DROP_VNI] = "vni",
	[DP_DROP_INNER_MAC] = "inner_mac",
	[DP_DROP_ETHERTYPE] = "ethertype",
	[DP_DROP_SPOOFED] = "spoofed",
	[DP_DROP_NOT_OURS] = "not_ours",
	[DP_DROP_ECN] = "ecn",
	[DP_DROP_TUN_DOWN] = "tun_down",
	[DP_DROP_TUN_FULL] = "tun_full",
	[DP_DROP_TUN_ERROR] = "tun_error",
};
_Static_assert(sizeof(drop_names) / sizeof(*drop_names) == DP_DROP_COUNT, "every drop has a name");

static const char *const encap_names[] = {
	[DP_ENCAP_NONE] = "none",
	[DP_ENCAP_VXLAN] = "vxlan",
	[DP_ENCAP_IPIP] = "ipip",
	[DP_ENCAP_DIRECT] = "direct",
	[DP_ENCAP_FLANNEL_UDP] = "flannel-udp",
};
_Static_assert(sizeof(encap_names) / sizeof(*encap_names) == DP_ENCAP_COUNT, "every encapsulation has a name");

/* What processes of different builds exchange must not move silently. */
_Static_assert(sizeof(struct dp_addr) == 17, "struct dp_addr");
_Static_assert(sizeof(struct dp_subnet) == 52, "struct dp_subnet");
_Static_assert(sizeof(struct dp_peer) == 40, "struct dp_peer");
_Static_assert(sizeof(struct dp_config) == 96, "struct dp_config");
_Static_assert(sizeof(struct dp_msg) == 336, "struct dp_msg");
_Static_assert(offsetof(struct dp_msg, turn) == DP_MSG_BYTES_MIN, "what version 5 has comes first");
_Static_assert(sizeof(struct dp_msg) <= DP_MSG_BYTES_MAX, "struct dp_msg");
_Static_assert((int)DP_FD_COUNT *DP_FD_EACH == DP_FD_SLOTS, "slots");
_Static_assert(DP_FD_SLOTS <= 64 * sizeof(((struct dp_msg *)0)->fd_mask) / sizeof(uint64_t), "every slot has a bit");
_Static_assert(sizeof(struct dp_thread_counters) % 8 == 0, "struct dp_thread_counters is words");
_Static_assert(sizeof(struct dp_peer_counters) % 8 == 0, "struct dp_peer_counters is words");

/**
 * dp_drop_name() - Name of a drop reason
 * @drop:	enum dp_drop
 *
 * Return: static string, NULL out of range
 */
const char *dp_drop_name(uint32_t drop)
{
	return drop < DP_DROP_COUNT ? drop_names[drop] : NULL;
}

/**
 * dp_encap_name() - Name of an encapsulation
 * @encap:	enum dp_encap
 *
 * Return: static string, NULL out of range
 */
const char *dp_encap_name(uint32_t encap)
{
	return encap < DP_ENCAP_COUNT ? encap_names[encap] : NULL;
}

/**
 * dp_build() - What tells this build from others
 *
 * Return: a digest of the C sources, never 0
 */
uint64_t dp_build(void)
{
	return DP_BUILD;
}
