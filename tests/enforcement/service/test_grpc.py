"""What reaches the service as gRPC, and is no call that an Envoy would send: none of it may pass for permission."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from h2.exceptions import ProtocolError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enforcement import Limit
from enforcement.embedded import ValkeyServer
from enforcement.http.messages import Refusal
from enforcement.service.grpc import MAX_MESSAGE, READ_SECONDS, MessageReader
from enforcement.service.wire import fields, integer, part, parts, text, write, write_integer
from tests.enforcement.service.grpc_client import EXT_AUTHZ, RLS, Answer, Channel, framed
from tests.enforcement.service.running import Gateway, gateway
from tests.enforcement.world import eventually
from tests.scale import scale

METHODS = [RLS, EXT_AUTHZ]
FLAG = b"\x01"


@pytest.fixture(scope="module", params=["h2corn", "hypercorn"])
def served(
    request: pytest.FixtureRequest, server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    with gateway(server, tmp_path_factory.mktemp(request.param), server=request.param) as running:
        yield running


@pytest.fixture(scope="module")
def channel(served: Gateway) -> Iterator[Channel]:
    with served.channel() as channel:
        yield channel


@pytest.fixture(scope="module")
def legal(served: Gateway) -> bytes:
    """A message of the rate limit service that is allowed."""
    token = served.token(Limit(name="many", algorithm="fixed_window", quota=10_000_000, window_seconds=3_600))
    return rate_limit_request({"token": token})


def rate_limit_request(entries: dict[str, str], domain: str = "shop") -> bytes:
    rows = [write(1, write(1, key.encode()) + write(2, value.encode())) for key, value in entries.items()]
    return write(1, domain.encode()) + write(2, b"".join(rows))


def check_request(token: str, **more: str) -> bytes:
    headers = {"x-api-key": token, **more}
    rows = [write(3, write(1, key.encode()) + write(2, value.encode())) for key, value in headers.items()]
    return write(1, write(4, write(2, write(2, b"GET") + write(4, b"/") + b"".join(rows))))


def allows(path: str, message: bytes) -> bool:
    """Return whether a message is permission: the code OK of either method."""
    if path == RLS:
        return integer(message, 1) == 1
    return not integer(part(message, 1), 1)


def denies(path: str, answer: Answer) -> bool:
    """Return whether an answer is one of gRPC that denies. Any other could be permission."""
    return answer.status == "0" and not allows(path, answer.message)


def problem(path: str, answer: Answer) -> dict[str, object]:
    """Return the problem that a denial has as its body."""
    body = text(answer.message, 5) if path == RLS else text(part(answer.message, 2), 3)
    found = json.loads(body)
    assert isinstance(found, dict)
    return found


def test_legal_call_is_allowed(channel: Channel, legal: bytes) -> None:
    """The other tests would prove nothing if nothing were allowed."""
    assert allows(RLS, channel.ask(RLS, legal))


@pytest.mark.parametrize("path", METHODS)
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\0\0\0", 400),
        (b"\0\0\0\0\x09ab", 400),
        (b"\0\0\0\0\x01ab", 400),
        (framed(b"") + framed(b""), 400),
        (framed(b"\xff\xff\xff"), 400),
        (framed(b"\x0a\x05ab"), 400),
        (framed(b"\x0b"), 400),
        (framed(b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), 400),
        (FLAG + framed(b"abc")[1:], 415),
        (b"\x7f" + framed(b"")[1:], 415),
        (b"\0\xff\xff\xff\xff" + b"a", 400),
        (framed(b"\x12\x00" * 400_000), 400),
        (framed(b"\x0a" + b"a" * MAX_MESSAGE), 413),
        (framed(b"a" * (3 * MAX_MESSAGE)), 413),
    ],
    ids=lambda value: value[:12].hex() + f"-{len(value)}" if isinstance(value, bytes) else str(value),
)
def test_what_cannot_be_read_is_denied(served: Gateway, path: str, body: bytes, status: int) -> None:
    """An Envoy that fails open takes any other status of gRPC for permission."""
    with served.channel() as channel:
        answer = channel.call(path, body)

    assert denies(path, answer)
    assert problem(path, answer)["status"] == status


@pytest.mark.parametrize("path", METHODS)
def test_empty_message_is_denied(channel: Channel, path: str) -> None:
    """It is a message, and describes no request."""
    assert denies(path, channel.call(path, framed(b"")))


@pytest.mark.parametrize("path", METHODS)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
def test_other_methods_get_no_decision(served: Gateway, path: str, method: str) -> None:
    """A link on a web page does not make a charge."""
    with served.channel() as channel:
        stream = channel.begin(path, method=method, ends=True)
        answer = channel.wait(stream)

    assert answer.status in ("HTTP 505", "HTTP 415", "HTTP 405")


@pytest.mark.parametrize(
    "path",
    [
        "/envoy.service.ratelimit.v3.RateLimitService/Nothing",
        "/envoy.service.ratelimit.v2.RateLimitService/ShouldRateLimit",
        "/grpc.health.v1.Health/Check",
        "/",
    ],
)
def test_unknown_method_is_unimplemented(channel: Channel, path: str) -> None:
    """gRPC has a status for it."""
    answer = channel.call(path, framed(b""))

    assert answer.status == "12"
    assert "no%20method" in answer.trailers["grpc-message"] or "no method" in answer.trailers["grpc-message"]


@pytest.mark.parametrize("path", [*METHODS, "/grpc.health.v1.Health/Check"])
def test_a_server_without_trailers_gets_no_call(server: ValkeyServer, tmp_path: Path, path: str) -> None:
    """Without trailers there is no status of gRPC. uvicorn serves the other paths."""
    with gateway(server, tmp_path, server="uvicorn") as running:
        address = f"http://127.0.0.1:{running.service.port}{path}"
        answer = httpx2.post(address, content=framed(b""), headers={"Content-Type": "application/grpc"})

    assert answer.status_code == (505 if path in METHODS else 404)
    assert "Traceback" not in running.service.log.read_text()


@pytest.mark.parametrize("path", METHODS)
def test_message_in_many_frames_is_one_message(served: Gateway, legal: bytes, path: str) -> None:
    """How HTTP/2 cuts a message has no meaning."""
    message = legal if path == RLS else check_request("nonsense")

    with served.channel() as channel:
        stream = channel.begin(path)
        for at, byte in enumerate(framed(message)):
            channel.send(stream, bytes((byte,)), ends=at == len(message) + 4)
        answer = channel.wait(stream)

    assert answer.status == "0"
    assert allows(path, answer.message) == (path == RLS)


@pytest.mark.proof
@settings(max_examples=scale(60, 2_000), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bytes_are_permission(served: Gateway, channel: Channel, data: st.DataObject) -> None:
    """Whatever a message holds, a request without a token that is known is denied, and the service goes on."""
    path = data.draw(st.sampled_from(METHODS))
    message = data.draw(st.one_of(st.binary(max_size=200), st.builds(b"".join, st.lists(FIELDS, max_size=6))))

    assert denies(path, channel.call(path, framed(message)))


@pytest.mark.proof
@settings(max_examples=scale(40, 2_000), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_call_never_fails(channel: Channel, legal: bytes, data: st.DataObject) -> None:
    """A legal message with changed bytes is answered by a decision, whichever it is."""
    message = bytearray(legal)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(message) - 1))
        message[at] = data.draw(st.integers(0, 255))

    assert channel.call(RLS, framed(bytes(message))).status == "0"


NUMBERS = st.integers(1, 16)
FIELDS = st.recursive(
    st.one_of(
        st.builds(write, NUMBERS, st.binary(max_size=40)),
        st.builds(write_integer, NUMBERS, st.integers(0, 2**64 - 1)),
        st.builds(
            lambda number, value: bytes((number << 3 | 1,)) + value,
            st.integers(1, 15),
            st.binary(min_size=8, max_size=8),
        ),
    ),
    lambda inner: st.builds(lambda number, rows: write(number, b"".join(rows)), NUMBERS, st.lists(inner, max_size=4)),
    max_leaves=8,
)


@given(rows=st.lists(FIELDS, max_size=5))
def test_fields_are_read_as_they_were_written(rows: list[bytes]) -> None:
    """Reading and writing fit together, field by field."""
    rows = [row for row in rows if row]

    found = list(fields(b"".join(rows)))

    assert len(found) == len(rows)
    for row, (number, kind, value) in zip(rows, found, strict=True):
        if kind == 2:
            assert isinstance(value, bytes)
            assert row == write(number, value)
            assert parts(row, number) == [value]


# HTTP/2 that no client of good will speaks. One legal call afterwards must be answered as ever.


def test_callers_that_leave_are_no_failure(served: Gateway, legal: bytes) -> None:
    """A stream that is reset before its message is complete costs nothing and is not logged as a failure."""
    with served.channel() as channel:
        for _ in range(20):
            stream = channel.begin(RLS)
            channel.send(stream, framed(legal)[:7], ends=False)
            channel.reset(stream)
        answered = allows(RLS, channel.ask(RLS, legal))

    assert answered
    assert "A decision for" not in served.service.log.read_text()


def test_resets_right_after_the_call(served: Gateway, legal: bytes) -> None:
    """Rapid resets end at most their own connection."""
    with served.channel() as channel, contextlib.suppress(OSError, ProtocolError):
        for _ in range(1_000):
            stream = channel.begin(RLS)
            channel.send(stream, framed(legal))
            channel.reset(stream)
    with served.channel() as channel:
        assert allows(RLS, channel.ask(RLS, legal))


def test_connections_that_stop_in_the_middle(served: Gateway, legal: bytes) -> None:
    """Half of a frame, no preface, or nothing at all: the others are served meanwhile."""
    address = ("127.0.0.1", served.service.port)
    stalled = [socket.create_connection(address) for _ in range(30)]
    for at, client in enumerate(stalled):
        client.sendall([b"", b"PRI * HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", b"\0" * 20][at % 4])
    with served.channel() as open_streams:
        for _ in range(50):
            open_streams.send(open_streams.begin(RLS), b"\0\0\0", ends=False)
        with served.channel() as channel:
            answered = allows(RLS, channel.ask(RLS, legal))
    for client in stalled:
        client.close()

    assert answered


async def test_a_message_that_does_not_arrive_ends_its_call_alone() -> None:
    """The caller is denied, and a call that somebody else cancels stays cancelled."""
    reader, never = MessageReader(0.02), asyncio.Event()

    async def receive() -> dict[str, object]:
        await never.wait()
        return {}

    async def in_time() -> dict[str, object]:
        return {"type": "http.request", "body": framed(b"abc")}

    cancelled = asyncio.ensure_future(reader.read(receive))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    for _ in range(2):
        with pytest.raises(Refusal, match="did not arrive in time"):
            await reader.read(receive)
        assert await reader.read(in_time) == b"abc"
    await reader.drain(receive)


@pytest.mark.proof
@pytest.mark.proof
@pytest.mark.parametrize("served", scale(["h2corn"], ["h2corn", "hypercorn"]), indirect=True)
def test_streams_that_never_end_are_ended(served: Gateway, legal: bytes) -> None:
    """Each is denied, and those whose message comes in drops are no exception."""
    with served.channel() as channel:
        channel.socket.settimeout(2 * READ_SECONDS)
        streams = [channel.begin(path) for path in (*METHODS, "/unknown/Method") for _ in range(10)]
        began = time.monotonic()
        while time.monotonic() - began < READ_SECONDS / 2:
            channel.send(streams[0], b"\0", ends=False)
            time.sleep(0.5)
        answers = [channel.wait(stream) for stream in streams]
        after = channel.ask(RLS, legal)

    assert [it.status for it in answers] == ["0"] * 20 + ["12"] * 10
    assert {problem(RLS, it)["status"] for it in answers[:10]} == {408}
    assert {problem(EXT_AUTHZ, it)["status"] for it in answers[10:20]} == {408}
    assert allows(RLS, after)
    assert "A decision for" not in served.service.log.read_text()


def test_half_closed_connection_is_no_failure(served: Gateway, legal: bytes, request: pytest.FixtureRequest) -> None:
    """A caller that says that it sends no more gets its answer or an end, and the others are served."""
    if request.node.callspec.params["served"] == "hypercorn":
        pytest.skip("hypercorn keeps such a connection open for ever, and then does not stop.")
    with served.channel() as channel:
        channel.send(channel.begin(RLS), framed(legal))
        channel.socket.shutdown(socket.SHUT_WR)
        while channel.read():
            pass
    with served.channel() as channel:
        assert allows(RLS, channel.ask(RLS, legal))


def test_flood_of_header_fields(served: Gateway, legal: bytes) -> None:
    """Fields that nobody asked for end at most their own call."""
    with served.channel() as channel, contextlib.suppress(OSError, ProtocolError):
        channel.call(RLS, framed(legal), headers=[(f"x-{number}", "y" * 200) for number in range(3_000)])
    with served.channel() as channel:
        assert allows(RLS, channel.ask(RLS, legal))
    assert eventually(served.service.ready)
