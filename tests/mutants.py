"""
Break the product on purpose, one small change at a time, and see which tests of ``make test`` notice.

    python -m pytest -n 4 --dist loadfile -p tests.lines     # records which test file runs which line
    python -m tests.mutants --seed 7 --count 200 --out var/mutants.tsv

draws mutants from both trees. For each of them, a copy of the checkout is changed, and the test files that run the
changed line are run until one fails: first those at the mirrored path, then those that run the line, the quickest
first, as long as together they take no more than ``--seconds``. A test that fails without the mutant as well kills
nothing. ``--earlier`` names a table of an older state: what survived there is left out, and the test that killed there
is asked first.

The table has a row for each mutant: its name, ``killed`` or ``survived`` or ``not run`` (no test file runs the line),
and the test that killed it.
"""

from __future__ import annotations

import argparse
import ast
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.lines import ROOT, recorded
from tests.tiers import read_slow

TREES = ("enforcement", "controlplane")
START_SECONDS = 10.0  # of a process of tests, besides the tests
FILES_AT_ONCE = 8
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult}


@dataclass(frozen=True, slots=True)
class Mutant:
    """
    A change of one expression or statement.

    Attributes:
        path: The file, from the top of the repository.
        name: The same in two states of the code, as long as its function keeps its name and the expression.
        lines: Where the changed expression and its statement begin.
        is_imported: Whether they run while the module is imported.
        start: Position of what is replaced, in bytes.
        end: Position behind it.
        text: What replaces it.
    """

    path: str
    name: str
    lines: frozenset[int]
    is_imported: bool
    start: int
    end: int
    text: str

    def applied(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]


# What may be changed.


def mutants(path: str, source: bytes) -> Iterator[Mutant]:
    """Yield the mutants of a file, in its order. Statements that run only while types are checked have none."""
    tree = ast.parse(source)
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    seen: Counter[str] = Counter()
    for owner, statement, node in _owned(tree, Owner("", is_imported=True), 0):
        for kind, text in _changes(node):
            old = ast.unparse(node).partition("\n")[0]
            key = f"{path}::{owner.name} {kind} {old}"
            seen[key] += 1
            name = re.sub(r"\s+", " ", f"{key} #{seen[key]}")
            start, end = (starts[row - 1] + column for row, column in _span(node))
            lines = frozenset({statement, node.lineno})  # type: ignore[attr-defined]
            yield Mutant(path, name, lines, owner.is_imported, start, end, text)


def _span(node: ast.AST) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]


class Owner(NamedTuple):
    """A class or function: its name inside the module, and whether its body runs while the module is imported."""

    name: str
    is_imported: bool

    def below(self, node: ast.AST) -> Owner:
        if isinstance(node, ast.ClassDef):
            return Owner(f"{self.name}.{node.name}".strip("."), self.is_imported)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return Owner(f"{self.name}.{node.name}".strip("."), is_imported=False)
        return self


