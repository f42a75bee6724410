"""Several upstreams, their credentials, and what the proxy says about itself."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from enforcement.doors.proxy import create_app, credentials
from enforcement.doors.proxy.settings import ProxySettings
from enforcement.embedded import free_port
from enforcement.model.limits import Limit
from enforcement.testing import Published
from tests.docs.tls import certificate, terminator
from tests.enforcement.doors.proxy.conftest import Peer, Running, Scripted, running
from tests.enforcement.world import eventually
from tests.scale import scale

PLENTY = Limit(name="per-hour", algorithm="fixed_window", quota=100_000, window_seconds=3600)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Noting(Scripted):
    """An upstream that notes the heads of requests, and answers them."""

    def __init__(self, response: bytes = OK) -> None:
        self.seen: list[bytes] = []
        self.response = response
        super().__init__(self._answer)

    def _answer(self, peer: Peer) -> None:
        while head := peer.head():
            self.seen.append(head)
            peer.send(self.response)

    def field(self, name: bytes) -> list[bytes]:
        """Return the values of a field in the last request."""
        lines = [line.partition(b": ") for line in self.seen[-1].split(b"\r\n")[1:]]
        return [value for found, _, value in lines if found == name]


@pytest.fixture(scope="module")
def kind() -> str:
    return "uvicorn"


@pytest.fixture
def noting() -> Iterator[Callable[..., Noting]]:
    servers: list[Noting] = []

    def begin(response: bytes = OK) -> Noting:
        servers.append(Noting(response))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


def get(proxy: Running, path: str, token: str, **fields: str) -> httpx2.Response:
    return httpx2.get(f"{proxy.catch_up()}{path}", verify=False, headers={"X-API-Key": token, **fields})


def test_the_longest_prefix_chooses_the_upstream(start, noting, token_of, tmp_path: Path) -> None:
    """It is replaced by the path of the upstream. The rest, and the query, stay as they were written."""
    shop, search, rest = noting(), noting(), noting()
    file = tmp_path / "upstreams.toml"
    file.write_text(
        f'["/shop"]\nurl = "{shop.url}/v1/"\n["/shop/search/"]\nurl = "{search.url}"\n["/"]\nurl = "{rest.url}"\n'
    )
    proxy, token = start(SLUICEGATE_UPSTREAMS_FILE=str(file)), token_of(PLENTY)

    targets = {
        "/shop": (shop, b"/v1"),
        "/shop/": (shop, b"/v1/"),
        "/shop/a%2Fb?x=%41": (shop, b"/v1/a%2Fb?x=%41"),
        "/shopping": (rest, b"/shopping"),
        "/shop/search": (search, b"/"),
        "/shop/search/x": (search, b"/x"),
        "/%73hop/x": (rest, b"/%73hop/x"),
    }
    for path, (upstream, target) in targets.items():
        assert get(proxy, path, token).status_code == 200
        assert upstream.seen[-1].split(b" ")[1] == target, path


def test_no_path_leads_out_of_its_upstream(start, noting, token_of) -> None:
    """A segment that means another path is refused where the upstream is a part of a server."""
    upstream = noting()
    proxy = start(SLUICEGATE_UPSTREAM_URL=f"{upstream.url}/v1")

    for path in ("/../admin", "/x/%2e%2E/../admin", "/x/..\\admin", "/."):
        assert proxy.request(f"GET {path}", token_of(PLENTY)).status == 400
    assert proxy.request("GET /a..b/...", token_of(PLENTY)).status == 200
    assert [head.split(b" ")[1] for head in upstream.seen] == [b"/v1/a..b/..."]


def test_a_path_without_an_upstream_is_not_found(start, noting, token_of, tmp_path: Path) -> None:
    """Nothing is sent to another upstream instead."""
    upstream, file = noting(), tmp_path / "upstreams.toml"
    file.write_text(f'["/shop"]\nurl = "{upstream.url}"\n')

    assert get(start(SLUICEGATE_UPSTREAMS_FILE=str(file)), "/other", token_of(PLENTY)).status_code == 404
    assert upstream.seen == []


def test_a_credential_takes_the_place_of_the_token(start, noting, token_of) -> None:
    """Whatever the client sends in its field, the upstream gets the one that is configured."""
    upstream = noting()
    proxy, token = start(upstream, SLUICEGATE_UPSTREAM_CREDENTIAL="sk-ours"), token_of(PLENTY)

    get(proxy, "/", token, Authorization="Bearer of-the-client")
    assert upstream.field(b"authorization") == [b"Bearer sk-ours"]
    assert upstream.field(b"x-api-key") == []
    httpx2.get(f"{proxy.catch_up()}/", verify=False, headers={"Authorization": f"Bearer {token}"})
    assert upstream.field(b"authorization") == [b"Bearer sk-ours"]


def test_a_credential_has_the_field_that_is_set(start, noting, token_of) -> None:
    """Some upstreams read another one, and take the value as it is."""
    upstream = noting()
    options = {"SLUICEGATE_UPSTREAM_CREDENTIAL": "sk-ours", "SLUICEGATE_UPSTREAM_CREDENTIAL_FIELD": "X-API-Key"}

    get(start(upstream, **options), "/", token_of(PLENTY), Authorization="Bearer of-the-client")

    assert upstream.field(b"x-api-key") == [b"sk-ours"]
    assert upstream.field(b"authorization") == [b"Bearer of-the-client"]


def test_a_credential_is_read_again_when_its_file_changes(start, noting, token_of, tmp_path: Path) -> None:
    """Without a restart. A file that is gone stops requests, because none may be sent without a credential."""
    upstream, file, token = noting(), tmp_path / "credential", token_of(PLENTY)
    file.write_text("first\n")
    proxy = start(upstream, SLUICEGATE_UPSTREAM_CREDENTIAL_FILE=str(file))

    def sent() -> list[bytes]:
        return upstream.field(b"authorization") if get(proxy, "/", token).status_code == 200 else []

    assert sent() == [b"Bearer first"]
    file.with_suffix(".new").write_text("Basic second")
    file.with_suffix(".new").rename(file)
    assert eventually(lambda: sent() == [b"Basic second"])
    file.unlink()
    assert eventually(lambda: get(proxy, "/", token).status_code == 503)


def test_no_project_gets_the_credential_of_another(
    start, noting, token_of, published: Published, tmp_path: Path
) -> None:
    """Among many requests at the same time over shared connections, each carries its own project's."""
    upstream = noting()
    tokens: dict[str, str] = {}
    for name in ("alpha", "beta", "gamma"):
        published.project(name)
        tokens[name] = token_of(PLENTY, project=name)
        if name != "gamma":
            (tmp_path / published._projects[name]["id"]).write_text(f"key-of-{name}")
    proxy = start(upstream, SLUICEGATE_UPSTREAM_CREDENTIAL_FOLDER=str(tmp_path))

    def ask(number: int) -> int:
        name = ("alpha", "beta", "gamma")[number % 3]
        return get(proxy, f"/{name}", tokens[name]).status_code

    with ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(ask, range(120)))

    assert statuses == [200, 200, 503] * 40
    pairs = {(head.split(b" ")[1], head.partition(b"authorization: ")[2].split(b"\r\n")[0]) for head in upstream.seen}
    assert pairs == {(b"/alpha", b"Bearer key-of-alpha"), (b"/beta", b"Bearer key-of-beta")}


