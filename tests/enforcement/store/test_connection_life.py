"""The connections of the hot path: how they are found, given up, shared by threads and loops, and none of them lost."""

import asyncio
import contextlib
import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import uvloop

from enforcement import Limit, Limiter, aio
from enforcement.store.address import Address
from enforcement.store.aio_connection import AsyncPipe
from enforcement.store.breaker import FAILURES_IN_A_ROW
from enforcement.store.connection import SyncPipe
from enforcement.store.errors import Redirected, StoreError, trouble
from enforcement.store.resp import pack
from tests.enforcement.stalls import Stalls
from tests.enforcement.world import eventually

WIDE = Limit(name="wide", quota=1_000_000, window_seconds=3_600)
PING = pack(("PING",))


@pytest.fixture
def pipe(server, world):
    """Give a pipe of threads with time enough for any reply."""
    pipe = SyncPipe(lambda: Address.from_url(server.url), 5.0)
    yield pipe
    pipe.close()


@contextlib.contextmanager
def scripted(*replies):
    """Give the port of something that answers each piece it receives with the next of these bytes."""

    def serve():
        with contextlib.suppress(OSError):
            sock, _ = listener.accept()
            with sock:
                for reply in replies:
                    sock.recv(65_536)
                    sock.sendall(reply)
                sock.recv(65_536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def clients(world):
    """Return how many connections the store has."""
    return world.client.info("clients")["connected_clients"]


def alone(world):
    """Close the connections that earlier tests have left, and return how many there are after that, which is one."""
    world.client.client_kill_filter(_type="normal", skipme=True)
    assert eventually(lambda: clients(world) == 1)
    return 1


def open_files():
    """Return how many files and sockets this process has open."""
    return len(os.listdir("/proc/self/fd"))


# Connections that are given up.


def test_a_connection_that_the_store_closed_is_not_used_after_a_pause(pipe, world):
    """
    Servers, and what stands before them, hang up when nothing is said for long: the next call has a new connection. The
    control is a call so soon that nobody looked: it fails, and may have been executed.
    """
    lost = []
    pipe._on_lost = lost.append
    for quiet in (60.0, 0.0):
        assert pipe.call(PING) == b"PONG"
        world.client.client_kill_filter(_type="normal", skipme=True)
        assert eventually(pipe._idle[0].hung_up)
        pipe._idle[0].deadline -= quiet
        if quiet:
            assert pipe.call(PING) == b"PONG"
            assert len(lost) == 1

    with pytest.raises(StoreError, match="connection") as caught:
        pipe.call(PING)
    assert caught.value.executed


def test_a_connection_in_use_when_all_are_given_up_is_not_used_again(pipe, world):
    """The primary is another one now: whoever waits for the old one gets the reply, and nobody asks it again."""
    before = alone(world)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pipe.call, pack(("BLPOP", "{doc}:queue", 20)))
        assert eventually(lambda: world.client.info("clients")["blocked_clients"] == 1)
        pipe.close()
        world.client.rpush("{doc}:queue", "x")
        assert waiting.result() == [b"{doc}:queue", b"x"]

    assert not pipe._idle
    assert eventually(lambda: clients(world) == before)


def test_connections_that_end_together_are_one_failure(server, world):
    """A server or a balancer closes all of them: one request is decided here, the next ones by the store."""
    with Limiter(server.url, timeout=0.5) as limiter:
        limiter.hit(WIDE, "k")
        world.client.execute_command("CLIENT", "PAUSE", 200, "ALL")  # so that none is used for two calls
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: limiter.hit(WIDE, "k"), range(8)))
        assert len(limiter._pipe._idle) > FAILURES_IN_A_ROW
        world.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        causes = [limiter.hit(WIDE, "k").cause for _ in range(8)]
        stats = limiter.stats()

    assert causes.count("connection") == 1
    assert stats.outages == 0


def test_threads_may_give_all_connections_up_at_once(pipe):
    """Each that finds a replica where the primary was does so; none of them meets another's hand in the bag."""
    with ThreadPoolExecutor(8) as threads:
        for _ in range(50):
            list(threads.map(pipe.call, [PING] * 16))
            list(threads.map(lambda _: pipe.close(), range(8)))

    assert not pipe._idle


