# SPDX-License-Identifier: Apache-2.0
"""The tool that disables checks finds them, and does not let a survivor pass."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.mutants import c_checks, python_checks, run
from tests.mutants.mutant import Mutant
from tests.mutants.stages import PLACES, ROOT, Place, list_stages
from tests.mutants.tree import BuildError, Ran

C_FORMS = {
    "if (a || b(c))\n\t\treturn DP_DROP_SHORT;": {
        "a -> never": "if ((0 && (a)) || b(c))\n\t\treturn DP_DROP_SHORT;",
        "b(c) -> never": "if (a || (0 && (b(c))))\n\t\treturn DP_DROP_SHORT;",
    },
    "if (a && (b || c)) {\n\t\td();\n\t\tgoto out;\n\t}": {
        "a && (b || c) -> never": "if ((0 && (a && (b || c)))) {\n\t\td();\n\t\tgoto out;\n\t}",
        "b -> never": "if (a && ((0 && (b)) || c)) {\n\t\td();\n\t\tgoto out;\n\t}",
        "c -> never": "if (a && (b || (0 && (c)))) {\n\t\td();\n\t\tgoto out;\n\t}",
    },
    "if (len > mtu)\n\t\tlen = mtu;": {"len > mtu -> never": "if ((0 && (len > mtu)))\n\t\tlen = mtu;"},
    "return a || b ? DP_DROP_NESTED : DP_DROP_NONE;": {
        "a -> never": "return (0 && (a)) || b ? DP_DROP_NESTED : DP_DROP_NONE;",
        "b -> never": "return a || (0 && (b)) ? DP_DROP_NESTED : DP_DROP_NONE;",
    },
    "return a ? DP_DROP_NONE : DP_DROP_SHORT;": {
        "a -> always": "return (1 || (a)) ? DP_DROP_NONE : DP_DROP_SHORT;"
    },
    "return a ? -EINVAL : b();": {"a -> never": "return (0 && (a)) ? -EINVAL : b();"},
    "return DP_DROP_SHORT;": {"DP_DROP_SHORT -> DP_DROP_NONE": "return DP_DROP_NONE;"},
    "return -EPERM;": {"-EPERM -> 0": "return 0;"},
    "drop = check(a, b);": {"check(a, b) -> not obeyed": "drop = ((void)check(a, b), 0);"},
    "return a && b;": {"a -> always": "return (1 || (a)) && b;", "b -> always": "return a && (1 || (b));"},
    "return a != b;": {
        "a != b -> always": "return (1 || (a != b));",
        "a != b -> never": "return (0 && (a != b));",
    },
    "if (a)\n\t\treturn DP_DROP_NONE;": {},
    "if (a)\n\t\tb = 1;": {},
    "/* if (a) return DP_DROP_SHORT; */": {},
}


@pytest.mark.parametrize("body", C_FORMS)
def test_checks_of_c_are_found(body: str) -> None:
    """Each form of a check in C is found, each operand for itself, and disabled."""
    kind = "bool" if body in ("return a && b;", "return a != b;") else "int"
    text = f"/* it's */\nstatic {kind} f(int a)\n{{\n\t{body}\n}}\n"
    found = {mutant.name: mutant.apply(text) for mutant in c_checks.find_checks("x.c", text)}
    assert found == {f"x.c f: {name}": text.replace(body, new) for name, new in C_FORMS[body].items()}


PYTHON_FORMS = {
    "if a or b(c):\n        return d": {
        "a -> never": "if (False and (a)) or b(c):\n        return d",
        "b(c) -> never": "if a or (False and (b(c))):\n        return d",
    },
    "if a and b:\n        raise d": {"a and b -> never": "if (False and (a and b)):\n        raise d"},
    "return [b for b in a if b]": {"b -> never": "return [b for b in a if (False and (b))]"},
    "return a or b": {
        "a -> nothing": "return ((a) and None) or b",
        "b -> nothing": "return a or ((b) and None)",
    },
    "return a and b": {
        "a -> always": "return (True or (a)) and b",
        "b -> always": "return a and (True or (b))",
    },
    "return a == b": {
        "a == b -> always": "return (True or (a == b))",
        "a == b -> never": "return (False and (a == b))",
    },
    "if a:\n        b = 1": {},
    '"é"; return a == b': {
        "a == b -> always": '"é"; return (True or (a == b))',
        "a == b -> never": '"é"; return (False and (a == b))',
    },
}


@pytest.mark.parametrize("body", PYTHON_FORMS)
def test_checks_of_python_are_found(body: str) -> None:
    """Each form of a check in Python is found, each operand for itself, and disabled."""
    text = f"class C:\n  def f(self):\n    {body}\n"
    found = {mutant.name: mutant.apply(text) for mutant in python_checks.find_checks("x.py", text)}
    assert found == {f"x.py C.f: {name}": text.replace(body, new) for name, new in PYTHON_FORMS[body].items()}


def test_names_stay_when_lines_move() -> None:
    """A check is known by function and text; the second of two that are equal has a number."""
    text = "int f(void)\n{\n\tif (a)\n\t\treturn x;\n\tif (a)\n\t\treturn y;\n}\n"
    names = ["x.c f: a -> never", "x.c f: a -> never #2"]
    assert [mutant.name for mutant in c_checks.find_checks("x.c", text)] == names
    moved = "/* more */\n" + text.replace("if (a)", "if  (\n\ta)".replace("if  ", "if "))
    assert [mutant.name for mutant in c_checks.find_checks("x.c", moved)] == names


def test_every_place_is_there() -> None:
    """Each file that is to be mutated has checks, each has tests near it, and all names differ."""
    mutants = run.find_mutants()
    assert {place.file for place in PLACES} == {mutant.file for mutant, _ in mutants.values()}
    assert len(mutants) > 400
    assert "csrc/rx.c check_inner: !path->config->spoof_observe -> never" in mutants
    assert "dataplane/store/etcd.py EtcdKeyValue._transact: compare=[compare] -> compare=[]" in mutants
    for place in PLACES:
        assert any(runs for name, runs, _ in list_stages(place) if name in ("near", "c", "e2e")), place


def test_no_unit_that_drops_is_forgotten() -> None:
    """Wherever C names a reason for a drop, its checks are disabled one by one."""
    drops = re.compile(r"(return|[?:]|[^=]=) DP_DROP_(?!NONE|COUNT)")
    units = {f"csrc/{path.name}" for path in (ROOT / "csrc").glob("*.c") if drops.search(path.read_text())}
    assert units <= {place.file for place in PLACES}


class FakeTree:
    """A copy of the source that is only in memory, with tests that fail as they are told to."""

    def __init__(self, text: str, failing: dict[str, bool] | None = None, problem: str | None = None) -> None:
        """Have one file; `failing` says whether a run that contains this argument fails with a mutant."""
        self.text = self.now = text
        self.failing = failing or {}
        self.problem = problem
        self.ran: list[str] = []

    def read(self, name: str) -> str:
        return self.text

    def write(self, name: str, text: str) -> None:
        self.now = text

    def restore(self, name: str) -> None:
        self.now = self.text

    def build(self) -> None:
        if self.problem is not None:
            raise BuildError(self.problem)

    def test(self, args: list[str], limit_s: float) -> Ran:
        self.ran.append(args[-1])
        failed = next((test for test in self.failing if test in args), None)
        return Ran(failed if self.now != self.text else None, 0.1, "")


PLACE = Place("csrc/parse.c", "", "parse")
TEXT = (ROOT / "csrc/parse.c").read_text(encoding="utf-8")
MUTANT = c_checks.find_checks("csrc/parse.c", TEXT)[0]


@pytest.fixture
def hunt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> run.Hunt:
    """Return a hunt for one mutant that remembers nothing."""
    for name in ("KILLERS", "RESULTS"):
        monkeypatch.setattr(run, name, tmp_path / name)
    return run.Hunt({MUTANT.name: (MUTANT, PLACE)}, "all", float("inf"))


def _hunt(hunt: run.Hunt, tree: FakeTree) -> int:
    hunt.run([tree])  # type: ignore[list-item]
    assert tree.now == tree.text
    return run.report([MUTANT.name], hunt.results)


def test_survivor_is_reported(hunt: run.Hunt, capsys: pytest.CaptureFixture[str]) -> None:
    """If no test fails in any stage, the mutant is named and the run ends with 1."""
    tree = FakeTree(TEXT)
    assert _hunt(hunt, tree) == 1
    assert f"SURVIVED: {MUTANT.name}" in capsys.readouterr().out
    assert len(tree.ran) == sum(len(runs) for _, runs, _ in list_stages(PLACE))
    assert hunt.is_due(MUTANT.name)  # it is tried again: somebody may have written the test


def test_killer_is_remembered(hunt: run.Hunt) -> None:
    """The test that kills a mutant is tried first the next time; and no other, if it does it again."""
    assert _hunt(hunt, FakeTree(TEXT, {"tests/unit/test_parse.py": True})) == 0
    assert not hunt.is_due(MUTANT.name)
    again = run.Hunt(hunt.mutants, "all", float("inf"))
    assert again.killers == {MUTANT.name: "tests/unit/test_parse.py"}
    again.results.clear()
    tree = FakeTree(TEXT, {"tests/unit/test_parse.py": True})
    assert _hunt(again, tree) == 0
    assert tree.ran == ["tests/unit/test_parse.py"]
    assert again.results[MUTANT.name].stage == "killer"


def test_mutant_that_does_not_compile_is_no_success(
    hunt: run.Hunt, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mutant that cannot be built proves nothing: it is shown, and the run ends with 1."""
    assert _hunt(hunt, FakeTree(TEXT, {}, "parse.c: error")) == 1
    assert f"DOES NOT COMPILE: {MUTANT.name}" in capsys.readouterr().out