def test_a_project_without_a_file_gets_the_shared_credential(
    start, noting, token_of, published: Published, tmp_path: Path
) -> None:
    """If there is one. A file that is empty, or gone with its folder, is an error, and not the same as none."""
    upstream = noting()
    for name in ("own", "shared", "broken"):
        published.project(name)
    (tmp_path / published._projects["own"]["id"]).write_text("own")
    (tmp_path / published._projects["broken"]["id"]).write_text("\n")
    options = {"SLUICEGATE_UPSTREAM_CREDENTIAL": "all", "SLUICEGATE_UPSTREAM_CREDENTIAL_FOLDER": str(tmp_path)}
    proxy = start(upstream, **options)

    for name, value in (("own", b"Bearer own"), ("shared", b"Bearer all")):
        assert get(proxy, "/", token_of(PLENTY, project=name)).status_code == 200
        assert upstream.field(b"authorization") == [value]
    assert get(proxy, "/", token_of(PLENTY, project="broken")).status_code == 503
    tmp_path.rename(tmp_path.with_suffix(".gone"))
    assert eventually(lambda: get(proxy, "/", token_of(PLENTY, project="own")).status_code == 503)


def test_each_upstream_has_credentials_of_its_own(start, noting, token_of, tmp_path: Path) -> None:
    """That of one is never sent to another."""
    first, second, file = noting(), noting(), tmp_path / "upstreams.toml"
    (tmp_path / "key").write_text("one")
    file.write_text(
        f'["/one"]\nurl = "{first.url}"\ncredential_file = "{tmp_path}/key"\n'
        f'["/two"]\nurl = "{second.url}"\ncredential_variable = "KEY_OF_TWO"\ncredential_field = "x-key"\n'
    )
    proxy, token = start(SLUICEGATE_UPSTREAMS_FILE=str(file), KEY_OF_TWO="two"), token_of(PLENTY)

    get(proxy, "/one/", token)
    get(proxy, "/two/", token)

    assert (first.field(b"authorization"), first.field(b"x-key")) == ([b"Bearer one"], [])
    assert (second.field(b"authorization"), second.field(b"x-key")) == ([], [b"two"])


