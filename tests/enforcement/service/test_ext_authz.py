"""Envoy's external authorization, version 3 by gRPC: what is read of a request, and what the answers say."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from enforcement import Limit, Match
from enforcement.embedded import ValkeyServer
from enforcement.service.ext_authz import _by_number, _by_shape
from tests.enforcement.service.grpc_client import EXT_AUTHZ, Channel
from tests.enforcement.service.oracle import CHECK, CHECKED, Oracle
from tests.enforcement.service.running import Gateway, gateway, hourly

OK, PERMISSION_DENIED = 0, 7


@pytest.fixture(scope="module")
def served(server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(server, tmp_path_factory.mktemp("ext-authz"), anonymous_project="shop") as running:
        running.published.policy("visitors", hourly(100, partition_by=("ip",)))
        running.published.project("shop", anonymous_policy="visitors")
        running.follow()
        yield running


class Asking:
    """Calls the method of one service, with messages by the oracle."""

    def __init__(self, channel: Channel, reader: Oracle) -> None:
        self._channel, self._reader = channel, reader

    def __call__(self, headers: dict[str, str], *, peer: str = "192.0.2.1", **http: Any) -> dict[str, Any]:
        described = {"method": "GET", "path": "/", "headers": headers, **http}
        source = {"address": {"socket_address": {"address": peer, "port_value": 4711}}}
        attributes = {"source": source, "request": {"time": "2026-01-01T00:00:00Z", "http": described}}
        return self.message(self._reader.encode(CHECK, {"attributes": attributes}))

    def message(self, message: bytes) -> dict[str, Any]:
        return self._reader.decode(CHECKED, self._channel.ask(EXT_AUTHZ, message))


@pytest.fixture
def ask(served: Gateway, reader: Oracle) -> Iterator[Asking]:
    with served.channel() as channel:
        yield Asking(channel, reader)


def code(answer: dict[str, Any]) -> int:
    return answer["status"].get("code", OK)


def fields(options: list[dict[str, Any]]) -> dict[str, str]:
    return {it["header"]["key"].lower(): it["header"]["value"] for it in options}


def remaining_in(answer: dict[str, Any]) -> int:
    """Return how many permits an answer says are left of the only limit."""
    rate = fields(answer["ok_response"]["response_headers_to_add"])["ratelimit"]
    return int(rate.partition(";r=")[2].partition(";")[0])


def test_allowed_request_gets_the_fields_of_its_answer(served: Gateway, ask: Asking) -> None:
    """They go to the client, and none of them to the upstream."""
    answer = ask({"x-api-key": served.token(hourly(2))})

    assert code(answer) == OK
    assert answer["ok_response"].keys() == {"response_headers_to_add"}
    added = fields(answer["ok_response"]["response_headers_to_add"])
    assert added["ratelimit-policy"] == '"hourly";q=2;w=3600'
    assert added["ratelimit"].startswith('"hourly";r=1;t=')


@pytest.mark.parametrize("field", ["x-goog-api-key", "api-key"])
def test_a_token_in_the_field_of_a_providers_sdk(served: Gateway, ask: Asking, field: str) -> None:
    token = served.token(hourly(2))

    assert remaining_in(ask({field: token})) == 1
    assert remaining_in(ask({"authorization": f"Bearer {token}", field: "key-of-the-upstream"})) == 0


def test_denial_is_a_whole_response(served: Gateway, ask: Asking) -> None:
    """Envoy sends status, fields and body as they are, and measures the body itself."""
    answer = ask({"x-api-key": served.token(hourly(0))})

    assert code(answer) == PERMISSION_DENIED
    denied = answer["denied_response"]
    assert denied["status"] == {"code": "TooManyRequests"}
    assert '"code": "cost_exceeds_capacity"' in denied["body"]
    assert fields(denied["headers"])["content-type"] == "application/problem+json"
    assert "content-length" not in fields(denied["headers"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": "Bearer nonsense"}, "Unauthorized"),
        ({"authorization": "Basic bm9ib2R5"}, "Unauthorized"),
        ({"authorization": ""}, "Unauthorized"),
        ({"x-api-key": ""}, "Unauthorized"),
        ({"x-api-key": "gebühr"}, "Unauthorized"),
    ],
)
def test_wrong_token_is_never_anonymous(ask: Asking, headers: dict[str, str], status: str) -> None:
    """Requests without a token pass here; those with a wrong one do not."""
    answer = ask(headers)

    assert answer["denied_response"]["status"] == {"code": status}
    assert code(ask({})) == OK


def test_method_path_and_fields_are_attributes(served: Gateway, ask: Asking) -> None:
    """The path counts without its query and decoded, a field by its name in lower case."""
    match = Match(methods=("POST",), path="/chat/ü", attributes={"header.x-team": "red"})
    token = served.token(hourly(1, match=match))
    headers = {"x-api-key": token, "X-Team": "red"}

    answers = [
        ask(headers, method="POST", path="/chat/%C3%BC?x=1"),
        ask(headers, method="GET", path="/chat/%C3%BC"),
        ask({"x-api-key": token, "x-team": "blue"}, method="POST", path="/chat/%C3%BC"),
        ask(headers, method="POST", path="/chat/%c3%bc"),
    ]

    assert [code(it) for it in answers] == [OK, OK, OK, PERMISSION_DENIED]


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
        ("127.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("127.0.0.1", "203.0.113.9, 198.51.100.7", "198.51.100.7"),
        ("::ffff:192.0.2.1", "", "192.0.2.1"),
    ],
)
def test_address_is_that_of_the_peer_unless_it_is_trusted(
    served: Gateway, ask: Asking, peer: str, forwarded: str, address: str
) -> None:
    """A client cannot choose the address that it is counted by."""
    before = remaining_in(ask({}, peer=address))

    ask({"x-forwarded-for": forwarded} if forwarded else {}, peer=peer)

    assert remaining_in(ask({}, peer=address)) == before - 2


def test_fields_may_come_as_a_list_of_bytes(served: Gateway, ask: Asking) -> None:
    """With encode_raw_headers Envoy sends them so; a token in them must not be overlooked."""
    raw = [("X-API-Key", served.token(hourly(5)).encode()), ("x-team", b"\xff\xfe"), ("x-team", b"two")]
    rows = [{"key": key, "raw_value": base64.b64encode(value).decode()} for key, value in raw]

    assert remaining_in(ask({}, header_map={"headers": rows})) == 4


def test_fields_that_are_no_text_do_not_matter(served: Gateway, ask: Asking, reader: Oracle) -> None:
    """A string of protobuf must be UTF-8, and a header field need not be."""
    token = served.token(hourly(5))
    http = {"method": "GET", "path": "/", "headers": {"x-api-key": token, "x-name": "J_rg"}}
    message = reader.encode(CHECK, {"attributes": {"request": {"http": http}}})

    assert remaining_in(ask.message(message.replace(b"J_rg", b"J\xf6rg"))) == 4


def test_parts_of_a_message_are_merged(served: Gateway, ask: Asking, reader: Oracle) -> None:
    """A message may be sent in parts, and all of them count."""
    http = [{"headers": {"x-api-key": served.token(hourly(5))}}, {"path": "/x"}, {"method": "PUT"}]
    parts = [reader.encode(CHECK, {"attributes": {"request": {"http": it}}}) for it in http]

    assert remaining_in(ask.message(b"".join(parts))) == 4


def test_of_a_field_that_comes_twice_the_last_counts(served: Gateway, ask: Asking, reader: Oracle) -> None:
    """It is an entry of a map, as which protobuf reads it."""
    tokens = [served.token(hourly(5)), served.token(hourly(7))]
    parts = [{"attributes": {"request": {"http": {"headers": {"x-api-key": token}}}}} for token in tokens]

    assert remaining_in(ask.message(b"".join(reader.encode(CHECK, it) for it in parts))) == 6


def test_too_long_a_path_is_refused(served: Gateway, ask: Asking) -> None:
    """It is not cut, as it might then be another one."""
    answer = ask({"x-api-key": served.token(hourly(5))}, path="/" + "x" * 2_000)

    assert answer["denied_response"]["status"] == {"code": "URITooLong"}


def test_no_label_is_taken_from_fields(served: Gateway, ask: Asking) -> None:
    """Nor from anything else that a message of Envoy has of a request. Labels are those of the token's document."""
    blue = Limit(name="blue", quota=0, window_seconds=60, match=Match(attributes={"label.team": "blue"}))
    secret = served.token(hourly(2, partition_by=("label.team",)), blue, labels={"team": "red"})
    claims = {"x-api-key": secret, "label.team": "blue", "header.label.team": "blue"}
    answers = [ask(claims, path="/?label.team=blue") for _ in range(3)]

    assert [code(answer) for answer in answers] == [OK, OK, PERMISSION_DENIED]
    assert fields(answers[2]["denied_response"]["headers"])["sluicegate-denial"] == "limited"


