"""
What only a trusted peer may say: which request it asks for, whose it is, what it costs, and what is given back.

By HTTP, a peer that is not trusted asks for itself, and its description is ignored. By gRPC there is nothing but a
description, so its calls are denied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from enforcement import Limit, Limiter, Match, aio
from enforcement.embedded import ValkeyServer
from enforcement.http.addresses import TrustedProxies
from enforcement.service.judge import Judge
from enforcement.service.rls import RateLimitService
from enforcement.service.settings import ServiceSettings
from enforcement.service.wire import write, write_integer
from enforcement.testing import Published, Store
from tests.enforcement.service.grpc_client import EXT_AUTHZ, RLS
from tests.enforcement.service.running import Gateway, gateway, hourly
from tests.enforcement.service.test_grpc import allows, check_request, framed, problem, rate_limit_request

NOBODY = "192.0.2.1"
"""The only trusted proxy, so that the peers of these tests are none."""


@pytest.fixture(scope="module", params=["h2corn", "hypercorn"])
def wary(
    request: pytest.FixtureRequest, server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp(f"wary-{request.param}")
    options = {"anonymous_project": "shop", "costs_header": "x-costs", "attributes_header": "x-attributes"}
    with gateway(server, folder, server=request.param, trusted_proxies=NOBODY, **options) as running:
        yield running


def remaining(url: str, token: str) -> int:
    with Limiter(url, timeout=1.0, lookup=1.0) as limiter:
        return limiter.check(token, 0).remaining


def refund(token: str) -> bytes:
    entry = write(1, write(1, b"token") + write(2, token.encode()))
    return write(1, b"shop") + write(2, entry + write(3, write_integer(1, 5)) + write_integer(4, 1))


@pytest.mark.parametrize("path", [RLS, EXT_AUTHZ])
def test_a_call_of_an_untrusted_peer_is_denied_and_charges_nothing(
    wary: Gateway, server: ValkeyServer, path: str
) -> None:
    """The denial names the setting, and so does the log."""
    token = wary.token(hourly(5))
    message = rate_limit_request({"token": token}) if path == RLS else check_request(token)

    with wary.channel() as channel:
        answers = [channel.call(path, framed(message)) for _ in range(3)]

    assert {it.status for it in answers} == {"0"}
    assert not any(allows(path, it.message) for it in answers)
    assert problem(path, answers[0])["code"] == "untrusted_proxy"
    assert "SLUICEGATE_TRUSTED_PROXIES" in str(problem(path, answers[0])["detail"])
    assert "127.0.0.1 asks by gRPC, but is no trusted proxy" in wary.service.log.read_text()
    assert remaining(server.url, token) == 5


def test_a_refund_of_an_untrusted_peer_gives_nothing_back(wary: Gateway, server: ValkeyServer) -> None:
    """Who holds a token could lift its limits for ever."""
    token = wary.token(hourly(5))
    with Limiter(server.url) as limiter:
        limiter.check(token, 4)

    with wary.channel() as channel:
        answer = channel.call(RLS, framed(refund(token)))

    assert not allows(RLS, answer.message)
    assert remaining(server.url, token) == 1


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        (ServiceSettings(), 1),
        (ServiceSettings(secret=b"a-secret-of-callers"), 5),
        (ServiceSettings(callers=TrustedProxies(["127.0.0.1"])), 5),
    ],
)
async def test_only_callers_that_are_known_give_back(caplog, server: ValkeyServer, settings, left: int) -> None:
    """Who reaches the service, as each pod of a cluster may, could give itself permits. Charges go on."""
    Store(server).clear()
    with closing(Published(server.url)) as published:
        published.policy("five", hourly(5))
        published.project("shop")
        token = published.token(policy="five", project="shop")
        async with aio.Limiter(server.url, timeout=1.0, lookup=1.0) as limiter:
            service = RateLimitService(Judge(limiter, None), settings)
            await limiter.check(token, 4)
            reply = await service({}, refund(token))

            assert (await limiter.check(token, 0)).remaining == left
    assert allows(RLS, reply) is (left == 5)
    assert ("SLUICEGATE_SERVICE_SECRET" in caplog.text) is (left == 1)


def test_an_untrusted_peer_cannot_charge_the_addresses_of_others(wary: Gateway) -> None:
    """A request without a token has no other name than its address."""
    wary.published.policy("visitors", hourly(1, partition_by=("ip",)))
    wary.published.project("shop", anonymous_policy="visitors")
    wary.follow()
    address = "198.51.100.7"

    with (
        wary.channel() as channel,
        httpx2.Client(base_url=f"http://127.0.0.1:{wary.service.port}", verify=False) as client,
    ):
        said = channel.call(RLS, framed(rate_limit_request({"remote_address": address})))
        forwarded = [client.get("/v1/check", headers={"X-Forwarded-For": f"198.51.100.{n}"}) for n in range(3)]

    assert not allows(RLS, said.message)
    assert [it.status_code for it in forwarded] == [200, 429, 429]


def test_forward_auth_ignores_what_an_untrusted_peer_describes(wary: Gateway, server: ValkeyServer) -> None:
    """Its own request is judged: its method, its address, and a cost of 1."""
    token = wary.token(hourly(9), Limit(name="put", quota=0, window_seconds=60, match=Match(methods=("PUT",))))
    headers = {"X-API-Key": token, "X-Forwarded-Method": "PUT", "X-Costs": "requests=0", "X-Attributes": "method=PUT"}

    with httpx2.Client(base_url=f"http://127.0.0.1:{wary.service.port}", verify=False) as client:
        answers = [client.get("/v1/check", headers=headers).status_code for _ in range(3)]

    assert answers == [200] * 3
    assert remaining(server.url, token) == 6


@pytest.mark.parametrize("kind", ["h2corn", "hypercorn"])
def test_a_call_that_may_not_be_made_harms_no_other(server: ValkeyServer, tmp_path: Path, kind: str) -> None:
    """It is answered by a denial, and the connection of all calls stays open."""
    with gateway(server, tmp_path, server=kind, service_secret="a-secret-of-callers") as running:
        message = framed(rate_limit_request({"token": running.token(hourly(5))}))
        secret = [("sluicegate-secret", "a-secret-of-callers")]
        with running.channel() as channel:
            answers = [channel.call(RLS, message, headers=it) for it in ([], secret, [], secret)]

    assert [it.status for it in answers] == ["0"] * 4
    assert [allows(RLS, it.message) for it in answers] == [False, True, False, True]