@pytest.mark.parametrize(("theirs", "shown"), [(5, "theirs"), (5_000, "ours")])
def test_a_family_of_fields_comes_from_the_tighter_side(start, noting, token_of, theirs: int, shown: str) -> None:
    """Never are a limit of the upstream and what remains of ours shown as if they belonged together."""
    fields = {"limit": 10_000, "remaining": theirs, "reset": "7s"}
    rows = "".join(f"X-RateLimit-{name}-Requests: {value}\r\n" for name, value in fields.items())
    upstream = noting(f"HTTP/1.1 200 OK\r\n{rows}X-RateLimit-Limit-Tokens: 3\r\nContent-Length: 2\r\n\r\nok".encode())
    limit = Limit(name="rpm", algorithm="fixed_window", quota=100, window_seconds=3600)

    answer = get(start(upstream, SLUICEGATE_HEADERS="ietf+openai"), "/", token_of(limit))

    found = [answer.headers.get_list(f"x-ratelimit-{name}-requests") for name in fields]
    if shown == "theirs":
        assert found == [["10000"], ["5"], ["7s"]]
    else:
        assert found[:2] == [["100"], ["99"]]
        assert len(found[2]) == 1
        assert found[2] != ["7s"]
    assert answer.headers["x-ratelimit-limit-tokens"] == "3"
    assert "RateLimit" in answer.headers


def test_metrics_are_for_listed_networks(start, noting, token_of) -> None:
    """This machine and private networks by default. What an undeclared proxy forwards may come from anywhere."""
    upstream, token = noting(), token_of(PLENTY)
    proxy = start(upstream)
    get(proxy, "/", token)

    answer = httpx2.get(f"http://127.0.0.1:{proxy.port}/metrics", verify=False)
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'sluicegate_decisions_total{source="store",reason="ok",allowed="true"} 1' in answer.text
    fields = {"X-Forwarded-For": "10.0.0.1"}
    assert httpx2.get(f"http://127.0.0.1:{proxy.port}/metrics", verify=False, headers=fields).status_code == 403
    strict = start(upstream, SLUICEGATE_METRICS_NETWORKS="10.0.0.0/8", SLUICEGATE_TRUSTED_PROXIES="127.0.0.1")
    assert httpx2.get(f"http://127.0.0.1:{strict.port}/metrics", verify=False).status_code == 403
    assert httpx2.get(f"http://127.0.0.1:{strict.port}/metrics", verify=False, headers=fields).status_code == 200


@pytest.mark.proof
@pytest.mark.parametrize("workers", scale([1], [1, 2]))
def test_metrics_have_a_port_of_their_own(published: Published, noting, kind: str, workers: int) -> None:
    """The port of requests, which others may reach through any proxy, says no more than that they are elsewhere."""
    port = free_port()
    options = ("--server", kind, "--metrics-port", str(port), "--workers", str(workers))
    with running(published, *options, SLUICEGATE_UPSTREAM_URL=noting().url) as proxy:
        refused = httpx2.get(f"http://127.0.0.1:{proxy.port}/metrics", verify=False)
        assert (refused.status_code, refused.json()["title"]) == (404, "Metrics have a port of their own")
        for number in range(workers):
            address = f"http://127.0.0.1:{port + number}"
            assert eventually(lambda address=address: is_open(address), 20)
            assert "sluicegate_revision" in httpx2.get(f"{address}/metrics", verify=False).text
            assert httpx2.get(f"{address}/", verify=False).status_code == 404
        fields = {"X-Forwarded-For": "10.0.0.1"}
        assert httpx2.get(f"http://127.0.0.1:{port}/metrics", verify=False, headers=fields).status_code == 403


def is_open(address: str) -> bool:
    try:
        return httpx2.get(f"{address}/healthz", verify=False).status_code == 200
    except httpx2.TransportError:
        return False


