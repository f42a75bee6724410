"""Bodies, broken connections and departed clients, byte by byte, on both servers that can run the proxy."""

from __future__ import annotations

import contextlib
import threading
import time

import httpx2
import pytest

from enforcement.model.limits import Limit
from tests.enforcement.doors.proxy.conftest import Peer, Running, request
from tests.enforcement.world import eventually

PLENTY = Limit(name="per-hour", algorithm="fixed_window", quota=100_000, window_seconds=3600)
ONE_SLOT = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=60)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def always(response: bytes):
    """Return a script that answers every request without a body with these bytes."""

    def script(peer: Peer) -> None:
        while peer.head():
            peer.send(response)

    return script


def once(response: bytes, *, reset: bool = False):
    """Return a script that answers one request, and then ends the connection."""

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(response)
        if reset:
            time.sleep(0.05)  # or the reset overtakes the data
            peer.reset()

    return script


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
    ],
    ids=["length", "chunked", "last chunk"],
)
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_response_that_breaks_off_never_looks_whole(proxy, token_of, response: bytes, reset) -> None:
    """The client gets less than was announced, or no last chunk, and the slot is free again."""
    token = token_of(ONE_SLOT)
    proxy.upstream.script = once(response, reset=reset)

    answer = proxy.request("GET /", token).rest()

    assert b"half" in answer
    assert not answer.endswith(b"\r\n0\r\n\r\n")
    assert b"content-length: 4\r\n" not in answer.lower()
    proxy.upstream.script = always(OK)
    assert eventually(lambda: proxy.request("GET /", token).status == 200)


def test_a_response_that_ends_with_its_connection_is_whole(proxy, token_of) -> None:
    """HTTP/1.0 ends like this. A reset in its place breaks it off."""
    token = token_of(PLENTY)
    proxy.upstream.script = once(b"HTTP/1.0 200 OK\r\n\r\nall of it")

    whole = proxy.request("GET /", token)
    assert whole.until(b"0\r\n\r\n").endswith(b"all of it\r\n0\r\n\r\n")

    proxy.upstream.script = once(b"HTTP/1.0 200 OK\r\n\r\nall of it", reset=True)
    assert not proxy.request("GET /", token).rest().endswith(b"\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "response",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000,
        b"HTTP/1.1 103 Early Hints\r\nLink: y\r\n\r\n" * 10_000,
        b"",
    ],
    ids=["garbage", "two lengths", "length and chunks", "upgrade", "endless head", "endless hints", "nothing"],
)
def test_what_is_not_a_response_is_a_bad_gateway(proxy, token_of, response: bytes) -> None:
    """The client gets 502, and nothing of it."""
    proxy.upstream.script = once(response)

    assert proxy.request("GET /", token_of(PLENTY)).status == 502


def test_a_response_passes_as_it_was_written(proxy, token_of) -> None:
    """Fields that are not ASCII, repeated fields and unknown statuses pass; interim responses do not."""
    response = (
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        b"HTTP/1.1 299 Odd\r\nX-Latin: caf\xe9\r\nX-UTF: caf\xc3\xa9\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
        b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"
    )
    proxy.upstream.script = once(response)

    head, _, body = proxy.request("GET /", token_of(PLENTY)).until(b"abc").partition(b"\r\n\r\n")

    lines = [line.lower() for line in head.split(b"\r\n")]
    assert lines[0].startswith(b"http/1.1 299 ")
    for line in (b"x-latin: caf\xe9", b"x-utf: caf\xc3\xa9", b"set-cookie: a=1", b"set-cookie: b=2"):
        assert line in lines
    assert b"content-encoding: gzip" in lines
    assert body == b"abc"


