"""Do the tests notice? Changes the package in one place at a time, and runs the tests that run that place.

    python tests/mutants.py --seed 1 --count 300 [--modules 'vectors/*,models/*'] [--list]

A mutant is one changed comparison, boolean operator, sign, number, condition or return value; constants of a module and
options that a call gives by keyword stay. It survives when every test that runs the changed line still passes. The
working tree stays as it is: everything happens in a copy of it.

One pytest session collects the tests. Each mutant gets a fork of it, in which the functions that changed get their new
code; what is computed at import, as a constant of a module, is changed in the copy and tested in a process of its own.
Which test runs which line is found once, and kept in .cache/mutants until the tests or the package change.

Mutants that no test can notice are in mutants_equivalent.json, each with the reason. Ends with 1 below --least.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import fnmatch
import functools
import gc
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "datasette_vision"
EQUIVALENT = ROOT / "tests" / "mutants_equivalent.json"
CACHE = ROOT / ".cache" / "mutants"
# What needs PyTorch or Ray, and what describes commands and pages rather than decides.
LEFT_OUT = ("bake/*", "files/ray/*", "demo/*", "plugin/enrichments/*", "plugin/api/openapi*")
# Tests slower than this are used only where no other runs a line.
SLOW_S = 5.0
# What the tests of one mutant may take in all, by what they took when they passed.
BUDGET_S = 60.0

SWAPS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.FloorDiv,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
}
LOGGING = {"debug", "info", "warning", "error", "exception", "critical", "log"}


@dataclass(frozen=True)
class Mutant:
    """One change: `before`, at a place of a module, becomes `after`."""

    module: str  # relative to the package, as models/store.py
    line: int
    statement: tuple[int, int]  # the lines whose run means that the place is run
    function: str  # qualified name, or "" at the level of the module
    span: tuple[int, int]  # offsets in the source, in characters
    before: str
    after: str
    code: str  # the line, stripped

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names it whatever line it is on."""
        return self.module, self.code, self.before, self.after

    def __str__(self) -> str:
        return f"{PACKAGE}/{self.module}:{self.line}: {self.before}  ->  {self.after}    in: {self.code}"

    def applied(self, source: str) -> str:
        return source[: self.span[0]] + self.after + source[self.span[1] :]


