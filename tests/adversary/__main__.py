"""The commands of the adversary."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tests.adversary import four
from tests.adversary.market import run, table
from tests.adversary.mutants import MUTANTS
from tests.adversary.scripts import SCRIPTS


def seeds(options: argparse.Namespace) -> int:
    """Play all scripts with a number of seeds, and print the worst row of each."""
    worst = 0
    for number in range(options.first, options.first + options.count):
        began = time.monotonic()
        rows = run(str(number), size=options.size, kills=options.kills, names=options.scripts, unit=options.unit)
        highest = max(rows, key=lambda row: row.ratio)
        bought = sum(row.budget for row in rows if not row.script.refused)
        used = sum(row.invoice for row in rows) / (bought or 1)
        faults = [f"{row.script.name}: {'; '.join(row.faults)}" for row in rows if row.faults]
        worst += bool(faults)
        requests = sum(row.requests for row in rows)
        print(
            f"seed {number}: worst {highest.ratio:.4f} ({highest.script.name}), all {used:.3f}, {requests} requests, "
            f"{time.monotonic() - began:.0f} s{''.join(f'{chr(10)}    {fault}' for fault in faults)}",
            flush=True,
        )
        if options.table:
            print(table(rows))
    print(f"{worst} of {options.count} seeds failed")
    return min(worst, 1)


def mutants(options: argparse.Namespace) -> int:
    """Put back the bugs one by one, and print whether the scripts have noticed."""
    survived = 0
    for mutant in MUTANTS:
        if options.only and options.only not in mutant.name:
            continue
        rows = run("1", size=12, kills=0, names=mutant.scripts, mutant=mutant.name, proxies=1)
        red = [row for row in rows if row.faults]
        survived += not red
        highest = max(rows, key=lambda row: row.invoice / row.budget)
        charged = highest.invoice / (highest.charged or 1)
        print(
            f"| {mutant.name} | {mutant.finding} | {highest.script.name} | {highest.ratio:.2f} | {charged:.2f} | "
            f"{'red' if red else 'SURVIVED'} |",
            flush=True,
        )
    return min(survived, 1)


def measure_honest(options: argparse.Namespace) -> int:
    """Send recorded traffic, and print what of the budget was used."""
    from tests.adversary import honest  # which reads all recordings

    for number in range(options.first, options.first + options.count):
        used = honest.use(str(number))
        print(
            f"seed {number}: invoice/budget {used.ratio:.4f}, charged/budget {used.charged / used.budget:.4f}, "
            f"{used.requests} requests, {used.lefts} clients left",
            flush=True,
        )
    return 0


def measure_four(options: argparse.Namespace) -> int:
    """Play the four runs, each also without reading on, and print what they did cost."""
    print("| run | requests | invoice/budget | invoice/charged |\n| --- | --- | --- | --- |")
    for name in four.NAMES:
        for number in range(options.first, options.first + options.count):
            print(four.run(name, str(number)).line, flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.adversary")
    commands = parser.add_subparsers(required=True)
    playing = commands.add_parser("seeds", help="play all scripts, with one seed after the other")
    playing.add_argument("--first", type=int, default=1)
    playing.add_argument("--count", type=int, default=10)
    playing.add_argument("--size", type=int, default=20, help="requests that each budget holds")
    playing.add_argument("--kills", type=int, default=4, help="how often a proxy is killed")
    playing.add_argument("--unit", choices=["micros", "tokens"], default="micros", help="that of the budgets")
    playing.add_argument("--table", action="store_true", help="print a row for each script")
    playing.add_argument("--scripts", nargs="*", choices=SCRIPTS, default=[], metavar="NAME")
    playing.set_defaults(run=seeds)
    trying = commands.add_parser("mutants", help="put back the bugs of earlier releases")
    trying.add_argument("--only", default="", help="those that have this in their name")
    trying.set_defaults(run=mutants)
    for name, function in (("honest", measure_honest), ("four", measure_four)):
        measuring = commands.add_parser(name, help=str(function.__doc__))
        measuring.add_argument("--first", type=int, default=1)
        measuring.add_argument("--count", type=int, default=1)
        measuring.set_defaults(run=function)
    options = parser.parse_args(arguments)
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