def test_no_connection_outlives_its_limiter(server, world):
    """Threads, tasks, an outage of each connection, a new start: closed, there are as many open files as before."""

    async def awaited():
        async with aio.Limiter(server.url, timeout=1.0) as limiter:
            for _ in range(3):
                await asyncio.gather(*(limiter.hit(WIDE, "k") for _ in range(20)))
                world.client.client_kill_filter(_type="normal", skipme=True)

    world.client.ping()
    before, running = open_files(), set(threading.enumerate())
    for _ in range(3):
        limiter = Limiter(server.url, timeout=1.0)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: limiter.hit(WIDE, "k"), range(80)))  # noqa: B023 - done before the next round
            world.client.client_kill_filter(_type="normal", skipme=True)
            list(threads.map(lambda _: limiter.hit(WIDE, "k"), range(80)))  # noqa: B023
        limiter.close()
        asyncio.run(awaited())

    assert eventually(lambda: open_files() <= before)
    assert set(threading.enumerate()) <= running  # threads of others may end meanwhile


# Whose reply it is.


def test_a_reply_that_nobody_asked_for_ends_its_connection():
    """Two come for one question: the second is not taken for the answer to the next."""
    with scripted(b"+PONG\r\n+PONG\r\n", b"$3\r\nown\r\n") as port:
        pipe = SyncPipe(lambda: Address(port=port), 1.0)
        assert pipe.call(PING) == b"PONG"

        with pytest.raises(StoreError, match="unsolicited reply"):
            pipe.call(pack(("ECHO", "own")))
        assert not pipe._idle


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_calls_in_flight_keep_their_places_on_any_loop(server, world, new_loop):
    """
    A thousand calls, some cancelled, some of a megabyte, while the connection is lost once: each reply is the asker's
    own, and what has none fails.
    """
    chance, large = random.Random(11), "x" * 1_000_000

    async def ask(pipe, number):
        text = f"{number}{large}" if number % 100 == 0 else str(number)
        return await pipe.call(pack(("ECHO", text))) == text.encode()

    async def all_of_them():
        pipe = AsyncPipe(lambda: Address.from_url(server.url), 10.0)
        tasks = [asyncio.create_task(ask(pipe, number)) for number in range(1_000)]
        for task in chance.sample(tasks, 200):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait(tasks[:300])
        await asyncio.to_thread(world.client.client_kill_filter, _type="normal", skipme=True)
        more = [asyncio.create_task(ask(pipe, number)) for number in range(200)]
        answers = await asyncio.gather(*tasks, *more, return_exceptions=True)
        again = await asyncio.gather(*(ask(pipe, number) for number in range(200)))
        pipe.close()
        return answers, again

    with asyncio.Runner(loop_factory=new_loop) as runner:
        answers, again = runner.run(all_of_them())

    assert {type(answer) for answer in answers} <= {bool, StoreError, asyncio.CancelledError}
    assert sum(answer is True for answer in answers) >= 200
    assert False not in answers
    assert again == [True] * 200


def test_loops_that_share_a_limiter_have_a_connection_each(server, world):
    """Two loops in turn, and both at once in threads: as many connections as loops, whoever asks, and none left."""
    before = alone(world)
    limiter = aio.Limiter(server.url, timeout=1.0, clock=lambda: 1_000_000)  # a test's clock has no background
    runners = [asyncio.Runner(), asyncio.Runner()]
    in_turn = [runner.run(limiter.hit(WIDE, "k")).source for _ in range(20) for runner in runners]
    assert clients(world) <= before + 2

    async def many():
        return [(await limiter.hit(WIDE, "k")).source for _ in range(200)]

    with ThreadPoolExecutor(2) as threads:
        at_once = list(threads.map(lambda runner: runner.run(many()), runners))
    assert clients(world) <= before + 2
    assert {*in_turn, *at_once[0], *at_once[1]} == {"store"}

    runners[0].run(limiter.close())
    for runner in runners:
        runner.run(asyncio.sleep(0.01))
        runner.close()
    assert eventually(lambda: clients(world) == before)


async def test_a_call_that_begins_while_its_pipe_is_closed_has_a_connection_until_it_is_over(path, world):
    """It belongs to a task that nobody told, and its reply counts as any other."""
    pipe = AsyncPipe(lambda: Address.from_url(path.url), 1.0)
    path.mode, path.delay = "delay", 0.05
    first = pipe.call(PING)
    closing = asyncio.create_task(pipe.finish())
    await asyncio.sleep(0)
    second, link = pipe.call(PING), pipe._link
    await closing

    assert [await first, await second] == [b"PONG", b"PONG"]
    assert await asyncio.to_thread(eventually, lambda: link._transport.is_closing())


