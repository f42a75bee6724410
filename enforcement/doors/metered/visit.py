"""One metered request on its way through an ASGI application to the provider, and its answer on the way back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from operator import itemgetter
from time import time_ns
from typing import Final, Self

from enforcement.aio import Admission
from enforcement.doors.metered.bodies import ReadBody, is_long, sent_on
from enforcement.http.asgi import METERED, App, Message, Receive, Scope, Send
from enforcement.http.messages import CAP_FIELD
from enforcement.metering.broken import is_broken
from enforcement.metering.exchange import MeteredExchange
from enforcement.metering.request import MeteredRequest
from enforcement.metering.settlement import DrainBounds, Settlement

_LENGTH: Final = b"content-length"
_ENCODING: Final = b"content-encoding"
_NAME: Final = itemgetter(0)
UVICORN: Final = "RequestResponseCycle.run_asgi"
"""The coroutine in which uvicorn runs an application. It is cancelled only if the server ends before the request."""


class Drains:
    """
    Bounds how many answers of a process are read although their clients left.

    Args:
        bounds: How much of each is read.
    Attributes:
        going: The requests under way whose answers may be read on.
    """

    def __init__(self, bounds: DrainBounds) -> None:
        self.bounds = bounds
        self.going: set[asyncio.Task[None]] = set()
        self._number = 0

    def began(self, visit: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Return a new task for a request whose answer may be read on, and keep it among those that are *going*."""
        task = asyncio.ensure_future(visit)
        self.going.add(task)
        task.add_done_callback(self.going.discard)
        return task

    def take(self) -> DrainBounds | None:
        """Return how much of an answer may be read, or None if too many are read already."""
        if self._number >= self.bounds.at_once:
            return None
        self._number += 1
        return self.bounds

    def give_back(self) -> None:
        """Note that an answer is no longer read."""
        self._number -= 1


_CAP: Final = CAP_FIELD.lower().encode()


