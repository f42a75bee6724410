"""
The rules of the house: how rooms and functions grow, and who may import whom.

``python -m tests.house`` prints what it found and what is allowed, names whatever breaks a rule, and fails if
something does. ``python -m tests.house --since`` prints what has grown, and never fails. ``python -m tests.house
--draw 40`` prints names and first sentences of functions: a reader who has not seen the code should be able to say what
each function returns.
"""

from __future__ import annotations

import argparse
import ast
import functools
import io
import random
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import grimp

from tests.repository import ROOT

TREES = ("enforcement", "controlplane")
# These are for accidents, and so stand far from what is there. Code belongs where a reader looks for it, also if that
# makes a room or a class one larger. Whether something grows too big is judged by people, who read --since.
MODULES_PER_ROOM = 40  # a second subject, or what a program wrote, lies in the room
FILE_LINES = 1_000  # a list of data, or the output of a program
METHODS_PER_CLASS = 60  # a class that knows everything
BODY_LINES = 100  # a script in the shape of a function
ROOMS_IN_A_CHAIN = 20  # a low room imports a high one, and the layers have become one line
RIDDLES_PERCENT = 5  # a habit, where a few may be right
SHOWN = 15  # names that --since prints for each rule

# Names that several modules have: those that applications import, one for each framework, and those that Django asks of
# each app.
TWINS = frozenset({"Admission", "LimitMiddleware", "Limiter", "Command", "Meta"})

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


@dataclass(frozen=True)
class Source:
    """A Python file: its path inside the repository, and its text."""

    path: str
    text: str

    @functools.cached_property
    def all_nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.text)))

    @property
    def room(self) -> str:
        return str(Path(self.path).parent)

    def nodes(self, *kinds: type[ast.AST]) -> Iterator[Any]:
        return (node for node in self.all_nodes if isinstance(node, kinds))

    def functions(self) -> Iterator[tuple[str, Function]]:
        """Yield each function, and its name behind that of its class."""
        owners = {member: f"{owner.name}." for owner in self.nodes(ast.ClassDef) for member in owner.body}
        return ((f"{owners.get(node, '')}{node.name}", node) for node in self.nodes(*FUNCTIONS))


def sources(tree: str, root: Path = ROOT) -> list[Source]:
    """Return the Python files of a tree. Migrations are left out, since Django writes them."""
    paths = [path for path in sorted((root / tree).rglob("*.py")) if "migrations" not in path.parts]
    return [Source(path.relative_to(root).as_posix(), path.read_text()) for path in paths]


def sources_at(revision: str, root: Path = ROOT) -> list[Source]:
    """Return the Python files of all trees as they are in a commit."""
    with tarfile.open(fileobj=io.BytesIO(_git(root, "archive", revision, *TREES))) as archive:
        names = [name for name in archive.getnames() if name.endswith(".py") and "/migrations/" not in name]
        return [Source(name, archive.extractfile(name).read().decode()) for name in names]


def moves(revision: str, root: Path = ROOT) -> dict[str, str]:
    """Return the present path of each file that was renamed since a commit, by its path then."""
    found = _git(root, "diff", "-M", "--diff-filter=R", "--name-status", "-z", revision, "--", *TREES)
    names = found.decode().split("\0")  # three for each file: the status and the two paths
    return dict(zip(names[1::3], names[2::3], strict=True))


def base(root: Path = ROOT) -> str | None:
    """Return the commit that a change begins from, or None if the clone does not have it."""
    head = _git(root, "rev-parse", "HEAD")
    for command in (("merge-base", "HEAD", "@{upstream}"), ("rev-parse", "HEAD~1")):
        try:
            found = _git(root, *command)
        except subprocess.CalledProcessError:  # no upstream, or the first commit
            continue
        if found != head:  # all is pushed: show the last commit
            return found.decode().strip()
    return None


def _git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True).stdout


def imports(tree: str) -> Arrows:
    """Return which modules of a tree import which, including imports for types alone."""
    graph = grimp.build_graph(tree, exclude_type_checking_imports=False)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


# Sizes.


def room_sizes(files: Sequence[Source]) -> Counter[str]:
    """Return how many modules lie in each folder."""
    return Counter(file.room for file in files if not file.path.endswith("__init__.py"))


def file_lengths(files: Sequence[Source]) -> Counter[str]:
    """Return how many lines each file has."""
    return Counter({file.path: len(file.text.splitlines()) for file in files})


def class_sizes(files: Sequence[Source]) -> Counter[str]:
    """Return how many methods each class has."""
    return Counter(
        {
            f"{file.path} {node.name}": sum(isinstance(item, FUNCTIONS) for item in node.body)
            for file in files
            for node in file.nodes(ast.ClassDef)
        }
    )


def body_lengths(files: Sequence[Source]) -> Counter[str]:
    """Return how many lines each function has, without signature and docstring."""
    return Counter({f"{file.path} {name}": _body_lines(node) for file in files for name, node in file.functions()})


def class_places(files: Sequence[Source]) -> dict[str, list[str]]:
    """Return where each class is that shares its name with another one."""
    places: dict[str, list[str]] = {}
    for file in files:
        for node in file.nodes(ast.ClassDef):
            if node.name not in TWINS:
                places.setdefault(node.name, []).append(f"{file.path}:{node.lineno}")
    return {name: where for name, where in sorted(places.items()) if len(where) > 1}


SIZES: Mapping[str, tuple[Callable[[Sequence[Source]], Counter[str]], int]] = {
    "modules in a room": (room_sizes, MODULES_PER_ROOM),
    "lines of a file": (file_lengths, FILE_LINES),
    "methods of a class": (class_sizes, METHODS_PER_CLASS),
    "lines of a body": (body_lengths, BODY_LINES),
}


