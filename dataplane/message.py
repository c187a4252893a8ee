# SPDX-License-Identifier: Apache-2.0
"""One control message, struct dp_msg: a value here, MESSAGE_BYTES on the wire."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dataplane import native
from dataplane.errors import ControlError
from dataplane.native import ForwarderConfig, MessageType, State

MASK_WORDS, WORD = 3, (1 << 64) - 1

# magic, abi, type, epoch, seq, error, generation, pid, fd_mask, state, config, text, is_confined
_LAYOUT = struct.Struct(f"=IHHQIiQQ{MASK_WORDS}QI{native.CONFIG_BYTES}s{native.TEXT_MAX}sI")

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

    def pack(self) -> bytes:
        """Return the MESSAGE_BYTES that cross the socket."""
        return _LAYOUT.pack(
            native.CTL_MAGIC,
            native.ABI,
            self.type,
            self.epoch,
            self.seq,
            self.error,
            self.generation,
            self.pid,
            *(self.fd_mask >> 64 * i & WORD for i in range(MASK_WORDS)),
            self.state,
            b"" if self.config is None else native.pack_config(self.config),
            self.text.encode()[: native.TEXT_MAX - 1],
            self.is_confined,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Message:
        """Read one message, or raise ControlError for what is none of this version."""
        if len(data) != native.MESSAGE_BYTES:
            raise ControlError(f"control message of {len(data)} bytes, expected {native.MESSAGE_BYTES}")
        magic, abi, kind, epoch, seq, error, generation, pid, *rest = _LAYOUT.unpack(data)
        *words, state, config, text, is_confined = rest
        if magic != native.CTL_MAGIC or abi != native.ABI:
            raise ControlError(f"the forwarder speaks version {abi}, this overlayd {native.ABI}. Restart it")
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
                text.partition(b"\0")[0].decode(errors="replace"),
                bool(is_confined),
            )
        except ValueError as err:
            raise ControlError(f"control message makes no sense: {err}") from None
