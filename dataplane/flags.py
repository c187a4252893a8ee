# SPDX-License-Identifier: Apache-2.0
"""What a flag is, what its value may be, and how the environment says the same. options.py lists them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dataplane.errors import ConfigError
from dataplane.flannel import BACKENDS, check_unicast, suggest
from dataplane.model import ALL_OFFLOADS, OFFLOADS, Address, Encap, Network, Offload

ENV_PREFIX = "OVERLAYD_"
FLANNEL_PREFIX = "FLANNELD_"
NAME_MAX = 15  # IFNAMSIZ without its final NUL
PATTERN_MAX = 256  # characters of a regular expression

# --- what a value may be: each parser raises ValueError with what is wrong and what is allowed ------------


def number(low: int, high: int, unit: str) -> Callable[[str], int]:
    """Return a reader of whole numbers within bounds."""

    def parse(text: str) -> int:
        is_number = text.isascii() and text.isdigit() and len(text) <= 12
        if not is_number or not low <= int(text) <= high:
            raise ValueError(f'"{text[:20]}" is not allowed; allowed are {low} to {high} {unit}'.strip())
        return int(text)

    return parse


def word_or(word: str, parse: Callable[[str], int]) -> Callable[[str], int | None]:
    """Return a reader of numbers, and of one word that stands for None."""

    def parse_either(text: str) -> int | None:
        if text == word:
            return None
        try:
            return parse(text)
        except ValueError as err:
            raise ValueError(f"{err}, or {word}{suggest(text, [word])}") from None

    return parse_either


def anything(text: str) -> str:
    """Take any text."""
    return text


def switch(text: str) -> bool:
    """Read a truth value, as flannel writes them."""
    if text.lower() not in ("true", "false", "1", "0", "t", "f"):
        raise ValueError(f'"{text}": allowed are true, false')
    return text.lower() in ("true", "1", "t")


def public_ip(text: str) -> IPv4Address:
    """Read an IPv4 address that a node may have."""
    try:
        address = IPv4Address(text)
    except ValueError:
        raise ValueError(f'"{text}" is no IPv4 address') from None
    check_unicast(address, "address")
    return address


def public_ip6(text: str) -> IPv6Address:
    """Read an IPv6 address that a node may have."""
    try:
        address = IPv6Address(text)
    except ValueError:
        raise ValueError(f'"{text}" is no IPv6 address') from None
    check_unicast(address, "address")
    return address


def device(text: str) -> str:
    """Read the name of an interface."""
    is_name = 0 < len(text.encode()) <= NAME_MAX and not set(text) & set("/ \t\n:%") and text.isprintable()
    if not is_name or text in (".", ".."):
        raise ValueError(
            f'"{text}" is no interface name; allowed are 1 to {NAME_MAX} characters without / : %'
        )
    return text


def directory(text: str) -> Path:
    """Read an absolute path."""
    if not text.startswith("/") or "\0" in text:
        raise ValueError(f'"{text}" is no absolute path')
    return Path(text)


def file(text: str) -> Path:
    """Read the path of a file; a relative one is meant from where we were started."""
    if not text or "\0" in text:
        raise ValueError(f'"{text}" is no path')
    return Path(text).absolute()


def prefix(text: str) -> Network:
    """Read a network."""
    no_network = f'"{text}" is no network, expected for example 10.9.0.0/16'
    if "%" in text:  # ip_network() takes zones
        raise ValueError(no_network)
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        meant = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(no_network) from None
    raise ValueError(f"{text} has host bits set; did you mean {meant}?")


def encap(text: str) -> Encap:
    """Read the name of an encapsulation."""
    allowed = {name: encap for name, encap in BACKENDS.items() if encap is not Encap.NONE}
    if text not in allowed:
        raise ValueError(f'"{text}": allowed are {", ".join(allowed)}{suggest(text, allowed)}')
    return allowed[text]


def offload(text: str) -> Offload:
    """Read the name of an offload, or of all."""
    allowed = {"all": ALL_OFFLOADS, **OFFLOADS}
    if text not in allowed:
        raise ValueError(f'"{text}": allowed are {", ".join(allowed)}{suggest(text, allowed)}')
    return allowed[text]


def one_of(*allowed: str) -> Callable[[str], str]:
    """Return a reader of a few words."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f'"{text}": allowed are {", ".join(allowed)}{suggest(text, allowed)}')
        return text

    return parse


