/* SPDX-License-Identifier: Apache-2.0 */
/*
 * probe.h - the pure units as tests in Python see them.
 *
 * It is included by C after dp.h, and fed verbatim to ffi.cdef() with the types
 * of dp.h: plain declarations only, hence no include guard. Every probe_ function
 * is a thin adapter over the unit's own header, so the compiler notices when a
 * unit changes. What cffi cannot pass is translated: addresses are bytes in
 * wire order (addr_t is 128 bits wide), enum dp_drop is a uint32_t, a virtio
 * header is its 12 bytes in host order.
 */

/* struct pkt */
struct probe_pkt {
	uint8_t *buf;
	uint32_t cap;
	uint32_t off;
	uint32_t len;
};

/* struct flow, and all that can be said of one */
struct probe_flow {
	uint8_t family;
	uint8_t proto;
	uint8_t tos;
	uint8_t ttl;
	uint8_t is_fragment;
	uint8_t is_later_fragment;
	uint8_t is_martian;
	uint8_t is_multicast;
	uint32_t l3len;
	uint32_t total_len;
	uint32_t hash;
	uint8_t src[16]; /* IPv4: the first four bytes */
	uint8_t dst[16];
};

/* struct outer; IPv4 only */
struct probe_outer {
	uint8_t tos;
	uint8_t src[4];
	uint8_t dst[4];
};

struct probe_lpm;

/*
 * These need no adapter. In probe.c the compiler compares them with the real declarations.
 * NOLINTBEGIN(readability-redundant-declaration)
 */
uint64_t csum_add(const uint8_t *data, size_t len, uint64_t sum);
uint16_t csum_fold(uint64_t sum);
uint64_t csum_pseudo(const uint8_t *saddr, const uint8_t *daddr, uint32_t addr_len, uint8_t proto, uint32_t l4len);
void csum_replace16(uint8_t *check, uint16_t old, uint16_t now);
uint8_t encap_tos(const struct dp_config *config, uint8_t inner_tos);
int dp_fib_create(const struct dp_table_spec *spec);
int dp_fib_open(int fd, dp_fib **out);
void dp_fib_close(dp_fib *fib);
uint64_t dp_fib_generation(const dp_fib *fib);
/* NOLINTEND(readability-redundant-declaration) */

/* pkt */
void probe_pkt_init(struct probe_pkt *out, uint8_t *buf, uint32_t cap, uint32_t off, uint32_t len);
uint8_t *probe_pkt_at(const struct probe_pkt *pkt, uint32_t off, uint32_t len);
uint8_t *probe_pkt_pull(struct probe_pkt *pkt, uint32_t len);
uint8_t *probe_pkt_push(struct probe_pkt *pkt, uint32_t len);
uint8_t probe_pkt_trim(struct probe_pkt *pkt, uint32_t len);
uint64_t probe_load(const uint8_t *at, uint32_t bytes);
void probe_store(uint8_t *at, uint32_t bytes, uint32_t value);

/* parse */
uint32_t probe_parse_inner(const struct probe_pkt *pkt, struct probe_flow *out);
uint8_t probe_parse_equals(const struct dp_addr *addr, const struct dp_addr *other);

/* encap */
uint8_t probe_encap_vxlan_push(struct probe_pkt *pkt, uint8_t family, uint32_t vni, const uint8_t *dst_mac,
			       const uint8_t *src_mac);
uint32_t probe_encap_vxlan_pull(struct probe_pkt *pkt, const struct dp_config *config, uint8_t *family);
uint32_t probe_encap_ip4_pull(struct probe_pkt *pkt, struct probe_outer *out);
uint32_t probe_encap_check_ipip(const struct probe_pkt *pkt);
uint32_t probe_encap_check_bare(const struct probe_pkt *pkt);
uint32_t probe_encap_decap_ecn(const struct probe_pkt *pkt, uint8_t outer_tos);

/* offload and icmp */
uint32_t probe_offload_complete(const struct probe_pkt *pkt, const uint8_t vnet[12]);
uint32_t probe_offload_describe(const struct probe_pkt *pkt, uint32_t mtu, uint8_t vnet[12]);
uint32_t probe_icmp_no_route(uint8_t *out, const struct probe_pkt *pkt);
uint32_t probe_icmp_no_host(uint8_t *out, const struct probe_pkt *pkt);
uint32_t probe_icmp_too_big(uint8_t *out, const struct probe_pkt *pkt, uint32_t mtu);

/* split and merge; packets lie one behind the other, and so do results */
int64_t probe_split(const struct probe_pkt *pkt, const uint8_t vnet[12], uint8_t *out, uint32_t cap, uint32_t *lens,
		    uint32_t most);
int64_t probe_merge(uint8_t *packets, const uint32_t *lens, const uint32_t *peers, uint32_t count, uint8_t *out,
		    uint32_t *out_lens);
int64_t probe_merge_tcp(uint8_t *packets, const uint32_t *lens, const uint32_t *peers, uint32_t count, uint8_t *out,
			uint32_t *out_lens);
int64_t probe_merge_run(uint8_t *packets, const uint32_t *lens, const uint32_t *peers, uint32_t count, uint8_t *out,
			uint32_t *out_lens);

/* spin; probe_spin_new() gives NULL without memory, and what it gives is for free() */
struct spin *probe_spin_new(uint64_t limit_ns);
void probe_spin_free(struct spin *spin);
void probe_spin_found(struct spin *spin, uint64_t now_ns);
uint8_t probe_spin_again(struct spin *spin, uint64_t now_ns);

/* lpm */
struct probe_lpm *probe_lpm_build(const struct dp_prefix *prefixes, const uint32_t *values, uint32_t count,
				  uint8_t family);
void probe_lpm_free(struct probe_lpm *lpm);
void probe_lpm_lookup(const struct probe_lpm *lpm, const uint8_t *addrs, uint32_t count, uint32_t *answers);
uint8_t probe_lpm_is_valid(const struct probe_lpm *lpm, uint32_t value_max);

/* fib */
int64_t probe_fib_subnet(const dp_fib *fib, uint8_t family, const uint8_t *addr);
uint32_t probe_fib_peer(const dp_fib *fib, uint8_t family, const uint8_t *addr);
uint32_t probe_fib_lists(const dp_fib *fib, uint8_t family, const uint8_t *addr);
