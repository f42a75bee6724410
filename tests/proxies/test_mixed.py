"""Our proxy, nginx and Envoy before one application: one token has one limit, whatever proxy its requests come by."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import quantiles

import pytest

from enforcement import Limiter
from enforcement.embedded import ValkeyServer
from enforcement.model.tokens import mint
from tests.enforcement.service.real_envoy import Upstream, envoy
from tests.enforcement.world import World, eventually, fixed
from tests.proxies.conftest import OwnProxy, Service
from tests.proxies.recipes import NGINX
from tests.proxies.running import ask, running
from tests.scale import scale

BUDGET_MS = 1_000
"""For a decision. So many requests at once keep the processors busy, and a late decision would not be the store's."""
DEADLINE_MS, WAIT_MS = 2 * BUDGET_MS, 4 * BUDGET_MS
"""For an answer of the service, and for which nginx and Envoy wait for it."""
INSTANCES = 2
"""Processes that decide: our proxy, and the service that nginx and Envoy ask."""
AT_ONCE = 30
"""Requests at a time while their times are measured. More would measure how long each waits for the processors."""
ENVIRONMENT = {"SLUICEGATE_TIMEOUT_MS": str(BUDGET_MS), "SLUICEGATE_FLEET_SIZE": str(INSTANCES)}
QUOTA = scale(30, 300)


@dataclass(frozen=True, slots=True)
class Seen:
    """A response: the name of the proxy, the status, and the seconds that it took."""

    proxy: str
    status: int
    seconds: float


@dataclass(slots=True)
class Stand:
    """Three proxies by name, with the application and the store behind them."""

    ports: dict[str, int]
    application: Upstream
    server: ValkeyServer
    world: World

    def publish(self, *quotas: int) -> list[str]:
        """Publish a token for each quota, with a limit of its own, and return the secrets."""
        secrets = [mint("live") for _ in quotas]
        documents, tokens = {"global": {"schema": 1, "policy": None}, **self.world.project()}, {}
        for number, (secret, quota) in enumerate(zip(secrets, quotas, strict=True)):
            documents |= self.world.policy(f"number-{number}", fixed(quota))
            tokens[secret] = self.world.token(f"pol_number-{number}")
        self.world.publish(documents, tokens)
        for secret in secrets:
            assert eventually(lambda it=secret: {self.ask(name, it).status for name in self.ports} == {200}, 20)
        return secrets

    def ask(self, name: str, secret: str) -> Seen:
        answer = ask(self.ports[name], "/", f"X-API-Key: {secret}")
        return Seen(name, answer.status, answer.seconds)

    def burst(self, secret: str, number: int, at_once: int = 10_000) -> list[Seen]:
        """Send so many requests, *at_once* at a time, by the proxies in turn, and return the responses."""
        names = list(self.ports)

        async def sent() -> list[Seen]:
            places = asyncio.Semaphore(at_once)
            return await asyncio.gather(*(_one(self, names[i % len(names)], secret, places) for i in range(number)))

        return asyncio.run(sent())

    def left(self, secret: str) -> int:
        with Limiter(self.server.url, timeout=5.0) as limiter:
            return limiter.check(secret, 0).remaining


