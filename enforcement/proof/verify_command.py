"""``verify`` reads ledgers and checks the claims."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from enforcement.proof.checker import judge
from enforcement.proof.counters import read_counters
from enforcement.proof.evidence import Claim, Evidence, Terms
from enforcement.proof.history import read
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

HELD, BROKEN = 0, 1

_EPILOG: Final = """\
exit status:
  0  every claim held
  1  a claim was broken
  2  a ledger cannot be read (the message names file and line), an option is wrong, or the store does not reply
"""
_TERMS: Final = Terms()
_VERDICTS: Final = {True: "held", False: "BROKEN", None: "-"}
_NUMBERS: Final[tuple[NumberOption, ...]] = (
    ("--fleet", "E", integer, 0, "instances that share the quotas; default: the number of ledgers"),
    ("--timeout-ms", "T", span, 0.0, "time budget; default: the one in the ledgers"),
    ("--margin-ms", "MS", span, _TERMS.margin_ms, f"how much longer a decision may take; {DEFAULT}"),
    ("--late", "N", integer, _TERMS.late, f"decisions that may take longer; {DEFAULT}"),
    ("--vain", "N", integer, _TERMS.vain, f"decisions of an outage that may wait for the store in vain; {DEFAULT}"),
    ("--alone-ms", "MS", span, _TERMS.alone_ms, f"99th percentile while the store is not called; {DEFAULT}"),
    ("--back-at", "UNIX", span, 0.0, "seconds since 1970 at which the store replied again"),
    ("--return-seconds", "S", span, _TERMS.return_seconds, f"how soon after that it must be used; {DEFAULT}"),
    ("--killed", "N", integer, 0, "processes of the load that were killed"),
    ("--failovers", "N", integer, 0, "times that the store may have lost counters; each may cost one quota"),
)


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``verify`` to the subcommands of a parser."""
    parser = commands.add_parser(
        "verify",
        help="check every claim against the ledgers",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("ledgers", metavar="LEDGER", nargs="+", type=Path, help="all ledgers of one load")
    parser.add_argument("--limits", metavar="JSON", help="limits that replace those of the same name in the ledgers")
    parser.add_argument(
        "--redis",
        metavar="URL",
        nargs="?",
        const=store_url(),
        help="read the counters, too, and compare charged with admitted; without URL: SLUICEGATE_REDIS_URL, else "
        "REDIS_URL. Other users of the machine can see an URL here, with its password",
    )
    parser.add_argument(
        "--saturated", action="store_true", help="where requests were denied, the quota must have been used up"
    )
    add_numbers(parser, _NUMBERS)
    parser.add_argument("--json", action="store_true", help="print the claims as JSON")


def run(options: argparse.Namespace) -> int:
    """Check the claims, print them, and return the exit status, which says whether one is broken."""
    terms = _terms(options)
    evidence = Evidence([read(path) for path in options.ledgers], terms)
    unknown = sorted(terms.limits.keys() - {counter.name for counter in evidence.counters.values()})
    if unknown:
        raise InvalidOption(f"--limits: must be names of limits in the ledgers, got {unknown[0]!r}.")
    claims = judge(evidence, read_counters(options.redis, evidence.counters.values()) if options.redis else ())
    print(_as_json(claims) if options.json else as_table(claims))
    return BROKEN if any(claim.held is False for claim in claims) else HELD


def _terms(options: argparse.Namespace) -> Terms:
    return Terms(
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
        limits={limit.name: limit for limit in parse_limits(options.limits)},
    )


def as_table(claims: Sequence[Claim]) -> str:
    """Return claims as a table for people, with how many of them held."""
    rows = [("claim", "bound", "found", "")]
    rows += [(claim.what, claim.bound, claim.found, _VERDICTS[claim.held]) for claim in claims]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows
    ]
    broken = sum(claim.held is False for claim in claims)
    judged = sum(claim.held is not None for claim in claims)
    return "\n".join([*lines, "", f"{judged - broken} of {judged} claims held."])


def _as_json(claims: Iterable[Claim]) -> str:
    return json.dumps([{"claim": c.what, "bound": c.bound, "found": c.found, "held": c.held} for c in claims], indent=1)
