# SPDX-License-Identifier: Apache-2.0
"""The fuzzers build, find nothing in what is kept with the source, and their gate can fail.

`make fuzz` runs longer.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.fuzz import build, corpus, run, seeds, texts

HERE = Path(__file__).resolve().parent
EXECUTIONS = 1500
SECONDS = 3
PACK_MAX, ALL_MAX = 256 << 10, 1536 << 10  # bytes


@pytest.fixture(scope="module", autouse=True)
def _fuzzers() -> None:
    build.build("quick")


def test_every_target_is_run() -> None:
    """No target of this directory is forgotten, each has a corpus, and each states its invariant first."""
    assert {path.stem for path in HERE.glob("*.c")} == set(seeds.TARGETS) == set(build.TARGETS)
    assert {path.stem for path in corpus.CORPUS.glob("*")} == set(run.TARGETS)
    assert {path.name for path in corpus.CRASHES.glob("*")} <= set(run.TARGETS)
    for path in HERE.glob("*.c"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[1] == "/*"
        assert lines[2].startswith(" * Whatever ")


def test_corpus_is_small() -> None:
    """What is kept stays small enough for a repository."""
    sizes = [path.stat().st_size for path in corpus.CORPUS.glob("*")]
    assert max(sizes) <= PACK_MAX
    assert sum(sizes) <= ALL_MAX


@pytest.mark.parametrize("target", run.C_TARGETS, ids="case_144-{}".format)
def test_target_finds_nothing(target: str) -> None:
    """What is kept, every past crash in it, and a little of what mutation makes of it hold the invariant."""
    first = len(corpus.read(target)) + sum(1 for _ in seeds.TARGETS[target]())
    limits = (f"-runs={first + EXECUTIONS}", f"-max_total_time={SECONDS}", "-seed=1")
    found = run.fuzz(target, *limits, flavour="quick", is_fresh=True)
    assert not found.is_crash, found.log[-4000:]
    assert found.executions > first
    assert list(found.faults()) == []


@pytest.mark.parametrize("target", texts.TARGETS, ids="case_144-{}".format)
def test_texts_are_values_or_the_named_error(target: str) -> None:
    """Every text that is kept, past crashes among them, and their mutations are values or the named error."""
    inputs = [*corpus.read(target).values(), *texts.seeds(target)]
    accepted = sum(texts.TARGETS[target].check(data.decode("utf-8", "replace")) for data in inputs)
    assert 0 < accepted < len(inputs)
    made = list(texts.mutations(target, 500))
    assert sum(map(texts.TARGETS[target].check, made)) >= run.ACCEPTED_LEAST / 2 * len(made)


# --- the gate -----------------------------------------------------------------------------------------

PLANTED = """
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	CHECK((int)size != %d);
	return fuzz_count(%d < 0 || (size && data[0] == %d));
}
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the targets be another directory's, for the length of a test; return where the program goes."""
    where = tmp_path / "address"
    where.mkdir()
    monkeypatch.setattr(run, "BUILD", tmp_path)
    monkeypatch.setattr(build, "build", lambda flavour="address": where)
    return where / "parse"


def plant(program: Path, crash: int, accepted: int) -> None:
    """Build a target that crashes on inputs of one length, and accepts those that begin with one byte."""
    source = program.with_suffix(".c")
    source.write_text(PLANTED % (crash, accepted, accepted), encoding="utf-8")
    (target,) = build.objects_of("quick", program.parent).compile([(source, program.name)])
    build.link("quick", target)


def test_gate_passes(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A target that accepts enough and crashes on nothing ends with 0."""
    plant(planted, -1, -1)
    assert run.main(["--executions", "2000", "parse"]) == 0
    assert "parse" in capsys.readouterr().out


def test_gate_fails_on_a_crash(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A crash ends with 1, and with a command that shows it again."""
    plant(planted, 33, -1)
    assert run.main(["--executions", "100000", "parse"]) == 1
    said = capsys.readouterr()
    assert "CRASHED" in said.out
    again = said.err.rpartition("Again: ")[2].split()
    done = subprocess.run(again, cwd=build.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "(int)size != 33" in done.stderr


def test_gate_fails_on_refusals(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A target that refuses nearly everything says so, and ends with 1."""
    plant(planted, -1, 77)
    assert run.main(["--executions", "2000", "parse"]) == 1
    assert "of its inputs; at least 20% are wanted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nonsense"], "no target nonsense; there are decap_vxlan"),
        (["--seconds", "1", "--executions", "1"], "--seconds and --executions: one of them"),
        (["--executions", "0"], "--executions: at least 1"),
    ],
)
def test_bad_arguments(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be run is refused in one line, with status 2."""
    with pytest.raises(SystemExit) as ended:
        run.main(arguments)
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_corpus_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is packed is read again, the same bytes make the same file, and a past crash is among them."""
    monkeypatch.setattr(corpus, "CORPUS", tmp_path / "corpus")
    monkeypatch.setattr(corpus, "CRASHES", tmp_path / "crashes")
    corpus.pack("parse", [b"b", b"a", b"a", b""])
    packed = (tmp_path / "corpus" / "parse.zip").read_bytes()
    assert sorted(corpus.read("parse").values()) == [b"", b"a", b"b"]
    corpus.pack("parse", [b"", b"b", b"a"])
    assert (tmp_path / "corpus" / "parse.zip").read_bytes() == packed
    (tmp_path / "crashes" / "parse").mkdir(parents=True)
    (tmp_path / "crashes" / "parse" / "why").write_bytes(b"c")
    assert corpus.unpack("parse", tmp_path / "out") == 4
    assert (tmp_path / "out" / "crash-why").read_bytes() == b"c"
