"""The decision service behind a real Envoy, by each of its three filters, as the shipped configurations have them."""

from __future__ import annotations

import signal
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from enforcement import Limit, Limiter, Match
from enforcement.embedded import ValkeyServer
from enforcement.model.tokens import mint
from tests.enforcement.faults import FaultyPath
from tests.enforcement.service.real_envoy import CONFIGURATIONS, Envoy, envoy
from tests.enforcement.service.running import Gateway, gateway, hourly, service
from tests.enforcement.traffic import traffic
from tests.enforcement.world import eventually
from tests.scale import scale

FILTERS = ["ext-authz-http", "ext-authz-grpc", "rls"]
OPENS = {"rls": "failure_mode_deny: false", "ext-authz-http": "failure_mode_allow: true"}
OPENS["ext-authz-grpc"] = OPENS["ext-authz-http"]
# What an Envoy is started for alone: the service answers all filters by the same deadline, and the stand asks by each.
ONE = scale(["ext-authz-grpc"], FILTERS)
CLOSES = {
    name: text.replace("true", "no").replace("false", "true").replace("no", "false") for name, text in OPENS.items()
}
PATIENT = ("timeout: 0.5s", "timeout: 5s")
"""The wait of the shipped configurations for the service, and one that a busy machine of tests does not use up."""


@contextmanager
def standing(
    folder: Path, name: str, *replaced: tuple[str, str], slow: bool = False, **environ: str
) -> Iterator[tuple[ValkeyServer, Gateway, Envoy]]:
    """Run a store, by *slow* behind a path that can delay it, the service with a deadline of 100 ms, and an Envoy."""
    (folder / "rls.toml").write_text((CONFIGURATIONS / "rls.toml").read_text() + '[projects]\nwebsite = "shop"\n')
    options = {"arguments": ["--deadline", "100"], "rls_mapping": str(folder / "rls.toml")}
    with ExitStack() as running:
        store = running.enter_context(ValkeyServer(persistent=False))
        path = FaultyPath(urlsplit(store.url).port or 0) if slow else None
        service = running.enter_context(gateway(store, folder, path=path, **options, **environ))
        yield store, service, running.enter_context(envoy(name, service.service.port, folder, *replaced))
        if store.running:
            store.thaw()
        if path is not None:
            path.close()


@pytest.fixture(scope="module", params=FILTERS)
def stand(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Gateway, Envoy]]:
    """The filter's name, the service and the Envoy, for tests that harm none of them."""
    with standing(tmp_path_factory.mktemp(request.param), request.param) as (_, service, proxy):
        yield request.param, service, proxy


def seen_from(name: str, status: int) -> int:
    """Return the status that a client sees: the rate limit filter has one for all denials."""
    return 429 if name == "rls" and status != 200 else status


def test_limit_is_exact_and_told(stand: tuple[str, Gateway, Envoy]) -> None:
    """Five of seven requests pass, and each answer says what is left, once."""
    _, service, proxy = stand
    token = service.token(hourly(5))

    answers = [proxy.get("/things?page=2", token) for _ in range(7)]

    assert [it.status_code for it in answers] == [200] * 5 + [429] * 2
    assert [it.headers.get_list("ratelimit-policy") for it in answers] == [['"hourly";q=5;w=3600']] * 7
    assert [it.headers["ratelimit"].partition(";t=")[0] for it in answers] == [
        f'"hourly";r={left}' for left in (4, 3, 2, 1, 0, 0, 0)
    ]


def test_denial_is_a_problem_with_its_fields(stand: tuple[str, Gateway, Envoy]) -> None:
    """The client gets the body and the fields that any other door would give it."""
    _, service, proxy = stand
    token = service.token(hourly(1))
    proxy.get("/", token)

    answer = proxy.get("/", token)

    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["violated-policies"] == ["hourly"]
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert 1 <= int(answer.headers["retry-after"]) <= 3_600
    assert answer.headers["sluicegate-denial"] == "limited"
    assert answer.headers["sluicegate-decision"] == answer.json()["decision"]


