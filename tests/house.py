"""
The rules of the house: how big rooms and functions may get, and who may import whom.

``python -m tests.house`` prints what it found and what is allowed, names whatever breaks a rule, and fails if
something does. ``python -m tests.house --draw 40`` prints names and first sentences of functions: a reader who has not
seen the code should be able to say what each function returns.
"""

from __future__ import annotations

import argparse
import ast
import functools
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grimp

from tests.repository import ROOT

TREES = ("enforcement", "controlplane")
MODULES_PER_ROOM = 15
FILE_LINES = 400
# Stays as long as the Lua that it matches line by line.
LONG_FILES = frozenset({"enforcement/model/algorithms.py"})
METHODS_PER_CLASS = 25
BODY_LINES = 40
ROOMS_IN_A_CHAIN = 12
RIDDLES_PERCENT = 5

# Public names that several modules have, each for another framework. Applications import them, so they stay.
PUBLIC_TWINS = frozenset({"Admission", "LimitMiddleware", "Limiter"})

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef
# The names that each name imports.
Arrows = Mapping[str, set[str]]


@dataclass(frozen=True, slots=True)
class Figure:
    """What one rule found: *broken* names each offender with its own figure."""

    rule: str
    found: str
    allowed: str
    broken: list[str]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A Python file: its path inside the repository, its text, and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        return str(Path(self.path).parent)

    def nodes(self, *kinds: type[ast.AST]) -> Iterator[Any]:
        return (node for node in ast.walk(self.tree) if isinstance(node, kinds))


@functools.cache
def sources(tree: str, root: Path = ROOT) -> list[Source]:
    """Return the Python files of a tree. Migrations are left out, since Django writes them."""
    paths = [path for path in sorted((root / tree).rglob("*.py")) if "migrations" not in path.parts]
    texts = [(path.relative_to(root).as_posix(), path.read_text()) for path in paths]
    return [Source(path, text, ast.parse(text)) for path, text in texts]


def imports(tree: str) -> Arrows:
    """Return which modules of a tree import which, including imports for types alone."""
    graph = grimp.build_graph(tree, exclude_type_checking_imports=False)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


# The rules.


def room_sizes(files: Sequence[Source]) -> Figure:
    """Return how many modules lie in one folder."""
    sizes = Counter(file.room for file in files if not file.path.endswith("__init__.py"))
    return _at_most(MODULES_PER_ROOM, "modules in a room", sizes)


def file_lengths(files: Sequence[Source]) -> Figure:
    """Return how many lines the files have."""
    sizes = {file.path: len(file.text.splitlines()) for file in files if file.path not in LONG_FILES}
    return _at_most(FILE_LINES, "lines of a file", sizes)


def class_sizes(files: Sequence[Source]) -> Figure:
    """Return how many methods the classes have."""
    sizes = {
        f"{file.path}:{node.lineno} {node.name}": sum(isinstance(item, FUNCTIONS) for item in node.body)
        for file in files
        for node in file.nodes(ast.ClassDef)
    }
    return _at_most(METHODS_PER_CLASS, "methods of a class", sizes)


def body_lengths(files: Sequence[Source]) -> Figure:
    """Return how many lines the functions have, without signature and docstring."""
    sizes = {
        f"{file.path}:{node.lineno} {node.name}": _body_lines(node) for file in files for node in file.nodes(*FUNCTIONS)
    }
    return _at_most(BODY_LINES, "lines of a body", sizes)


def riddles(files: Sequence[Source]) -> Figure:
    """Return the share of docstrings whose first sentence joins two thoughts by a semicolon or a colon."""
    sentences = [(place, first_sentence(text)) for file in files for place, text in docstrings(file)]
    joined = [f"{place}: {sentence}" for place, sentence in sentences if is_riddle(sentence)]
    percent = 100 * len(joined) / max(1, len(sentences))
    return Figure(
        'first sentences with ";" or ": "',
        f"{percent:.1f} %",
        f"under {RIDDLES_PERCENT} %",
        joined if percent >= RIDDLES_PERCENT else [],
        note=f"{len(joined)} of {len(sentences)}",
    )


def names_of_classes(files: Sequence[Source]) -> Figure:
    """Return the names that two classes have. A search for a name must lead to one place."""
    places: dict[str, list[str]] = {}
    for file in files:
        for node in file.nodes(ast.ClassDef):
            if node.name not in PUBLIC_TWINS:
                places.setdefault(node.name, []).append(f"{file.path}:{node.lineno}")
    shared = [f"{name}: {', '.join(where)}" for name, where in sorted(places.items()) if len(where) > 1]
    return Figure("names of two classes", str(len(shared)), "0", shared)


def import_circles(arrows: Arrows) -> Figure:
    """Return the groups of modules that import each other."""
    found = [" <-> ".join(circle) for circle in circles(arrows)]
    return Figure("circles of imports", str(len(found)), "0", found)


def import_chain(arrows: Arrows, *, is_whole: bool = True) -> Figure:
    """Return the longest way down from room to room."""
    chain = longest_chain(between_rooms(arrows), is_whole=is_whole)
    found, shown = len(chain), " > ".join(chain)
    broken = [shown] if found > ROOMS_IN_A_CHAIN else []
    return Figure("rooms in a chain of imports", str(found), str(ROOMS_IN_A_CHAIN), broken, note=shown)


def _at_most(most: int, rule: str, sizes: Mapping[str, int]) -> Figure:
    broken = [f"{name}: {size}" for name, size in sorted(sizes.items()) if size > most]
    largest = max(sizes, key=sizes.__getitem__, default="")
    return Figure(rule, str(sizes.get(largest, 0)), str(most), broken, note=largest)


