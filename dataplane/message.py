# SPDX-License-Identifier: Apache-2.0
"""One control message, struct dp_msg: a value here, MESSAGE_BYTES on the wire.

A forwarder may be one version older or newer than we are. To an older one we speak as it does, which is our
message without its end; what it leaves out in answers is 0. Of a newer one we do not read the end. The rules
that make this work are in csrc/dp.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dataplane import native
from dataplane.errors import ControlError
from dataplane.native import ForwarderConfig, MessageType, State, lib

MASK_WORDS, WORD = 3, (1 << 64) - 1
BYTES_MIN: int = lib.DP_MSG_BYTES_MIN  # of the version before ours
BYTES_MAX: int = lib.DP_MSG_BYTES_MAX
TEXT_MAX: int = lib.DP_TEXT_MAX
BUILD: int = lib.dp_build()  # ours
OLDEST, NEWEST = native.ABI - 1, native.ABI + 1
LAYOUTS: tuple[int, int] = (lib.DP_FIB_LAYOUT, lib.DP_COUNTERS_LAYOUT)
LAYOUTS_UNTOLD = (5, 5)  # of version 5

# magic, abi, type, epoch, seq, error, generation, pid, fd_mask, state, config, text, is_confined;
# turn, build, layouts, version
_LAYOUT = struct.Struct(f"=IHHQIiQQ{MASK_WORDS}QI{native.CONFIG_BYTES}s{TEXT_MAX}sIQQ2I{lib.DP_VERSION_MAX}s")

if _LAYOUT.size != native.MESSAGE_BYTES:
    raise ImportError("struct dp_msg of csrc/dp.h is not what dataplane/message.py packs")


@dataclass(frozen=True, slots=True)
class Message:
    """A request or an answer; magic and version are added by pack() and checked by unpack()."""

    type: MessageType
    epoch: int = 0
    seq: int = 0
    error: int = 0  # 0 or a negative errno
    fd_mask: int = 0  # bit i: a descriptor for slot i comes along
    state: State = State.EMPTY
    generation: int = 0
    pid: int = 0
    config: ForwarderConfig | None = None
    text: str = ""
    is_confined: bool = False
    turn: int = 0
    build: int = 0  # of the forwarder; 0: of a version that does not tell
    layouts: tuple[int, int] = LAYOUTS_UNTOLD  # of table and counters, that the forwarder reads
    version: str = ""

    def pack(self, abi: int = native.ABI) -> bytes:
        """Return the bytes that cross the socket to one who speaks version `abi`."""
        data = _LAYOUT.pack(
            lib.DP_CTL_MAGIC,
            abi,
            self.type,
            self.epoch,
            self.seq,
            self.error,
            self.generation,
            self.pid,
            *(self.fd_mask >> 64 * i & WORD for i in range(MASK_WORDS)),
            self.state,
            b"" if self.config is None else native.pack_config(self.config),
            self.text.encode()[: TEXT_MAX - 1],
            self.is_confined,
            self.turn,
            self.build,
            *self.layouts,
            self.version.encode()[: lib.DP_VERSION_MAX - 1],
        )
        return data if abi >= native.ABI else data[:BYTES_MIN]

    @classmethod
    def unpack(cls, data: bytes) -> Message:
        """Read one message, or raise ControlError for what is none of this version."""
        if not BYTES_MIN <= len(data) <= BYTES_MAX:
            raise ControlError(
                f"control message of {len(data)} bytes, allowed are {BYTES_MIN} to {BYTES_MAX}"
            )
        whole = data[: _LAYOUT.size].ljust(_LAYOUT.size, b"\0")
        magic, abi, kind, epoch, seq, error, generation, pid, *rest = _LAYOUT.unpack(whole)
        *words, state, config, text, is_confined, turn, build, fib, counters, version = rest
        if magic != lib.DP_CTL_MAGIC or not OLDEST <= abi <= NEWEST:
            raise ControlError(
                f"the forwarder speaks version {abi}, this overlayd {OLDEST} to {NEWEST}. Restart it"
            )
        try:
            return cls(
                MessageType(kind),
                epoch,
                seq,
                error,
                sum(word << 64 * i for i, word in enumerate(words)),
                State(state),
                generation,
                pid,
                native.unpack_config(config),
                _read_text(text),
                bool(is_confined),
                turn,
                build,
                (fib, counters) if fib else LAYOUTS_UNTOLD,
                _read_text(version),
            )
        except ValueError as err:
            raise ControlError(f"control message makes no sense: {err}") from None


def _read_text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode(errors="replace")
