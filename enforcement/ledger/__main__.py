"""``python -m enforcement.ledger``: make a load and write its ledgers; judge ledgers by what is promised."""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from redis.exceptions import RedisError

from enforcement.ledger.claims import Claim, Evidence, Terms, judge
from enforcement.ledger.counters import read_counters
from enforcement.ledger.load import Fleet, Load, wait_for_the_signal
from enforcement.ledger.records import LedgerError, read
from enforcement.model.limits import InvalidLimit, Limit
from enforcement.settings import DEFAULT_TIMEOUT, DEFAULT_URL

HELD, BROKEN, UNREADABLE = 0, 1, 2
SUFFIX: Final = ".ledger"

_DESCRIPTION: Final = """\
Prove a limit on a store of your own.

  load    asks a store and writes a ledger for each process, one line a decision
  verify  reads the ledgers, and the store's counters if it is told where they are, and decides every claim with a
          number in it: what was admitted and what was charged, how long it took, who decided, when the store was back
"""
_EXAMPLES: Final = """\
examples:
  python -m enforcement.ledger load --limit 100/minute --processes 4 --seconds 150 --pause 0.01 --out proof/
  python -m enforcement.ledger verify proof/*.ledger --saturated --redis redis://127.0.0.1:6379/0

Freeze, kill or cut off the store meanwhile, and the same command tells what that cost.
"""
_VERIFY_EPILOG: Final = """\
exit status:
  0  every claim held
  1  a claim was broken
  2  a ledger cannot be read (the message names file and line), an option is wrong, or the store does not answer
"""


def add_commands(commands: Any) -> None:
    """
    Add ``load`` and ``verify`` to the subcommands of a parser, as ``parser.add_subparsers()`` returns them.

    A parsed command is run by ``options.run(options)``, which returns its exit status.
    """
    _add_load(commands)
    _add_verify(commands)


def add_command(commands: Any) -> None:
    """Add ``ledger`` with its two subcommands to the subcommands of another parser."""
    ledger = commands.add_parser(
        "ledger",
        help="prove a limit by counting",
        description=_DESCRIPTION,
        epilog=_EXAMPLES.replace("python -m enforcement.ledger", "sluicegate ledger"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_commands(ledger.add_subparsers(required=True, metavar="COMMAND"))


def _add_load(commands: Any) -> None:
    parser = commands.add_parser("load", help="ask a store, and write down every decision")
    parser.set_defaults(run=partial(_run, _load))
    parser.add_argument(
        "--url", default=_default_url(), help="of the store; default: SLUICEGATE_REDIS_URL, else %(default)s"
    )
    what = parser.add_argument_group("what to ask for")
    what.add_argument(
        "--limit", metavar="RATE", action="append", default=[], help='such as "100/minute"; may be repeated'
    )
    what.add_argument("--limits", metavar="JSON", help="a list of limits as the REST API spells them")
    what.add_argument("--key", default="ledger-load", help="whom these limits count; default: %(default)s")
    what.add_argument(
        "--token-file", metavar="FILE", type=Path, help="check the token in this file, not limits in code"
    )
    what.add_argument("--costs", metavar="N", type=_whole, default=1, help="requests that each decision is for")
    how = parser.add_argument_group("how")
    _add_numbers(how, _LOAD_NUMBERS)
    how.add_argument(
        "--out", metavar="FOLDER", type=Path, default=Path(), help="where the ledgers are written; default: here"
    )
    how.add_argument("--instance", help="name of the one process; with it, only that process is run")
    how.add_argument("--wait", action="store_true", help='print "ready", and begin at a line on standard input')


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="decide every claim by what ledgers say",
        epilog=_VERIFY_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=partial(_run, _verify))
    parser.add_argument("ledgers", metavar="LEDGER", nargs="+", type=Path, help="all ledgers of one load")
    parser.add_argument("--limits", metavar="JSON", help="judge by these limits, by name, whatever the ledgers declare")
    parser.add_argument(
        "--redis", metavar="URL", help="read the counters too: what was charged must be what was admitted"
    )
    parser.add_argument(
        "--saturated", action="store_true", help="where requests were denied, the quota must have been used up"
    )
    _add_numbers(parser, _VERIFY_NUMBERS)
    parser.add_argument("--json", action="store_true", help="print the claims as JSON")


def _add_numbers(parser: Any, numbers: Iterable[tuple[str, str, Callable[[str], float], float, str]]) -> None:
    """Add options that take a number: name, its word in the help, how it is read, its default, and what it means."""
    for option, metavar, read_number, default, text in numbers:
        parser.add_argument(option, metavar=metavar, type=read_number, default=default, help=text)


def _default_url() -> str:
    return os.environ.get("SLUICEGATE_REDIS_URL") or os.environ.get("REDIS_URL") or DEFAULT_URL


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}")
    return int(text)