def _owned(node: ast.AST, owner: Owner, statement: int) -> Iterator[tuple[Owner, int, ast.AST]]:
    """Yield what is inside classes and functions, with its owner and the line of its statement."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.arguments | ast.JoinedStr | ast.Raise | ast.Assert) or _is_annotation(node, child):
            continue  # defaults, texts of errors, types: too small, or told by no behaviour
        line = child.lineno if isinstance(child, ast.stmt) else statement
        if owner.name:
            yield owner, line, child
        yield from _owned(child, owner.below(child), line)


def _is_annotation(node: ast.AST, child: ast.AST) -> bool:
    decorators = getattr(node, "decorator_list", ())
    return child in (getattr(node, "annotation", None), getattr(node, "returns", None), *decorators)


def _changes(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the kinds of change of a node, each with the text that replaces it."""
    match node:
        case ast.Compare(left, [operator], [right]) if type(operator) in COMPARISONS:
            yield "compares", _text(ast.Compare(left, [COMPARISONS[type(operator)]()], [right]))
        case ast.BoolOp(operator, values):
            other = ast.Or() if isinstance(operator, ast.And) else ast.And()
            yield "joins", _text(ast.BoolOp(other, values))
        case ast.BinOp(left, operator, right) if type(operator) in OPERATORS and not _is_text(left, right):
            yield "computes", _text(ast.BinOp(left, OPERATORS[type(operator)](), right))
        case ast.UnaryOp(ast.Not(), operand):
            yield "negates", _text(operand)
        case ast.Constant(bool() as value):
            yield "constant", str(not value)
        case ast.Constant(int() as value):
            yield "constant", str(value + 1)
        case ast.Return(ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "returns", "return None"
        case ast.If(test=test) | ast.While(test=test):
            pass  # its test is a node of its own
        case ast.IfExp(test, body, orelse):
            yield "chooses", _text(ast.IfExp(test, orelse, body))
        case ast.Expr(ast.Call() | ast.Await()):
            yield "leaves out", "pass"
        case ast.AugAssign(target, operator, value) if type(operator) in OPERATORS:
            yield "computes", ast.unparse(ast.AugAssign(target, OPERATORS[type(operator)](), value))


def _text(expression: ast.expr) -> str:
    return f"({ast.unparse(ast.fix_missing_locations(expression))})"


def _is_text(*operands: ast.expr) -> bool:
    return any(isinstance(each, ast.Constant | ast.JoinedStr) and not _is_number(each) for each in operands)


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def drawn(seed: int, count: int, root: Path = ROOT) -> list[Mutant]:
    """Return mutants at random: first a file, each as likely as its share of lines, then one of its mutants."""
    paths = [path for tree in TREES for path in sorted((root / tree).rglob("*.py")) if "migrations" not in path.parts]
    sources = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
    chance, found = random.Random(seed), dict[str, Mutant]()
    weights = [source.count(b"\n") for source in sources.values()]
    while len(found) < count:
        [path] = chance.choices([*sources], weights)
        if every := [*mutants(path, sources[path])]:
            mutant = chance.choice(every)
            found.setdefault(mutant.name, mutant)
    return [*found.values()]


# Which tests are asked.


def to_ask(mutant: Mutant, lines: Mapping[str, Mapping[int, set[str]]], seconds: float) -> list[str]:
    """Return the test files that run the lines, or any of the module that runs them on import, in the order to ask."""
    of_module = lines.get(mutant.path, {})
    asked = of_module.keys() if mutant.is_imported else mutant.lines
    files = set[str]().union(*(of_module.get(line, ()) for line in asked))
    expected, left, chosen = read_slow(), seconds, list[str]()
    mirrored = f"tests/{Path(mutant.path).parent}/test_{Path(mutant.path).stem}"

    def rank(file: str) -> tuple[bool, bool, float]:
        room = f"tests/{Path(mutant.path).parent}/"
        return not file.startswith(mirrored), not file.startswith(room), expected.get(file, 1.0)

    for file in sorted(files, key=rank):
        left -= expected.get(file, 1.0)
        if left > 0 or not chosen:
            chosen.append(file)
    return chosen


# Asking them.


class Copies:
    """Copies of the checkout to change, one for each mutant that is tried at the same time."""

    def __init__(self, home: Path, count: int) -> None:
        self.free: queue.Queue[Path] = queue.Queue()
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
        for number in range(count):
            copy = home / str(number)
            for name in filter(None, tracked.stdout.split("\0")):
                if (ROOT / name).is_file():
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, copy / name)
            subprocess.run(["git", "init", "-q"], cwd=copy, check=True)
            subprocess.run(["git", "add", "-A"], cwd=copy, check=True)  # some tests read what is tracked
            self.free.put(copy)


