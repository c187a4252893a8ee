/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dp.h - the surface of the C engine, and the only header Python sees.
 *
 * It is included by C and fed verbatim to ffi.cdef(), so it holds plain
 * declarations only: no #include, no #if, no attributes, no function bodies
 * (#pragma once is for C; the build leaves it out of what cffi reads).
 * Include <stdint.h> and <stddef.h> before it. Size asserts and name tables of
 * what is declared here live in api.c.
 *
 * Conventions: every function returns 0 or a positive result on success and
 * -errno on failure; nothing prints, nothing exits. Integers are in host order
 * unless a name ends in _be; MAC and IP addresses are byte arrays in wire order.
 *
 * Versions. Control and forwarder may be of different builds, and what passes between
 * them has numbers of its own (docs/upgrade.md says what follows from that):
 *
 *   DP_ABI              messages. Both sides take one number less and one more than theirs. A
 *                       change that counts it up may add fields at the end of struct dp_msg, use
 *                       up a pad of struct dp_config, add a type at the end, and nothing else: no
 *                       field moves or changes its meaning, and 0 in a new one means what was
 *                       before. An answer has the lesser of both numbers, and no more bytes than
 *                       its request.
 *   DP_FIB_LAYOUT       the table. Looked up without a copy, so both sides have the same, or the
 *                       forwarder refuses it (-EPROTO) and goes on with the one it has.
 *   DP_COUNTERS_LAYOUT  the counters. The same, or new ones are begun. Pads may be used up without
 *                       another number; a drop reason more is another layout.
 *
 * Numbers of roles and slots are part of the messages, and stay. Control adapts: it is the
 * one that asks, and learns from answers what the forwarder is (version, build, layouts).
 */
#pragma once

#define DP_ABI 6
#define DP_MSG_BYTES_MIN 288  /* of a message of version 5, the oldest that is taken */
#define DP_MSG_BYTES_MAX 1024 /* what a newer version may grow to */
#define DP_FIB_LAYOUT 5
#define DP_COUNTERS_LAYOUT 5
#define DP_VERSION_MAX 24 /* bytes of a product version, with its NUL */
#define DP_CTL_MAGIC 0x64706c79
#define DP_NO_PEER 0xffffffff
#define DP_MAX_PEERS 131072
#define DP_MAX_THREADS 15
#define DP_MAX_SOURCES 16
#define DP_MAX_QUEUES 15
#define DP_MAX_BARE 15 /* sockets that receive bare packets: one worker has a bit for each of its sources */
#define DP_TEXT_MAX 120

/* How a packet crosses the underlay. Bit (1 << value) in a mask of encapsulations. */
enum dp_encap {
	DP_ENCAP_NONE,
	DP_ENCAP_VXLAN,       /* RFC 7348, UDP */
	DP_ENCAP_IPIP,        /* RFC 2003, IP protocol 4 */
	DP_ENCAP_DIRECT,      /* plain route, no encapsulation */
	DP_ENCAP_FLANNEL_UDP, /* flannel's udp: a bare IPv4 packet in UDP over IPv4 */
	DP_ENCAP_COUNT
};

enum dp_dir {
	DP_TX, /* overlay -> underlay */
	DP_RX, /* underlay -> overlay */
	DP_DIR_COUNT
};

/*
 * Why a packet was not forwarded. Exactly one of these is counted for every
 * packet that was offered and not forwarded.
 */
enum dp_drop {
	DP_DROP_NONE,

	/* either direction */
	DP_DROP_RESTART,       /* in flight when a forwarder ended; booked by the next one */
	DP_DROP_TRUNCATED,     /* larger than the receive buffer */
	DP_DROP_INNER_VERSION, /* inner packet is neither IPv4 nor IPv6, or not what its ethertype says */
	DP_DROP_INNER_HEADER,  /* inner header cut short, or its length field below the minimum */
	DP_DROP_INNER_LENGTH,  /* inner total length disagrees with what arrived */
	DP_DROP_INNER_CSUM,    /* inner IPv4 header checksum wrong */
	DP_DROP_INNER_TTL,     /* inner TTL or hop limit is 0 */
	DP_DROP_MARTIAN,       /* inner source is never valid on a network */
	DP_DROP_MULTICAST,     /* inner destination is multicast, broadcast or unspecified */
	DP_DROP_NESTED,        /* IPIP that carries another IP tunnel */

	/* tx */
	DP_DROP_VNET_HEADER,    /* virtio header from the TUN contradicts its packet */
	DP_DROP_FOREIGN_SOURCE, /* inner source is neither in our subnet nor an address of this host */
	DP_DROP_NO_PEER,        /* no subnet of a peer holds the inner destination */
	DP_DROP_NO_ENCAP,       /* the peer's encapsulation cannot carry this packet here */
	DP_DROP_LOOP,           /* inner destination is the outer destination */
	DP_DROP_TOO_BIG,        /* larger than the path to the peer */
	DP_DROP_UNREACHABLE,    /* the underlay has no way to the peer */
	DP_DROP_SEND_FULL,      /* socket send buffer full */
	DP_DROP_SEND_DENIED,    /* a local firewall refused the outer packet */
	DP_DROP_SEND_ERROR,     /* any other error of the send */

	/* rx */
	DP_DROP_WRONG_IFACE,  /* did not arrive on the underlay interface */
	DP_DROP_OUTER_DST,    /* outer destination is not our underlay address */
	DP_DROP_UNKNOWN_VTEP, /* outer source is not a peer */
	DP_DROP_SHORT,        /* too short for the headers of its encapsulation */
	DP_DROP_VXLAN_FLAGS,  /* I flag clear, or a reserved bit set */
	DP_DROP_VNI,          /* another VNI */
	DP_DROP_INNER_MAC,    /* inner destination MAC not ours, or source MAC impossible */
	DP_DROP_ETHERTYPE,    /* inner frame carries neither IPv4 nor IPv6 */
	DP_DROP_SPOOFED,      /* inner source does not belong to the peer that sent it */
	DP_DROP_NOT_OURS,     /* inner destination is not in our subnet */
	DP_DROP_ECN,          /* outer CE on a Not-ECT inner packet (RFC 6040) */
	DP_DROP_TUN_DOWN,     /* the TUN device is down */
	DP_DROP_TUN_FULL,     /* the TUN device had no room */
	DP_DROP_TUN_ERROR,    /* any other error of the write */
	DP_DROP_COUNT
};

/* Work that the kernel does for us, or lets us do for it; the mask in force is the tier. */
enum dp_tier {
	DP_TIER_TUN_VNET = 1,  /* TUN packets carry a virtio header */
	DP_TIER_TUN_CSUM = 2,  /* the kernel leaves L4 checksums to us (TUN_F_CSUM) */
	DP_TIER_MMSG = 4,      /* many messages per system call */
	DP_TIER_TUN_TSO = 8,   /* TCP super-packets from the TUN (TUN_F_TSO4, TSO6, TSO_ECN) */
	DP_TIER_TUN_USO = 16,  /* UDP super-packets from the TUN (TUN_F_USO4, USO6) */
	DP_TIER_UDP_GSO = 32,  /* the kernel cuts runs of datagrams (UDP_SEGMENT) */
	DP_TIER_UDP_GRO = 64,  /* the kernel joins datagrams that arrive together (UDP_GRO) */
	DP_TIER_TUN_GRO = 128, /* TCP super-packets to the TUN: packets of a flow are joined before the write */
	DP_TIER_TUN_UGRO = 256 /* UDP super-packets to the TUN */
};

/* Bits of enum dp_tier. */
enum { DP_OFFLOADS = 9 };

/* What a self-test of offloads found. */
struct dp_selftest {
	uint32_t proved;             /* mask of enum dp_tier */
	int32_t errors[DP_OFFLOADS]; /* by bit of it: -errno, -EBADMSG for wrong bytes; 0: proved, or not tried */
};

/* What the descriptors of a forwarder are for. */
enum dp_fd {
	DP_FD_TUN,
	DP_FD_COUNTERS, /* memfd of dp_counters_create() */
	DP_FD_FIB,      /* sealed memfd of dp_fib_create() */
	DP_FD_UDP4,     /* VXLAN over IPv4: receives */
	DP_FD_UDP4_TX,  /* UDP over IPv4: sends, bound to our address, a source port and the device */
	DP_FD_UDP6,
	DP_FD_UDP6_TX,
	DP_FD_RAW4,    /* IPIP: receives */
	DP_FD_RAW4_TX, /* IPIP: sends; its drop-all filter keeps the kernel from answering protocol unreachable */
	DP_FD_BARE4,   /* bare packets in UDP over IPv4: receives; sent by DP_FD_UDP4_TX */
	DP_FD_COUNT
};

/*
 * Of some there are several: TUN queues and receiving sockets, over which flows
 * are spread, and sending sockets, each with a source port. The one of index i lies in slot
 * role + i * DP_FD_COUNT, so slots of index 0 are the roles themselves. Of the
 * sockets that receive, index 0 gets what is for none of the others; those of
 * index i + 1 are of queue i, if there are several queues; of bare packets there
 * are DP_MAX_BARE at most.
 */
#define DP_FD_EACH 16
#define DP_FD_SLOTS 160

/* An IP address. family is 4 or 6, or 0 for none; an IPv4 address fills bytes[0..3]. */
struct dp_addr {
	uint8_t family;
	uint8_t bytes[16];
};

/* An address prefix; host bits must be 0. */
struct dp_prefix {
	struct dp_addr addr;
	uint8_t len; /* bits */
};

/* One subnet entry of the table: where packets to it go. */
struct dp_subnet {
	struct dp_prefix prefix;
	uint8_t encap;          /* enum dp_encap */
	uint8_t vtep_mac[6];    /* inner destination MAC (VXLAN), for the family of the prefix */
	struct dp_addr vtep;    /* underlay address of the peer, for the family of the prefix */
	uint8_t is_unreachable; /* 1: said to be, so senders are told; packets are sent all the same */
	uint8_t pad;
	uint32_t peer_id; /* < DP_MAX_PEERS */
	uint32_t mtu;     /* largest inner packet in bytes; 0: no limit but the device's */
};

/* A remote node: the underlay addresses from which its tunnel packets come. */
struct dp_peer {
	struct dp_addr addr4; /* first, so that peers whose bytes are in order need no sorting */
	struct dp_addr addr6;
	uint8_t pad[2];
	uint32_t id; /* stable; indexes the counters */
};

/* All that a table is built from. Arrays are the caller's and are only read. */
struct dp_table_spec {
	uint64_t generation;
	const struct dp_peer *peers;
	uint32_t peers_count;
	const struct dp_subnet *subnets; /* remote subnets */
	uint32_t subnets_count;
	const struct dp_prefix *own; /* our own subnets: valid inner destinations on rx */
	uint32_t own_count;
	const struct dp_prefix *sources; /* valid inner sources on tx: own subnets and addresses of this host */
	uint32_t sources_count;
	const struct dp_prefix *allowed; /* --allow-source: valid inner sources both ways */
	uint32_t allowed_count;
};

/* What a forwarder needs to know besides its descriptors. */
struct dp_config {
	uint32_t vni;              /* 0 .. 2^24-1 */
	uint16_t vxlan_port;       /* UDP destination port of VXLAN */
	uint16_t threads;          /* workers */
	uint32_t underlay_ifindex; /* the interface tunnel packets must arrive on */
	uint32_t tun_mtu;          /* bytes */
	uint32_t tier;             /* mask of enum dp_tier */
	uint32_t vnet_hdr_len;     /* bytes of the TUN's virtio header; 0 without DP_TIER_TUN_VNET */
	uint32_t icmp_per_s;       /* ICMP errors to pods: sustained rate of all workers; 0 sends none */
	uint32_t icmp_burst;
	uint32_t spin_us;         /* longest look for packets before a worker sleeps; 0: none */
	struct dp_addr underlay4; /* our own underlay addresses; family 0: none */
	struct dp_addr underlay6;
	uint8_t vtep_mac4[6];    /* our VTEP MAC for inner IPv4 */
	uint8_t vtep_mac6[6];    /* and for inner IPv6 */
	uint16_t bare_port;      /* UDP destination port of bare packets */
	uint8_t encaps;          /* mask 1 << enum dp_encap of what is accepted and sent */
	uint8_t spoof_observe;   /* 1: count spoofed packets, but let them pass */
	uint8_t queues;          /* of the TUN and, each with a socket, of each family; threads .. DP_MAX_QUEUES */
	uint8_t sources;         /* source ports of each family, 1 .. DP_MAX_SOURCES */
	uint8_t reserved_ignore; /* 1: ignore reserved VXLAN bits as RFC 7348 says, 0: drop as the kernel does */
	uint8_t dscp_inherit;    /* 1: outer headers have the DSCP of the inner packet, 0: DSCP 0 (RFC 2983) */
	uint8_t ttl_inherit;     /* 1: outer headers have the TTL of the inner packet */
	uint8_t outer_ttl;       /* what they have otherwise; 0: that of the sockets, 64 */
	uint8_t pad[4];
};

/*
 * Counters. One memfd, laid out as: struct dp_counters_header, then one
 * struct dp_thread_counters per thread, then per thread max_peers times
 * struct dp_peer_counters. Each word has one writer; readers may look at any
 * time. Unit: a wire packet (a super-datagram counts as its segments).
 */
struct dp_counters_header {
	uint32_t magic;
	uint32_t layout; /* DP_COUNTERS_LAYOUT */
	uint32_t threads;
	uint32_t max_peers;
	uint64_t size;          /* bytes of the whole memfd */
	uint64_t start_ns;      /* CLOCK_BOOTTIME of its creation */
	uint64_t forwarder_ns;  /* CLOCK_BOOTTIME of the current forwarder's start */
	uint64_t forwarder_pid; /* as that process sees itself */
	uint64_t restarts;      /* forwarders that took over these counters */
	uint64_t generation;    /* of the table in force */
	uint64_t faults;        /* system calls that failed the thread which serves control */
	uint64_t turn;          /* grows whenever a forwarder begins to carry: no other may go on then */
	uint64_t pad[6];
};

struct dp_last {
	uint64_t time_ns;  /* CLOCK_BOOTTIME; 0: never */
	uint64_t family;   /* 4 or 6; 0: address not known */
	uint64_t words[2]; /* the 16 bytes of the address in wire order */
};

struct dp_thread_counters {
	uint64_t heartbeat;                /* grows while the worker makes progress */
	uint64_t wakeups;                  /* returns of the poll */
	uint64_t icmp_sent;                /* ICMP errors written to the TUN */
	uint64_t icmp_limited;             /* those that there was no token for */
	uint64_t observed;                 /* spoofed packets let pass by spoof_observe */
	uint64_t supers;                   /* super-packets carried, either way */
	uint64_t refused_tier;             /* mask of enum dp_tier: what the kernel refused when it was used */
	uint64_t queue_drops[DP_FD_SLOTS]; /* SO_RXQ_OVFL by slot: dropped by the kernel before we saw them */
	uint64_t offered[DP_DIR_COUNT];
	uint64_t forwarded[DP_DIR_COUNT];
	uint64_t bytes[DP_DIR_COUNT]; /* inner bytes forwarded */
	uint64_t drops[DP_DIR_COUNT][DP_DROP_COUNT];
	struct dp_last last[DP_DIR_COUNT][DP_DROP_COUNT]; /* tx: inner destination; rx: outer source */
	uint64_t faults; /* system calls that failed and took no packet with them: polls and reads */
	uint64_t pad[7];
};

struct dp_peer_counters {
	uint64_t packets[DP_DIR_COUNT];
	uint64_t bytes[DP_DIR_COUNT];
	uint64_t drops[DP_DROP_COUNT];
};

/*
 * Control messages: SOCK_SEQPACKET, each a struct dp_msg as its sender knows it.
 * What a shorter one lacks is 0, what a longer one has more is not read.
 * A request is answered by one message of the same type and seq, with error 0
 * or a negative errno and a text for people. Descriptors ride along by
 * SCM_RIGHTS, in the order of their slots, for the bits set in fd_mask.
 *
 * Of several forwarders with the same counters and sockets one carries: the one
 * whose turn it is. GO and RESUME take the turn, if it is still the one that they
 * name (0: whatever it is); a worker that finds that it is over stands still.
 * A forwarder whose control hangs up goes on, also one that was parked, as long as
 * nobody else took the turn; otherwise it ends.
 */
enum dp_msg_type {
	DP_MSG_HELLO = 1, /* -> epoch. <- state, config, generation. Must come first on a commanding connection */
	DP_MSG_TAKE,      /* <- config and duplicates of all descriptors */
	DP_MSG_GO,        /* -> config, turn and all descriptors: (re)start the workers with these */
	DP_MSG_PUBLISH,   /* -> DP_FD_FIB: put this table in force */
	DP_MSG_QUIESCE,   /* park the workers; answered when no packet is in flight */
	DP_MSG_RESUME,    /* -> turn */
	DP_MSG_INSPECT,   /* <- state, config, and DP_FD_COUNTERS and DP_FD_FIB; needs no HELLO */
	DP_MSG_STOP,      /* answered, then dp_serve() returns */
	DP_MSG_COUNT
};

enum dp_state {
	DP_STATE_EMPTY, /* has no descriptors yet */
	DP_STATE_RUNNING,
	DP_STATE_QUIESCED,
	DP_STATE_COUNT
};

struct dp_msg {
	uint32_t magic;
	uint16_t abi;
	uint16_t type;
	uint64_t epoch; /* of the sending control; a forwarder obeys none older than the newest it met */
	uint32_t seq;
	int32_t error;
	uint64_t generation;
	uint64_t pid;
	uint64_t fd_mask[3]; /* slot i: bit i % 64 of word i / 64 */
	uint32_t state;      /* enum dp_state */
	struct dp_config config;
	char text[DP_TEXT_MAX];
	uint32_t is_confined; /* 1: a forwarder that is under its filter of system calls */
	/* from version 6 on */
	uint64_t turn;                /* see above */
	uint64_t build;               /* of the forwarder: dp_build() */
	uint32_t fib_layout;          /* that the forwarder reads; 0: as in version 5 */
	uint32_t counters_layout;     /* the same */
	char version[DP_VERSION_MAX]; /* of the forwarder: the product's */
};

/* names: static strings, NULL out of range */
const char *dp_drop_name(uint32_t drop);
const char *dp_encap_name(uint32_t encap);
uint64_t dp_build(void);

/* table (fib.c) */
int dp_fib_create(const struct dp_table_spec *spec);
typedef struct fib dp_fib;
int dp_fib_open(int fd, dp_fib **out);
void dp_fib_close(dp_fib *fib);
uint64_t dp_fib_generation(const dp_fib *fib);
uint32_t dp_fib_subnets(const dp_fib *fib, struct dp_subnet *out, uint32_t capacity);
uint32_t dp_fib_peers(const dp_fib *fib, struct dp_peer *out, uint32_t capacity);

/* counters (counters.c) */
int dp_counters_create(uint32_t threads, uint32_t max_peers);
typedef struct counters dp_counters;
int dp_counters_open(int fd, int writable, dp_counters **out);
void dp_counters_close(dp_counters *counters);
void dp_counters_header(const dp_counters *counters, struct dp_counters_header *out);
void dp_counters_total(const dp_counters *counters, struct dp_thread_counters *out);
int dp_counters_peer(const dp_counters *counters, uint32_t peer_id, struct dp_peer_counters *out);
void dp_counters_bytes(const dp_counters *counters, uint32_t count, uint64_t *tx, uint64_t *rx);

/* devices and sockets, opened by the privileged process (tun.c, underlay.c) */
int dp_tun_open(const char *name, uint32_t wanted_tier, uint32_t *tier, uint32_t *vnet_hdr_len);
int dp_tun_prepare_steering(void);
int dp_tun_steer(int fd);
int dp_tun_steering(void);
void dp_tun_adopt_steering(int fd);
uint32_t dp_socket_tier(void);
int dp_selftest(uint32_t wanted, struct dp_selftest *out);
int dp_underlay_open(uint32_t slot, const struct dp_config *config, const char *device, int buffer_bytes,
		     int *granted_bytes);

/* the engine in this process (engine.c) */
typedef struct engine dp_engine;
int dp_engine_create(const struct dp_config *config, const int fds[DP_FD_SLOTS], dp_engine **out);
int dp_engine_start(dp_engine *engine);
int dp_engine_publish(dp_engine *engine, int fib_fd);
int dp_engine_quiesce(dp_engine *engine);
int dp_engine_resume(dp_engine *engine);
void dp_engine_destroy(dp_engine *engine);

/* processes: what they give up (privilege.c), how they share (slice.c); the forwarder (ctl.c, confine.c) */
int dp_shorten_slice(uint64_t slice_ns);
int dp_hide_memory(void);
int dp_drop_privileges(void);
int dp_keep_capabilities(uint64_t kept, uint64_t children);
int dp_confine(void);
int dp_serve(int listen_fd, int is_confined, const char *version);
