"""``metering`` proves that nothing passes a budget uncharged, with a fake provider and proxies that are killed."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from enforcement.model.keys import Keys
from enforcement.proof.evidence import Claim
from enforcement.proof.metering.books import Books, read_books
from enforcement.proof.metering.claims import judge
from enforcement.proof.metering.clients import Clients
from enforcement.proof.metering.documents import publish
from enforcement.proof.metering.fleet import LIFE_SECONDS, MeteringFleet
from enforcement.proof.options import DEFAULT, NumberOption, add_numbers, integer
from enforcement.proof.verify_command import BROKEN, HELD, as_table
from enforcement.store.client import connect

_NUMBERS: Final[tuple[NumberOption, ...]] = (
    ("--requests", "N", integer, 2_000, f"requests of all clients together; {DEFAULT}"),
    ("--kills", "N", integer, 5, f"times that a proxy is killed; the store is killed a fifth as often; {DEFAULT}"),
    ("--proxies", "N", integer, 3, DEFAULT),
    ("--tokens", "N", integer, 50, f"tokens, each with budgets of its own; {DEFAULT}"),
)
_LEAST: Final = 100
_STORE_EVERY: Final = 5
_TERMINATED_EVERY: Final = 4


@dataclass(frozen=True, slots=True)
class Run:
    """The options of a run."""

    requests: int
    kills: int
    proxies: int = 3
    tokens: int = 50
    seed: str = ""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``metering`` to the subcommands of a parser."""
    parser = commands.add_parser("metering", help="prove hard budgets with a fake provider, and a store of its own")
    parser.set_defaults(run=run)
    add_numbers(parser, _NUMBERS)
    parser.add_argument("--seed", default="", help="repeats what the provider and the clients of a run did")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="keep all ledgers and logs in this empty folder")


def run(options: argparse.Namespace) -> int:
    """Run the proof, print the claims, and return the exit status, which says whether one is broken."""
    wanted = Run(max(options.requests, _LEAST), options.kills, options.proxies or 1, options.tokens or 1, options.seed)
    if options.out is not None:
        options.out.mkdir(parents=True)
        claims = prove(wanted, options.out)
    else:
        with tempfile.TemporaryDirectory(prefix="sluicegate-proof-") as folder:
            claims = prove(wanted, Path(folder))
    print(as_table(claims))
    return BROKEN if any(claim.held is False for claim in claims) else HELD


def prove(wanted: Run, folder: Path) -> list[Claim]:
    """
    Run the fleet and its clients, print the seed, and return the claims about the ledgers.

    Args:
        folder: For all files. It must be empty.
    """
    seed = wanted.seed or secrets.token_hex(4)
    print(f"seed {seed}", flush=True)
    with closing(MeteringFleet(folder, seed, wanted.proxies)) as fleet:
        return judge(asyncio.run(_run(wanted, fleet, seed)))


async def _run(wanted: Run, fleet: MeteringFleet, seed: str) -> Books:
    keys = Keys()
    fleet.store.start()
    with connect(fleet.store.url) as client:
        budgets = publish(client, keys, tokens=wanted.tokens, requests=wanted.requests)
        await fleet.start()
        dice = Random(seed)
        clients = Clients(fleet.ports, list(budgets.tokens), dice)
        await clients.run(wanted.requests, _killer(wanted, fleet, dice))
        await fleet.settle_down()
        statuses = fleet.stop_proxies()
        ended = time.monotonic()
        time.sleep(max(0.0, LIFE_SECONDS + 1.0 - (time.monotonic() - ended)))
        books = read_books(client, keys, budgets, fleet, clients.outcomes)
    print(
        f"{fleet.kills['proxy']} of {wanted.kills} kills of proxies, {fleet.kills['store']} of the store; "
        f"proxies ended with {statuses}"
    )
    return books


def _killer(wanted: Run, fleet: MeteringFleet, dice: Random) -> Callable[[int], bool]:
    """
    Return a function that is told how many requests have ended, kills as often as the run wants, and returns whether
    there is more to kill.
    """
    due = iter(range(1, wanted.kills + 1))
    every = wanted.requests // (wanted.kills + 2)
    state = {"next": next(due, None)}

    def watch(ended: int) -> bool:
        number = state["next"]
        if number is None or ended < number * every:
            return number is not None
        if not fleet.kill_proxy(dice.randrange(wanted.proxies)):
            return True  # too few are ready; the next request that ends comes back to it
        state["next"] = next(due, None)
        if number % _STORE_EVERY == 0:
            fleet.kill_store()
        elif number % _TERMINATED_EVERY == 0:
            fleet.kill_proxy(dice.randrange(wanted.proxies), hard=False)
        return state["next"] is not None

    return watch
