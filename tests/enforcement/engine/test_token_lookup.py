"""A token that is used before this process has read the documents that were published with it."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from enforcement import Limiter, aio
from enforcement.doors.asgi import LimitMiddleware
from enforcement.doors.wsgi import LimitMiddleware as WSGIMiddleware
from enforcement.model.tokens import mint
from tests.enforcement.stalls import Stalls, timed
from tests.enforcement.world import eventually, fixed, look_ups

LATE = 0.3
# Nobody waits to the end of it. One after the other, as many as ask at once would wait for longer.
LOOKUP = 10.0
LONG = LOOKUP / 2
AT_ONCE = 200


def begun(world):
    """Publish a token of a project without a policy, and return its secret."""
    return world.everything()


def late(path, mode="delay"):
    """Have the change log come late, or never."""
    path.delay, path.only, path.mode = LATE, b"XREAD", mode


def newer(world, count=1):
    """Publish a project and a policy, and after them tokens under both; return their secrets."""
    world.publish({**world.policy("new", fixed(2)), **world.project(ident="proj_2", slug="new")})
    secrets = [mint("live") for _ in range(count)]
    world.publish(tokens={secret: world.token("pol_new", project="proj_2") for secret in secrets})
    return secrets


def test_a_token_waits_for_its_policy(world, path):
    """It is read once more after that, then it is known. Its limits apply from the first request on."""
    begun(world)
    with Limiter(path.url, timeout=1.0, lookup=LOOKUP) as limiter:
        late(path)
        [secret] = newer(world)
        commands = look_ups(limiter)
        decisions, took = timed(lambda: [limiter.check(secret) for _ in range(3)])

        assert [(it.allowed, it.reason) for it in decisions] == [(True, "ok"), (True, "ok"), (False, "limited")]
        assert (len(commands), path.hit > 0, took < LONG) == (2, True, True)


async def test_a_token_of_tasks_waits_for_its_policy(world, path):
    """The same in an event loop, which goes on meanwhile."""
    begun(world)
    async with aio.Limiter(path.url, timeout=1.0, lookup=LOOKUP) as limiter:
        late(path)
        [secret] = newer(world)
        commands = look_ups(limiter)
        first, ticks = asyncio.create_task(limiter.check(secret)), 0
        while not first.done():
            await asyncio.sleep(0.01)
            ticks += 1
        decisions = [await first, await limiter.check(secret), await limiter.check(secret)]

        assert [(it.allowed, it.reason) for it in decisions] == [(True, "ok"), (True, "ok"), (False, "limited")]
        assert (len(commands), ticks >= 3) == (2, True)


@pytest.mark.parametrize("door", ["asgi", "wsgi"])
def test_a_door_lets_a_token_in_that_is_newer_than_its_documents(world, path, door):
    """Whoever makes a policy and a token over REST may use the token at once."""
    begun(world)
    get = through_asgi if door == "asgi" else through_wsgi

    assert get(world, path) == [200, 200, 429]


def through_asgi(world, path):
    """Return the statuses of three requests with a new token."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask():
        async with aio.Limiter(path.url, timeout=1.0, lookup=LOOKUP) as limiter:
            late(path)
            headers = {"Authorization": f"Bearer {newer(world)[0]}"}
            transport = httpx2.ASGITransport(LimitMiddleware(app, limiter))
            async with httpx2.AsyncClient(transport=transport, base_url="http://door") as client:
                return [(await client.get("/", headers=headers)).status_code for _ in range(3)]

    return asyncio.run(ask())


def through_wsgi(world, path):
    """Return the statuses of three requests with a new token."""

    def app(environ, start_response):
        start_response("200 OK", [])
        return [b""]

    with Limiter(path.url, timeout=1.0, lookup=LOOKUP) as limiter:
        late(path)
        headers = {"Authorization": f"Bearer {newer(world)[0]}"}
        transport = httpx2.WSGITransport(WSGIMiddleware(app, limiter))
        with httpx2.Client(transport=transport, base_url="http://door") as client:
            return [client.get("/", headers=headers).status_code for _ in range(3)]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_waits_for_the_policy_too(world, path):
    """What its parent was waiting for when it forked is nothing to it."""
    begun(world)
    with Limiter(path.url, timeout=1.0, lookup=LOOKUP) as limiter, ThreadPoolExecutor(1) as threads:
        late(path)
        [secret, other] = newer(world, 2)
        here = threads.submit(limiter.check, secret)
        assert eventually(lambda: limiter._documents.arrivals._awaited)
        child = os.fork()
        if child == 0:
            os._exit(0 if [limiter.check(it).reason for it in (secret, other)] == ["ok", "ok"] else 1)

        assert (here.result().reason, os.waitpid(child, 0)[1]) == ("ok", 0)