def test_known_token_is_decided_by_its_present_policy(served: Gateway, ask: Asking) -> None:
    """Its plan is kept by the field that shows it, until the documents change."""
    served.published.policy("changing", hourly(5))
    headers = {"authorization": f"Bearer {served.published.token(policy='changing', project='shop')}"}
    served.follow()
    first = [remaining_in(ask(headers)) for _ in range(2)]
    added = fields(ask(headers)["ok_response"]["response_headers_to_add"])
    served.published.policy("changing", hourly(3))
    served.follow()

    assert first == [4, 3]
    assert added["ratelimit-policy"] == '"hourly";q=5;w=3600'
    assert ask(headers)["denied_response"]["status"] == {"code": "TooManyRequests"}


def test_known_token_does_not_excuse_a_path_that_is_too_long(served: Gateway, ask: Asking) -> None:
    headers = {"authorization": f"Bearer {served.token(hourly(5))}"}
    ask(headers)

    assert ask(headers, path="/" + "x" * 2_000)["denied_response"]["status"] == {"code": "URITooLong"}


def test_known_field_stands_for_no_other_token(served: Gateway, ask: Asking) -> None:
    """One that shows a credential of the upstream must not stand for the token beside it."""
    secret = served.token(hourly(5))
    ask({"authorization": "Bearer of-the-upstream", "x-api-key": secret})

    assert ask({"authorization": "Bearer of-the-upstream"})["denied_response"]["status"] == {"code": "Unauthorized"}


