"""``python -m benchmarks compare OLD NEW``: options, the run, the exit code."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.compare import footprint, pairs
from benchmarks.compare.names import FOOTPRINTS, SHAPES
from benchmarks.compare.ratios import Row
from benchmarks.compare.table import modules, table
from benchmarks.compare.trees import NoTree, tree_of
from benchmarks.measure import pin
from enforcement.embedded import ValkeyServer

PAIRS, QUICK_PAIRS = 31, 2
BLOCK_MS, QUICK_BLOCK_MS = 30.0, 1.0


def main(arguments: Sequence[str]) -> int:
    """Compare two trees and print the table. Return 1 if a row is worse."""
    parser = _parser()
    options = parser.parse_args(arguments)
    number = options.pairs or (QUICK_PAIRS if options.quick else PAIRS)
    pinned, start = pin(), time.monotonic()
    with ExitStack() as stack:
        try:
            trees = {name: stack.enter_context(tree_of(getattr(options, name))) for name in ("old", "new")}
        except NoTree as exc:
            parser.error(str(exc))
        rows: list[Row] = []
        missing: dict[str, list[str]] = {}
        if shapes := [name for name in SHAPES if name in options.only]:
            server = stack.enter_context(ValkeyServer(persistent=False))
            plan = pairs.Plan(trees, shapes, number, QUICK_BLOCK_MS if options.quick else BLOCK_MS)
            measured = pairs.measure(plan, server.url, _progress)
            rows += measured.rows()
            missing = measured.missing
        found = footprint.measure(trees, options.only, number, _progress)
    rows += found.rows
    _print(rows, found, missing, f"{number} pairs, {time.monotonic() - start:.0f} s. {pinned}")
    if options.json:
        report = {"old": options.old, "new": options.new, "pairs": number, "pinned": pinned}
        report |= {"rows": [row.to_json() for row in rows], "modules": found.modules}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    worse = any(row.interval.verdict == "worse" for row in rows)
    return 1 if worse and not options.quick else 0


def _print(rows: Sequence[Row], found: footprint.Footprint, missing: dict[str, list[str]], facts: str) -> None:
    print(table(rows))
    for shape, lacking in missing.items():
        print(f"{shape} is not measured: {' and '.join(lacking).upper()} cannot run it.")
    if found.modules:
        print(f"\n{modules(found.modules)}")
    print(f"\n{facts}")


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare", description="Compare the speed and size of two trees of this project."
    )
    for name in ("old", "new"):
        parser.add_argument(name, metavar=name.upper(), help="a git revision, or the path of a checkout")
    parser.add_argument("--pairs", type=_pairs, help=f"pairs of blocks for each shape, {PAIRS} unless given")
    parser.add_argument("--only", type=_names, default=SHAPES + FOOTPRINTS, metavar="SHAPE[,...]", help=_ALL)
    parser.add_argument("--quick", action="store_true", help="see that everything runs; the figures mean little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file, too")
    return parser


_ALL = f"measure only these: {', '.join(SHAPES + FOOTPRINTS)}"


def _pairs(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 2, got {text!r}")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in SHAPES + FOOTPRINTS:
            raise argparse.ArgumentTypeError(f"must be some of {', '.join(SHAPES + FOOTPRINTS)}, got {name!r}")
    return names
