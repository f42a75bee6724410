"""One store, the provider, two proxies and budgets: where consumers play their scripts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from random import Random
from typing import Any

from enforcement import Limiter
from enforcement.embedded import ValkeyServer, free_port
from enforcement.model.tokens import mint
from enforcement.testing import Published
from tests.adversary import consumers
from tests.adversary.counting import bill
from tests.adversary.pricelist import entries
from tests.adversary.scripts import SCRIPTS, Script
from tests.forks import sluicegate
from tests.repository import ROOT

SILENCE, DRAIN_SECONDS, DRAINS = "0.5", "1", "6"
CLIENTS = 30
START_SECONDS = 30.0
PROJECT = "proj_1"
MICROS = "micros"
BOUND = {"estimate": "bound"}
SETTINGS = {
    "TIMEOUT_MS": "2000",
    "LOOKUP_MS": "5000",
    "UPSTREAM_TIMEOUT": SILENCE,
    "UPSTREAM_ALLOWED_FIELDS": "allowed_turbo=2",
    "ANSWER_DRAIN_SECONDS": DRAIN_SECONDS,
    "ANSWER_DRAINS": DRAINS,
}


class Proxies:
    """
    Proxies as ``sluicegate proxy`` runs them, which may be killed.

    Args:
        mutant: The name of a mutant of the product that they run. Empty: the product as it is.
    """

    def __init__(self, store: str, upstream: str, count: int, settings: Mapping[str, str], mutant: str = "") -> None:
        own = {**SETTINGS, "REDIS_URL": store, "UPSTREAM_URL": upstream, **settings}
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("SLUICEGATE_")}
        self._environment |= {f"SLUICEGATE_{name}": value for name, value in own.items()}
        self._mutant = mutant
        self._all: list[int] = [free_port() for _ in range(count)]
        self._running: dict[int, Any] = {port: self._start(port) for port in self._all}
        for port in self._all:
            self._wait(port)
        self.kills = 0

    def ports(self) -> Sequence[int]:
        return list(self._running) or self._all

    async def kill(self, dice: Random) -> None:
        """Kill one of them, which leaves what it was doing, and start it again."""
        port = dice.choice(sorted(self._running))
        process = self._running.pop(port)
        process.send_signal(signal.SIGKILL)
        self.kills += 1
        await asyncio.to_thread(process.wait, 10)
        started = await asyncio.to_thread(self._start, port)
        try:
            await asyncio.to_thread(self._wait, port)
        finally:
            self._running[port] = started

    def stop(self) -> None:
        """Stop them as an operator does: they end what they have begun."""
        for process in self._running.values():
            process.terminate()
        statuses = [process.wait(40) for process in self._running.values()]
        self._running.clear()
        assert set(statuses) <= {0, -signal.SIGTERM}, statuses

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait(10)

    def _start(self, port: int) -> Any:
        if not self._mutant:
            # Each by another server, since they notice in different ways that a client leaves.
            server = ("uvicorn", "h2corn")[self._all.index(port) % 2]
            return sluicegate(
                ["proxy", "--port", str(port), "--metrics-port", str(port), "--server", server], self._environment
            )
        command = [sys.executable, "-m", "tests.adversary.mutants", self._mutant, "--port", str(port)]
        return subprocess.Popen(command, env=self._environment, cwd=ROOT, stderr=subprocess.DEVNULL)

    @staticmethod
    def _wait(port: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not _is_ready(port):
            assert time.monotonic() < deadline, "A proxy did not start."
            time.sleep(0.02)


def _is_ready(port: int) -> bool:
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False


class Provider:
    """The process of the provider."""

    def __init__(self, answers: Path | None = None) -> None:
        command = [sys.executable, "-m", "tests.adversary.provider", *([str(answers)] if answers else [])]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def get(self, path: str) -> Any:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@dataclass
class Row:
    """
    What a script got for its budget, all in one unit.

    Attributes:
        charged: What the counter of the budget has in the end.
        requests: Those that the provider has answered.
        broken: The rows of bounds that were broken, in the whole market.
    """

    script: Script
    budget: int
    invoice: float
    charged: int
    requests: int
    outcome: consumers.Outcome
    broken: Sequence[Sequence[Any]] = ()
    unit: str = MICROS

    @property
    def ratio(self) -> float:
        """The invoice, by the budget."""
        return self.invoice / self.budget

    @property
    def faults(self) -> list[str]:
        """What is wrong."""
        found = []
        if self.invoice > self.budget:
            found.append(f"invoice {self.invoice:.0f} is above the budget of {self.budget}")
        if self.invoice > self.charged:
            found.append(f"invoice {self.invoice:.0f} is above the {self.charged} that were charged")
        if self.broken:  # which raises what is reserved, so that the budget may hold all the same
            found.append(f"bounds were broken: {self.broken}")
        # A limit on tokens needs to refuse nothing for its rates.
        if self.script.refused and self.unit == MICROS and (self.requests or self.outcome.refused == 0):
            found.append(f"{self.requests} requests reached the provider, {self.outcome.refused} were refused")
        # The estimate of a request that died with its proxy may leave too little of the budget for another.
        took_all = self.outcome.lost and self.charged > self.budget // 2
        if not self.script.refused and not self.requests and not took_all:
            found.append(f"nothing reached the provider: {self.outcome}")
        return found


class Market:
    """Where consumers have budgets. Everything is started anew for it."""

    def __init__(
        self,
        *,
        proxies: int = 2,
        mutant: str = "",
        answers: Path | None = None,
        prices: Sequence[Mapping[str, Any]] | None = None,
        **settings: str,
    ) -> None:
        with ExitStack() as stack:
            self.store = stack.enter_context(ValkeyServer(persistent=False))
            stack.callback(self.store.kill)
            self.provider = stack.enter_context(closing(Provider(answers)))
            self.published = stack.enter_context(closing(Published(self.store.url)))
            self.published.project()
            self.published.prices(*(entries() if prices is None else prices))
            upstream = f"http://127.0.0.1:{self.provider.port}"
            self.proxies = stack.enter_context(closing(Proxies(self.store.url, upstream, proxies, settings, mutant)))
            self._stack = stack.pop_all()
        self._secrets: dict[str, tuple[str, int]] = {}

    def close(self) -> None:
        self._stack.close()

    def open(self, budgets: Mapping[str, tuple[int, Mapping[str, Any]]], unit: str = MICROS) -> dict[str, str]:
        """Publish a token with a budget, in a unit, and the rules of its policy for each account."""
        documents, tokens = {}, {}
        for number, (account, (quota, rules)) in enumerate(budgets.items()):
            secret = mint("live")
            limit = {"name": "usd", "algorithm": "fixed_window", "quota": quota, "calendar": "lifetime"}
            limit |= {"unit": unit, "on_store_failure": "deny"}
            policy = {"schema": 1, "id": f"pol_{number}", "slug": f"p-{number}", "name": account, "version": 1}
            documents[f"policy:pol_{number}"] = {**policy, "limits": [limit], "metering": dict(rules)}
            token = {"schema": 1, "id": f"tok_{number}", "project": PROJECT, "name": account, "policy": f"pol_{number}"}
            tokens[secret] = {**token, "revoked": False, "expires_at_us": None, "overrides": []}
            self._secrets[account] = secret, quota
        self._unit = unit
        self.published.publish(documents, tokens=tokens)
        for port in self.proxies.ports():
            while self._revision(port) < self.published.revision:
                time.sleep(0.01)
        return {account: self._secrets[account][0] for account in budgets}

    def _revision(self, port: int) -> int:
        with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", "/readyz")
            return int(json.loads(connection.getresponse().read())["revision"])

    def charged(self) -> dict[str, int]:
        """Return what the counter of each budget has."""
        with Limiter(self.store.url, timeout=2.0, lookup=5.0) as limiter:
            return {
                account: quota - limiter.check(secret, {self._unit: 0}).limits[0].remaining
                for account, (secret, quota) in self._secrets.items()
            }

    def invoice(self) -> dict[str, dict[str, Any]]:
        """Return micros and requests of each account, as the provider says."""
        found: dict[str, dict[str, Any]] = self.provider.get("/_invoice")
        return found

    def broken(self) -> list[Any]:
        """Return the broken bounds that the proxies have reported, see ``BROKEN_NAMES``."""
        entries = self.published.client.xrange(self.published.keys.usage)
        return [row for _, fields in entries for row in json.loads(fields.get("broken", "[]"))]


@contextmanager
def market(**options: Any) -> Iterator[Market]:
    with closing(Market(**options)) as made:
        yield made


def budget_of(script: Script, size: int, seed: str, unit: str = MICROS) -> int:
    """Return a budget that holds so many requests of a script, by the provider's prices, and its dearest one twice."""
    dice, costs = Random(f"{seed} {script.name} budget"), []
    while len(costs) < 6:
        call = script.make(dice)
        try:
            found = bill(call.path, call.data, call.play)[2]
            costs.append(found.micros if unit == MICROS else Fraction(found.input + found.output))
        except (UnicodeDecodeError, ValueError):
            costs.append(Fraction(16_000))  # compressed
    return int(max(sum(costs) / len(costs) * size, 2 * max(costs)) * script.factor) + 1