def growth(before: Sequence[Source], now: Sequence[Source], moved: Mapping[str, str]) -> Iterator[str]:
    """
    Yield a line for each rule on sizes, with the names below it that have grown, the one that grew most first.

    Args:
        moved: See :func:`moves`. A file that was only moved has not grown, but the room to which it came has.
    """
    read = {file: file for file in now}
    renamed = [Source(moved.get(file.path, file.path), file.text) for file in before]
    renamed = [read.get(file, file) for file in renamed]  # most did not change, and are parsed once
    for rule, (measure, _) in SIZES.items():
        old, new = measure(before if measure is room_sizes else renamed), measure(now)
        grown = (new - old).most_common()
        yield f"{rule}: {len(grown)} grew"
        yield from (f"  {old[name]:>4} -> {new[name]:<4} {name}" for name, _ in grown[:SHOWN])
    old_places, new_places = class_places(renamed), class_places(now)
    shared = [name for name, where in new_places.items() if len(where) > len(old_places.get(name, ""))]
    yield f"names that one more class has: {len(shared)}"
    yield from (f"  {name}: {', '.join(new_places[name])}" for name in shared)


# The rules.


def sizes(rule: str, files: Sequence[Source]) -> Figure:
    """Return the largest by one of the rules on sizes, and what is larger than it may be."""
    measure, most = SIZES[rule]
    found = measure(files)
    broken = [f"{name}: {size}" for name, size in sorted(found.items()) if size > most]
    [(largest, size)] = found.most_common(1) or [("", 0)]
    return Figure(rule, str(size), str(most), broken, note=largest)


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
    """Return how many names two classes have. A search for a name should lead to one place."""
    return Figure("names of two classes", str(len(class_places(files))), "any", [], note="--names shows where")


def import_circles(arrows: Arrows) -> Figure:
    """Return the groups of modules that import each other."""
    found = [" <-> ".join(circle) for circle in circles(arrows)]
    return Figure("circles of imports", str(len(found)), "0", found)


def import_chain(arrows: Arrows) -> Figure:
    """Return the longest way down from room to room."""
    chain = longest_chain(between_rooms(arrows))
    found, shown = len(chain), " > ".join(chain)
    broken = [shown] if found > ROOMS_IN_A_CHAIN else []
    return Figure("rooms in a chain of imports", str(found), str(ROOMS_IN_A_CHAIN), broken, note=shown)


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
        for name, node in file.functions():
            if text := ast.get_docstring(node):
                shown = f"{file.path.removesuffix('.py')} {name}()"
                every.append((shown, first_sentence(text), f"{file.path}:{node.lineno}"))
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


def longest_chain(arrows: Arrows) -> list[str]:
    """Return the longest chain of imports, from the top down. Raises graphlib.CycleError if there is a circle."""
    below: dict[str, list[str]] = {}
    for name in TopologicalSorter(arrows).static_order():
        below[name] = [name, *max((below[other] for other in sorted(arrows[name])), key=len, default=[])]
    return max((below[name] for name in sorted(below)), key=len, default=[])


# The command.


def figures() -> dict[str, list[Figure]]:
    """Return what each rule finds, in each tree and in both."""
    files = {tree: sources(tree) for tree in TREES}
    tables = {tree: [*(sizes(rule, files[tree]) for rule in SIZES), riddles(files[tree])] for tree in TREES}
    arrows = {tree: imports(tree) for tree in TREES}
    for tree, found in tables.items():
        found.append(import_circles(arrows[tree]))
    # Apps of Django import each other as rooms, as each has models at the bottom and pages at the top.
    tables["enforcement"].append(import_chain(arrows["enforcement"]))
    return tables | {"both": [names_of_classes([file for tree in TREES for file in files[tree]])]}


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
    parser.add_argument(
        "--since",
        nargs="?",
        const="",
        metavar="REVISION",
        help="print what has grown instead, by default since the branch left its upstream, or since the last commit",
    )
    parser.add_argument("--names", action="store_true", help="print the names that two classes have instead")
    parser.add_argument("--draw", type=int, metavar="N", help="print first sentences of N functions instead")
    parser.add_argument("--seed", type=int, help="draw the same sentences again")
    parser.add_argument("--key", action="store_true", help="also print where each drawn sentence is")
    options = parser.parse_args(arguments)
    if options.since is not None:
        try:
            print("\n".join(_since(options.since or base())))
        except subprocess.CalledProcessError as exc:
            parser.error(exc.stderr.decode())
        return 0
    if options.names:
        places = class_places([file for tree in TREES for file in sources(tree)])
        print("\n".join(f"{name}: {', '.join(where)}" for name, where in places.items()))
        return 0
    if options.draw is not None:
        for number, (name, sentence, place) in enumerate(draw(options.draw, options.seed), start=1):
            print(f"{number:>3}. {name}: {sentence}" + (f"  [{place}]" if options.key else ""))
        return 0
    found = figures()
    print("\n\n".join(report(tree, rows) for tree, rows in found.items()))
    return int(any(figure.broken for rows in found.values() for figure in rows))


def _since(revision: str | None) -> Iterator[str]:
    if revision is None:
        yield "This clone has no earlier commit to compare with."
        return
    yield f"Since {revision}:"
    now = [file for tree in TREES for file in sources(tree)]
    yield from growth(sources_at(revision), now, moves(revision))


if __name__ == "__main__":
    sys.exit(main())
