"""The proxies of docker/proxies before an application: what a client sees, and what it cannot forge."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from enforcement.embedded import free_port
from enforcement.model.tokens import mint
from enforcement.testing import Store
from tests.enforcement.world import World, eventually, fixed
from tests.proxies.conftest import WITH_ROOM, Service
from tests.proxies.recipes import CADDY, HAPROXY, MINIMAL_NGINX, NGINX, RECIPES
from tests.proxies.running import Answer, Recipe, Running, ask, running

HTTP1_PORT = free_port()
CHAT = {"methods": ["POST"], "path": "/v1/chat*"}


@pytest.fixture(scope="module", params=RECIPES, ids=lambda recipe: recipe.name)
def recipe(request) -> Recipe:
    """Give each proxy in turn."""
    return request.param


@pytest.fixture(scope="module")
def world(server) -> World:
    """Give one publisher a module. Each test publishes a token of its own."""
    Store(server).clear()
    return World(server.url)


@pytest.fixture(scope="module")
def service(world, server, tmp_path_factory) -> Iterator[Service]:
    """Give one decision service a module. It has so much time that a decision does not fail on a busy machine."""
    world.publish(world.project())
    options = "--deadline", "400", "--http1-port", str(HTTP1_PORT)
    service = Service(server.url, tmp_path_factory.mktemp("service") / "log", *options, **WITH_ROOM)
    yield service
    service.kill()


@pytest.fixture(scope="module")
def running_proxy(recipe, service, application) -> Iterator[Running]:
    """Run the proxy with exactly the configuration that the repository ships, but for the ports."""
    with running(recipe, service=service.port, application=application.port) as proxy:
        yield proxy


@pytest.fixture
def start(world, service, running_proxy, application) -> Callable[[], Running]:
    """Give a function that returns the proxy as soon as the service has what the test published."""

    def start() -> Running:
        assert eventually(lambda: service.revision == world.revision)
        application.seen.clear()
        return running_proxy

    return start


def shows(secret: str) -> str:
    return f"Authorization: Bearer {secret}"


def problem(answer: Answer) -> dict[str, object]:
    """Return the body of a denial. It is a problem that has the status of the response."""
    assert answer["Content-Type"] == "application/problem+json", answer
    body = json.loads(answer.body)
    assert body["status"] == answer.status
    return body


def test_a_quota_holds_and_the_denial_says_why(world, start, recipe, application):
    """200 with our header fields, then 429 with them, Retry-After, and our body."""
    secret = world.everything(fixed(2))
    proxy = start()

    answers = [ask(proxy.port, "/a?b=c", shows(secret)) for _ in range(3)]

    assert [answer.status for answer in answers] == [200, 200, 429], proxy.log
    assert [target for _, target, _, _ in application.seen] == ["/a?b=c"] * 2
    allowed, denied = answers[0], answers[2]
    if recipe.shows_limits:
        assert allowed["RateLimit-Policy"] == '"rpm";q=2;w=3600'
        assert allowed["RateLimit"].startswith('"rpm";r=1;t=')
    assert allowed["Sluicegate-Degraded"] is None
    assert denied["RateLimit"].startswith('"rpm";r=0;t=')
    assert 1 <= int(denied["Retry-After"]) <= 3_600
    assert denied["Sluicegate-Denial"] == "limited"
    body = problem(denied)
    assert (body["code"], body["limit"], body["decision"]) == ("limited", "rpm", denied["Sluicegate-Decision"])
    assert [name for name, _ in denied.fields if name in ("sluicegate-status", "sluicegate-problem")] == []


def test_other_refusals_have_their_status(world, start, application):
    """401 with a challenge, 403 for a project that is off, and 503 for a limit that this integration cannot enforce."""
    slots = {"name": "slots", "algorithm": "concurrency", "quota": 5, "window_seconds": 60}
    secret = world.everything(slots)
    off = mint("live")
    world.publish(world.project(active=False, ident="proj_2", slug="other"), {off: world.token(project="proj_2")})
    proxy = start()

    unknown, without = ask(proxy.port, "/", shows(mint("live"))), ask(proxy.port, "/")
    assert (unknown.status, problem(unknown)["code"]) == (401, "unknown_token"), proxy.log
    assert unknown["WWW-Authenticate"] == 'Bearer realm="sluicegate", error="invalid_token"'
    assert (without.status, problem(without)["code"]) == (401, "missing_token")
    assert without["WWW-Authenticate"] == 'Bearer realm="sluicegate"'
    forbidden = ask(proxy.port, "/", shows(off))
    assert (forbidden.status, problem(forbidden)["code"]) == (403, "inactive_project")
    unsupported = ask(proxy.port, "/", shows(secret))
    assert (unsupported.status, problem(unsupported)["code"]) == (503, "limit_not_supported")
    assert application.seen == []


def test_clients_are_counted_by_their_own_address(world, start, application):
    """What a client says about its address is worth nothing, to the service and to the application."""
    secret = world.everything(fixed(1, partition_by=["ip"]))
    proxy = start()

    def status(source: str, *fields: str) -> int:
        return ask(proxy.port, "/", shows(secret), *fields, source=source).status

    assert [status("127.0.0.2"), status("127.0.0.3"), status("127.0.0.2")] == [200, 200, 429], proxy.log
    for forged in ("X-Forwarded-For: 203.0.113.1", "X-Real-IP: 203.0.113.1", "Forwarded: for=203.0.113.1"):
        assert status("127.0.0.3", forged) == 429, forged
    assert status("127.0.0.3", "X-Forwarded-For: 203.0.113.1", "X-Forwarded-For: 203.0.113.2") == 429
    assert status("127.0.0.3", "Connection: close, X-Forwarded-For") == 429
    assert status("127.0.0.4", "X-Forwarded-For: 203.0.113.1") == 200
    assert [fields["x-forwarded-for"] for _, _, fields, _ in application.seen] == [f"127.0.0.{i}" for i in (2, 3, 4)]


def test_limits_see_path_and_method(world, start):
    """Those of the request line. A client cannot describe another request, nor hide the description of this one."""
    secret = world.everything(fixed(0, match=CHAT))
    proxy = start()

    def status(target: str, method: str, *fields: str) -> int:
        return ask(proxy.port, target, shows(secret), *fields, method=method, body=b"{}" * (method == "POST")).status

    assert [status("/v1/chat?x=1", "POST"), status("/v1/chat", "GET"), status("/v1/x", "POST")] == [429, 200, 200]
    assert status("/v1/ch%61t", "POST") == 429
    for forged in (
        ["X-Forwarded-Uri: /harmless", "X-Forwarded-Method: GET"],
        ["x-forwarded-uri: /harmless", "x-forwarded-uri: /harmless"],
        ["X_Forwarded_Uri: /harmless", "X-Original-URL: /harmless", "X-HTTP-Method-Override: GET"],
        ["Connection: close, X-Forwarded-Uri, X-Forwarded-Method"],
        ["Connection: X-Forwarded-Uri", "Connection: close, X-Forwarded-Method", "X-Forwarded-Uri: /harmless"],
    ):
        assert status("/v1/chat", "POST", *forged) == 429, forged


@pytest.mark.parametrize("target", ["http://shop.test/v1/chat", "/v1/chat?/../x", "/v1/chat;x", "/v1/chat/../x"])
def test_the_path_is_the_one_that_the_application_gets(world, start, application, target):
    """However a client spells it: a request passes only if its limit does not cover what reaches the application."""
    secret = world.everything(fixed(0, match={"path": "/v1/chat*"}))
    proxy = start()

    answer = ask(proxy.port, target, shows(secret))

    assert answer.status in (200, 429)
    assert [path for _, path, _, _ in application.seen if path.startswith("/v1/chat")] == [], proxy.log
    assert (answer.status == 200) == bool(application.seen)


def test_a_websocket_is_one_request(world, start, application):
    """The service is not asked for a WebSocket, but about a request for one."""
    secret = world.everything(fixed(1))
    proxy = start()
    fields = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ]

    statuses = [ask(proxy.port, "/socket", shows(secret), *fields).status for _ in range(2)]

    assert statuses == [101, 429], proxy.log
    assert len(application.seen) == 1


@pytest.mark.parametrize("protocols", [["h2c"], ["other/2"], ["h2c, other/2"], ["other/2", "websocket"]], ids=str)
def test_no_other_protocol_opens_a_tunnel(world, start, application, protocols):
    """A client could send any number of requests through it, and only one would be counted."""
    secret = world.everything(fixed(1))
    proxy = start()

    ask(proxy.port, "/", shows(secret), "Connection: Upgrade", *(f"Upgrade: {protocol}" for protocol in protocols))

    assert [fields["upgrade"] for _, _, fields, _ in application.seen if "upgrade" in fields] == [], proxy.log


def test_no_method_opens_a_tunnel(world, start, application):
    """An application that answers CONNECT as any other method reads on from the same connection."""
    secret = world.everything(fixed(9))
    proxy = start()

    with socket.create_connection(("127.0.0.1", proxy.port), 10) as connection:
        connection.sendall(f"CONNECT shop.test:80 HTTP/1.1\r\nHost: shop.test:80\r\n{shows(secret)}\r\n\r\n".encode())
        connection.recv(65_536)
        with suppress(OSError):
            connection.sendall(b"GET /second HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n")
            while connection.recv(65_536):
                pass

    assert "/second" not in [target for _, target, _, _ in application.seen], proxy.log


def test_costs_and_attributes_cannot_be_forged(world, start, application):
    """The service reads them from fields that are the proxy's own, so a client's are removed."""
    secret = world.everything(fixed(1), fixed(0, name="large", match={"attributes": {"size": "large"}}))
    proxy = start()

    answers = [
        ask(proxy.port, "/", shows(secret), "X-Sluicegate-Costs: requests=0", "X-Sluicegate-Attributes: size=large"),
        ask(proxy.port, "/", shows(secret), "X-Sluicegate-Costs: requests=0", "Connection: close, X-Sluicegate-Costs"),
    ]

    assert [answer.status for answer in answers] == [200, 429], proxy.log


def test_other_fields_of_the_request_are_attributes(world, start):
    """A limit that is partitioned by a header field counts its values apart."""
    secret = world.everything(fixed(1, partition_by=["header.x-team"]))
    proxy = start()

    statuses = [ask(proxy.port, "/", shows(secret), f"X-Team: {team}").status for team in "aba"]

    assert statuses == [200, 200, 429]


SHOW_SECRET = {
    NGINX: ('Sluicegate-Secret "";', 'Sluicegate-Secret "the secret of callers";'),
    CADDY: ("header_up -Sluicegate-Secret", 'header_up Sluicegate-Secret "the secret of callers"'),
    HAPROXY: (
        '-- fields["sluicegate-secret"] = { "the secret" }',
        'fields["sluicegate-secret"] = { "the secret of callers" }',
    ),
}


@pytest.mark.parametrize("recipe", SHOW_SECRET, ids=lambda recipe: recipe.name)
def test_the_proxy_shows_the_secret_and_its_client_cannot(world, recipe, serve, application):
    """It takes the line that the configuration names. What a client sends in its place is removed."""
    secret = world.everything(fixed(9))
    shared = "the secret of callers"
    closed = {"SLUICEGATE_SERVICE_SECRET": shared, "SLUICEGATE_SERVICE_CALLERS": "192.0.2.1"}
    ports = {"service": serve("--deadline", "400", **WITH_ROOM, **closed).port, "application": application.port}

    with running(recipe, **ports) as proxy:
        refused = ask(proxy.port, "/", shows(secret), f"Sluicegate-Secret: {shared}")
    application.seen.clear()
    with running(recipe, **ports, change=lambda text: text.replace(*SHOW_SECRET[recipe])) as proxy:
        allowed = ask(proxy.port, "/", shows(secret))

    assert (refused.status, problem(refused)["code"]) == (403, "caller_refused")
    assert allowed.status == 200
    assert shared not in application.seen[0][2].values()


def test_the_application_is_as_without_us(world, start, application):
    """Bodies and methods reach it, and its own statuses reach the client, also those that we use."""
    secret = world.everything(fixed(100))
    proxy = start()
    content = b"x" * 100_000

    assert ask(proxy.port, "/form", shows(secret), method="POST", body=content).status == 200
    method, target, fields, body = application.seen.pop()
    assert (method, target, body) == ("POST", "/form", content)
    assert fields["authorization"] == f"Bearer {secret}"
    assert not any(name.startswith(("x-sluicegate", "sluicegate")) for name in fields)
    for status in (401, 403, 404, 429, 500, 502, 503, 504):
        answer = ask(proxy.port, f"/status/{status}", shows(secret))
        assert (answer.status, json.loads(answer.body)) == (status, {"path": f"/status/{status}"})


def test_a_request_with_as_many_limits_as_it_can_have(world, start, recipe):
    """Their fields are longer than the usual buffers. A proxy might take a response that does not fit for none."""
    secret, kinds = mint("live"), [f"{recipe.name}-{kind}" for kind in ("all", "shop", "api")]
    documents = {"global": {"schema": 1, "policy": f"pol_{kinds[0]}"}, **world.project(f"pol_{kinds[1]}")}
    for kind in kinds:
        documents |= world.policy(kind, *(fixed(2, name=f"{kind}-{n}-".ljust(64, "x")) for n in range(32)))
    world.publish(documents, {secret: world.token(f"pol_{kinds[2]}")})
    proxy = start()

    answers = [ask(proxy.port, "/", shows(secret)) for _ in range(3)]

    assert [answer.status for answer in answers] == [200, 200, 429], proxy.log
    assert len(problem(answers[2])["violated-policies"]) == 96


def test_a_flood_of_header_fields_opens_nothing(world, start, application):
    """Neither many of them nor long ones keep the proxy from asking, or the service from answering."""
    secret = world.everything(fixed(0))
    proxy = start()
    for count, length in [(n, 1_000) for n in (1, 7, *range(13, 18), *range(28, 34), *range(46, 50), *range(60, 66))]:
        flood(proxy.port, secret, count, length)
    for count in (90, *range(94, 104), 130, 300, 900, 1_100):
        flood(proxy.port, secret, count, 8)
    for length in (4_000, 8_100, 15_000, 16_300, 32_000, 48_000, 64_000, 70_000):
        flood(proxy.port, secret, 1, length)

    assert application.seen == []
    assert ask(proxy.port, "/", shows(secret), *["X-Field: x"] * 60).status == 429


def flood(port: int, secret: str, count: int, length: int) -> None:
    """Send a request that is to be denied, with so many more fields of that length. A proxy may end the connection."""
    fields = [f"X-Field-{number}: {'x' * length}" for number in range(count)]
    with suppress(OSError):
        assert ask(port, "/", shows(secret), *fields).status >= 400, (count, length)


def test_a_denied_upload_gets_its_denial(world, start, application):
    """Although nobody reads what is uploaded."""
    secret = world.everything(fixed(0))
    proxy = start()

    answer = ask(proxy.port, "/form", shows(secret), method="POST", body=b"x" * 100_000)

    assert (answer.status, problem(answer)["code"]) == (429, "cost_exceeds_capacity")
    assert application.seen == []


def test_the_service_keeps_its_connections(world, start):
    """A connection for each request would cost more than the decision."""
    secret = world.everything(fixed(1_000))
    proxy = start()
    before = connections(proxy.service)
    for _ in range(20):
        assert ask(proxy.port, "/", shows(secret)).status == 200

    after = connections(proxy.service)
    assert after
    assert len(after - before) <= 4  # nginx has as many as workers


def connections(port: int) -> set[str]:
    """Return where the connections to a port of this host come from, also of those that ended recently."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    # Their last fields are hexadecimal; 0A is listening.
    return {row[1] for row in rows if row[2].endswith(f":{port:04X}") and row[3] != "0A"}


@pytest.mark.parametrize(("second", "statuses"), [(True, [200, 200, 403, 200, 401]), (False, [500] * 5)])
def test_nginx_as_everybody_writes_it(world, service, application, second, statuses):
    """Without proxy_http_version it speaks HTTP/1.0. The second port of the service takes it, the first refuses it."""
    secret = world.everything(fixed(2, match={"path": "/a"}))
    port = HTTP1_PORT if second else service.port

    with running(
        MINIMAL_NGINX,
        service=service.port,
        application=application.port,
        change=lambda text: text.replace(":9010", f":{port}"),
    ) as proxy:
        assert eventually(lambda: service.revision == world.revision)
        paths = "/a", "/a?b", "/a", "/b"
        answers = [ask(proxy.port, path, shows(secret)).status for path in paths] + [ask(proxy.port, "/b").status]

    assert answers == statuses, proxy.folder
