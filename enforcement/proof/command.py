"""The command ``sluicegate proof`` with its parts ``load`` and ``verify``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Final

from redis.exceptions import RedisError

from enforcement.proof import load_command, verify_command
from enforcement.proof.history import LedgerError
from enforcement.proof.metering import command as metering_command
from enforcement.proof.options import InvalidOption

UNREADABLE: Final = 2

_DESCRIPTION: Final = """\
Prove a limit on a store of your own.

  load    sends requests to a store; each process writes a ledger with one line for each decision
  verify  reads the ledgers, and with --redis the counters of the store, and checks every claim that has a number in
          it: what was admitted and charged, how long decisions took, who made them, and when the store was back

Prove budgets in tokens and money on this machine.

  metering  runs a store, a fake provider that writes an invoice, and proxies; kills them while clients send requests;
            and compares the invoice with what the proxies have settled and the store has counted
"""
_EXAMPLES: Final = """\
examples:
  %(prog)s load --limit 100/minute --processes 4 --seconds 150 --pause 0.01 --out proof/
  %(prog)s verify proof/*.ledger --saturated --redis redis://127.0.0.1:6379/0
  %(prog)s metering --requests 20000 --kills 50

Freeze, kill or disconnect the store during the load, and `verify` shows what that cost.

documentation: /docs/when-redis-is-away/ of the control plane
"""


def main(arguments: Sequence[str] | None = None, *, prog: str = "sluicegate proof") -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    load_command.add_to(commands)
    verify_command.add_to(commands)
    metering_command.add_to(commands)
    options = parser.parse_args(arguments)
    return _run(options.run, options)


def _run(command: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a part of the command and return the exit status. An error is printed as one sentence."""
    try:
        return command(options)
    except (LedgerError, InvalidOption, FileExistsError, TimeoutError) as exc:
        reason = str(exc)
    except RedisError as exc:
        reason = f"the store does not reply: {exc}"
    except OSError as exc:
        reason = f"{exc.filename or ''}: {exc.strerror or exc}"
    print(f"sluicegate proof: {reason}", file=sys.stderr)
    return UNREADABLE