def _span(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number, 0 or more, not {text!r}")
    return number


_DEFAULT: Final = "default: %(default)s"
_TERMS: Final = Terms()
_LOAD_NUMBERS: Final = (
    ("--processes", "N", _whole, 1, _DEFAULT),
    ("--seconds", "S", _span, 10.0, f"length of the load; {_DEFAULT}"),
    ("--calls", "N", _whole, 0, "decisions of each process; 0: until the time is over"),
    ("--pause", "S", _span, 0.0, "seconds between two decisions of a process"),
    ("--timeout", "S", _span, DEFAULT_TIMEOUT, f"time budget of a decision; {_DEFAULT}"),
    ("--fleet", "N", _whole, 0, "begin when so many instances are known; default: all processes"),
)
_VERIFY_NUMBERS: Final = (
    ("--fleet", "E", _whole, 0, "instances that share the quotas; default: the ledgers"),
    ("--timeout-ms", "T", _span, 0.0, "time budget; default: the ledgers' own"),
    ("--margin-ms", "MS", _span, _TERMS.margin_ms, _DEFAULT),
    ("--late", "N", _whole, _TERMS.late, f"decisions that may take longer; {_DEFAULT}"),
    ("--vain", "N", _whole, _TERMS.vain, f"decisions of a process that may wait for a lost store in vain; {_DEFAULT}"),
    ("--alone-ms", "MS", _span, _TERMS.alone_ms, f"99th percentile while the store is not asked; {_DEFAULT}"),
    ("--back-at", "UNIX", _span, 0.0, "seconds since 1970 at which the store answered again"),
    ("--return-seconds", "S", _span, _TERMS.return_seconds, f"how soon it must be used then; {_DEFAULT}"),
    ("--killed", "N", _whole, 0, "processes of the load that were killed"),
    ("--failovers", "N", _whole, 0, "times that the store may have lost counters: each may cost one quota"),
)


class _Wrong(ValueError):
    """An option, or what it leads to, cannot be used."""


def _limits(text: str | None, rates: Iterable[str] = ()) -> tuple[Limit, ...]:
    try:
        data = json.loads(text) if text else []
        if not isinstance(data, list):
            raise _Wrong("--limits: must be a JSON list.")
        limits = list(map(_limit, data))
    except InvalidLimit as exc:
        raise _Wrong(f"--limits: {exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise exc if isinstance(exc, _Wrong) else _Wrong(f"--limits: is not JSON ({exc}).") from exc
    try:
        return (*limits, *map(Limit.parse, rates))
    except InvalidLimit as exc:
        raise _Wrong(f"--limit: {exc}") from exc


def _limit(data: object) -> Limit:
    if isinstance(data, dict):
        data = {"name": "", "algorithm": "fixed_window", **data}
    return Limit.from_json(data)


# load


def _load(options: argparse.Namespace) -> int:
    limits = _limits(options.limits, options.limit)
    if bool(limits) == bool(options.token_file):
        raise _Wrong("load: give --limit or --limits, or else --token-file.")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.instance is None:
        return _load_fleet(options)
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
    return HELD


def _load_fleet(options: argparse.Namespace) -> int:
    name = f"load-{secrets.token_hex(3)}"
    names = [f"{name}-{number}" for number in range(1, options.processes + 1)]
    with Fleet([_command(options, instance) for instance in names]) as fleet:
        fleet.go()
        statuses = fleet.wait(options.seconds + 60 if not options.calls else math.inf)
    for instance in names:
        print(options.out / f"{instance}{SUFFIX}")
    return max(map(abs, statuses))


def _command(options: argparse.Namespace, instance: str) -> list[str]:
    """Return the command of one process of a fleet: the same options, and its name."""
    command = [sys.executable, "-m", "enforcement.ledger", "load", "--wait", "--instance", instance]
    for rate in options.limit:
        command += ["--limit", rate]
    given = {
        "url": options.url,
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


# verify


def _verify(options: argparse.Namespace) -> int:
    limits = {limit.name: limit for limit in _limits(options.limits)}
    terms = Terms(
        fleet=options.fleet,
        timeout_ms=options.timeout_ms,
        margin_ms=options.margin_ms,
        late=options.late,
        vain=options.vain,
        alone_ms=options.alone_ms,
        saturated=options.saturated,
        back_at_us=int(options.back_at * 1_000_000),
        return_seconds=options.return_seconds,
        killed=options.killed,
        failovers=options.failovers,
        limits=limits,
    )
    evidence = Evidence([read(path) for path in options.ledgers], terms)
    strange = sorted(limits.keys() - {counter.name for counter in evidence.counters.values()})
    if strange:
        raise _Wrong(f"--limits: no ledger knows of {strange[0]!r}.")
    claims = judge(evidence, read_counters(options.redis, evidence.counters.values()) if options.redis else ())
    print(_as_json(claims) if options.json else _table(claims))
    return BROKEN if any(claim.held is False for claim in claims) else HELD


def _table(claims: Sequence[Claim]) -> str:
    rows = [("claim", "bound", "found", "")]
    rows += [(claim.what, claim.bound, claim.found, _VERDICTS[claim.held]) for claim in claims]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows
    ]
    broken = sum(claim.held is False for claim in claims)
    judged = sum(claim.held is not None for claim in claims)
    return "\n".join([*lines, "", f"{judged - broken} of {judged} claims held."])


_VERDICTS: Final = {True: "held", False: "BROKEN", None: "-"}


def _as_json(claims: Iterable[Claim]) -> str:
    return json.dumps([{"claim": c.what, "bound": c.bound, "found": c.found, "held": c.held} for c in claims], indent=1)


def _run(command: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a command and return its exit status; what went wrong is said in one sentence."""
    try:
        return command(options)
    except (LedgerError, _Wrong, FileExistsError, TimeoutError) as exc:
        reason = str(exc)
    except RedisError as exc:
        reason = f"the store does not answer: {exc}"
    except OSError as exc:
        reason = f"{exc.filename or ''}: {exc.strerror or exc}"
    print(f"ledger: {reason}", file=sys.stderr)
    return UNREADABLE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m enforcement.ledger",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_commands(parser.add_subparsers(required=True, metavar="COMMAND"))
    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