@pytest.mark.parametrize(
    ("shown", "status", "code"),
    [
        ("missing", 401, None),
        ("nonsense", 401, "unknown_token"),
        ("revoked", 401, "revoked"),
        ("closed", 403, "inactive_project"),
        ("hopeless", 429, "cost_exceeds_capacity"),
    ],
)
def test_every_reason_has_its_status(stand: tuple[str, Gateway, Envoy], shown: str, status: int, code: str) -> None:
    """A refusal reaches the client as what it is, and never the upstream."""
    name, service, proxy = stand
    tokens = {"missing": None, "nonsense": "nonsense", "hopeless": service.token(hourly(0))}
    if shown == "revoked":
        tokens[shown] = service.token(hourly(9))
        service.published.revoke(tokens[shown])
    elif shown == "closed":
        service.published.project("closed", active=False)
        tokens[shown] = service.token(hourly(9), project="closed")
    service.follow()
    before = len(proxy.upstream.seen)

    answer = proxy.get("/", tokens[shown])

    assert answer.status_code == seen_from(name, status)
    assert answer.json()["status"] == status
    assert code is None or answer.json()["code"] == code
    assert ("www-authenticate" in answer.headers) == (status == 401)
    assert len(proxy.upstream.seen) == before


def test_what_the_service_cannot_enforce_does_not_pass(stand: tuple[str, Gateway, Envoy]) -> None:
    """Envoy takes 5xx of an HTTP service for a failure, and would let the request pass."""
    name, service, proxy = stand
    token = service.token(Limit(name="slots", algorithm="concurrency", quota=3, window_seconds=60))

    answer = proxy.get("/", token)

    assert answer.status_code == {"ext-authz-http": 403, "ext-authz-grpc": 503, "rls": 429}[name]
    assert answer.json()["code"] == "limit_not_supported"


def test_limits_see_method_and_path(stand: tuple[str, Gateway, Envoy]) -> None:
    """The path counts without its query, however the client writes it."""
    _, service, proxy = stand
    token = service.token(hourly(2, match=Match(methods=("GET",), path="/chat")))

    paths = ["/chat", "/chat?x=1", "/%63hat", "/chat%3Fx", "/other"]
    assert [proxy.get(path, token).status_code for path in paths] == [200, 200, 429, 200, 200]


@pytest.mark.parametrize("name", FILTERS)
def test_requests_without_a_token_count_for_their_address(tmp_path: Path, name: str) -> None:
    """A client cannot choose the address that it is counted by, and each filter asks about it."""
    with standing(tmp_path, name, anonymous_project="shop") as (_, service, proxy):
        service.published.policy("visitors", hourly(2, partition_by=("ip",)))
        service.published.project("shop", anonymous_policy="visitors")
        service.follow()

        forged = [proxy.get("/", X_Forwarded_For=f"192.0.2.{number}").status_code for number in range(4)]

    assert forged == [200, 200, 429, 429]


@pytest.mark.proof
@pytest.mark.parametrize("name", scale(["ext-authz-grpc"], ["ext-authz-grpc", "rls"]))
def test_an_envoy_that_is_not_trusted_opens_nothing(tmp_path: Path, name: str) -> None:
    """Its calls are denied, however many it makes at once, and no answer is a failure that it could take for one."""
    with standing(tmp_path, name, PATIENT, trusted_proxies="192.0.2.1") as (_, service, proxy):
        token = service.token(hourly(1_000))
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: proxy.get("/", token), range(200)))

    assert {it.status_code for it in answers} == {seen_from(name, 403)}
    assert {it.json()["code"] for it in answers} == {"untrusted_proxy"}
    assert proxy.upstream.seen == []


@pytest.mark.proof
@pytest.mark.parametrize("name", scale(["rls"], ["ext-authz-grpc", "rls"]))
def test_clients_that_leave_open_nothing_to_others(tmp_path: Path, name: str) -> None:
    """Envoy resets their calls, and a service that ended the connection for that would end the calls of all."""
    with standing(tmp_path, name, PATIENT) as (_, service, proxy):
        token = service.token(hourly(0))
        request = f"GET / HTTP/1.1\r\nHost: a\r\nX-API-Key: {token}\r\n\r\n".encode()
        statuses, deadline = set(), time.monotonic() + 20
        while proxy.count("upstream_rq_tx_reset") < 300 and time.monotonic() < deadline:
            for _ in range(5):
                _leave(proxy.port, request)
            statuses.add(proxy.get("/", token).status_code)

        assert proxy.count("upstream_rq_tx_reset") >= 300
        assert proxy.count("upstream_cx_close_notify") == 0
        assert statuses == {429}
    assert proxy.upstream.seen == []


