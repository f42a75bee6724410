"""``load`` sends requests to a store and writes a ledger for each process."""

from __future__ import annotations

import argparse
import math
import os
import secrets
import sys
from pathlib import Path
from typing import Final

from enforcement.proof.options import (
    DEFAULT,
    InvalidOption,
    NumberOption,
    add_numbers,
    integer,
    parse_limits,
    span,
    store_url,
)
from enforcement.proof.workload import Load, WorkloadFleet, wait_for_the_signal
from enforcement.settings import DEFAULT_TIMEOUT, DEFAULT_URL

SUFFIX: Final = ".ledger"

_NUMBERS: Final[tuple[NumberOption, ...]] = (
    ("--processes", "N", integer, 1, DEFAULT),
    ("--seconds", "S", span, 10.0, f"length of the load; {DEFAULT}"),
    ("--calls", "N", integer, 0, "decisions of each process; 0: until the time is over"),
    ("--pause", "S", span, 0.0, "seconds between two decisions of a process"),
    ("--timeout", "S", span, DEFAULT_TIMEOUT, f"time budget of a decision; {DEFAULT}"),
    ("--fleet", "N", integer, 0, "begin when this many instances are alive; default: all processes"),
)


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``load`` to the subcommands of a parser."""
    parser = commands.add_parser("load", help="send requests to a store, and write every decision to a ledger")
    parser.set_defaults(run=run)
    # The help names the variables and not their value, which may hold a password.
    default = f"default: SLUICEGATE_REDIS_URL, else REDIS_URL, else {DEFAULT_URL}"
    parser.add_argument("--url", default=store_url(), help=f"URL of the store; {default}")
    what = parser.add_argument_group("what to request")
    what.add_argument(
        "--limit", metavar="RATE", action="append", default=[], help='such as "100/minute"; may be repeated'
    )
    what.add_argument("--limits", metavar="JSON", help="a list of limits as the REST API spells them")
    what.add_argument("--key", default="ledger-load", help="the caller that these limits count; default: %(default)s")
    what.add_argument(
        "--token-file", metavar="FILE", type=Path, help="check the token in this file in place of limits in code"
    )
    what.add_argument("--costs", metavar="N", type=integer, default=1, help="cost of each decision, in requests")
    how = parser.add_argument_group("how")
    add_numbers(how, _NUMBERS)
    how.add_argument(
        "--out", metavar="FOLDER", type=Path, default=Path(), help="where the ledgers are written; default: here"
    )
    how.add_argument("--instance", help="run one process of this name only")
    how.add_argument("--wait", action="store_true", help='print "ready", and begin at a line on standard input')


def run(options: argparse.Namespace) -> int:
    """Run the load and return the exit status."""
    limits = parse_limits(options.limits, options.limit)
    if bool(limits) == bool(options.token_file):
        raise InvalidOption("load: needs either --limit or --limits, or else --token-file.")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.instance is None:
        return _run_fleet(options)
    load = Load(
        url=options.url,
        path=options.out / f"{options.instance}{SUFFIX}",
        instance=options.instance,
        limits=limits,
        key=options.key,
        token=options.token_file.read_text().strip() if options.token_file else "",
        costs=options.costs,
        calls=options.calls,
        seconds=options.seconds,
        pause=options.pause,
        timeout=options.timeout,
        fleet=options.fleet or 1,
    )
    load.run(wait_for_the_signal if options.wait else lambda: None)
    return 0


def _run_fleet(options: argparse.Namespace) -> int:
    """Run one process for each instance, print the names of the ledgers, and return the worst exit status."""
    name = f"load-{secrets.token_hex(3)}"
    names = [f"{name}-{number}" for number in range(1, options.processes + 1)]
    # Every user of the machine can read a command line, and the URL may hold a password.
    environment = {**os.environ, "SLUICEGATE_REDIS_URL": options.url}
    with WorkloadFleet([_command(options, instance) for instance in names], env=environment) as fleet:
        fleet.go()
        statuses = fleet.wait(options.seconds + 60 if not options.calls else math.inf)
    for instance in names:
        print(options.out / f"{instance}{SUFFIX}")
    return max(map(abs, statuses))


def _command(options: argparse.Namespace, instance: str) -> list[str]:
    """Return the command line of one process of a fleet, with the same options and the name of its instance."""
    command = [sys.executable, "-m", "enforcement.proof", "load", "--wait", "--instance", instance]
    for rate in options.limit:
        command += ["--limit", rate]
    given = {
        "limits": options.limits,
        "key": options.key,
        "token-file": options.token_file,
        "costs": options.costs,
        "seconds": options.seconds,
        "calls": options.calls,
        "pause": options.pause,
        "timeout": options.timeout,
        "fleet": options.fleet or options.processes,
        "out": options.out,
    }
    for option, value in given.items():
        if value is not None:
            command += [f"--{option}", str(value)]
    return command