def run(
    seed: str,
    *,
    size: int,
    kills: int,
    names: Sequence[str] = (),
    mutant: str = "",
    proxies: int = 2,
    unit: str = MICROS,
) -> list[Row]:
    """
    Play scripts with a budget each, and return what they got for it.

    Args:
        seed: Repeats what consumers and the provider do.
        size: How many requests of the usual length each budget holds.
        kills: How often a proxy is killed meanwhile.
        names: Of the scripts. Empty: all.
        mutant: See :class:`Proxies`.
        unit: That of the budgets, ``micros`` or ``tokens``.
    """
    chosen = [SCRIPTS[name] for name in names or SCRIPTS]
    budgets = {one.name: (budget_of(one, size, seed, unit), {**BOUND, **dict(one.rules)}) for one in chosen}
    with market(proxies=proxies, mutant=mutant) as place:
        secrets = place.open(budgets, unit)
        outcomes = asyncio.run(_play(place, chosen, secrets, seed, size, kills))
        place.proxies.stop()
        invoice, charged, broken = place.invoice(), place.charged(), place.broken()
    nothing = {unit: 0, "requests": 0}
    rows = []
    for one, outcome in zip(chosen, outcomes, strict=True):
        said = invoice.get(one.name, nothing)
        found = budgets[one.name][0], said[unit], charged[one.name], said["requests"]
        rows.append(Row(one, *found, outcome, broken, unit))
    return rows