def test_a_request_passes_as_it_was_written(proxy, token_of) -> None:
    """Nothing in its target or its values is read and written again, and no field is made up."""
    heads: list[bytes] = []

    def script(peer: Peer) -> None:
        while head := peer.head():
            heads.append(head)
            peer.send(OK)

    proxy.upstream.script = script
    proxy.request("GET /a/../b/./%2e%2E//c;d=%41?q='$(x)'&%20+\nX-Odd: caf\xe9 ", token_of(PLENTY)).until(b"ok")

    lines = heads[0].split(b"\r\n")
    assert lines[0] == b"GET /a/../b/./%2e%2E//c;d=%41?q='$(x)'&%20+ HTTP/1.1"
    assert b"x-odd: caf\xe9" in [line.rstrip() for line in lines]
    names = {line.split(b":")[0] for line in lines[1:] if line}
    assert names == {b"host", b"x-odd", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_response_without_a_body_keeps_its_length(proxy, token_of, method: str) -> None:
    """The length in the response to HEAD, or in a 304, is that of another one, and the connection is used again."""
    status = b"200 OK" if method == "HEAD" else b"304 Not Modified"
    proxy.upstream.script = always(b"HTTP/1.1 " + status + b"\r\nContent-Length: 77\r\n\r\n")
    token = token_of(PLENTY)

    for _ in range(3):
        answer = proxy.request(f"{method} /", token).until(b"\r\n\r\n")
        assert b"content-length: 77" in answer.lower() or method == "GET"
    assert proxy.upstream.connections == 1


def test_a_connection_is_used_again_until_it_is_idle_for_long(proxy, token_of) -> None:
    """Requests share it, and none is sent on one that the upstream may just be closing."""
    proxy.upstream.script = always(OK)
    token = token_of(PLENTY)

    assert [proxy.request("GET /", token).status for _ in range(20)] == [200] * 20
    assert proxy.upstream.connections == 1
    time.sleep(2.1)
    assert proxy.request("GET /", token).status == 200
    assert proxy.upstream.connections == 2


@pytest.mark.parametrize(("method", "statuses"), [("GET", {200}), ("POST", {200, 502})])
def test_a_connection_that_closes_as_it_is_used_again(proxy, token_of, method: str, statuses) -> None:
    """A request that may be sent twice is sent once more. Another may have been obeyed, so it is not."""

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(OK)
        peer.head()  # and no answer

    proxy.upstream.script = script
    token = token_of(PLENTY)

    found = [proxy.request(f"{method} /", token).status for _ in range(10)]

    assert set(found) == statuses


def test_the_end_of_an_idle_connection_is_noticed(proxy, token_of) -> None:
    """An upstream that closes after each response without saying so costs no request."""
    proxy.upstream.script = once(OK)
    token = token_of(PLENTY)

    for _ in range(10):
        assert proxy.request("POST /\nContent-Length: 0", token).status == 200
        time.sleep(0.02)


def test_more_than_a_response_is_not_taken_for_the_next_one(proxy, token_of) -> None:
    """Otherwise one client would get what was meant for another."""
    proxy.upstream.script = always(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
    token = token_of(PLENTY)

    answers = [proxy.request("GET /", token).until(b"ok") for _ in range(5)]

    assert not any(b"poison" in answer for answer in answers)


def test_trailers_end_a_response_and_not_its_connection(proxy, token_of, kind: str) -> None:
    """The client gets them if the server can send them, and the next request finds the connection as it should be."""
    head = b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
    proxy.upstream.script = always(head + b"2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n")
    token, ending = token_of(PLENTY), b"0\r\nx-sum: 7\r\n\r\n" if kind == "h2corn" else b"0\r\n\r\n"

    for _ in range(3):
        answer = proxy.request("GET /\nTE: trailers", token).until(ending)
        assert answer.partition(b"\r\n\r\n")[2] == b"2\r\nok\r\n" + ending
    assert proxy.upstream.connections == 1


def test_continue_comes_before_the_body_and_only_if_it_is_wanted(proxy, token_of, kind: str) -> None:
    """A client that asks first sends no body that is refused, and the upstream never hears of the question."""
    heads: list[bytes] = []

    def script(peer: Peer) -> None:
        while head := peer.head():
            heads.append(head)
            assert peer.body(4) == b"body"
            peer.send(OK)

    proxy.upstream.script = script
    asking = "POST /\nContent-Length: 4\nExpect: 100-continue"

    admitted = proxy.request(asking, token_of(PLENTY))
    assert admitted.until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
    admitted.raw.sendall(b"body")
    assert admitted.until(b"ok").count(b"HTTP/1.1 200 ") == 1
    assert b"expect" not in heads[0].lower()

    denied = proxy.request(asking, token_of(Limit(quota=0, window_seconds=60)))
    assert denied.status == (429 if kind == "uvicorn" else 100)  # h2corn invites every body before it asks us


def test_an_early_answer_ends_the_upload(proxy, token_of) -> None:
    """The client learns that its upload is refused while it is still sending it."""

    def script(peer: Peer) -> None:
        peer.head()
        peer.body(5)
        peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        assert peer.closed() or True

    proxy.upstream.script = script

    answer = proxy.request("POST /\nContent-Length: 1000000", token_of(PLENTY), b"first part")

    assert answer.status == 413


@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_an_upload_that_breaks_off_never_looks_whole(proxy, token_of, framing: str) -> None:
    """The upstream sees its connection end before the end of the body."""
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.head()
        try:
            seen.append(peer.file.read())
        except ConnectionResetError:
            seen.append(b"reset")

    proxy.upstream.script = script
    token = token_of(ONE_SLOT)

    answer = proxy.request(f"POST /\n{framing}", token, b"5\r\nfirst\r\n")
    assert eventually(lambda: proxy.upstream.connections == 1)
    time.sleep(0.1)
    answer.close()

    assert eventually(lambda: seen)
    assert not seen[0].endswith(b"\r\n0\r\n\r\n")
    assert len(seen[0]) < 1000
    proxy.upstream.script = always(OK)
    assert eventually(lambda: proxy.request("GET /", token).status == 200)


def test_a_slow_connection_costs_no_part_of_a_body(start, scripted, token_of) -> None:
    """What arrives before the upstream takes the connection is the beginning of the body all the same."""
    bodies: list[bytes] = []

    def script(peer: Peer) -> None:
        if peer.head():
            bodies.append(peer.body(6))
            peer.send(OK)

    upstream = scripted(script)
    upstream.hold()  # its queue is full, so the kernel lets the proxy try again after a second
    proxy, token = start(upstream), token_of(PLENTY)
    upload = proxy.request("POST /\nContent-Length: 6", token)
    for part in (b"ab", b"cd", b"ef"):
        time.sleep(0.1)
        upload.raw.sendall(part)
    upstream.release()

    assert upload.status == 200
    assert bodies == [b"abcdef"]


def test_silence_is_the_upstreams_alone(start, scripted, token_of) -> None:
    """A slow upload is none, and neither is a response that trickles; an upstream that says nothing is."""

    def script(peer: Peer) -> None:
        head = peer.head()
        if b"POST" in head:
            peer.body(3)
            peer.send(OK)
        elif b"/trickle" in head:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
            for _ in range(6):
                time.sleep(0.25)
                peer.send(b"x")
        else:
            peer.closed()

    proxy, token = start(scripted(script), SLUICEGATE_UPSTREAM_TIMEOUT="0.5"), token_of(PLENTY)

    upload = proxy.request("POST /\nContent-Length: 3", token)
    for _ in range(3):
        time.sleep(0.4)
        upload.raw.sendall(b"x")
    assert upload.status == 200
    assert proxy.request("GET /trickle", token).until(b"xxxxxx")
    assert proxy.request("GET /silent", token).status == 504


@pytest.mark.parametrize("when", ["before", "within"])
def test_a_client_that_leaves_ends_its_request(proxy, token_of, kind: str, when: str) -> None:
    """The connection to the upstream ends, and the slot is free. h2corn notices it in HTTP/2 only."""
    ended = threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        if when == "within":
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfirst")
        if peer.closed():
            ended.set()

    proxy.upstream.script = script
    token = token_of(ONE_SLOT)
    if kind == "uvicorn":
        client = proxy.connect()
        client.sendall(request("GET /", token))
        assert eventually(lambda: proxy.upstream.connections == 1)
        time.sleep(0.05)
        client.close()
    else:
        leave_http2(proxy, token, when)

    assert ended.wait(5)
    proxy.upstream.script = always(OK)
    assert eventually(lambda: proxy.request("GET /", token).status == 200)


def leave_http2(proxy: Running, token: str, when: str) -> None:
    """Send a request by HTTP/2, and leave before or within its response."""
    client = httpx2.Client(base_url=proxy.catch_up(), http1=False, http2=True, timeout=0.3)
    with client, contextlib.suppress(httpx2.ReadTimeout), client.stream("GET", "/", headers={"X-API-Key": token}):
        assert when == "within"


@pytest.mark.parametrize("kind", ["h2corn"], indirect=True)
def test_http2(proxy, token_of) -> None:
    """A body without a length is sent in chunks, and one with a length as it is."""
    bodies: list[bytes] = []

    def script(peer: Peer) -> None:
        while head := peer.head():
            bodies.append(
                peer.body(14) if b"chunked" in head else peer.body(4) if b"content-length: 4" in head else b""
            )
            peer.send(OK)

    proxy.upstream.script = script
    with httpx2.Client(base_url=proxy.catch_up(), http1=False, http2=True, timeout=5) as client:
        fields = {"X-API-Key": token_of(PLENTY)}
        statuses = [client.get("/", headers=fields).status_code]
        statuses += [client.post("/", headers=fields, content=body).status_code for body in (b"body", iter([b"body"]))]

    assert (statuses, bodies) == ([200] * 3, [b"", b"body", b"4\r\nbody\r\n0\r\n\r\n"[:14]])