def fails(copy: Path, tests: Sequence[str], seconds: float) -> str:
    """Return the first test that fails, the name of a file that does not end, or an empty string."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--no-header", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": ""}
    process = subprocess.Popen(
        command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"{tests[0]} (no end)"
    if process.returncode in (0, 5):
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) (tests/\S+)", output, re.MULTILINE)
    return failed[1] if failed else f"{tests[0]} (exit code {process.returncode})"


class Trial:
    """Tries mutants in copies, and remembers which tests fail without one."""

    def __init__(self, copies: Copies, lines: Mapping[str, Mapping[int, set[str]]], seconds: float) -> None:
        self._copies, self._lines, self._seconds = copies, lines, seconds

    def of(self, mutant: Mutant, killer: str = "") -> tuple[str, str]:
        """Return what became of a mutant, and the test that killed it. *killer* is asked first."""
        files = to_ask(mutant, self._lines, self._seconds)
        groups = [[killer.partition(" (")[0]]] if killer else []
        groups += [files[at : at + FILES_AT_ONCE] for at in range(0, len(files), FILES_AT_ONCE)]
        copy = self._copies.free.get()
        target = copy / mutant.path
        source = target.read_bytes()
        try:
            for group in groups:
                target.write_bytes(mutant.applied(source))
                if (found := self._ask(copy, group)) and not self._fails_anyway(copy, target, source, found):
                    return "killed", found
        finally:
            target.write_bytes(source)
            self._copies.free.put(copy)
        return ("survived" if groups else "not run"), ""

    def _ask(self, copy: Path, files: Sequence[str]) -> str:
        present = [file for file in files if (copy / file.partition("::")[0]).exists()]
        expected = read_slow()
        seconds = 60 + 5 * sum(expected.get(file.partition("::")[0], 1.0) + START_SECONDS for file in present)
        return fails(copy, present, seconds) if present else ""

    def _fails_anyway(self, copy: Path, target: Path, source: bytes, test: str) -> bool:
        target.write_bytes(source)
        return bool(self._ask(copy, [test.partition(" (")[0]]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Count the mutants that tests kill.")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--seconds", type=float, default=120.0, help="how much of tests to ask about one mutant")
    parser.add_argument("--out", type=Path, default=ROOT / "var" / "mutants.tsv")
    parser.add_argument("--earlier", type=Path, help="the table of an older state")
    parser.add_argument("--list", action="store_true", help="print the mutants and the files to ask, and try none")
    options = parser.parse_args(arguments)
    lines = recorded()
    chosen = drawn(options.seed, options.count)
    earlier: dict[str, list[str]] = {}
    if options.earlier:
        rows = [line.split("\t") for line in options.earlier.read_text().splitlines()]
        earlier = {name: rest for name, *rest in rows}
        paths = {name.partition("::")[0] for name in earlier}
        present = {
            each.name: each
            for path in sorted(paths)
            if (ROOT / path).exists()
            for each in mutants(path, (ROOT / path).read_bytes())
        }
        chosen = [present[name] for name in earlier if name in present]
        for name in earlier.keys() - present.keys():
            print("gone:", name)
    if options.list:
        for mutant in chosen:
            print(mutant.name, "->", mutant.text, *to_ask(mutant, lines, options.seconds), sep="\n    ")
        return 0
    return _try(chosen, earlier, lines, options)


def _try(chosen: list[Mutant], earlier: Mapping[str, list[str]], lines: Mapping, options: argparse.Namespace) -> int:  # type: ignore[type-arg]
    done = Counter[str]()
    if options.out.exists():  # an interrupted trial goes on
        known = dict(line.split("\t", 1) for line in options.out.read_text().splitlines())
        done.update(rest.partition("\t")[0] for rest in known.values())
        chosen = [mutant for mutant in chosen if mutant.name not in known]
    with tempfile.TemporaryDirectory(prefix="sluicegate-mutants-") as home:
        trial = Trial(Copies(Path(home), options.jobs), lines, options.seconds)

        def one(mutant: Mutant) -> tuple[str, str, str]:
            was, killer = earlier.get(mutant.name, ("", ""))
            return (mutant.name, *(("survived", "") if was in ("survived", "not run") else trial.of(mutant, killer)))

        with ThreadPoolExecutor(options.jobs) as pool, options.out.open("a") as out:
            for row in pool.map(one, chosen):
                done[row[1]] += 1
                out.write("\t".join(row) + "\n")
                out.flush()
                print(*row, sep="  ", flush=True)
    print(*(f"{count} {what}" for what, count in sorted(done.items())), sep=", ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