async def _one(stand: Stand, name: str, secret: str, places: asyncio.Semaphore) -> Seen:
    head = f"GET / HTTP/1.1\r\nHost: shop.test\r\nX-API-Key: {secret}\r\nConnection: close\r\n\r\n"
    async with places:
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", stand.ports[name])
        writer.write(head.encode())
        answer = await reader.read()
        writer.close()
        return Seen(name, int(answer.split()[1]), time.monotonic() - began)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Run nginx and Envoy as shipped, but for longer waits, our proxy, and what is behind them."""
    folder = tmp_path_factory.mktemp("mixed")
    with ExitStack() as started:
        server = started.enter_context(ValkeyServer(persistent=False))
        world = World(server.url)
        world.publish(world.project())
        service = Service(server.url, folder / "service.log", "--deadline", str(DEADLINE_MS), **ENVIRONMENT)
        started.callback(service.kill)
        waits = ("timeout: 0.5s", f"timeout: {WAIT_MS / 1_000}s")  # to connect, and to answer
        by_envoy = started.enter_context(envoy("ext-authz-http", service.port, folder, waits))
        application = by_envoy.upstream
        by_nginx = started.enter_context(
            running(
                NGINX,
                service=service.port,
                application=application.port,
                change=lambda text: text.replace("500ms;", f"{WAIT_MS}ms;"),
            )
        )
        ours = OwnProxy(
            server.url,
            folder / "proxy.log",
            **ENVIRONMENT,
            SLUICEGATE_UPSTREAM_URL=f"http://127.0.0.1:{application.port}",
            SLUICEGATE_LOOKUP_MS=str(DEADLINE_MS - BUDGET_MS),
        )
        started.callback(ours.kill)
        ports = {"ours": ours.port, "nginx": by_nginx.port, "Envoy": by_envoy.port}
        yield Stand(ports, application, server, world)
        server.thaw()


@pytest.mark.proof
def test_one_limit_over_three_kinds_of_proxy(stand: Stand) -> None:
    """Of three times as many requests as the limit allows, all at once, exactly so many pass."""
    (secret,) = stand.publish(QUOTA)
    admitted = QUOTA - stand.left(secret)
    stand.application.seen.clear()

    answers = stand.burst(secret, 3 * QUOTA)

    statuses = Counter((answer.proxy, answer.status) for answer in answers)
    print(f"{3 * QUOTA} requests, {QUOTA - admitted} permits left: {dict(statuses)}")
    assert {status for _, status in statuses} == {200, 429}
    assert len(stand.application.seen) == QUOTA - admitted
    assert sum(number for (_, status), number in statuses.items() if status == 200) == QUOTA - admitted


def test_a_change_reaches_all_of_them(stand: Stand) -> None:
    """A smaller quota and a revocation, each within seconds. The times are printed."""
    (secret,) = stand.publish(1_000)
    policy = stand.world.policy("number-0", fixed(0), version=2)

    for change, status in (({"documents": policy}, 429), ({"tokens": {secret: stand.world.token(revoked=True)}}, 401)):
        began = time.monotonic()
        stand.world.publish(**change)
        seconds = {name: _until(stand, name, secret, status) - began for name in stand.ports}
        print(f"{status}: " + ", ".join(f"{name} after {1_000 * it:.0f} ms" for name, it in seconds.items()))
        assert max(seconds.values()) < 10.0


def _until(stand: Stand, name: str, secret: str, status: int) -> float:
    assert eventually(lambda: stand.ask(name, secret).status == status, 20.0), (name, status)
    return time.monotonic()


@pytest.mark.proof
def test_the_store_is_frozen_and_returns(stand: Stand) -> None:
    """Each proxy answers in time, the instances admit no more than their shares, and it is all charged afterwards."""
    scarce, plenty = stand.publish(QUOTA, 10 * QUOTA)
    known, before = stand.left(scarce), stand.left(plenty)

    stand.server.freeze()
    try:
        first = [stand.ask(name, secret) for secret in (scarce, plenty) for name in stand.ports]
        answers = [*first, *stand.burst(scarce, 3 * QUOTA, AT_ONCE), *stand.burst(plenty, QUOTA, AT_ONCE)]
    finally:
        stand.server.thaw()
    admitted = len([it for it in (*first[:3], *answers[6 : 6 + 3 * QUOTA]) if it.status == 200])
    p50, p95 = (quantiles([it.seconds for it in answers], n=100)[n - 1] for n in (50, 95))
    slowest = max(it.seconds for it in answers)
    print(f"store frozen: p50 {1_000 * p50:.0f} ms, p95 {1_000 * p95:.0f} ms, slowest {1_000 * slowest:.0f} ms")

    assert {it.status for it in answers} == {200, 429}
    assert 0 < admitted <= INSTANCES * -(-QUOTA // INSTANCES)
    assert [it.status for it in (*first[3:], *answers[6 + 3 * QUOTA :])] == [200] * (3 + QUOTA)
    assert slowest < WAIT_MS / 1_000
    assert p95 < BUDGET_MS / 1_000  # nobody waits for the store once it is known to be away
    print(f"{admitted} of {known} admitted while it was frozen, {INSTANCES} shares of {QUOTA // INSTANCES}")
    assert eventually(lambda: stand.left(plenty) == before - 3 - QUOTA, 30), (before, stand.left(plenty))
    assert stand.left(scarce) == max(0, known - admitted)
