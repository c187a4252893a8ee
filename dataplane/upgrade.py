# SPDX-License-Identifier: Apache-2.0
"""`overlayd upgrade`: has a running node become what is installed by now, and says what became of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from dataplane.control import Reply, ask
from dataplane.errors import ControlError, NotRunning, RuntimeFailure
from dataplane.rundir import RunDir

CHECK_TIMEOUT_S = 30.0  # the running control tries what is installed before it answers
READY_TIMEOUT_S = 120.0
GONE_S = 15.0  # without any control, and its process is not there: then none comes any more
RETRY_S = 0.05


def upgrade(run_dir: Path, *, as_json: bool) -> str:
    """Do it; return what happened. RuntimeFailure if the node is not, in the end, what is installed."""
    before = ask(run_dir, {"cmd": "status"})
    started_s = time.monotonic()
    told = _request(run_dir)
    after = _wait(run_dir, started_s, told)
    found = _compare(before, after, round(time.monotonic() - started_s, 3))
    if not found["is_whole"]:
        raise RuntimeFailure(
            f"control {found['control']}, ready after {found['ready_s']:g} s; the forwarder is still "
            f"{found['forwarder']['from']}, and packets flow: {found['forwarder']['reason']}"
        )
    return json.dumps(found, indent=2) if as_json else _tell(found)


def _request(run_dir: Path) -> Reply:
    """Have control begin; return the version that it becomes, and its pid."""
    try:
        return ask(run_dir, {"cmd": "upgrade"}, CHECK_TIMEOUT_S)
    except ControlError as err:
        if 'allowed as "cmd"' in str(err):
            raise RuntimeFailure(
                "the running overlayd cannot upgrade itself: restart it instead, packets flow on meanwhile"
            ) from None
        raise RuntimeFailure(f"nothing was changed: {err}") from None


def _wait(run_dir: Path, started_s: float, told: Reply) -> Reply:
    """Wait for the control that follows to be ready; return its status."""
    seen_s, reason, wanted = time.monotonic(), "no overlayd run answers", told["version"]
    process = Path(f"/proc/{told['pid']}")
    while time.monotonic() < started_s + READY_TIMEOUT_S:
        try:
            status: dict[str, Any] = ask(run_dir, {"cmd": "status"})
            seen_s = time.monotonic()
            if status["control"]["uptime_s"] < seen_s - started_s:  # not the one that was asked
                if status["control"].get("version") != wanted:
                    raise RuntimeFailure(f"control could not become {wanted}, and goes on. See its log")
                if status["ready"]:
                    return status
                reason = str(status["reason"])
        except (NotRunning, ControlError):
            is_quiet = time.monotonic() > seen_s + GONE_S
            if is_quiet and not process.exists() and _is_free(RunDir(run_dir)):
                break
        time.sleep(RETRY_S)
    raise RuntimeFailure(
        f"control {wanted} is not ready after {time.monotonic() - started_s:.0f} s, packets flow on without: "
        f"{reason}. See its log; to go back, install what was there before and start it"
    )


def _is_free(run_dir: RunDir) -> bool:
    try:
        run_dir.lock().close()
    except RuntimeFailure:
        return False
    return True


def _name(part: dict[str, Any]) -> str:
    """Return version and build of a process as its status tells them."""
    return f"{part.get('version') or '(old)'} build {part.get('build') or 'unknown'}"


def _compare(before: dict[str, Any], after: dict[str, Any], ready_s: float) -> dict[str, Any]:
    """Say what is different, for programs."""
    old, new = before["forwarder"], after["forwarder"]
    control = after["control"]
    has_forwarder = new["pid"] is not None
    is_whole = not has_forwarder or (new.get("version"), new.get("build")) == (
        control["version"],
        control["build"],
    )
    return {
        "is_whole": is_whole,
        "ready_s": ready_s,
        "control": f"{before['control'].get('version', '(old)')} -> {control['version']}",
        "forwarder": {
            "from": _name(old),
            "to": _name(new),
            "is_replaced": old["pid"] != new["pid"],
            "paused_ms": (new.get("hand_over") or {}).get("paused_ms"),
            "dropped": _lost(before, after),
            "reason": (new.get("hand_over") or {}).get("error") or "no forwarder of the new version waits",
        },
    }


def _lost(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Return how many packets were lost meanwhile where a pause shows."""
    then, now = _count_lost(before), _count_lost(after)
    # Less than before: counters of another layout were begun anew.
    return sum(
        count - then.get(place, 0) if count >= then.get(place, 0) else count for place, count in now.items()
    )


def _count_lost(status: dict[str, Any]) -> dict[str, int]:
    """Return how many packets were lost in full queues, and in forwarders that ended."""
    kernel = status["kernel"]
    restart = {way: status[way]["drops"].get("restart", 0) for way in ("tx", "rx")}
    return {"tun": kernel["tun_tx_dropped"], **kernel["rxq_overflow"], **restart}


def _tell(found: dict[str, Any]) -> str:
    forwarder = found["forwarder"]
    text = f"control {found['control']}, ready after {found['ready_s']:g} s; "
    if not forwarder["is_replaced"]:
        return f"{text}the forwarder is {forwarder['to']} already"
    lost = f"{forwarder['dropped']} packets lost" if forwarder["dropped"] > 0 else "no packet lost"
    paused = forwarder["paused_ms"]
    waited = "" if paused is None else f", packets waited {paused:g} ms"
    return f"{text}forwarder {forwarder['from']} -> {forwarder['to']}{waited}, {lost}"
