# SPDX-License-Identifier: Apache-2.0
"""Finds the checks of a Python module of ours.

if A or B: return, raise, continue      A -> never; B -> never
[... for x in y if A]                   A -> never
return A or B                           A -> nothing; B -> nothing
return A and B                          A -> always; B -> always
return A == B                           -> True, -> False
"""

from __future__ import annotations

import ast
import re

from tests.mutants.mutant import Mutant, Span, name_all

REFUSES = (ast.Return, ast.Raise, ast.Continue, ast.Break)
ANSWERS = (ast.Call, ast.UnaryOp, ast.Name, ast.Attribute)  # of functions that return bool
NEW = {"never": "(False and ({}))", "always": "(True or ({}))", "nothing": "(({}) and None)"}


class Finder(ast.NodeVisitor):
    """Walks a module, and knows in which function it is."""

    def __init__(self, text: str) -> None:
        """Begin at its head."""
        self.text = text
        self.spans: list[Span] = []
        self._starts = [0]  # of the lines, in characters
        self._lines = text.splitlines(keepends=True)
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))
        self._names: list[str] = []
        self._context = ""
        self._is_bool = False

    def _at(self, line: int, octets: int) -> int:
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:octets].decode())

    def _add(self, node: ast.expr, how: str) -> None:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._at(node.lineno, node.col_offset)
        end = self._at(node.end_lineno, node.end_col_offset)
        new = NEW[how].format(self.text[start:end])
        self.spans.append(Span(".".join(self._names), self._context, start, end, how, new))

    def _named(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        was = self._is_bool, self._context
        if not isinstance(node, ast.ClassDef):
            self._context = self._context or ast.unparse(node)
            self._is_bool = isinstance(node.returns, ast.Name) and node.returns.id == "bool"
        self._names.append(node.name)
        self.generic_visit(node)
        self._names.pop()
        self._is_bool, self._context = was

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _named  # noqa: N815

    def _never(self, test: ast.expr) -> None:
        is_or = isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or)
        for each in test.values if isinstance(test, ast.BoolOp) and is_or else [test]:
            self._add(each, "never")

    def visit_If(self, node: ast.If) -> None:
        """Take a condition that leads away from what follows."""
        if any(isinstance(statement, REFUSES) for statement in node.body):
            self._never(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """Take what is picked out."""
        for test in node.ifs:
            self._never(test)
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        """Take an answer that is put together from several, or yes or no."""
        value = node.value
        if isinstance(value, ast.BoolOp):
            how = "always" if isinstance(value.op, ast.And) else "never" if self._is_bool else "nothing"
            for each in value.values:
                self._add(each, how)
        elif isinstance(value, ast.Compare) or (self._is_bool and isinstance(value, ANSWERS)):
            for how in ("never", "always"):
                self._add(value, how)
        self.generic_visit(node)


def find_checks(file: str, text: str, functions: str = "") -> list[Mutant]:
    """Return the checks of a Python module, in functions whose name matches."""
    finder = Finder(text)
    finder.visit(ast.parse(text))
    return name_all(file, text, [span for span in finder.spans if re.search(functions, span.function)])