class Finder(ast.NodeVisitor):
    """Finds the mutants of a module."""

    def __init__(self, module: str, source: str) -> None:
        self._module = module
        self._source = source
        self._lines = source.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))
        self._names: list[str] = []
        self._function = ""
        self._statement = (1, 1)
        self.found: list[Mutant] = []
        self.visit(ast.parse(source))

    # What is passed over

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Messages."""

    def visit_Raise(self, node: ast.Raise) -> None:
        """Which error it is and what it says: tests of errors compare that, or it is a message."""

    def visit_Assert(self, node: ast.Assert) -> None:
        """For readers and mypy."""

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self._head(node, node.test)
        self._negate(node.test)
        self.visit(node.test)
        self._bodies(node.body, node.orelse)

    def visit_While(self, node: ast.While) -> None:
        self._head(node, node.test)
        self._negate(node.test)
        self.visit(node.test)
        self._bodies(node.body, node.orelse)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        self._head(node, node.iter)
        self.visit(node.iter)
        self._bodies(node.body, node.orelse)

    def visit_With(self, node: ast.With) -> None:
        self._head(node, node.items[-1].context_expr)
        for item in node.items:
            self.visit(item.context_expr)
        self._bodies(node.body)

    def visit_Try(self, node: ast.Try) -> None:
        self._bodies(node.body, *(handler.body for handler in node.handlers), node.orelse, node.finalbody)

    visit_AsyncFor = visit_For  # type: ignore[assignment]
    visit_AsyncWith = visit_With  # type: ignore[assignment]

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        if any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
            return
        self._names.append(node.name)
        self._bodies(node.body)
        self._names.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name == "__repr__":
            return
        self._statement = (node.lineno, node.lineno)
        for default in [*node.args.defaults, *(value for value in node.args.kw_defaults if value is not None)]:
            self.visit(default)
        before, self._function = self._function, self._function or ".".join([*self._names, node.name])
        self._names.append(node.name)
        self._bodies(node.body)
        self._names.pop()
        self._function = before

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._head(node, node)
            self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        if name in LOGGING and isinstance(owner, ast.Name) and owner.id in {"logger", "logging"}:
            return
        if name == "getLogger" or (isinstance(node.func, ast.Name) and node.func.id in {"TypeVar", "cast"}):
            return
        if isinstance(owner, ast.Name) and owner.id == "click":
            return  # it describes an option
        self.visit(node.func)
        for argument in node.args:
            self.visit(argument)
        for keyword in node.keywords:
            if not isinstance(keyword.value, ast.Constant):  # daemon=True, strict=True, timeout=60
                self.visit(keyword.value)

    # What is changed

    def visit_Compare(self, node: ast.Compare) -> None:
        for position, operator in enumerate(node.ops):
            for other in SWAPS.get(type(operator), ()):
                changed = copy.deepcopy(node)
                changed.ops[position] = other()  # type: ignore[call-overload]
                self._add(node, changed)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        changed = copy.deepcopy(node)
        changed.op = SWAPS[type(node.op)][0]()  # type: ignore[assignment]
        self._add(node, changed)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = any(
            isinstance(side, (ast.JoinedStr, ast.List, ast.Tuple))
            or (isinstance(side, ast.Constant) and isinstance(side.value, (str, bytes)))
            for side in (node.left, node.right)
        )
        for other in () if texts else SWAPS.get(type(node.op), ()):
            changed = copy.deepcopy(node)
            changed.op = other()  # type: ignore[assignment]
            self._add(node, changed)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._head(node, node)
        for other in SWAPS.get(type(node.op), ()):
            if not isinstance(node.value, (ast.JoinedStr, ast.List, ast.Tuple)):
                changed = copy.deepcopy(node)
                changed.op = other()  # type: ignore[assignment]
                self._add(node, changed)
        self.visit(node.value)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, (ast.Not, ast.USub)):
            self._add(node, node.operand)
        if not isinstance(node.operand, ast.Constant):
            self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._add(node, ast.Constant(not node.value))
        elif isinstance(node.value, (int, float)) and self._function:  # a module's are chosen by measurement
            self._add(node, ast.Constant(node.value + 1))
            if node.value > 0:
                self._add(node, ast.Constant(node.value - 1))

    def visit_Return(self, node: ast.Return) -> None:
        self._head(node, node)
        if node.value is not None:
            if not (isinstance(node.value, ast.Constant) and isinstance(node.value.value, (bool, type(None)))):
                self._add(node.value, ast.Constant(None))
            self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring, or an ellipsis
            self._head(node, node)
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if any(isinstance(target, ast.Name) and target.id == "__slots__" for target in node.targets):
            return
        self._head(node, node)
        self.visit(node.value)

    def visit_Delete(self, node: ast.Delete) -> None:
        self._head(node, node)

    # How

    def _head(self, node: ast.AST, last: ast.AST) -> None:
        self._statement = (node.lineno, last.end_lineno or last.lineno)  # type: ignore[attr-defined]

    def _bodies(self, *bodies: Sequence[ast.stmt]) -> None:
        for body in bodies:
            for statement in body:
                self._statement = (statement.lineno, statement.end_lineno or statement.lineno)
                self.visit(statement)

    def _negate(self, test: ast.expr) -> None:
        """`if a` becomes `if not a`. A comparison and a `not` are negated as such."""
        if not isinstance(test, (ast.Compare, ast.UnaryOp, ast.Constant)):
            self._add(test, ast.UnaryOp(ast.Not(), copy.deepcopy(test)))

    def _offset(self, line: int, column: int) -> int:
        """The offset in characters: columns are counted in bytes."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def _add(self, node: Any, changed: ast.AST) -> None:
        start = self._offset(node.lineno, node.col_offset)
        end = self._offset(node.end_lineno, node.end_col_offset)
        after = ast.unparse(ast.fix_missing_locations(changed))
        if isinstance(changed, ast.expr) and not isinstance(changed, (ast.Constant, ast.Name, ast.Call)):
            after = f"({after})"
        before = " ".join(self._source[start:end].split())
        code = self._lines[node.lineno - 1].strip()
        self.found.append(
            Mutant(self._module, node.lineno, self._statement, self._function, (start, end), before, after, code)
        )