async def _play(
    place: Market, chosen: Sequence[Script], secrets: Mapping[str, str], seed: str, size: int, kills: int
) -> list[consumers.Outcome]:
    slots, most = asyncio.Semaphore(CLIENTS), 6 * size + 10
    ports: Callable[[], Sequence[int]] = place.proxies.ports
    playing = [
        asyncio.ensure_future(consumers.play(one, secrets[one.name], ports, Random(f"{seed} {one.name}"), slots, most))
        for one in chosen
    ]
    async with killed(place.proxies, Random(f"{seed} kills"), kills):
        return await asyncio.gather(*playing)


@asynccontextmanager
async def killed(proxies: Proxies, dice: Random, kills: int) -> AsyncIterator[None]:
    """Kill a proxy so often while the block runs, and start it again each time. The last one is waited for."""
    over = asyncio.Event()

    async def kill() -> None:
        for _ in range(kills):
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), dice.uniform(0.3, 1.0))
                return
            await proxies.kill(dice)

    killing = asyncio.ensure_future(kill())
    try:
        yield
    finally:
        over.set()
        await killing


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text, and their sum."""
    lines = [f"{'script':30} {'invoice/budget':>14} {'charged':>8} {'requests':>8} {'denied':>7} {'refused':>7}"]
    for row in sorted(rows, key=lambda row: -row.ratio):
        part = row.charged / row.budget
        numbers = f"{row.ratio:14.3f} {part:8.3f} {row.requests:8} {row.outcome.denied:7} {row.outcome.refused:7}"
        lines.append(f"{row.script.name:30} {numbers}{'  ' if row.faults else ''}{'; '.join(row.faults)}")
    bought = [row for row in rows if not row.script.refused]
    total = sum(row.invoice for row in bought) / (sum(row.budget for row in bought) or 1)
    return "\n".join([*lines, f"{'all':30} {total:14.3f}"])