# Functions, classes and docstrings.


def _body_lines(node: Function) -> int:
    statements = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    return (node.end_lineno or 0) - statements[0].lineno + 1 if statements else 0


def docstrings(file: Source) -> Iterator[tuple[str, str]]:
    """Yield each docstring of a file, and where it is."""
    for node in file.nodes(ast.Module, ast.ClassDef, *FUNCTIONS):
        text = ast.get_docstring(node)
        if text:
            yield f"{file.path}:{getattr(node, 'lineno', 1)}", text


def first_sentence(text: str) -> str:
    """Return the text up to the first full stop, question mark or exclamation mark."""
    line = " ".join(text.split())
    end = re.search(r"[.!?](?=\s|$)", line)
    return line[: end.end()] if end else line


def is_riddle(sentence: str) -> bool:
    """Return whether a sentence has a semicolon or a colon. A double colon is markup and does not count."""
    plain = sentence.replace("::", "")
    return ";" in plain or ": " in plain


def draw(count: int, seed: int | None) -> list[tuple[str, str, str]]:
    """Return functions drawn at random, each with its name, its first sentence, and where it is."""
    every = []
    for file in (file for tree in TREES for file in sources(tree)):
        owners = {member: f"{owner.name}." for owner in file.nodes(ast.ClassDef) for member in owner.body}
        for node in file.nodes(*FUNCTIONS):
            if text := ast.get_docstring(node):
                name = f"{file.path.removesuffix('.py')} {owners.get(node, '')}{node.name}()"
                every.append((name, first_sentence(text), f"{file.path}:{node.lineno}"))
    return random.Random(seed).sample(every, min(count, len(every)))


# The graph of imports.


def between_rooms(arrows: Arrows) -> Arrows:
    """Return which rooms import which. A room is a module or a package on the first level of its tree."""
    rooms: dict[str, set[str]] = {_room(module): set() for module in arrows if _room(module)}
    for module, imported in arrows.items():
        if room := _room(module):
            rooms[room] |= {_room(name) for name in imported} - {room, ""}
    return rooms


def _room(module: str) -> str:
    """Return the room of a module, or an empty string for the tree itself."""
    return ".".join(module.split(".")[1:2])


def circles(arrows: Arrows) -> list[list[str]]:
    """Return each group of names that reach one another, sorted."""
    reached = {name: _reached(arrows, name) for name in arrows}
    groups = {tuple(sorted(other for other in reached[name] if name in reached[other])) for name in arrows}
    return sorted(list(group) for group in groups if group)


def _reached(arrows: Arrows, start: str) -> set[str]:
    """Return what a name imports, directly or not. It has the name itself only if that is part of a circle."""
    reached: set[str] = set()
    waiting = [*arrows[start]]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(arrows.get(name, ()))
    return reached


def longest_chain(arrows: Arrows, *, is_whole: bool = True) -> list[str]:
    """
    Return the longest chain of imports, from the top down.

    Args:
        is_whole: Whether a circle counts with all of its names, or as one place with the first of them.
    """
    members = {name: circle for circle in circles(arrows) for name in circle}
    below: dict[str, list[str]] = {}

    def chain(name: str) -> list[str]:
        if name not in below:
            here = members.get(name, [name])
            others = {other for each in here for other in arrows.get(each, ())} - set(here)
            longest = max((chain(other) for other in sorted(others)), key=len, default=[])
            below.update((each, [*(here if is_whole else here[:1]), *longest]) for each in here)
        return below[name]

    return max((chain(name) for name in sorted(arrows)), key=len, default=[])


# The command.


def figures(tree: str) -> list[Figure]:
    """Return what each rule finds in a tree."""
    files, arrows = sources(tree), imports(tree)
    found = [rule(files) for rule in (room_sizes, file_lengths, class_sizes, body_lengths, riddles)]
    # Apps of Django import each other as rooms, as each has models at the bottom and pages at the top. Their modules
    # do not, which the contract on the layers of modules and the rule on circles show.
    found += [import_circles(arrows), import_chain(arrows, is_whole=tree == "enforcement")]
    if tree == "enforcement":  # Django asks for an Admin and a Meta in each app
        found.append(names_of_classes(files))
    return found


def report(tree: str, found: Sequence[Figure]) -> str:
    """Return the table of one tree, with the offenders below it."""
    lines = [f"{tree:<34} {'found':>8} {'allowed':>10}"]
    for figure in found:
        lines.append(f"  {figure.rule:<32} {figure.found:>8} {figure.allowed:>10}  {figure.note}".rstrip())
    for figure in found:
        lines += [f"  BROKEN {figure.rule}: {offender}" for offender in figure.broken]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.house", description="Check the rules of the house.")
    parser.add_argument("--draw", type=int, metavar="N", help="print first sentences of N functions instead")
    parser.add_argument("--seed", type=int, help="draw the same sentences again")
    parser.add_argument("--key", action="store_true", help="also print where each drawn sentence is")
    options = parser.parse_args(arguments)
    if options.draw is not None:
        for number, (name, sentence, place) in enumerate(draw(options.draw, options.seed), start=1):
            print(f"{number:>3}. {name}: {sentence}" + (f"  [{place}]" if options.key else ""))
        return 0
    found = {tree: figures(tree) for tree in TREES}
    print("\n\n".join(report(tree, rows) for tree, rows in found.items()))
    return int(any(figure.broken for rows in found.values() for figure in rows))


if __name__ == "__main__":
    sys.exit(main())