def modules(patterns: Sequence[str]) -> list[str]:
    """The modules that are changed, by name or pattern; all where there is no pattern."""
    root = ROOT / PACKAGE
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    return [
        name
        for name in names
        if not any(fnmatch.fnmatch(name, left) for left in LEFT_OUT)
        and (not patterns or any(fnmatch.fnmatch(name, p) or fnmatch.fnmatch(name, f"{p}.py") for p in patterns))
    ]


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module that Python can compile, in the order of the source."""
    source = (ROOT / PACKAGE / module).read_text("utf-8")
    found = {(*mutant.span, mutant.after): mutant for mutant in Finder(module, source).found}
    return [found[key] for key in sorted(found)]


def equivalents() -> list[dict[str, str]]:
    """Mutants that no test can notice: module, code, before, after, reason."""
    return json.loads(EQUIVALENT.read_text("utf-8"))


def unused(listed: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Those listed that the package no longer has."""
    known: dict[str, set[tuple[str, str, str, str]]] = {}
    for entry in listed:
        module = entry["module"]
        if module not in known:
            there = (ROOT / PACKAGE / module).exists()
            known[module] = {mutant.key for mutant in mutants(module)} if there else set()
    return [e for e in listed if (e["module"], e["code"], e["before"], e["after"]) not in known[e["module"]]]


# The session


class Noticed(Exception):
    """A test failed."""


class Session:
    """A pytest plugin: collects as usual, and then, in place of running the tests, runs `work`."""

    def __init__(self, work: Callable[[Session], None]) -> None:
        self._work = work
        self.items: dict[str, pytest.Item] = {}
        self.failed = False
        self.skipped = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        try:
            self._work(self)
        except BaseException:  # pytest would keep it to itself: nothing is printed here
            traceback.print_exc()
            raise
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed
        self.skipped |= report.skipped

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str]:
        return report.outcome, "", ""  # prints nothing

    def run(self, nodeid: str, following: str | None) -> bool:
        """Run a test in this process. Returns whether it passed."""
        self.failed = self.skipped = False
        item, following_item = self.items[nodeid], self.items[following] if following else None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following_item)
        return not self.failed


def forked(work: Callable[[Path], None], timeout_s: float, temporary: Path) -> tuple[int | None, bytes]:
    """Run `work` in a fork, in a group of its own that is ended with it. Returns its exit code, or None in time, and
    what it wrote into the file that it is given."""
    answer = temporary / "answer"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            work(answer)
            code = 0
        except Noticed:
            code = 1
        except BaseException as error:
            answer.write_text(repr(error))
        finally:
            os._exit(code)
    deadline = time.monotonic() + timeout_s
    code: int | None = None
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if code is None:
        os.waitpid(child, 0)
    return code, answer.read_bytes() if answer.exists() else b""


class Tracer:
    """Notes which lines of the package run."""

    def __init__(self, package: Path) -> None:
        self._prefix = f"{package}{os.sep}"
        self.lines: set[tuple[str, int]] = set()

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(self._prefix):
            return None
        module = name[len(self._prefix) :]
        lines = self.lines
        lines.add((module, frame.f_lineno))

        def line(frame: FrameType, event: str, argument: object) -> Any:
            if event == "line":
                lines.add((module, frame.f_lineno))
            return line

        return line


