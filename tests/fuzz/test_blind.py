# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed without coverage comes again from its block, and a crash is found and shown again."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from dataplane import flannel
from tests.fuzz import blind, build, run, texts
from tests.fuzz.rewrite import places

PLANTED = "BackendV6Data.VNI: 9 is planted"


def test_a_block_is_always_the_same() -> None:
    """A block yields the same texts each time, and the next one others."""
    first = list(blind.inputs("network_json", 7))
    assert len(first) == blind.BLOCK
    assert list(blind.inputs("network_json", 7)) == first
    assert len(set(first) & set(blind.inputs("network_json", 8))) < len(set(first)) // 2


@pytest.mark.parametrize("target", texts.TARGETS)
def test_enough_is_accepted(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A blind run crashes on nothing, makes as many inputs as it was asked for, and passes the gate."""
    assert run.main(["--executions", "1500", "--blind", "--first", "3", target]) == 0
    assert re.search(rf"{target} +1500 ", capsys.readouterr().out)


def test_a_crash_is_found_and_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An input that crashes ends the run and is kept in a file; its block crashes at the same one again."""
    found = []
    for _ in range(2):
        crash = blind.Run("lease_json", f"{tmp_path}/")
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(texts.TARGETS, "lease_json", planted_target())
            assert not blind.run_blocks(crash, "lease_json", 0, 100_000, None)
        found.append(crash.inputs)
    assert found[0] == found[1] < 100_000
    assert PLANTED in capsys.readouterr().err
    (artifact,) = tmp_path.glob("crash-*")
    assert json.loads(artifact.read_bytes())["BackendV6Data"]["VNI"] == 9


def planted_target() -> texts.Target:
    """Return the target of leases, with an error in it."""

    def check(text: str) -> bool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flannel, "read_int", read_int)
            return lease.check(text)

    lease = texts.TARGETS["lease_json"]
    real = flannel.read_int

    def read_int(value: object, where: str, low: int, high: int) -> int:
        if where.endswith("BackendV6Data.VNI") and value == 9:
            raise LookupError(PLANTED)
        return real(value, where, low, high)

    return texts.Target(check, lease.good, lease.words)


def test_a_file_is_run(tmp_path: Path) -> None:
    """The command that shows a crash again runs its input alone."""
    good = tmp_path / "good"
    good.write_text(texts.TARGETS["store_keys"].good[0], encoding="utf-8")
    command = run.reproduce("store_keys", str(good)).split()
    done = subprocess.run(command, cwd=build.ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_remembered_is_forgotten() -> None:
    """Nothing of the memory is left behind in the modules, and what has no hash is read all the same."""
    before = flannel.read_mac
    with blind.remembering():
        assert flannel.read_mac is not before
        assert flannel.read_mac("02:4f:00:00:04:07", "x") is flannel.read_mac("02:4f:00:00:04:07", "x")
        with pytest.raises(ValueError, match="x: expected a string, not an array"):
            flannel.read_mac([], "x")
    assert flannel.read_mac is before


def test_places_are_where_values_stand() -> None:
    """Each value is found where it stands, and what is left without it is JSON that lacks just that."""
    document = {"a": [1, {"b": None}, "x,{}:"], "c": {"d": -1.5e3}, "e": []}
    for text in (
        json.dumps(document),
        json.dumps(document, indent=1),
        json.dumps(document, separators=(",", ":")),
    ):
        found = places(text)
        shown = [json.loads(text[slice(*place.value)]) for place in found]
        assert shown == [None, 1, {"b": None}, "x,{}:", -1500.0, document["a"], document["c"], []]
        for place in found:
            start, end = place.whole
            left = json.loads(text[:start] + text[end:])
            assert text[slice(*place.value)] in text[start:end]
            assert len(places(json.dumps(left))) < len(found)
    assert places("[1") == places("7") == ()
