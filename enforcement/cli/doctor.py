"""The command ``sluicegate doctor``. It examines a store and reports what keeps limits from holding there."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Final

from enforcement.cli.options import add_store, names_of, new_parser, settings_of, source_of
from enforcement.doctor import Checkup, Finding, StoreUnreachable, examine, variables
from enforcement.doctor.endpoint import shown
from enforcement.settings import named_as

FIT, UNFIT, UNREACHABLE = 0, 1, 2

_EPILOG: Final = """\
exit status:
  0  no problem; there may be warnings, and checks that the account is not permitted to make
  1  a problem: limits do not hold on this store, or not from this host
  2  the store cannot be reached, or an option or variable is wrong

The command writes one counter of its own, which expires within a minute, and changes nothing else. Run it with the
account of the proxies. Each check that this account is not permitted to make is reported as "unseen" and leaves an
entry in the ACL LOG of the server.
"""


def main(arguments: Sequence[str]) -> int:
    """Examine the store, print the findings, and return the exit status."""
    options = _parser().parse_args(arguments)
    source = source_of(options)
    try:
        with named_as(names_of(options)):
            settings = settings_of(options)
            checkup = examine(settings)
    except ValueError as exc:
        print(f"sluicegate doctor: {exc}", file=sys.stderr)
        return UNREACHABLE
    except StoreUnreachable as exc:
        # A misspelt variable may be why this is not the right store.
        findings = (*variables.unknown(os.environ), exc.finding)
        checkup = Checkup(shown(settings.url), settings.prefix, findings)
        _print(checkup, source, options.json)
        return UNREACHABLE
    _print(checkup, source, options.json)
    return UNFIT if checkup.level == "problem" else FIT


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "sluicegate doctor",
        "Examine a store, and prove that two processes share a counter in it.",
        _EPILOG,
    )
    add_store(parser)
    return parser


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