def test_messages_of_envoy_are_read_by_their_shape(reader: Oracle) -> None:
    """All others are read field by field, and say the same."""
    headers = {"x-api-key": "key", ":path": "/x", "cookie": "c" * 300}
    http = {"id": "1", "method": "GET", "path": "/x?y=%2F", "host": "here", "protocol": "HTTP/1.1", "headers": headers}
    request = {"time": "2026-01-01T00:00:00Z", "http": http}
    source = {"address": {"socket_address": {"address": "192.0.2.1", "port_value": 4711}}}
    message = reader.encode(CHECK, {"attributes": {"source": source, "destination": source, "request": request}})

    read = _by_shape(message)

    assert read == _by_number(message)
    assert read is not None
    assert read.fields == {name.encode(): value.encode() for name, value in headers.items()}
    assert (read.method, read.path) == (b"GET", b"/x?y=%2F")


@pytest.mark.parametrize(
    "http",
    [
        {"headers": {"X-Team": "red", "x-team": "blue"}},
        {"headers": {"x-team": "red"}, "header_map": {"headers": [{"key": "x-team", "raw_value": "Ymx1ZQ=="}]}},
        {"headers": {"x-t\u00cf": "red"}},
        {"headers": {"k" * 200: "red"}},
        {"headers": {"x-team": "v" * 20_000}},
    ],
)
def test_what_has_another_shape_is_read_field_by_field(reader: Oracle, http: dict[str, Any]) -> None:
    message = reader.encode(CHECK, {"attributes": {"request": {"http": {"method": "GET", **http}}}})

    assert _by_shape(message) is None
    assert _by_number(message).fields