def trace(session: Session, nodeids: Sequence[str], package: Path, answer: Path) -> None:
    """Run tests, and write which lines each ran: {nodeid: [seconds, passed, {module: [lines]}]}."""
    import threading

    found: dict[str, Any] = {}
    for nodeid, following in zip(nodeids, [*nodeids[1:], None], strict=True):
        tracer = Tracer(package)
        threading.settrace(tracer)
        sys.settrace(tracer)
        began = time.perf_counter()
        try:
            passed = session.run(nodeid, following)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
        by_module: dict[str, list[int]] = defaultdict(list)
        for module, line in sorted(tracer.lines):
            by_module[module].append(line)
        found[nodeid] = [time.perf_counter() - began, passed and not session.skipped, by_module]
        answer.write_text(json.dumps(found))


def new_code(before: CodeType, after: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """The code objects within, of the same place in both, that differ."""
    inner_before = [value for value in before.co_consts if isinstance(value, CodeType)]
    inner_after = [value for value in after.co_consts if isinstance(value, CodeType)]
    if before != after:
        yield before, after
    if len(inner_before) == len(inner_after):  # else the mutant is one without a function inside this one
        for one, other in zip(inner_before, inner_after, strict=True):
            yield from new_code(one, other)


def swap(mutant: Mutant, path: Path, source: str) -> bool:
    """Give the functions of a loaded module the mutant's code. Returns whether any function got new code."""
    changed = mutant.applied(source)
    before = compile(source, str(path), "exec", dont_inherit=True)
    after = compile(changed, str(path), "exec", dont_inherit=True)
    codes = dict(new_code(before, after))
    done = False
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and function.__code__.co_filename == str(path):
            code = codes.get(function.__code__)
            if code is not None:
                try:
                    function.__code__ = code
                except ValueError:  # it no longer uses a variable of the function around it
                    return False
                done = True
    return done


def test_modules_of(module: str) -> list[str]:
    """The test modules that are meant for a module: the one named for it, or else its folder's and what imports it."""
    dotted = f"{PACKAGE}.{module[:-3].replace('/', '.')}".removesuffix(".__init__")
    named = Path("tests", module).with_name(f"test_{dotted.rpartition('.')[2]}.py")
    if (ROOT / named).exists():
        return [named.as_posix()]
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        imported: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
        if dotted in imported or ("/" in module and ROOT / named.parent in path.parents):
            found.append(path.relative_to(ROOT).as_posix())
    return found


class Hunt:
    """Tests mutants one after the other."""

    def __init__(self, chosen: Sequence[Mutant], copy_of_tree: Path, say: Callable[[str], None]) -> None:
        self._chosen = chosen
        self._tree = copy_of_tree
        self._say = say
        self.survivors: list[Mutant] = []
        self.noticed = 0

    @cached_property
    def _tests(self) -> list[str]:
        wanted: dict[str, None] = {}
        for module in sorted({mutant.module for mutant in self._chosen}):
            wanted |= dict.fromkeys(test_modules_of(module))
        return list(wanted)

    def __call__(self) -> None:
        os.chdir(self._tree)
        options = ["-p", "no:cacheprovider", "-p", "no:terminal", f"--basetemp={self._tree}/.basetemp"]
        ended = pytest.main([*self._tests, *options], plugins=[Session(self._work)])
        if self.noticed + len(self.survivors) < len(self._chosen):
            raise SystemExit(f"pytest ended with {ended!r} before all mutants were tested")

    def _work(self, session: Session) -> None:
        map_ = self._map(session)
        for number, mutant in enumerate(self._chosen, 1):
            began = time.monotonic()
            how = self._try(session, map_, mutant)
            if how is None:
                self.survivors.append(mutant)
            else:
                self.noticed += 1
            taken = time.monotonic() - began
            self._say(f"{number}/{len(self._chosen)} {how or 'SURVIVED'} ({taken:.1f} s) {mutant}")
            shutil.rmtree(self._tree / ".basetemp", ignore_errors=True)
            (self._tree / ".basetemp").mkdir(exist_ok=True)

    def _map(self, session: Session) -> dict[str, Any]:
        """Return what each test runs: {nodeid: [seconds, passed, {module: [lines]}]}."""
        by_file: dict[str, list[str]] = defaultdict(list)
        for nodeid in session.items:
            by_file[nodeid.partition("::")[0]].append(nodeid)
        found: dict[str, Any] = {}
        for file, nodeids in by_file.items():
            found |= self._stored(file) or self._traced(session, file, nodeids)
        return found

    def _stored(self, file: str) -> dict[str, Any] | None:
        """Return what the cache has of a test module, where nothing that its tests run has changed."""
        stored = self._cached(file)
        if not stored.exists():
            return None
        content = json.loads(stored.read_bytes())
        same = all(self._digest(path) == digest for path, digest in content["digests"].items())
        return content["tests"] if same else None

    @staticmethod
    def _cached(file: str) -> Path:
        return CACHE / file.replace("/", "-").replace(".py", ".json")

    def _traced(self, session: Session, file: str, nodeids: Sequence[str]) -> dict[str, Any]:
        began = time.monotonic()
        tracing = functools.partial(trace, session, nodeids, self._tree / PACKAGE)
        code, answer = forked(tracing, 1800, self._tree)
        tests = json.loads(answer) if answer.startswith(b"{") else {}
        failing = [nodeid for nodeid, (_, passed, _) in tests.items() if not passed]
        self._say(
            f"{file}: {len(tests)} of {len(nodeids)} tests traced in {time.monotonic() - began:.0f} s,"
            f" {len(failing)} did not pass" + (f"; it ended with {code}" if code else "")
        )
        paths = {f"{PACKAGE}/{module}" for _, _, lines in tests.values() for module in lines}
        digests = {path: self._digest(path) for path in sorted(paths | {file})}
        CACHE.mkdir(parents=True, exist_ok=True)
        self._cached(file).write_text(json.dumps({"digests": digests, "tests": tests}))
        return tests

    def _digest(self, path: str) -> str:
        there = self._tree / path
        return hashlib.sha256(there.read_bytes()).hexdigest() if there.exists() else ""

    def _covering(self, map_: dict[str, Any], mutant: Mutant) -> list[str]:
        low, high = mutant.statement
        tests = [
            (seconds, nodeid)
            for nodeid, (seconds, passed, lines) in map_.items()
            if passed and any(low <= line <= high for line in lines.get(mutant.module, ()))
        ]
        chosen, spent = [], 0.0
        for seconds, nodeid in sorted(tests):
            if chosen and (spent + seconds > BUDGET_S or (seconds > SLOW_S and len(chosen) > 20)):
                break
            spent += seconds
            chosen.append(nodeid)
        return chosen

    def _try(self, session: Session, map_: dict[str, Any], mutant: Mutant) -> str | None:
        """Return how a mutant was noticed, or None when it survives."""
        path = self._tree / PACKAGE / mutant.module
        source = path.read_text("utf-8")
        try:
            compile(mutant.applied(source), str(path), "exec")
        except (SyntaxError, ValueError):
            return "no Python"
        if mutant.function == "":
            return self._at_import(map_, mutant, path, source)
        tests = self._covering(map_, mutant)
        if not tests:
            return None
        order = {nodeid: number for number, nodeid in enumerate(session.items)}
        # Tests of one module one after the other: they share what the module sets up.
        first: dict[str, int] = {}
        for number, nodeid in enumerate(tests):
            first.setdefault(nodeid.partition("::")[0], number)
        tests.sort(key=lambda nodeid: (first[nodeid.partition("::")[0]], order[nodeid]))

        def work(answer: Path) -> None:
            path.write_text(mutant.applied(source), "utf-8")  # for the processes that tests start
            if not swap(mutant, path, source):
                raise RuntimeError("no function got other code")
            for nodeid, following in zip(tests, [*tests[1:], None], strict=True):
                if not session.run(nodeid, following):
                    answer.write_text(nodeid)
                    raise Noticed

        taken = sum(map_[nodeid][0] for nodeid in tests)
        try:
            code, answer = forked(work, 60 + 5 * taken, self._tree)
        finally:
            path.write_text(source, "utf-8")
        if code == 99:
            if b"no function got other code" in answer:
                return self._at_import(map_, mutant, path, source)
            raise RuntimeError(f"{mutant}: {answer.decode()}")
        if code is None:
            return "noticed (time)"
        return None if code == 0 else "noticed"

    def _at_import(self, map_: dict[str, Any], mutant: Mutant, path: Path, source: str) -> str | None:
        """Run the tests of a module's test modules in a process that imports the mutant."""
        use: dict[str, float] = defaultdict(float)
        for nodeid, (seconds, passed, lines) in map_.items():
            if passed and mutant.module in lines and seconds < SLOW_S:
                use[nodeid] = seconds
        chosen, spent = [], 0.0
        name = Path(mutant.module).stem
        for nodeid in sorted(use, key=lambda nodeid: (f"test_{name}.py" not in nodeid, use[nodeid])):
            if spent + use[nodeid] > BUDGET_S or len(chosen) > 400:
                break
            chosen.append(nodeid)
            spent += use[nodeid]
        if not chosen:
            return None
        environment = {**os.environ, "PYTHONPATH": str(self._tree), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *chosen]
        path.write_text(mutant.applied(source), "utf-8")
        try:
            done = subprocess.run(
                command, cwd=self._tree, env=environment, capture_output=True, timeout=120 + 5 * spent, check=False
            )
        except subprocess.TimeoutExpired:
            return "noticed (time)"
        finally:
            path.write_text(source, "utf-8")
        return None if done.returncode == 0 else "noticed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--start", type=int, default=1, help="the mutant to begin with: to go on where a run ended")
    parser.add_argument("--modules", default="", help="names or patterns, with commas between; all by default")
    parser.add_argument("--least", type=float, default=95.0, help="percentage that has to be noticed")
    parser.add_argument("--list", action="store_true", help="print the mutants and test none")
    given = parser.parse_args()

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    listed = equivalents()
    for entry in unused(listed):
        say(f"{EQUIVALENT.name}: no such mutant any more: {entry}")
    if unused(listed):
        return 2
    known = {(entry["module"], entry["code"], entry["before"], entry["after"]) for entry in listed}
    every = [mutant for module in modules([p for p in given.modules.split(",") if p]) for mutant in mutants(module)]
    chosen = sorted(
        random.Random(given.seed).sample(every, min(given.count, len(every))), key=lambda m: (m.module, m.span, m.after)
    )
    left = [mutant for mutant in chosen if mutant.key not in known]
    say(f"{len(chosen)} of {len(every)} mutants, {len(chosen) - len(left)} of them listed as equivalent")
    left = left[given.start - 1 :]
    if given.list:
        for mutant in left:
            say(str(mutant))
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder).resolve() / "tree"
        ignored = shutil.ignore_patterns(".git", ".cache", ".venv*", "__pycache__", "*.egg-info", ".*_cache", "build")
        shutil.copytree(ROOT, tree, ignore=ignored)
        sys.path[:] = [str(tree), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
        os.environ["PYTHONPATH"] = str(tree)
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        hunt = Hunt(left, tree, say)
        hunt()
    share = 100 * hunt.noticed / max(1, len(left))
    for mutant in hunt.survivors:
        say(f"survived: {mutant}")
    say(f"{hunt.noticed} of {len(left)} noticed: {share:.1f} %")
    return 0 if share >= given.least else 1


if __name__ == "__main__":
    sys.exit(main())
