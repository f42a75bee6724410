"""Forward one request to an upstream, and its response to the client, while the body of each is still arriving."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Final

from enforcement.doors.proxy.answers import refuse
from enforcement.doors.proxy.connection import ClientGone, Connection, UpstreamError
from enforcement.doors.proxy.fields import RequestFields, response_fields
from enforcement.doors.proxy.places import Crowded
from enforcement.doors.proxy.pool import Pool, PoolFull
from enforcement.http.asgi import Message, Receive, Scope, Send
from enforcement.http.messages import Header
from enforcement.logs import RateLimitedLogger

logger = logging.getLogger("sluicegate.proxy")

# A request with one of these methods may be sent twice (RFC 9110, 9.2.2).
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})

_RETRY: Final = (("Retry-After", "1"),)
_SAY: Final = RateLimitedLogger(logger)


class UpstreamSilent(Exception):
    """The upstream has sent nothing for too long."""


class Forwarding:
    """
    One request to the upstream.

    Args:
        pool: The connections to the upstream.
        silence: Seconds that the upstream may be silent.
        subject: The ids of the project and of the token, whose share of the places it counts for.
        scope: The request, as ASGI describes it.
        receive: Gives its body.
        send: Takes its response.
    """

    def __init__(
        self, pool: Pool, silence: float, subject: tuple[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._pool = pool
        self._silence = silence
        self._subject = subject
        self._scope = scope
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self._with_body = False
        self._waits_for_client = False
        self._gone = False
        self._begun = False

    async def run(self, head: bytes, fields: RequestFields, first: Message | None) -> None:
        """
        Send the request to the upstream, and stream the response back to the client.

        Args:
            head: Request line and header fields.
            fields: What they say of the body.
            first: The first message of the body, if it was read already.
        """
        entered = False
        self._with_body = fields.chunked or bool(fields.length)
        self._pool.call_soon_enough(self._tick)
        try:
            if not self._pool.enter(*self._subject):
                await self._pool.enter_later(*self._subject)
            entered = True
            await self._exchange(head, fields, first)
        except ClientGone:
            pass
        except Crowded as crowded:
            title = f"Too many requests of this {crowded.who} are under way. Try again when some of them have ended"
            await self._fail(429, title, _RETRY)
        except PoolFull:
            await self._fail(503, "The proxy is at its limit of connections to the upstream", _RETRY)
        except (TimeoutError, UpstreamSilent):
            self._log("it did not answer in time")
            await self._fail(504, "The upstream did not answer in time")
        except UpstreamError as error:
            if not self._gone:
                self._log(str(error))
                await self._fail(502, "The upstream could not be reached or broke off")
        finally:
            self._ended = True
            if self._timer is not None:
                self._timer.cancel()
            # The task keeps the error of its cancellation, whose traceback leads back here. Only the collector of
            # garbage could free such a circle, with all that a request has.
            listening, self._listening = self._listening, None
            if listening is not None:
                listening.cancel()
            if entered:
                self._pool.leave(self._connection, *self._subject)

    async def _exchange(self, head: bytes, fields: RequestFields, first: Message | None) -> None:
        if self._gone:
            raise ClientGone
        connection = self._connection = self._pool.take()
        if connection is not None:
            self._begin(connection, head, fields, first)
            try:
                await connection.response()
            except UpstreamError:
                # The upstream may have closed the connection just as it was used again.
                if connection.answered or self._with_body or self._gone or self._scope["method"] not in _IDEMPOTENT:
                    raise
                connection = self._connection = None
        if connection is None:
            connection = self._connection = await self._connect()
            self._begin(connection, head, fields, first)
            await connection.response()
        await self._pass_on(connection)

    def _begin(self, connection: Connection, head: bytes, fields: RequestFields, first: Message | None) -> None:
        connection.begin(head, without_body=self._scope["method"] == "HEAD", whole=not self._with_body)
        if self._with_body:
            self._listen(self._upload(connection, fields, first))

    def _listen(self, listener: Coroutine[object, None, None]) -> None:
        """Run a coroutine that receives what the client sends."""
        self._listening = self._loop.create_task(listener)
        self._listening.add_done_callback(self._listened)

    def _listened(self, listening: asyncio.Task[None]) -> None:
        """Abort the request if its body cannot be received any more."""
        if not listening.cancelled() and (error := listening.exception()) is not None:
            logger.error("The request could not be received.", exc_info=error)
            self._leave()

    async def _connect(self) -> Connection:
        """Return a new connection, or raise ClientGone if the client leaves meanwhile."""
        self._connecting = self._loop.create_task(self._pool.connect())
        try:
            connection = await self._connecting
        except asyncio.CancelledError:
            self._connecting.cancel()
            self._connecting.add_done_callback(_discard)
            if self._gone:
                raise ClientGone from None
            raise
        finally:
            self._connecting = None
        if self._gone:
            connection.close()
            raise ClientGone
        return connection

    async def _pass_on(self, connection: Connection) -> None:
        headers = response_fields(connection.fields)
        trailing = "http.response.trailers" in self._scope.get("extensions", ()) and any(
            name == b"trailer" for name, _ in connection.fields
        )
        self._begun = True
        start = {"type": "http.response.start", "status": connection.status, "headers": headers}
        await self._send({**start, "trailers": True} if trailing else start)
        if connection.empty:
            # Some servers send the status with the first part of the body, and an empty response in its place if there
            # is none. The client would take that for whole.
            await self._send({"type": "http.response.body", "body": b"", "more_body": True})
        more = True
        while more:
            data = await connection.chunk()
            more = not connection.drained
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
        if trailing:
            fields = response_fields(connection.trailers)
            await self._send({"type": "http.response.trailers", "headers": fields, "more_trailers": False})

    async def _upload(self, connection: Connection, fields: RequestFields, first: Message | None) -> None:
        """Send the body as it arrives, and then watch for the client to leave."""
        left, more = fields.length, True
        try:
            while more:
                self._waits_for_client = True
                message, first = first or await self._receive(), None
                self._waits_for_client = False
                if message["type"] == "http.disconnect":
                    self._leave()
                    return
                data, more = message.get("body", b""), message.get("more_body", False)
                if left is not None:
                    left -= len(data)
                    if left < 0 or (left > 0 and not more):
                        # Passed on like this, a part of the body or of the next request would be taken for the other.
                        self._leave()
                        return
                if data:
                    await connection.write(data if left is not None else b"%x\r\n%b\r\n" % (len(data), data))
            if left is None:
                await connection.write(b"0\r\n\r\n")
            connection.request_sent = True
        except (UpstreamError, UpstreamSilent, ClientGone):
            return  # whoever waits for the response gets the error, too
        await self._watch()

    async def _watch(self) -> None:
        """Wait until the client leaves, and abort the request then."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        """Abort the request, because its client has left."""
        self._gone = True
        if self._connection is not None and not self._connection.complete:
            self._connection.abort(ClientGone())
        if self._connecting is not None:
            self._connecting.cancel()

    def _tick(self) -> None:
        """Begin to watch the client, and find out whether the upstream has been silent for too long."""
        if self._ended:
            return
        if self._listening is None and not self._with_body:  # a body is read by the one that sends it
            self._listen(self._watch())
        now, connection = self._loop.time(), self._connection
        left = self._silence
        if connection is not None and not (connection.complete or connection.held_back or self._waits_for_client):
            left += connection.active_at - now
            if left <= 0:
                connection.abort(UpstreamSilent())
                return
        self._timer = self._loop.call_later(left, self._tick)

    def _log(self, reason: str) -> None:
        _SAY.warning(f"{self._pool.name} {reason}", "The upstream %s failed: %s", self._pool.name, reason)

    async def _fail(self, status: int, title: str, fields: tuple[Header, ...] = ()) -> None:
        """Send an error response to the client in place of the upstream's response, unless that has begun."""
        if self._begun or self._gone:
            # The server closes the connection of an unfinished response, so the client knows that it is not complete.
            return
        await refuse(self._scope, self._send, status, title, fields)


def _discard(connecting: asyncio.Task[Connection]) -> None:
    """Close a connection that was opened when nobody waited for it any more."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().close()