def _leave(port: int, request: bytes) -> None:
    """Send the same request on 20 connections, and reset them all."""
    clients = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(20)]
    for client in clients:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(request)
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    "target",
    [
        b"GET /../../healthz",
        b"GET /../healthz",
        b"GET //healthz",
        b"GET /%2e%2e/%2e%2e/readyz",
        b"GET /..%2f..%2freadyz",
        b"GET /\\..\\..\\healthz",
        b"GET ?/healthz",
        b"GET http://a/../../healthz",
        b"OPTIONS *",
        b"POST /../../envoy.service.auth.v3.Authorization/Check",
    ],
)
def test_no_path_is_that_of_another_page_of_the_service(stand: tuple[str, Gateway, Envoy], target: bytes) -> None:
    """Envoy puts the path of the client behind that of the service, whose other pages answer 200 to everybody."""
    _, _, proxy = stand
    before = len(proxy.upstream.seen)

    with socket.create_connection(("127.0.0.1", proxy.port), 10) as client:
        client.sendall(target + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65_536), b""))

    assert answer.split(b" ", 2)[1][:1] == b"4", answer[:200]
    assert len(proxy.upstream.seen) == before


@pytest.mark.parametrize(
    "field",
    [
        b"X-API-Key: \xff\xfe",
        b"Authorization: Bearer \xe9",
        b"X-API-Key: " + b"x" * 40_000,
        b"X-API-Key: sg_live_\xc3\x28",
        b"Authorization: Bearer",
        b"X-API-Key:",
    ],
    ids=lambda field: field[:24].decode("latin-1"),
)
def test_hostile_fields_open_no_door(stand: tuple[str, Gateway, Envoy], field: bytes) -> None:
    """A message that the service could not read would be permission."""
    _, _, proxy = stand

    with socket.create_connection(("127.0.0.1", proxy.port), 10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + field + b"\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65_536), b""))

    assert answer.split(b" ", 2)[1] in (b"400", b"401", b"429", b"431"), answer[:200]


def test_tokens_of_an_answer_are_charged_when_it_has_ended(tmp_path: Path) -> None:
    """The charge at the end of a stream denies nothing, and is made where the permits are not left as well."""
    with standing(tmp_path, "rls") as (store, service, proxy):
        limit = Limit(name="tokens", algorithm="fixed_window", quota=100, window_seconds=3_600, unit="tokens")
        token = service.token(limit, hourly(50))
        proxy.upstream.tokens_used = 40

        statuses = [proxy.get("/", token).status_code for _ in range(2)]

        assert statuses == [200, 200]
        assert eventually(lambda: _left(store.url, token) == {"hourly": 48, "tokens": 20})
        proxy.get("/", token)
        assert eventually(lambda: _left(store.url, token) == {"hourly": 47, "tokens": 0})


@pytest.mark.proof
@pytest.mark.parametrize("name", ONE)
def test_tokens_that_were_never_met_do_not_pass_before_a_slow_store(tmp_path: Path, name: str) -> None:
    """The look-up of a token ends within the deadline as well, so that Envoy is always told."""
    with standing(tmp_path, name, PATIENT, slow=True) as (_, service, proxy):
        refused = [service.token(hourly(0)) for _ in range(20)]
        service.path.mode, service.path.delay = "delay", 0.1

        with ThreadPoolExecutor(20) as pool:
            answers = list(
                pool.map(lambda token: proxy.get("/", token), [*refused, *(mint("live") for _ in range(200))])
            )

        assert {it.status_code for it in answers} <= {401, 403, 429, 503}
        assert proxy.upstream.seen == []


@pytest.mark.proof
@pytest.mark.parametrize("name", scale(FILTERS[1:2], FILTERS))
def test_a_rolling_restart_leaves_no_request_undecided(tmp_path: Path, name: str) -> None:
    """An instance that is about to end says so, Envoy asks the other one, and each request is charged once."""
    quota, drain = 100_000, scale(60, 3)  # seconds; the small form waits for Envoy, and then ends the service
    with ExitStack() as running:
        store = running.enter_context(ValkeyServer(persistent=False))
        options = {"arguments": ["--deadline", "400", "--drain", str(drain)], "timeout_ms": "200"}
        (tmp_path / "two").mkdir()
        first = running.enter_context(gateway(store, tmp_path, **options))
        one, two = first.service, running.enter_context(service(store.url, tmp_path / "two", **options))
        token = first.token(hourly(quota))
        replaced = [_second(one.port, two.port), (OPENS[name], CLOSES[name]), PATIENT, *scale([OFTEN], [])]
        proxy = running.enter_context(envoy(name, one.port, tmp_path, *replaced))
        running.callback(two.kill)
        running.callback(one.kill)

        with traffic(lambda: proxy.get("/", token).status_code, scale(2, 4)) as statuses:
            for instance in one, two:
                if drain == 60:
                    instance.send(signal.SIGTERM)
                    assert eventually(lambda port=instance.port: not proxy.asks(port), 20, 0.05)
                instance.stop()
                instance.start()
                assert eventually(lambda port=instance.port: proxy.asks(port), 20, 0.05)

        assert set(statuses) == {200}, statuses
        assert eventually(lambda: quota - _left(store.url, token)["hourly"] == statuses[200])


OFTEN = ("interval: 1s", "interval: 0.1s")
"""How often the shipped configurations look at ``/readyz``, and a shorter time."""


def _second(first: int, second: int) -> tuple[str, str]:
    """Return an endpoint of a configuration, and what takes its place to have two."""
    one, two = (
        f"{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}"
        for port in (first, second)
    )
    return one, f"{one}, {two}"


def _left(url: str, token: str) -> dict[str, int]:
    """Return what is left of each limit of a token."""
    with Limiter(url) as limiter:
        return {limit.name: limit.remaining for limit in limiter.check(token, 0).limits}


@pytest.mark.proof
@pytest.mark.parametrize(
    ("mode", "name"),
    scale(
        [("opens", "ext-authz-http"), ("closes", "ext-authz-grpc"), ("opens", "rls")],
        [(mode, name) for mode in ("opens", "closes") for name in FILTERS],
    ),
)
def test_a_dead_service_opens_or_closes_as_configured(tmp_path: Path, name: str, mode: str) -> None:
    """The configuration says what happens to requests while nobody answers, and nothing else does."""
    replaced = [] if mode == "opens" else [(OPENS[name], CLOSES[name])]
    with standing(tmp_path, name, *replaced) as (_, service, proxy):
        token = service.token(hourly(1))
        assert [proxy.get("/", token).status_code for _ in range(2)] == [200, 429]

        service.service.stop(signal.SIGKILL)
        seconds, answer = proxy.timed("/", token)
        service.service.start()
        healed = eventually(lambda: proxy.get("/", token).status_code == 429)

    assert answer.status_code == (200 if mode == "opens" else 503)
    assert seconds < 1.0
    assert healed


@pytest.mark.proof
@pytest.mark.parametrize("name", ONE)
def test_a_frozen_store_is_answered_before_the_proxy_gives_up(tmp_path: Path, name: str) -> None:
    """The limiter decides by the rule of the limit, where Envoy would have let everything pass."""
    with standing(tmp_path, name, PATIENT) as (store, service, proxy):
        token = service.token(hourly(3))
        other = service.token(hourly(3))
        proxy.get("/", token)
        store.freeze()

        answers = [proxy.timed("/", token) for _ in range(6)]
        unmet = proxy.timed("/", other)

    assert [answer.status_code for _, answer in answers] == [200] * 2 + [429] * 4
    assert all(answer.headers["sluicegate-degraded"] == "fallback" for _, answer in answers)
    assert max(seconds for seconds, _ in (*answers, unmet)) < 1.0
    assert unmet[1].status_code == {"ext-authz-http": 403, "ext-authz-grpc": 503, "rls": 429}[name]
    assert unmet[1].json()["code"] == "degraded_denied"
