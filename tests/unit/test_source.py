# SPDX-License-Identifier: Apache-2.0
"""The source holds to the architecture: layers, contracts, names and sizes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests import order

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "dataplane"
C_FILES = sorted(CSRC.glob("*.[ch]"))
C_BESIDE = sorted(p for d in ("bench", "tests/c", "tests/fuzz") for p in (ROOT / d).glob("*.[ch]"))
MODULES = sorted(PACKAGE.rglob("*.py"))
PYTHON_FILES = [*MODULES, *sorted(p for d in ("bench", "csrc", "tests") for p in (ROOT / d).rglob("*.py"))]

LINES_MAX = 500
FUNCTION_LINES_MAX = 80
FUNCTION_LINES_USUAL = 40
PARAMETERS_MAX = 6

PURE_HEADERS = {"stdbool.h", "stddef.h", "stdint.h", "stdlib.h", "string.h", "arpa/inet.h", "endian.h"}
PURE_HEADERS |= {"sys/uio.h"}  # struct iovec
ALLOCATING = re.compile(r"\b(malloc|calloc|realloc|free|mmap|munmap|alloca)\(")
SANS_IO_BANNED = {"asyncio", "random", "secrets", "select", "selectors", "socket", "subprocess", "threading"}
SANS_IO_BANNED |= {"time", "uvloop"}


def read_map(letter: str) -> dict[str, int]:
    """Read the layer list of one half from the head of dataplane/__init__.py: name -> layer."""
    text = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")))
    assert text is not None
    layers: dict[str, int] = {}
    for match in re.finditer(rf"^ +{letter}(\d) ([\w/ ]+?) +\| ", text, flags=re.MULTILINE):
        for name in match[2].split():
            assert name not in layers, f"{name} is in the map twice"
            layers[name] = int(match[1])
    return layers


C_LAYERS = read_map("L")
PYTHON_LAYERS = read_map("P")


def shown(path: Path) -> str:
    """Return a path for people and test ids."""
    return str(path.relative_to(ROOT))


def unit_of(module: str) -> str:
    """Return the entry of the map that a dotted module name belongs to."""
    parts = module.split(".")
    if len(parts) == 1:
        return "__init__"
    return f"{parts[1]}/" if f"{parts[1]}/" in PYTHON_LAYERS else parts[1]


def module_name(path: Path) -> str:
    """Return the dotted name of a file under dataplane/."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


@dataclass(frozen=True, slots=True)
class Import:
    """One module that a file imports, and whether it does so while it is itself imported."""

    name: str
    is_at_start: bool


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    """List what a Python file imports; `from package import submodule` counts as the submodule."""
    return tuple(imports_in(ast.parse(path.read_text(encoding="utf-8"))))


def imports_in(tree: ast.Module) -> Iterator[Import]:
    """List what a syntax tree imports."""
    # Types alone do not make a cycle: the block never runs.
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    at_start = {node for statement in tree.body for node in walk_outside_functions(statement)} - typing_only
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node in at_start)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                below = ROOT / node.module.replace(".", "/") / alias.name
                is_module = below.is_dir() or below.with_suffix(".py").is_file() or alias.name == "_native"
                name = f"{node.module}.{alias.name}" if is_module else node.module
                yield Import(name, node in at_start)


def walk_outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """Walk a syntax tree, but not into functions: what runs when the module is imported."""
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from walk_outside_functions(child)


@dataclass(frozen=True, slots=True)
class CFunction:
    """A function definition in C, with the kernel-doc block right above it."""

    path: Path
    name: str
    is_static: bool
    parameters: tuple[str, ...]
    lines: int
    documented_name: str | None
    documented_parameters: tuple[str, ...]
    doc: str

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.name}()"


C_FUNCTION = re.compile(
    r"(?:^/\*\*\n(?P<doc>(?:^ \*[^/\n][^\n]*\n|^ \*\n)+)^ \*/\n)?"
    r"^(?P<head>[a-z_][\w \t*]*?[ \t*])(?P<name>\w+)\((?P<parameters>[^;{}]*)\)\n"
    r"^\{\n(?P<body>.*?)^\}\n",
    flags=re.MULTILINE | re.DOTALL,
)


def parameter_name(declaration: str) -> str:
    """Return the name declared by one parameter of a C function."""
    pointer_to_function = re.search(r"\(\*(\w+)\)", declaration)
    if pointer_to_function:
        return pointer_to_function[1]
    words: list[str] = re.findall(r"\w+|\.{3}", re.sub(r"\[.*?\]", "", declaration))
    return words[-1]