# Finding the host.


def test_a_resolver_that_does_not_answer_costs_no_more_than_the_budget(monkeypatch):
    """Its servers are away, and the system asks them for seconds: one thread waits for it, and no decision does."""
    answer, asked = threading.Event(), []
    found = socket.getaddrinfo

    def hanging(host, *args, **options):
        if options.get("flags"):
            return found(host, *args, **options)  # whether it is a number needs no server
        asked.append(host)
        answer.wait(20)
        raise socket.gaierror("no servers")

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    pipe = SyncPipe(lambda: Address(host="store.invalid"), 0.1)
    with Stalls() as stalls:
        for _ in range(3):
            with pytest.raises(StoreError, match="timeout") as caught:
                pipe.call(PING)
            assert not caught.value.executed
    answer.set()

    assert stalls.seconds < 3 * 0.1 + 0.15
    assert asked == ["store.invalid"]


def test_a_name_is_found(server, world):
    """Each of its addresses is tried: this machine has an IPv6 one as well, at which no store listens."""
    with Limiter(f"redis://localhost:{server.port}/0", timeout=1.0) as limiter:
        assert limiter.hit(WIDE, "k").source == "store"


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
def test_a_host_that_cannot_be_is_not_reached(host):
    """A server that says so, for a primary or a slot, is lying: the call fails in both pipes, and nobody waits."""
    awaited = AsyncPipe(lambda: Address(host=host), 5.0)

    async def call():
        await awaited.call(PING)

    for ask in (lambda: SyncPipe(lambda: Address(host=host), 5.0).call(PING), lambda: asyncio.run(call())):
        with Stalls() as stalls, pytest.raises(StoreError, match="label"):
            ask()
        assert stalls.seconds < 1.0


def test_finding_the_server_is_part_of_the_budget():
    """What is asked where the primary is takes two thirds of it; a primary that cannot be reached has one third."""

    def found():
        time.sleep(0.2)
        return Address(port=full.getsockname()[1])

    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as callers:
        with contextlib.suppress(TimeoutError):
            while True:  # nobody accepts: the queue fills, and then callers are not answered
                callers.enter_context(socket.create_connection(full.getsockname(), 0.1))
        pipe = SyncPipe(found, 0.3)
        with Stalls() as stalls, pytest.raises(StoreError, match="timeout"):
            pipe.call(PING)

        assert stalls.seconds < 0.4


def test_an_account_stands_in_the_url(server, world):
    """Whatever the name and the password are made of, percent-encoded: both limiters are that account."""
    world.client.execute_command("ACL SETUSER", "a:p/1", "on", ">p@ss:/?#% ü", "~*", "+@all")
    user, password = "a%3Ap%2F1", "p%40ss%3A%2F%3F%23%25%20%C3%BC"
    url = f"redis://{user}:{password}@127.0.0.1:{server.port}/0"

    async def whoami():
        pipe = AsyncPipe(lambda: Address.from_url(url), 1.0)
        name = await pipe.call(pack(("ACL", "WHOAMI")))
        pipe.close()
        return name

    pipe = SyncPipe(lambda: Address.from_url(url), 1.0)
    assert pipe.call(pack(("ACL", "WHOAMI"))) == asyncio.run(whoami()) == b"a:p/1"
    pipe.close()
    wrong = SyncPipe(partial(Address.from_url, url.replace("p%40ss", "pass")), 1.0)
    with pytest.raises(StoreError, match="auth") as caught:
        wrong.call(PING)
    assert not caught.value.executed


@pytest.mark.parametrize("text", ["MOVED 16384 127.0.0.1:6379", "MOVED 1 127.0.0.1:0", "ASK 1 127.0.0.1:99999"])
def test_a_redirection_to_what_cannot_be_is_not_followed(text):
    """It is a refusal like any other; one that can be is followed."""
    found = trouble(text)

    assert not isinstance(found, Redirected)
    assert (found.cause, found.executed) == ("moved", False)
    assert isinstance(trouble("MOVED 16383 127.0.0.1:65535"), Redirected)
