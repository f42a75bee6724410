"""
Wirings of proxies that people get wrong: each is an error, a warning in a log, or works as it was meant.

Each proxy runs once, with its shipped configuration and copies of it that have one mistake each.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from enforcement import Limit, Match
from enforcement.embedded import free_port
from tests.enforcement.service.real_envoy import CONFIGURATIONS as OF_ENVOY
from tests.enforcement.service.real_envoy import envoy
from tests.enforcement.service.running import Gateway, gateway, hourly
from tests.enforcement.world import eventually
from tests.proxies.recipes import CADDY, HAPROXY
from tests.proxies.running import CONFIGURATIONS, Application, ask, running

NOBODY = 1
"""A port on which nothing listens."""

PATIENT = (("500ms", "20s"), ("timeout_ms = 500", "timeout_ms = 20000"), ("timeout: 0.5s", "timeout: 20s"))
CHAT = hourly(0, match=Match(methods=("POST",), path="/v1/chat"))
SLOTS = Limit(name="slots", algorithm="concurrency", quota=3, window_seconds=60)

Mistakes = dict[str, tuple[tuple[str, str], ...]]


class Stand(NamedTuple):
    """A proxy with mistakes. ``ports`` has where each of them listens, and ``log`` reads what the proxy has written."""

    ports: dict[str, int]
    log: Callable[[], str]


@pytest.fixture(scope="module")
def service(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    options = {"arguments": ["--deadline", "10000"], "timeout_ms": "4000"}
    with gateway(server, tmp_path_factory.mktemp("service"), **options) as service:
        yield service


def changed(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


def patient(text: str) -> str:
    for old, new in PATIENT:
        text = text.replace(old, new)
    return text


def says(service: Gateway, text: str) -> bool:
    return eventually(lambda: text in service.service.log.read_text())


def shows(token: str) -> str:
    return f"X-API-Key: {token}"


def posts(port: int, token: str, path: str = "/v1/chat") -> int:
    return ask(port, path, shows(token), method="POST", body=b"{}").status


OF_CADDY: Mistakes = {
    "path": (("rewrite /v1/check", "rewrite /v1/chek"),),
    "uri": (("header_up X-Forwarded-Uri {http.request.uri}", ""),),
    "nobody": (("127.0.0.1:9000", f"127.0.0.1:{NOBODY}"),),
    "application": (("127.0.0.1:9000", "127.0.0.1:8000"),),
    "h2c": (("reverse_proxy 127.0.0.1:9000", "reverse_proxy h2c://127.0.0.1:9000"),),
    "forward_auth": (),
}


@pytest.fixture(scope="module")
def caddy(service: Gateway, application: Application) -> Iterator[Stand]:
    ports = {name: free_port() for name in OF_CADDY}

    def change(text: str) -> str:
        site = text.partition(":8080 {")[2]
        sites = [f":{ports[name]} {{{changed(site, *pairs)}" for name, pairs in OF_CADDY.items() if pairs]
        short = (
            "\tbind 127.0.0.1\n\tforward_auth 127.0.0.1:9000 {\n\t\turi /v1/check\n\t}\n\treverse_proxy 127.0.0.1:8000"
        )
        return patient("\n".join([text, *sites, f":{ports['forward_auth']} {{\n{short}\n}}\n"]))

    with running(CADDY, service=service.service.port, application=application.port, change=change) as proxy:
        yield Stand(ports, lambda: proxy.log)


@pytest.mark.parametrize(("wiring", "status"), [("path", 404), ("nobody", 502)])
def test_caddy_that_does_not_reach_the_service(
    caddy: Stand, service: Gateway, application: Application, wiring: str, status: int
) -> None:
    token = service.token(hourly(9))
    application.seen.clear()

    assert posts(caddy.ports[wiring], token) == status
    assert application.seen == []


def test_caddy_that_asks_the_application_itself(caddy: Stand, service: Gateway, application: Application) -> None:
    """Its answer is the response, as it has a body, and the request goes no further."""
    token = service.token(hourly(9))
    application.seen.clear()

    ask(caddy.ports["application"], "/v1/chat", shows(token))
    assert [path for _, path, _, _ in application.seen] == ["/v1/check"]


def test_caddy_without_the_path(caddy: Stand, service: Gateway) -> None:
    posts(caddy.ports["uri"], service.token(CHAT))

    assert says(service, "does not describe requests by X-Forwarded-Uri, so that")


@pytest.mark.parametrize("wiring", ["h2c", "forward_auth"])
def test_caddy_in_another_way_that_is_right(caddy: Stand, service: Gateway, wiring: str) -> None:
    token = service.token(CHAT)

    assert [posts(caddy.ports[wiring], token, path) for path in ("/v1/chat", "/a")] == [429, 200]


OF_HAPROXY: Mistakes = {
    "path": (("/v1/check403", "/v1/chek403"),),
    "check": (("/v1/check403", "/v1/check"),),
    "method": (('fields["x-forwarded-method"]', 'fields["x-method"]'),),
    "nobody": (),
    "application": (),
}


@pytest.fixture(scope="module")
def haproxy(service: Gateway, application: Application) -> Iterator[Stand]:
    ports = {name: free_port() for name in OF_HAPROXY}
    asked = {"nobody": NOBODY, "application": application.port}

    def change(text: str) -> str:
        script, frontend = "core.register_action", "frontend edge"
        if script in text:
            for name, pairs in OF_HAPROXY.items():
                copy = changed(patient(original), ('register_action("sluicegate"', f'register_action("{name}"'), *pairs)
                text += f'\n;(function(...)\n{copy}\nend)("http://127.0.0.1:{asked.get(name, service.service.port)}")\n'
        elif frontend in text:
            own = frontend + text.partition(frontend)[2].partition("\nbackend ")[0]
            for name, port in ports.items():
                text += changed(own, ("edge", name), (":8080", f":{port}"), ("lua.sluicegate", f"lua.{name}"))
        return patient(text)

    original = (CONFIGURATIONS / "haproxy" / "sluicegate.lua").read_text()
    with running(HAPROXY, service=service.service.port, application=application.port, change=change) as proxy:
        yield Stand(ports, lambda: proxy.log)


def test_haproxy_that_asks_a_path_that_does_not_exist(haproxy: Stand, service: Gateway) -> None:
    assert posts(haproxy.ports["path"], service.token(hourly(9))) == 404


def test_haproxy_that_asks_the_path_for_others(haproxy: Stand, service: Gateway) -> None:
    """It knows no denial of 503 by its status, and requests would pass."""
    assert [posts(haproxy.ports["check"], service.token(limit)) for limit in (CHAT, SLOTS)] == [429, 503]


def test_haproxy_without_the_method(haproxy: Stand, service: Gateway) -> None:
    posts(haproxy.ports["method"], service.token(CHAT))

    assert says(service, "does not describe requests by X-Forwarded-Method, so that")


def test_haproxy_that_asks_nobody(haproxy: Stand, service: Gateway) -> None:
    """Requests pass, as the configuration says, and so does the log."""
    assert posts(haproxy.ports["nobody"], service.token(hourly(0))) == 200
    assert f"http://127.0.0.1:{NOBODY} does not answer, so that requests are not decided" in haproxy.log()


def test_haproxy_that_asks_the_application_itself(haproxy: Stand, service: Gateway, application: Application) -> None:
    assert posts(haproxy.ports["application"], service.token(hourly(0))) == 500
    assert f"http://127.0.0.1:{application.port} is no decision service. It answers 200" in haproxy.log()


@pytest.mark.parametrize("address", ["", "127.0.0.1:9000", "http://127.0.0.1:9000/"])
def test_haproxy_without_an_address_does_not_start(tmp_path: Path, address: str) -> None:
    for path in (CONFIGURATIONS / "haproxy").iterdir():
        (tmp_path / path.name).write_text(path.read_text().replace("lua http://127.0.0.1:9000", f"lua {address}"))

    command = [*HAPROXY.command(tmp_path), "-c"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "needs the address of the decision service, such as http://127.0.0.1:9000" in done.stderr


HTTP, GRPC, RLS = "ext-authz-http", "ext-authz-grpc", "rls"
IN_ENVOY: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "path": (HTTP, (("/v1/envoy", "/v1/envy"),)),
    "check": (HTTP, (("/v1/envoy", "/v1/check"),)),
    "address": (HTTP, (("                - {exact: x-forwarded-for}\n", ""),)),
    "nobody": (HTTP, (("port_value: 9000", f"port_value: {NOBODY}"),)),
    "http1": (GRPC, (("http2_protocol_options", "http_protocol_options"),)),
    "token": (RLS, (("x-api-key, descriptor_key: token", "x-api-key, descriptor_key: tokn"),)),
    "entry": (RLS, (("descriptor_key: path", "descriptor_key: route"),)),
}


@pytest.fixture(scope="module")
def with_mistakes(service: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder, ports = tmp_path_factory.mktemp("envoy"), {name: free_port() for name in IN_ENVOY}
    listeners, clusters = "", ""
    for name, (kind, pairs) in IN_ENVOY.items():
        text = patient((OF_ENVOY / f"{kind}.yaml").read_text()).replace("cluster: sluicegate", f"cluster: {name}")
        text = text.replace("cluster_name: sluicegate", f"cluster_name: {name}")
        text = changed(
            text, ("- name: sluicegate", f"- name: {name}"), *pairs, ("port_value: 8080", f"port_value: {ports[name]}")
        )
        text = text.replace("port_value: 9000", f"port_value: {service.service.port}")
        listener, _, rest = text.partition("  listeners:\n")[2].partition("  clusters:\n")
        listeners, clusters = listeners + listener, clusters + rest.partition("  - name: upstream")[0]
    more = ("  clusters:\n", f"{listeners}  clusters:\n{clusters}")
    with envoy(HTTP, service.service.port, folder, more):
        yield Stand(ports, (folder / "envoy.log").read_text)


def test_envoy_that_asks_a_path_that_does_not_exist(with_mistakes: Stand, service: Gateway) -> None:
    assert posts(with_mistakes.ports["path"], service.token(hourly(9))) == 404


def test_envoy_that_asks_the_path_for_others(with_mistakes: Stand, service: Gateway) -> None:
    """It takes 503 for a failure, so it gets 403 at each path of the service."""
    assert [posts(with_mistakes.ports["check"], service.token(limit)) for limit in (CHAT, SLOTS)] == [429, 403]


def test_envoy_without_the_address(with_mistakes: Stand, service: Gateway) -> None:
    posts(with_mistakes.ports["address"], service.token(CHAT))

    assert says(service, "does not describe requests by X-Forwarded-For, so that")


def test_envoy_that_asks_nobody(with_mistakes: Stand, service: Gateway) -> None:
    """Requests pass, as the configuration says, and the log tells of the service that does not answer."""
    assert ask(with_mistakes.ports["nobody"], "/", shows(service.token(hourly(0)))).status == 200
    assert eventually(lambda: '"cluster_name":"nobody"' in with_mistakes.log())
    line = next(line for line in with_mistakes.log().splitlines() if '"cluster_name":"nobody"' in line)
    assert "failure" in line


def test_envoy_whose_calls_are_none_of_grpc(with_mistakes: Stand, service: Gateway) -> None:
    """Envoy takes every answer over HTTP/1.1 for a failure, and lets the request pass."""
    assert ask(with_mistakes.ports["http1"], "/", shows(service.token(hourly(0)))).status == 200

    assert says(service, "by POST over HTTP/1.1, which is no call of gRPC")


def test_envoy_that_sends_the_token_under_another_key(with_mistakes: Stand, service: Gateway) -> None:
    assert posts(with_mistakes.ports["token"], service.token(hourly(9))) == 429
    assert says(service, "The entry 'tokn' of the rate limit filter holds a token")


def test_envoy_that_sends_the_path_under_another_key(with_mistakes: Stand, service: Gateway) -> None:
    posts(with_mistakes.ports["entry"], service.token(CHAT))

    assert says(service, "Limits look at 'path', but the rate limit filter sends no entry 'path'")