def functions_of(path: Path) -> Iterator[CFunction]:
    """Find the function definitions of a C file; clang-format makes a regular expression enough."""
    text = re.sub(r"__attribute__\(\(.*?\){2,}\s*", "", path.read_text(encoding="utf-8"))
    for match in C_FUNCTION.finditer(text):
        declared = match["parameters"].strip()
        doc = match["doc"] or ""
        title = re.match(r" \* (\w+)\(\) - ", doc)
        yield CFunction(
            path=path,
            name=match["name"],
            is_static="static" in match["head"].split(),
            parameters=() if declared == "void" else tuple(map(parameter_name, declared.split(","))),
            lines=match["body"].count("\n") + 3,
            documented_name=title[1] if title else None,
            documented_parameters=tuple(re.findall(r"^ \* @(\w+):", doc, flags=re.MULTILINE)),
            doc=doc,
        )


C_FUNCTIONS = [function for path in C_FILES for function in functions_of(path)]
C_FUNCTIONS_BESIDE = [function for path in C_BESIDE for function in functions_of(path)]


def python_functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """List every function and method of a Python file."""
    yield from functions_in(ast.parse(path.read_text(encoding="utf-8")))


def functions_in(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """List every function and method of a syntax tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def drop_names() -> list[str]:
    """Return the names of enum dp_drop as counters show them, in order."""
    body = re.search(r"enum dp_drop \{(.*?)\};", (CSRC / "dp.h").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert body is not None
    names = re.findall(r"^\tDP_DROP_(\w+)", body[1], flags=re.MULTILINE)
    return [name.lower() for name in names if name not in {"NONE", "COUNT"}]


# --- layers ---------------------------------------------------------------------------------------


def test_map_lists_every_file_and_no_other() -> None:
    """The map at the head of dataplane/__init__.py and the files on disk are the same set."""
    units = {path.stem for path in C_FILES}
    modules = {unit_of(module_name(path)) for path in MODULES} - {"__init__"}
    assert units == set(C_LAYERS)
    assert modules == set(PYTHON_LAYERS)


@pytest.mark.parametrize("path", C_FILES, ids=shown)
def test_includes_point_one_way(path: Path) -> None:
    """A C file includes only units of its own layer or a lower one."""
    included = re.findall(r'^#include "(\w+)\.h"', path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    upward = [name for name in included if C_LAYERS[name] > C_LAYERS[path.stem]]
    assert upward == []


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_imports_point_one_way(path: Path) -> None:
    """A module imports only modules of its own layer or a lower one."""
    own = unit_of(module_name(path))
    if own == "__init__":
        assert not any(imported.name.startswith("dataplane") for imported in imports_of(path))
        return
    wanted = [
        unit_of(imported.name) for imported in imports_of(path) if imported.name.startswith("dataplane.")
    ]
    upward = [name for name in wanted if name != "_native" and PYTHON_LAYERS[name] > PYTHON_LAYERS[own]]
    assert upward == []


def test_includes_make_no_cycle() -> None:
    """No header includes itself by way of others."""
    graph = {
        path.name: re.findall(r'^#include "(\w+\.h)"', path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for path in C_FILES
    }
    TopologicalSorter(graph).prepare()


def test_imports_make_no_cycle() -> None:
    """No module imports itself by way of others while it is being imported."""
    graph = {
        module_name(path): {
            imported.name
            for imported in imports_of(path)
            if imported.is_at_start and imported.name.startswith("dataplane.")
        }
        for path in MODULES
    }
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("owner", "foreign"), [("dataplane.native", "dataplane._native"), ("dataplane.netlink", "pyroute2")]
)
def test_only_owner_imports(owner: str, foreign: str) -> None:
    """The C module and pyroute2 each have exactly one door."""
    importers = {
        module_name(path)
        for path in MODULES
        for imported in imports_of(path)
        if imported.name == foreign or imported.name.startswith(f"{foreign}.")
    }
    assert importers <= {owner}


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_sans_io_layers_stay_pure(path: Path) -> None:
    """Below P3 nothing imports an event loop, a socket, a clock or randomness."""
    own = unit_of(module_name(path))
    if PYTHON_LAYERS.get(own, 0) < 3:
        assert {imported.name.partition(".")[0] for imported in imports_of(path)} & SANS_IO_BANNED == set()


@pytest.mark.parametrize("path", C_FILES, ids=shown)
def test_pure_units_stay_pure(path: Path) -> None:
    """L0 and L1 include no system interface and never allocate."""
    if C_LAYERS[path.stem] > 1:
        return
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"^#include <(.*?)>", text, flags=re.MULTILINE)) <= PURE_HEADERS
    assert ALLOCATING.findall(text) == []


@pytest.mark.parametrize("path", C_FILES, ids=shown)
def test_c_never_prints_or_exits(path: Path) -> None:
    """The engine is a library inside Python: it returns -errno and leaves words and death to its caller."""
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"\b(?:v?f?printf|perror|puts|exit|_exit|abort|syslog|assert)\(", text) == []


# --- contracts and names --------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [False, True], ids=["csrc", "beside"])
def test_c_functions_are_found(beside: bool) -> None:
    """The scanner of this file sees the definitions that a simple count of column-0 braces sees."""
    files, functions = (C_BESIDE, C_FUNCTIONS_BESIDE) if beside else (C_FILES, C_FUNCTIONS)
    opened = sum(
        len(re.findall(r"\)\n\{$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)) for path in files
    )
    assert len(functions) == opened
    assert opened > 0


@pytest.mark.parametrize("function", C_FUNCTIONS, ids=str)
def test_kernel_doc_matches_signature(function: CFunction) -> None:
    """Every C function has a contract that names its parameters in order, and its result if it has one."""
    assert function.documented_name == function.name
    assert function.documented_parameters == function.parameters
    definition = function.path.read_text(encoding="utf-8")
    is_void = re.search(rf"^(?:static )?(?:inline )?void {function.name}\(", definition, flags=re.MULTILINE)
    assert bool(is_void) != ("Return:" in function.doc)


@pytest.mark.parametrize("function", C_FUNCTIONS, ids=str)
def test_extern_function_is_named_after_its_file(function: CFunction) -> None:
    """What other units can call is dp_* for Python, or carries the name of its unit."""
    unit = function.path.stem.partition("_")[0]
    assert function.is_static or function.name.startswith(("dp_", f"{unit}_"))


def test_enums_of_the_surface_end_in_count() -> None:
    """Every enum in dp.h ends in _COUNT, so that tables are sized by it; masks have no count."""
    text = re.sub(r"/\*.*?\*/", "", (CSRC / "dp.h").read_text(encoding="utf-8"), flags=re.DOTALL)
    for name, body in re.findall(r"^enum (dp_\w+) \{(.*?)\};", text, flags=re.MULTILINE | re.DOTALL):
        members = [member.strip() for member in body.split(",") if member.strip()]
        is_mask = all("=" in member for member in members)
        assert is_mask or members[-1].endswith("_COUNT"), name


def test_every_drop_reason_is_documented() -> None:
    """docs/counters.md has one row for each value of enum dp_drop, in the same order."""
    text = (ROOT / "docs" / "counters.md").read_text(encoding="utf-8")
    reasons = text.partition("## Drop reasons")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", reasons, flags=re.MULTILINE)
    assert [row[0] for row in rows] == drop_names()


# --- sizes and files ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*C_FILES, *C_BESIDE, *PYTHON_FILES], ids=shown)
def test_file_fits_in_a_head(path: Path) -> None:
    """No source file is longer than the limit, and each one names its licence in its first line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LINES_MAX
    assert "SPDX-License-Identifier: Apache-2.0" in lines[0]


@pytest.mark.parametrize("function", [*C_FUNCTIONS, *C_FUNCTIONS_BESIDE], ids=str)
def test_c_function_fits_on_a_screen(function: CFunction) -> None:
    """No C function is longer than the hard limit or takes too many parameters."""
    assert function.lines <= FUNCTION_LINES_MAX
    assert len(function.parameters) <= PARAMETERS_MAX


@pytest.mark.parametrize("path", PYTHON_FILES, ids=shown)
def test_python_functions_fit_on_a_screen(path: Path) -> None:
    """No Python function is longer than the hard limit or takes too many parameters."""
    for function in python_functions(path):
        assert function.end_lineno is not None
        assert function.end_lineno - function.lineno < FUNCTION_LINES_MAX, function.name
        if not function.decorator_list:  # pytest's fixtures and cases arrive as parameters
            arguments = [arg.arg for arg in [*function.args.posonlyargs, *function.args.args]]
            arguments = [name for name in arguments if name not in {"self", "cls"}]
            is_test = function.name.startswith("test_")
            assert is_test or len(arguments) <= PARAMETERS_MAX, function.name


def test_functions_are_mostly_short() -> None:
    """Nine functions in ten stay within the usual length."""
    lengths = [function.lines for function in C_FUNCTIONS]
    for path in MODULES:
        for function in python_functions(path):
            assert function.end_lineno is not None
            lengths.append(function.end_lineno - function.lineno + 1)
    assert sum(length > FUNCTION_LINES_USUAL for length in lengths) <= len(lengths) // 10


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=shown)
def test_tests_say_what_must_hold(path: Path) -> None:
    """Every test has a docstring, and none sleeps: tests wait on conditions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in functions_in(tree):
        if function.name.startswith("test_"):
            assert ast.get_docstring(function), function.name
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    sleeps = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "sleep"]
    assert [call for call in sleeps if ast.unparse(call.func) in {"time.sleep", "asyncio.sleep"}] == []


def test_long_files_are_known() -> None:
    """The files that begin first exist, and what runs alone is where `make test` looks for it."""
    assert [name for name in order.LONGEST if not (ROOT / name).is_file()] == []
    assert len(set(order.LONGEST)) == len(order.LONGEST)
    mark = "pytest.mark." + "alone"
    found = {
        path.parent for path in (ROOT / "tests").rglob("*.py") if mark in path.read_text(encoding="utf-8")
    }
    assert found == {ROOT / "tests" / "e2e"}