async def test_many_new_tokens_wait_together(world, path):
    """Each is read twice at most, however many publications come meanwhile, and none waits longer than one would."""
    begun(world)
    async with aio.Limiter(path.url, timeout=5.0, lookup=LOOKUP) as limiter:
        late(path)
        secrets = newer(world, AT_ONCE)
        commands = look_ups(limiter)
        with Stalls() as stalls:
            checking, most = asyncio.gather(*map(limiter.check, secrets)), 0
            while not checking.done():
                most = max(most, len(limiter._documents.arrivals._awaited))
                await asyncio.sleep(0.005)
            decisions = await checking

        assert {it.reason for it in decisions} == {"ok"}
        assert (most <= 1, len(commands) <= 2 * AT_ONCE) == (True, True)
        assert stalls.seconds < LONG
        assert not limiter._documents.arrivals._awaited


def test_a_token_that_is_revoked_while_it_waits_is_refused(world, path):
    """What was read of it before the wait is not used after it."""
    begun(world)
    with Limiter(path.url, timeout=1.0, lookup=LOOKUP) as limiter, ThreadPoolExecutor(1) as threads:
        late(path)
        [secret] = newer(world)
        waiting = threads.submit(limiter.check, secret)
        assert eventually(lambda: limiter._documents.arrivals._awaited)
        world.publish(tokens={secret: world.token("pol_new", project="proj_2", revoked=True)})

        assert waiting.result().reason == "revoked"


def test_a_project_that_does_not_exist_is_not_waited_for(world, path):
    """Neither by a process that has the newest documents, nor longer than it takes to read them."""
    begun(world)
    with Limiter(path.url, timeout=1.0, lookup=LOOKUP) as limiter:
        world.followers.append(limiter)
        here, later = mint("live"), mint("live")
        world.publish(tokens={here: world.token(project="proj_9")})
        commands = look_ups(limiter)
        with Stalls() as at_once:
            assert limiter.check(here).reason == "degraded_denied"
        assert (len(commands), at_once.seconds < LATE) == (1, True)

        world.followers.clear()
        late(path)
        world.publish(tokens={later: world.token(project="proj_9")})
        with Stalls() as behind:
            assert limiter.check(later).reason == "degraded_denied"
        assert behind.seconds < LONG


def test_one_wait_in_vain_is_enough(world, path):
    """While the change log does not come at all, one look-up waits within its budget, and the others do not."""
    begun(world)
    with Limiter(path.url, timeout=1.0, lookup=0.6) as limiter:
        late(path, "swallow")
        secrets = newer(world, 30)
        decisions, took = timed(lambda: [limiter.check(secret) for secret in secrets])
        again, quick = timed(lambda: limiter.check(secrets[0]))
        path.mode = "pass"

        assert {it.reason for it in [*decisions, again]} == {"degraded_denied"}
        assert 0.2 < took < 1.2
        assert quick < 0.2
        assert eventually(lambda: limiter.check(secrets[1]).reason == "ok", 10.0)
        assert limiter.stats().outages == 0


def test_a_store_that_is_away_is_not_waited_for(world, path):
    """Its documents are not followed while it decides nothing, though it answers look-ups."""
    known = begun(world)
    with Limiter(path.url, timeout=0.1, lookup=LOOKUP) as limiter:
        assert limiter.check(known).reason == "ok"
        path.delay, path.only, path.mode = 0.2, b"FCALL", "swallow"
        limiter._engine.health.breaker.trip("test")
        assert eventually(lambda: limiter._engine.agent.state == "degraded")
        [secret] = newer(world)
        decision, took = timed(lambda: limiter.check(secret))

        assert (decision.reason, took < LATE) == ("degraded_denied", True)


def test_a_slow_store_keeps_its_look_ups(world, path):
    """If a second reading would not fit into the budget, nothing is waited for, and no look-up fails."""
    begun(world)
    with Limiter(path.url, timeout=1.0, lookup=0.5) as limiter:
        path.delay, path.mode = 0.2, "delay"
        [secret] = newer(world)
        reason = limiter.check(secret).reason
        stats = limiter.stats()

        assert reason in ("degraded_denied", "ok")
        assert (stats.store_failures, stats.outages) == ({}, 0)
        path.mode = "pass"
        assert eventually(lambda: limiter.check(secret).reason == "ok")