class MeteredVisit:
    """
    One request that was charged what it may cost. It ends as a context, which gives back the room of its body.

    It is settled once: when the client has left, or when the application ends without an answer, or before the last
    message of the answer is sent, which does not wait for the reply of the store.

    Args:
        exchange: What is charged for it.
        admission: The charges and slots.
        body: Its body, or the beginning of it, until that is on its way to the application.
        drains: Reads answers on after their clients left. None: they are not read on.
        replies: Has the replies of the store that nobody waits for, until they have come.
        report: Called with the settlement, unless an operator has settled the request before. An application may
            replace the attribute.
        shape: The provider whose errors those of the application should resemble. Empty: none.
    """

    _receive: Receive
    _send: Send
    _sent = False
    _broke = False
    _left = False
    _draining = False
    _over: asyncio.Event | None = None  # of an answer that is drained

    def __init__(
        self,
        exchange: MeteredExchange,
        admission: Admission,
        body: ReadBody | None,
        drains: Drains | None,
        replies: set[asyncio.Future[object]],
        report: Callable[[Settlement], None],
        shape: str = "",
    ) -> None:
        self.shape = shape
        self.exchange = exchange
        self.admission = admission
        self.report = report
        self._body = body
        self._drains = drains
        self._replies = replies

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._body is not None:
            self._body.pass_on()

    def is_sent(self) -> None:
        """Note that the request goes to the provider now. Without that, it does when its body is read."""
        self._sent = True

    def not_sent(self) -> None:
        """Note that the request does not go to the provider before :meth:`is_sent` says so."""
        self._sent = False

    def broke(self) -> None:
        """Note that the connection to the provider broke before an answer, so that what is sent is not its answer."""
        self._broke = True

    def take_short_body(self, length: int | None) -> bytes | None:
        """
        Return the body of the request, which is then no longer received, or None if it is long or not whole, or has
        another length than its head announces.
        """
        body = self._body
        if body is None or not body.whole or len(body.data) != length or is_long(body.data):
            return None
        self._body = None
        body.pass_on()
        return body.data

    async def run(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application with the body that was read, and settle the request."""
        self._receive, self._send = receive, send
        asked = self.exchange.opening.asked
        if self._body is not None and isinstance(asked, MeteredRequest):
            self._body.data = asked.body
            scope = sent_on(scope, asked.body)
        scope[METERED] = self
        if self._drains is None or _goes_on():
            # This repeats _visit(). Each coroutine more takes its time for each part of the answer.
            try:
                await app(scope, self._received, self._passed_on)
            finally:
                if not self.exchange.is_settled:
                    await self._end(whole=False)
                if self._draining:
                    self._stop_draining()
            return
        # Some servers cancel the application when a client leaves. It has to go on then if its answer is drained.
        going = self._drains.began(self._visit(app, scope))
        try:
            await asyncio.shield(going)
        except asyncio.CancelledError:
            if not self._draining:
                going.cancel()
                await asyncio.wait({going})
            raise

    async def _visit(self, app: App, scope: Scope) -> None:
        try:
            await app(scope, self._received, self._passed_on)
        finally:
            if not self.exchange.is_settled:
                await self._end(whole=False)
            self._stop_draining()

    async def _received(self) -> Message:
        """Give the application what the client sends."""
        body, self._body = self._body, None
        if body is not None:
            self._sent = True
            return body.first_message()
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._left:
            await self._leave()
            if self._draining:
                # The application goes on as if the client were there, until enough was read.
                await self._until_drained()
        return message

    async def _leave(self) -> None:
        self._left = True
        bounds = self._drains.take() if self._drains is not None and not self.exchange.is_settled else None
        settlement = self.exchange.client_left(now_us(), sent=self._sent, drain=bounds)
        self._draining = self.exchange.is_drained
        if self._draining:
            self._over = asyncio.Event()
        if bounds is not None and not self._draining and self._drains is not None:
            self._drains.give_back()
        if settlement is None:
            await self.admission.free_slots()
        await self._settle(settlement)

    async def _until_drained(self) -> None:
        assert self._drains is not None
        assert self._over is not None
        try:
            async with asyncio.timeout(self._drains.bounds.ms / 1_000):
                await self._over.wait()
        except TimeoutError:
            await self._settle(self.exchange.passed(now_us() + 1_000))

    def _stop_draining(self) -> None:
        self._is_over()
        if self._draining and self._drains is not None:
            self._draining = False
            self._drains.give_back()

    def _passed_on(self, message: Message) -> Awaitable[None]:
        """Return an awaitable that sends a message of the answer, which is read, to the client."""
        kind = message["type"]
        if self._broke or self._left:
            return self._read_and_send(message)
        # Return the server's awaitable itself where that will do: a coroutine around it would only cost time.
        if kind == "http.response.body":
            if not message.get("more_body", False):
                return self._end_and_send(message)
            body, meter = message.get("body", b""), self.exchange.meter
            data = body if meter is None else meter.feed(body)
            if data is body:  # an empty body, with which an application sends the head of its answer, passes
                return self._send(message)
            return self._send({**message, "body": data}) if data else _nothing()
        if kind != "http.response.start":
            return self._send(message)
        message, over = self._head(message)
        return self._send(message) if over is None else self._settle_and_send(over, message)

    async def _end_and_send(self, message: Message) -> None:
        """Read the last message of an answer, settle the request, and send it."""
        data = self.exchange.feed(message.get("body", b""))
        rest = await self._end(whole=True)
        if not self._left:
            await self._send({**message, "body": data + rest if rest else data})

    async def _settle_and_send(self, settlement: Settlement, message: Message) -> None:
        await self._settle(settlement)
        await self._send(message)

    async def _read_and_send(self, message: Message) -> None:
        """Read a message of an answer that broke, or whose client has left, and send it if one is there."""
        kind = message["type"]
        if self._broke:
            await self._end(whole=False)
        elif kind == "http.response.start":
            message, over = self._head(message)
            await self._settle(over)
        elif kind == "http.response.body":
            data = self.exchange.feed(message.get("body", b""))
            if not message.get("more_body", False):
                message = {**message, "body": data + await self._end(whole=True)}
            elif self._draining:
                await self._read_on()
        if not self._left:
            await self._send(message)

    def _head(self, message: Message) -> tuple[Message, Settlement | None]:
        """Read the head of the answer, and return it for the client, and the settlement if the request is settled."""
        exchange, headers = self.exchange, [*message.get("headers", ())]
        cap = exchange.opening.written_cap
        if cap is not None:
            headers = [*headers, (_CAP, b"%d" % cap)]
            message = {**message, "headers": headers}
        if not self._sent:
            return message, exchange.answered_here(message["status"], now_us())
        encoding = None
        if _ENCODING in b"\n".join(map(_NAME, headers)).lower():  # few answers are, and some have many fields
            encodings = [value for name, value in headers if name.lower() == _ENCODING]
            encoding = b", ".join(encodings).decode("latin-1")
        over = exchange.answered(message["status"], encoding or None, now_us())
        exchange.read_head(headers)
        if exchange.hides_usage:
            message = {**message, "headers": [header for header in headers if header[0].lower() != _LENGTH]}
        return message, over

    async def _read_on(self) -> None:
        settlement = self.exchange.read_on(now_us())
        await self._settle(settlement)
        if settlement is not None:
            self._is_over()

    async def _end(self, *, whole: bool) -> bytes:
        if self._sent or self.exchange.has_head:
            rest, settlement = self.exchange.ended(now_us(), whole=whole)
        else:
            rest, settlement = b"", self.exchange.refused(None, now_us())
        # A broken bound changes the next requests.
        if whole and settlement is not None and not is_broken(self.exchange.opening, settlement):
            self._settle_soon(settlement)
            await _Turn()  # of the event loop, in which all commands are sent
        else:
            await self._settle(settlement)
        if self._over is not None:
            self._is_over()
        return rest

    def _is_over(self) -> None:
        """End the wait for an answer that is drained."""
        if self._over is not None:
            self._over.set()

    async def _settle(self, settlement: Settlement | None) -> None:
        """Charge what the request did cost, and free its slots."""
        if settlement is None:
            return
        try:
            costs = self.exchange.opening.terms.named(settlement.costs)
            await self.admission.conclude(costs, is_last_word=settlement.is_last_word)
        finally:
            self._report(settlement)

    def _settle_soon(self, settlement: Settlement) -> None:
        """Do the same without waiting for the store, as nothing in the rest of the answer depends on it."""
        costs, over = self.exchange.opening.terms.named(settlement.costs), partial(self._report, settlement)
        self.admission.conclude_soon(costs, self._replies, over, is_last_word=settlement.is_last_word)

    def _report(self, settlement: Settlement) -> None:
        if not self.admission.reservation.settled_elsewhere:
            self.report(settlement)


def _goes_on() -> bool:
    """Return whether this is a task of a server that leaves it alone when its client leaves, as uvicorn does."""
    task = asyncio.current_task()
    return task is not None and getattr(task.get_coro(), "__qualname__", "") == UVICORN


class _Turn:
    """Waits for the next turn of the event loop, as ``asyncio.sleep(0)`` does, which takes two calls more."""

    __slots__ = ()

    def __await__(self) -> Generator[None]:
        yield


async def _nothing() -> None:
    """Send no message."""


def now_us() -> int:
    """Return the time of this host, in microseconds since the epoch."""
    return time_ns() // 1_000