def test_tls_proves_who_the_upstream_is(start, token_of, published: Published, tmp_path: Path) -> None:
    """With the file of its authority it is trusted, and its connections are used again. Without, there is a 502."""
    made, key = certificate(tmp_path)
    plain = Noting()
    with terminator(plain.port, made, key) as port:
        url = f"https://127.0.0.1:{port}"
        proxy, token = start(SLUICEGATE_UPSTREAM_URL=url, SSL_CERT_FILE=str(made)), token_of(PLENTY)
        assert [get(proxy, "/", token).status_code for _ in range(5)] == [200] * 5
        assert plain.connections == 1
        assert get(start(SLUICEGATE_UPSTREAM_URL=url), "/", token).status_code == 502
    plain.close()


def test_a_handshake_never_passes_as_a_request(start, noting, token_of) -> None:
    """An upstream that knows no WebSocket sees it for what it is, and its answer is not an acceptance."""
    upstream = noting()
    handshake = "GET /\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: YWFhYQ=="

    assert start(upstream).request(handshake, token_of(PLENTY)).status == 200
    assert upstream.field(b"Upgrade") + upstream.field(b"upgrade") == [b"websocket"]


def test_a_request_waits_for_a_place(start, noting, token_of, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests by many clients at once all have their answer, over as many connections as there are requests."""
    upstream, token = noting(), token_of(PLENTY)
    proxy = start(upstream)
    barrier = threading.Barrier(40)

    def ask(_: int) -> int:
        barrier.wait()
        return get(proxy, "/", token).status_code

    with ThreadPoolExecutor(40) as pool:
        assert list(pool.map(ask, range(40))) == [200] * 40
    assert upstream.connections <= 40


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"URL": "http://x", "CREDENTIAL": "a", "CREDENTIAL_FILE": "/etc/hostname"}, "CREDENTIAL_FILE: must not be"),
        ({"URL": "http://x", "CREDENTIAL_FILE": "/nowhere"}, "CREDENTIAL_FILE: cannot be read"),
        ({"URL": "http://x", "CREDENTIAL_FOLDER": "/nowhere"}, "CREDENTIAL_FOLDER: must be a folder"),
        ({"URL": "http://x", "CREDENTIAL": "a\nb"}, "CREDENTIAL: must have"),
        ({"URL": "http://x", "CREDENTIAL": "a", "CREDENTIAL_FIELD": "a b"}, "CREDENTIAL_FIELD: must be"),
        ({"URL": "http://x", "CREDENTIAL": "a", "CREDENTIAL_FIELD": "Host"}, "CREDENTIAL_FIELD: must not be a field"),
        ({"URL": "http://x..y"}, "SLUICEGATE_UPSTREAM_URL: must be"),
        ({"URL": "http://user:password@x"}, "SLUICEGATE_UPSTREAM_URL: must be"),
        ({"URL": "http://x/a/../b"}, "SLUICEGATE_UPSTREAM_URL: must be"),
        ({"URL": "http://x", "ALLOWED_FIELDS": "turbo"}, "SLUICEGATE_UPSTREAM_ALLOWED_FIELDS: must name fields"),
        ({"URL": "http://x", "ALLOWED_FIELDS": "turbo=free"}, "SLUICEGATE_UPSTREAM_ALLOWED_FIELDS: turbo must have"),
        ({"URL": "http://x", "INCLUDE_USAGE": "no"}, "SLUICEGATE_UPSTREAM_INCLUDE_USAGE: must be true or false"),
        ({"URL": "http://x", "CAP_FIELD": "max"}, "SLUICEGATE_UPSTREAM_CAP_FIELD: must be one of max_completion_tok"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_at_start(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    """The message names the variable, and never shows a credential."""
    for name, value in variables.items():
        monkeypatch.setenv(f"SLUICEGATE_UPSTREAM_{name}", value)

    with pytest.raises(ValueError, match=message):
        create_app()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have a table for each path"),
        ('["shop"]\nurl = "http://x"', r"\['shop'\] prefix: must be a path"),
        ('["/a/../b"]\nurl = "http://x"', "prefix: must not have"),
        ('["/a"]\nurl = "http://x"\n["/a/"]\nurl = "http://y"', "two tables for one path"),
        ('["/a"]\nurl = "http://x"\ncredential = "secret"', "credential: must not stand in this file"),
        ('["/a"]\nurl = "http://x"\ncredential_variable = "NOT_SET"', "must name a variable that is set"),
        ('["/a"]\nurl = "http://x"\nretries = "3"', "retries: must be one of"),
        ('["/a"]\nurl = 3', "must be a table of strings"),
        ('["/a"]\nurl = "http://x"\nallowed_fields = "turbo"', "allowed_fields: must be a table of fields"),
        ('["/a"]\nurl = "http://x"\nallowed_fields = { turbo = 0 }', "allowed_fields: turbo must have"),
        ('["/a"]\nurl = "http://x"\ninclude_usage = 1', "must be a table of strings"),
        ('["/a"]\nurl = "http://x"\ncap_field = ""\ninclude_usage = "1"', "include_usage: must be true or false"),
        ('["/a"]\nurl = "http://x"\ncap_field = "cap"', "cap_field: must be one of"),
        ("[", "SLUICEGATE_UPSTREAMS_FILE: "),
    ],
)
def test_a_file_of_upstreams_that_cannot_be_used_is_refused_at_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, message: str
) -> None:
    """The message names the file, the table and the rule."""
    file = tmp_path / "upstreams.toml"
    file.write_text(text)
    monkeypatch.setenv("SLUICEGATE_UPSTREAMS_FILE", str(file))

    with pytest.raises(ValueError, match=message):
        create_app()


def test_each_upstream_has_its_allowed_fields(tmp_path: Path) -> None:
    """They are per mille of the price. A value of a field may be named, too."""
    file = tmp_path / "upstreams.toml"
    fields = '{ turbo = "none", "service_tier=scale" = 1.5 }'
    file.write_text(f'["/a"]\nurl = "http://x"\nallowed_fields = {fields}\n["/b"]\nurl = "http://x"\n')
    first, second = ProxySettings.from_env({"SLUICEGATE_UPSTREAMS_FILE": str(file)}).upstreams
    variables = {"URL": "http://x", "ALLOWED_FIELDS": "turbo=none, service_tier=scale=1.5"}
    single = ProxySettings.from_env({f"SLUICEGATE_UPSTREAM_{name}": value for name, value in variables.items()})

    assert first.allowed_fields == single.upstreams[0].allowed_fields == {"turbo": 1_000, "service_tier=scale": 1_500}
    assert second.allowed_fields == {}


def test_a_file_is_looked_at_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request costs no system call."""
    file = tmp_path / "key"
    file.write_text("one")
    now = time.monotonic()
    monkeypatch.setattr(credentials.time, "monotonic", lambda: now)
    found = credentials.Credentials(file=file)
    file.unlink()

    assert found.of("proj_1") == [(b"authorization", b"Bearer one")]
    now += 1.1
    with pytest.raises(credentials.NoCredential):
        found.of("proj_1")


@pytest.mark.parametrize("from_file", [False, True])
def test_an_upstream_may_be_asked_otherwise(start, scripted, published, tmp_path, from_file):
    """Some servers refuse stream_options, and know max_tokens only. Their clients never sent either."""
    bodies = []

    def script(peer):
        while head := peer.head():
            size = next(int(line[16:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: "))
            bodies.append(json.loads(peer.body(size)))
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    published.policy("tokens", Limit(name="t", unit="tokens", quota=10**6, window_seconds=60))
    token, upstream = published.token(policy="tokens"), scripted(script)
    if from_file:
        file = tmp_path / "upstreams.toml"
        file.write_text(
            f'["/"]\nurl = "{upstream.url}"\ninclude_usage = false\ncap_field = "max_tokens"\n'
            f'["/usual"]\nurl = "{upstream.url}"\n'
        )
        proxy = start(SLUICEGATE_UPSTREAMS_FILE=str(file))
    else:
        options = {"SLUICEGATE_UPSTREAM_INCLUDE_USAGE": "false", "SLUICEGATE_UPSTREAM_CAP_FIELD": "max_tokens"}
        proxy = start(upstream, **options)
    asked = {"model": "m", "stream": True, "messages": []}
    for path in ("/v1/chat/completions", "/v1/messages", *(["/usual/v1/chat/completions"] if from_file else [])):
        url = proxy.catch_up() + path
        assert httpx2.post(url, json=asked, headers={"X-API-Key": token}, timeout=20).status_code == 200

    assert bodies[:2] == [{**asked, "max_tokens": 4096}, {**asked, "max_tokens": 4096}]
    usual = {**asked, "stream_options": {"include_usage": True}, "max_completion_tokens": 4096}
    assert bodies[2:] == ([usual] if from_file else [])
