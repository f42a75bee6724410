"""``sluicegate doctor``: is this store fit to enforce limits, and do two processes really share one?"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Final

from enforcement.cli.options import add_store, settings_of, source_of
from enforcement.doctor import Checkup, Finding, Unreachable, examine
from enforcement.doctor.endpoint import shown

FIT, UNFIT, UNREACHABLE = 0, 1, 2

_EPILOG: Final = """\
exit status:
  0  nothing is wrong; there may be warnings, and things that the account may not look at
  1  a problem: limits do not hold on this store, or not from here
  2  the store cannot be reached, or an option or variable is wrong

It writes one counter of its own, which is gone within a minute, and changes nothing else. Run it as the account that
the proxies use: what an account may not look at is said, and leaves an entry in the server's ACL LOG.
"""


def add_command(commands: Any) -> None:
    """Add ``doctor`` to the subcommands of a parser."""
    parser = commands.add_parser(
        "doctor",
        help="look at a store, and prove that two processes share a counter",
        description="Look at a store, and prove that two processes share a counter in it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add_store(parser)


def run(options: argparse.Namespace) -> int:
    """Examine the store, print what was found, and return the exit status."""
    source = source_of(options)
    try:
        settings = settings_of(options)
        checkup = examine(settings)
    except ValueError as exc:
        print(f"sluicegate doctor: {exc}", file=sys.stderr)
        return UNREACHABLE
    except Unreachable as exc:
        checkup = Checkup(shown(settings.url), settings.prefix, (exc.finding,))
        _print(checkup, source, options.json)
        return UNREACHABLE
    _print(checkup, source, options.json)
    return UNFIT if checkup.level == "problem" else FIT


def _print(checkup: Checkup, source: str, as_json: bool) -> None:
    if as_json:
        findings = [finding.to_json() for finding in checkup.findings]
        about = {"endpoint": checkup.endpoint, "source": source, "prefix": checkup.prefix, "level": checkup.level}
        print(json.dumps({**about, "findings": findings}, indent=2))
        return
    print(f"{checkup.endpoint} (from {source}), keys begin with {checkup.prefix}\n")
    width = max(len(finding.name) for finding in checkup.findings)
    for finding in checkup.findings:
        print("\n".join(_lines(finding, width)))


def _lines(finding: Finding, width: int) -> list[str]:
    lines = [f"{finding.level:<8} {finding.name:<{width}}  {finding.value}"]
    return lines + ([f"{'':<8} {'':<{width}}  -> {finding.advice}"] if finding.advice else [])
