"""Fields that could begin another request: servers refuse most of them before the proxy sees them."""

from __future__ import annotations

from typing import Any

import pytest

from enforcement.doors.proxy.fields import (
    BadRequest,
    forwarded_fields,
    has_dot_segments,
    request_fields,
    request_head,
    response_fields,
)
from enforcement.http.addresses import TrustedProxies

NOBODY = TrustedProxies()


def head(*headers: tuple[bytes, bytes], target: bytes = b"/", **changes: Any) -> bytes:
    """Return the head of a request with these fields."""
    scope = {"method": "GET", "scheme": "http", "client": ("192.0.2.1", 1), "http_version": "2", **changes}
    return request_head(scope, target, b"upstream", request_fields(list(headers), frozenset()), NOBODY, [])


def test_a_request_has_its_own_fields_and_those_of_the_proxy() -> None:
    """In this order."""
    assert head((b"host", b"door"), (b"accept", b"x")).split(b"\r\n") == [
        b"GET / HTTP/1.1",
        b"host: upstream",
        b"accept: x",
        b"x-forwarded-for: 192.0.2.1",
        b"x-forwarded-proto: http",
        b"x-forwarded-host: door",
        b"",
        b"",
    ]


@pytest.mark.parametrize(
    "field",
    [
        (b"x", b"1\r\ny: 2"),
        (b"x", b"1\ny: 2"),
        (b"x", b"1\ry: 2"),
        (b"x", b"1\0"),
        (b"x: 1\r\ny", b"2"),
        (b"x:", b"1"),
        (b"x y", b"1"),
        (b"", b"1"),
        (b"host", b"door\r\ny: 2"),
        (b"content-length", b"+5"),
        (b"content-length", b"5, 5"),
        (b"content-length", "٥".encode()),
        (b"transfer-encoding", b"gzip, chunked"),
    ],
)
def test_a_field_is_one_field(field: tuple[bytes, bytes]) -> None:
    """What would be two lines, or another line, is refused."""
    with pytest.raises(BadRequest):
        head(field)


@pytest.mark.parametrize("target", [b"/ HTTP/1.1\r\nx: 1\r\n\r\nGET /y", b"/a b", b"/a\tb", b"/\x7f", b"/\0", b"/a#/b"])
def test_a_target_is_one_word(target: bytes) -> None:
    """With a blank it would end early."""
    with pytest.raises(BadRequest):
        head(target=target)


@pytest.mark.parametrize("method", ["GET /x HTTP/1.1\r\n\r\nGET", "GE T", "", "GÉT", "get"])
def test_a_method_is_one_word(method: str) -> None:
    """In capitals, as limits and most applications know it."""
    with pytest.raises(BadRequest):
        head(method=method)


def test_a_length_beside_chunks_is_dropped() -> None:
    """An upstream that took the length for true would take the rest for another request."""
    lines = head((b"content-length", b"5"), (b"transfer-encoding", b"chunked")).split(b"\r\n")

    assert b"transfer-encoding: chunked" in lines
    assert not any(line.startswith(b"content-length") for line in lines)


def test_a_handshake_is_recognised() -> None:
    """Where the server takes it for a request."""
    handshake = [(b"connection", b"Upgrade"), (b"upgrade", b"WebSocket")]

    assert request_fields(handshake, frozenset()).websocket
    assert not request_fields([(b"upgrade", b"h2c")], frozenset()).websocket


def test_fields_that_connection_names_stay() -> None:
    """Several of them, in several fields, in both directions."""
    fields = [
        (b"connection", b"keep-alive, X-A"),
        (b"x-a", b"1"),
        (b"connection", b"x-b"),
        (b"x-b", b"2"),
        (b"x-c", b"3"),
    ]

    assert request_fields(fields, frozenset()).passing == [(b"x-c", b"3")]
    assert response_fields(fields) == [(b"x-c", b"3")]


@pytest.mark.parametrize("path", ["/.", "/..", "/a/../b", "/a/./b", "/a/..", "/..\\a", "/a\\..\\b", "/a/..;x=1/b"])
def test_segments_that_mean_another_path(path: str) -> None:
    """By slash, or as some servers understand backslash and semicolon."""
    assert has_dot_segments(path)


@pytest.mark.parametrize("path", ["/", "/.well-known/x", "/a..b", "/...", "/a/..b/c."])
def test_control_dots_within_a_name_are_names(path: str) -> None:
    """They mean nothing."""
    assert not has_dot_segments(path)


def test_a_second_host_is_refused() -> None:
    """One of the two would decide, and the other would be logged."""
    with pytest.raises(BadRequest):
        head((b"host", b"door"), (b"host", b"other"))


def test_a_second_length_is_refused() -> None:
    """An upstream that took the other one would take a part of the body for the next request."""
    with pytest.raises(BadRequest):
        head((b"content-length", b"5"), (b"content-length", b"6"))


@pytest.mark.parametrize("name", [b"x_forwarded_for", b"x-forwarded_proto", b"x_api_key", b"transfer_encoding"])
def test_no_field_of_the_proxy_has_another_spelling(name: bytes) -> None:
    """Applications behind CGI or WSGI would take it for the field of the proxy."""
    assert name not in head((name, b"forged"))
    assert b"x_team: 1" in head((b"x_team", b"1"))


def test_a_trusted_proxy_says_what_the_client_has_asked() -> None:
    """It may speak TLS to clients. Anybody else is not believed."""
    fields = [
        (b"host", b"inner"),
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-host", b"shop.example"),
        (b"x-real-ip", b"198.51.100.1"),
        (b"x_real_ip", b"198.51.100.1"),
    ]
    scope = {"method": "GET", "scheme": "http", "client": ("192.0.2.1", 1)}

    def told(*trusted: str) -> list[tuple[bytes, bytes]]:
        return forwarded_fields(scope, request_fields(fields, frozenset()), TrustedProxies(trusted))[1:]

    assert told("192.0.2.0/24") == [
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-host", b"shop.example"),
        (b"x-real-ip", b"198.51.100.1"),
    ]
    assert told("198.51.100.0/24") == [(b"x-forwarded-proto", b"http"), (b"x-forwarded-host", b"inner")]