def test_no_time_is_no_success(hunt: run.Hunt, capsys: pytest.CaptureFixture[str]) -> None:
    """What was not tried for want of time is named, and the run ends with 1."""
    late = run.Hunt(hunt.mutants, "all", 0.0)
    assert _hunt(late, FakeTree(TEXT)) == 1
    assert f"NOT TRIED: {MUTANT.name}" in capsys.readouterr().out


def test_unsteady_test_kills_nobody(hunt: run.Hunt) -> None:
    """A test of the network that fails with nothing disabled, too, is not believed."""

    class Unsteady(FakeTree):
        def test(self, args: list[str], limit_s: float) -> Ran:
            super().test(args, limit_s)
            return Ran("tests/e2e/test_x.py::test_y", 0.1, "")

    hunt._stages = ("e2e",)
    hunt.mutants = {MUTANT.name: (MUTANT, Place("csrc/parse.c", e2e="ipip"))}
    assert _hunt(hunt, Unsteady(TEXT)) == 1


def test_failure_that_does_not_come_again_kills_nobody(hunt: run.Hunt) -> None:
    """A test that fails with a mutant once, and not the next time, was hindered by something else."""

    class Once(FakeTree):
        def test(self, args: list[str], limit_s: float) -> Ran:
            passed = super().test(args, limit_s)
            return passed if self.ran.count(args[-1]) > 1 else Ran(args[-1], 0.1, "")

    tree = Once(TEXT)
    assert _hunt(hunt, tree) == 1
    assert hunt.killers == {}


def test_mutant_is_text_of_its_file() -> None:
    """What a mutant replaces is what stands there, and only that changes."""
    mutant = Mutant("x", "x", "", 2, 3, "!")
    assert mutant.apply("abcd") == "ab!d"
