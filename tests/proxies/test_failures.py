"""The proxies of docker/proxies while the service or its store is away. Times are printed, as pages cite them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest

from enforcement.embedded import ValkeyServer
from enforcement.model.tokens import mint
from tests.enforcement.faults import FaultyPath
from tests.enforcement.world import World, fixed
from tests.proxies.conftest import Service
from tests.proxies.recipes import HAPROXY, NGINX, RECIPES
from tests.proxies.running import Application, Recipe, Running, ask, running
from tests.proxies.test_recipes import shows
from tests.scale import scale

DEADLINE, TIMEOUT = 0.3, 0.5
"""Seconds within which the service answers, and for which the proxies wait, as their pages say."""


@pytest.fixture(params=RECIPES, ids=lambda recipe: recipe.name)
def recipe(request) -> Recipe:
    """Give each proxy in turn."""
    return request.param


def before(recipe: Recipe, service: Service, application: Application, **how: Any) -> AbstractContextManager[Running]:
    return running(recipe, service=service.port, application=application.port, **how)


def test_the_service_is_gone(world, recipe, serve, application):
    """Requests pass, or all are refused, as the page says, and at once."""
    secret = world.everything(fixed(100))
    service = serve("--deadline", "300")
    with before(recipe, service, application) as proxy:
        assert ask(proxy.port, "/", shows(secret)).status == 200
        service.kill()
        answers = [ask(proxy.port, "/", shows(secret)) for _ in range(20)]

    assert {answer.status for answer in answers} == {recipe.gone}
    print(f"{recipe.name}, service gone: {recipe.gone} in {1_000 * sorted(it.seconds for it in answers)[10]:.1f} ms")
    assert sorted(answer.seconds for answer in answers)[10] < 0.2


@pytest.mark.parametrize(
    ("recipe", "committed", "changed", "status"),
    [
        (NGINX, "            error_page 502 504 = @open;\n", "", 500),
        (HAPROXY, "    # http-request deny", "    http-request deny", 503),
    ],
    ids=["nginx", "haproxy"],
)
def test_a_line_makes_it_refuse(world, recipe, committed, changed, status, serve, application):
    """The configuration says which line an operator changes, so that no request passes without a decision."""
    secret = world.everything(fixed(100))
    service = serve("--deadline", "300")

    def change(text: str) -> str:
        return text.replace(committed, changed)

    with before(recipe, service, application, change=change) as proxy:
        assert ask(proxy.port, "/", shows(secret)).status == 200
        application.seen.clear()
        service.kill()

        assert ask(proxy.port, "/", shows(secret)).status == status, proxy.log
        assert application.seen == []


def test_the_service_hangs(world, recipe, serve, application):
    """The proxy waits for its timeout and no longer."""
    secret = world.everything(fixed(100))
    service = serve("--deadline", "300")
    with before(recipe, service, application) as proxy:
        assert ask(proxy.port, "/", shows(secret)).status == 200
        service.freeze()
        answer = ask(proxy.port, "/", shows(secret))

    print(f"{recipe.name}, service hangs: {answer.status} in {1_000 * answer.seconds:.0f} ms")
    assert answer.status == (200 if recipe.opens else 504)
    assert TIMEOUT - 0.01 <= answer.seconds < TIMEOUT + 1.5


def test_the_store_is_frozen(world, recipe, serve, application, server):
    """The limiter decides before the proxy gives up: an answer, and one that counts."""
    secret = world.everything(fixed(8))
    service = serve("--deadline", "300")
    with before(recipe, service, application) as proxy:
        assert ask(proxy.port, "/", shows(secret)).status == 200
        server.freeze()
        try:
            answers = [ask(proxy.port, "/", shows(secret)) for _ in range(12)]
            unmet = ask(proxy.port, "/", shows(mint("live")))
        finally:
            server.thaw()

    assert [answer.status for answer in answers] == [200] * 7 + [429] * 5
    assert {answer["Sluicegate-Degraded"] for answer in answers if answer.status == 429} == {"fallback"}
    if recipe.shows_limits:
        assert {answer["Sluicegate-Degraded"] for answer in answers} == {"fallback"}
    assert (unmet.status, unmet["Sluicegate-Denial"]) == (503, "degraded_denied")
    print(f"{recipe.name}, store frozen: at most {1_000 * max(it.seconds for it in answers):.0f} ms")
    assert max(answer.seconds for answer in [*answers, unmet]) < TIMEOUT


@pytest.fixture
def path(server: ValkeyServer) -> Iterator[FaultyPath]:
    """Give a way to the store that a test can slow down."""
    path = FaultyPath(server.port)
    yield path
    path.close()


def patient(text: str) -> str:
    """Have a proxy wait for the service for longer than a busy machine of tests takes to answer."""
    return text.replace("500ms", "5s").replace("timeout_ms = 500", "timeout_ms = 5000")


@pytest.mark.proof
def test_a_slow_store_opens_nothing(world: World, recipe, serve, path, application):
    """With replies that take 100 ms, no token passes that a healthy store would refuse, met or not."""
    number = scale(96, 1_000)
    tokens = {mint("live"): world.token("pol_none") for _ in range(number // 3)}
    tokens |= {mint("live"): world.token("pol_api", revoked=True) for _ in range(number // 3)}
    documents = {"global": {"schema": 1, "policy": None}, **world.project()}
    world.publish(documents | world.policy("none", fixed(0)) | world.policy("api", fixed(9)), tokens)
    secrets = [*tokens, *(mint("live") for _ in range(number - len(tokens)))]
    with before(recipe, serve("--deadline", "300", store=path.url), application, change=patient) as proxy:
        application.seen.clear()
        path.mode, path.delay = "delay", 0.1
        with ThreadPoolExecutor(16) as clients:
            answers = list(clients.map(lambda secret: ask(proxy.port, "/", shows(secret)), secrets))

    print(f"{recipe.name}, slow store: {Counter(answer.status for answer in answers)}")
    assert path.hit > 0
    assert {answer.status for answer in answers} <= {401, 429, 503}
    assert application.seen == []
