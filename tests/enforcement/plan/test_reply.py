"""Replies that are well-formed and say something else than the function does, from a server in the store's place."""

import socketserver
import struct
import threading

import hiredis
import pytest

from enforcement import Limit, Limiter, aio
from enforcement.lua import function
from tests.enforcement.faults import FaultyPath
from tests.enforcement.world import World, eventually, fixed

pytestmark = pytest.mark.usefixtures("no_documents")

LIMIT = Limit(name="rpm", quota=5, window_seconds=3_600)
SLOTS = Limit(name="slots", algorithm="concurrency", quota=5, window_seconds=3_600)
SHORT = [
    struct.pack(">qq", 1, 1_800_000_000_000_000),
    struct.pack(">q", 1),
    struct.pack(">7q", 1, 1_800_000_000_000_000, 4, 1, 0, 1, 0),
    [[1]],
]


class Server(socketserver.ThreadingTCPServer):
    """Answers each FCALL as it is told, and everything else with nil."""

    daemon_threads = True
    reply: object = None
    calls = 0


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        reader = hiredis.Reader()
        while data := self.request.recv(65_536):
            reader.feed(data)
            while (command := reader.gets()) is not False:
                fcall = command[0].upper() == b"FCALL"
                self.server.calls += fcall
                self.request.sendall(encode(self.server.reply if fcall else None))


def encode(value):
    """Return a value as the store sends it."""
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    if isinstance(value, int):
        return b":%d\r\n" % value
    return b"*%d\r\n%b" % (len(value), b"".join(map(encode, value)))


@pytest.fixture
def liar():
    """Give a server in the store's place."""
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def url(server):
    return f"redis://127.0.0.1:{server.server_address[1]}/0"


@pytest.mark.parametrize("reply", SHORT, ids=lambda reply: f"{reply!r:.20}")
def test_a_hit_and_a_reservation_are_decided_without_the_store(liar, reply):
    """By the limit's own rule; neither raises an error, nor does the end."""
    liar.reply = reply
    with Limiter(url(liar), timeout=1.0) as limiter:
        decision = limiter.hit(LIMIT, "k")
        with limiter.admit([LIMIT, SLOTS], "k") as admission:
            admission.settle(1)

    assert liar.calls
    assert (decision.allowed, decision.source, admission.decision.source) == (True, "fallback", "fallback")


@pytest.mark.parametrize("reply", SHORT, ids=lambda reply: f"{reply!r:.20}")
async def test_the_same_for_asyncio(liar, reply):
    """The shells are two."""
    liar.reply = reply
    async with aio.Limiter(url(liar), timeout=1.0) as limiter:
        decision = await limiter.hit(LIMIT, "k")

    assert (decision.allowed, decision.source) == (True, "fallback")


class ShortPath(FaultyPath):
    """Passes everything on, except the replies to one function once it has been called."""

    function, reply = b"", [1]

    def __init__(self, port):
        self.called = set()  # connections to the store that are due a reply of the function
        super().__init__(port)

    def _pump(self, source, target, replies):
        try:
            while data := source.recv(65_536):
                if not replies and self.function and self.function in data:
                    self.called.add(target)
                elif replies and source in self.called:
                    self.called.discard(source)
                    self.hit += 1
                    data = encode(self.reply)
                target.sendall(data)
        except OSError:
            pass
        target.close()


def test_close_raises_nothing_when_the_reply_to_a_replay_is_short(own_server):
    """Charges of partition values were replayed, and the reply did not tell of each."""
    secret = World(own_server.url).everything({**fixed(9), "partition_by": ["ip"]})
    path = ShortPath(own_server.port)
    with Limiter(path.url, timeout=1.0, lookup=1.0) as limiter:
        assert limiter.check(secret, attributes={"ip": "192.0.2.1"}).source == "store"
        # A token that came while the documents did is looked up again.
        assert eventually(
            lambda: limiter.check(secret, attributes={"ip": "192.0.2.2"}) and limiter._engine.documents.cached()
        )
        own_server.freeze()
        limiter._engine.health.breaker.trip("frozen")  # what was called in vain might have been executed
        assert limiter.check(secret, attributes={"ip": "192.0.2.3"}).source == "fallback"
        path.function = function("enrol_settle").encode()
        own_server.thaw()
    assert eventually(lambda: path.hit)
    path.close()


@pytest.mark.parametrize("reply", [[[1]], [[]], [1], [[1, 2, 3, 4, 5, 6]], [[b"1", b"2", b"3", b"4", b"5", b"6"], 0]])
def test_a_decision_that_registers_a_value_is_made_without_the_store(server, world, reply):
    """If the reply is shorter than the limits and values of the call."""
    secret = world.everything({**fixed(9), "partition_by": ["ip"]})
    path = ShortPath(server.port)
    path.function, path.reply = function("enrol").encode() + b"\r\n", reply
    with Limiter(path.url, timeout=1.0) as limiter:
        decision = limiter.check(secret, attributes={"ip": "192.0.2.1"})
    path.close()

    assert path.hit
    assert (decision.allowed, decision.source) == (True, "fallback")