def pattern(text: str) -> str:
    """Read a regular expression."""
    if not 0 < len(text) <= PATTERN_MAX:
        raise ValueError(f"allowed are 1 to {PATTERN_MAX} characters")
    try:
        re.compile(text)
    except re.error as err:
        raise ValueError(f'"{text}" is no regular expression: {err.msg}') from None
    return text


def any_address(text: str) -> Address:
    """Read an address of either family."""
    try:
        if "%" not in text:
            return ip_address(text)
    except ValueError:
        pass
    raise ValueError(f'"{text}" is no IP address')


def device_or_address(text: str) -> str:
    """Read what names an interface: its name, or an address it holds."""
    try:
        return str(any_address(text))
    except ValueError:
        return device(text)


def url(text: str) -> str:
    """Read the URL of a server: http or https, a host, and nothing but perhaps a port."""
    found = urlsplit(text)
    if "@" in found.netloc:  # not repeated: a password may be in it
        raise ValueError(
            "a URL with a user in it is not allowed; there are --etcd-username and --etcd-password"
        )
    try:
        is_server = found.scheme in ("http", "https") and found.hostname and (found.port or 1) > 0
    except ValueError:
        is_server = False
    if not is_server or found.path.strip("/") or found.query or found.fragment:
        raise ValueError(f'"{text}" is no server, expected for example https://192.0.2.10:2379')
    return text.rstrip("/")


def key_prefix(text: str) -> str:
    """Read the key below which flannel's keys are: /coreos.com/network."""
    if not text.startswith("/") or not text.strip("/") or not text.isprintable():
        raise ValueError(f'"{text}" is no key, expected for example /coreos.com/network')
    return "/" + text.strip("/")


def not_yet(what: str, harmless: str = "") -> Callable[[str], str]:
    """Refuse whatever a flag is given, but for the one value that asks for nothing."""

    def parse(text: str) -> str:
        if harmless and text.lower() == harmless:
            return text
        raise ValueError(f"{what} is not supported yet")

    return parse


# --- the flags ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: `--name METAVAR`, or OVERLAYD_NAME in the environment. Repeatable ones take comma lists."""

    name: str
    field: str  # of RunConfig; "" for one that is accepted and means nothing
    metavar: str
    help: str
    parse: Callable[[str], Any]
    is_repeatable: bool = False
    has_commas: bool = False  # in one value: a comma does not begin another
    is_switch: bool = False  # may stand without a value: true
    is_flannels: bool = False  # FLANNELD_NAME means it as well; of several values the last one counts

    @property
    def variable(self) -> str:
        """The environment variable of the same meaning."""
        return ENV_PREFIX + self.name.upper().replace("-", "_")

    @property
    def flannel_variable(self) -> str:
        """What flannel calls that variable."""
        return FLANNEL_PREFIX + self.name.upper().replace("-", "_")


@dataclass(frozen=True, slots=True)
class Given:
    """What somebody said of one flag, and where."""

    source: str  # `--name`, or the variable
    texts: tuple[str, ...]


def read_given(
    flags: Sequence[Flag], words: Mapping[str, Sequence[str]], environ: Mapping[str, str]
) -> dict[str, Given]:
    """Return what is said of each flag: by the command line, else by our variable, else by flannel's."""
    ours = {flag.variable: flag for flag in flags}
    for variable in environ:
        if variable.startswith(ENV_PREFIX) and variable not in ours:
            raise ConfigError(f"environment variable {variable} is unknown{suggest(variable, ours)}")
    given: dict[str, Given] = {}
    for flag in flags:
        theirs = flag.flannel_variable
        if words.get(flag.name):
            given[flag.name] = Given(f"--{flag.name}", tuple(words[flag.name]))
        elif flag.variable in environ:
            given[flag.name] = Given(flag.variable, (environ[flag.variable],))
        elif flag.is_flannels and environ.get(theirs):  # flannel takes an empty one for none
            given[flag.name] = Given(theirs, (environ[theirs],))
    return given


def parse_given(flag: Flag, given: Given) -> object:
    """Return the value that was meant; ConfigError says what is wrong with it."""
    texts: Sequence[str] = given.texts
    if flag.is_repeatable and not flag.has_commas:
        texts = [part for text in texts for part in text.split(",")]
    try:
        values = tuple(flag.parse(text) for text in texts)
    except ValueError as err:
        raise ConfigError(f"{given.source}: {err}") from None
    if flag.is_repeatable:
        return tuple(dict.fromkeys(values))
    if len(values) > 1 and not flag.is_flannels:
        raise ConfigError(f"{given.source} is given {len(values)} times; once is allowed")
    return values[-1]
