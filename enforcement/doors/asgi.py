"""
Integration for ASGI applications.

>>> app = LimitMiddleware(app)

The middleware is pure ASGI. It neither buffers a body nor delays a chunk. Put middleware that answers requests without
a token, such as CORS, outside of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from enforcement.aio import Admission, Limiter
from enforcement.doors._guard import DECISION, Guard
from enforcement.http.asgi import (
    POLICY_VIOLATION,
    STARTS,
    App,
    Exchange,
    Message,
    Receive,
    Scope,
    Send,
    encoded,
    header_of,
    only_value,
    token_of,
)
from enforcement.http.limits_page import USAGE_PATH
from enforcement.http.messages import (
    PlainResponse,
    Refusal,
    RequestAttributes,
    added_headers,
    denial,
    joining,
    shows,
    without_token,
)
from enforcement.http.usage_request import UsageRequest, usage_answer_awaited
from enforcement.plan.decision import Decision, Denied
from enforcement.plan.headers import draft_lines

logger = logging.getLogger("sluicegate.doors")


class LimitMiddleware(Guard[App, Limiter, Scope]):
    """
    Pass a request on to *app* if every limit admits it, and answer it with the denial otherwise.

    Args:
        app: Any ASGI application.
        limiter: An :class:`enforcement.aio.Limiter`. None: one is made from the environment when the server starts.
            The limiter is started and closed with the server in both cases.
        token: Returns the token of a request, or None. By default ``Authorization: Bearer``, then ``X-API-Key``, and
            with *metered* also the fields of the providers' SDKs, ``x-goog-api-key`` and ``api-key``. An empty string
            is a token that is not valid.
        costs: Returns the costs of a request. By default one request.
        attributes: Returns attributes to add to ``method``, ``path``, ``ip`` and ``header.<name>``, or to replace them.
        headers: Preset of :meth:`Decision.headers <enforcement.plan.decision.Decision.headers>`.
        exempt: Paths that are never limited and need no token.
        trusted_proxies: Networks whose ``X-Forwarded-For`` is trusted. The server should then not rewrite client
            addresses itself (uvicorn: ``--no-proxy-headers``).
        anonymous: Slug of the project that requests without a token count for. Its anonymous policy decides on them.
            None: they are refused with 401. The answer to a token that is not valid is always 401.
        usage_endpoint: Whether ``/.well-known/sluicegate/usage`` shows each token its own limits. A request for it is
            charged to none of them.
        metered: Whether the application passes requests on to a provider of models. What a request may cost is then
            read from its body and charged, and corrected by what the answer reports. Requests whose cost cannot be read
            are denied by limits of tokens and money. *costs* must be None.
        allowed_fields: With *metered*, the fields of requests that a bound admits beside those that it knows, see
            :func:`~enforcement.metering.bound.field_rates`.
        json_rpc: Paths of MCP servers. A denial of a JSON-RPC request there is a JSON-RPC error with its id.
    Raises:
        ValueError: The preset, a network, the project or a path is not valid.

    The application finds the decision in ``scope["sluicegate.decision"]``. A slot of a concurrency limit is held until
    the response is complete or the application ends. When the client leaves, the application is notified but not
    stopped; it holds its slot until it ends, because the limit bounds its work.
    """

    kind = Limiter

    @staticmethod
    def usual_token(request: Scope) -> str | None:
        """Return the token in the usual header fields of a request, or None, see :func:`token_in`."""
        return token_of(request)

    @staticmethod
    def make_lock() -> asyncio.Lock:
        """Return a new lock for asyncio, which allows the limiter to be started only once."""
        return asyncio.Lock()

    _settled: Callable[[], Awaitable[None]] | None = None

    @staticmethod
    def _shape(scope: Scope) -> str:
        return ""

    def _deny_as_json_rpc(self, paths: Iterable[str]) -> None:
        from enforcement.http.json_rpc import check_paths

        self._json_rpc = check_paths(paths)

    def _meter(self) -> None:
        if self._costs is not None:
            raise ValueError("costs: must be None with metered, which reads what a request costs.")
        from enforcement.doors.metered.asgi import MeteredGuard  # most applications meter nothing
        from enforcement.doors.metered.sdks import shape_of, target_of, token_of
        from enforcement.metering.bound import field_rates

        fields = field_rates(self._allowed_fields)
        # A proxy may send a request on under another path, which then is the one that names its format and model. Each
        # of its upstreams has fields of its own.
        guard = MeteredGuard(
            self,
            self._guard,
            self._answer,
            target=getattr(self.app, "upstream_target", target_of),
            allowed=getattr(self.app, "upstream_fields", lambda scope: fields),
            keeps_signature=getattr(self.app, "upstream_keeps_signature", lambda scope: True),
            options=getattr(self.app, "upstream_options", None),
        )
        self._guard, self._settled, self._shape = guard, guard.settled, shape_of  # type: ignore[method-assign]
        if self._by_usual_fields:
            self._token = token_of

    async def _answer(self, scope: Scope, receive: Receive, send: Send, answer: PlainResponse) -> None:
        """Send a response in place of the application."""
        if self._json_rpc and scope["path"] in self._json_rpc and answer.status >= 400:
            from enforcement.http.json_rpc import as_json_rpc

            answer = await as_json_rpc(scope, receive, answer)
        await _answer(scope, receive, send, answer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one ASGI connection to the application if its limits admit it, or send a denial."""
        kind = scope["type"]
        if kind == "lifespan":
            await _Lifespan(self, receive, send).run(scope)
        elif (kind != "http" and kind != "websocket") or scope["path"] in self._unlimited:
            await self._pass_unlimited(scope, receive, send)
        else:
            limiter = self.limiter if self._started and self.limiter is not None else await self.start()
            plan = limiter.by_fields(scope["headers"]) if self._by_usual_fields else None
            if plan is None:
                await self._guard(limiter, scope, receive, send)
                return
            decision = limiter.from_lease(plan) if self._costs is None else None
            if decision is None:
                decision = await limiter.decide(plan, 1 if self._costs is None else self._costs(scope))
            if decision.allowed:
                await self._pass(decision, scope, receive, send)
            else:
                await self._answer(scope, receive, send, denial(decision, self._headers, self._shape(scope)))

    async def _pass_unlimited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for the page of own limits, or pass one that is never limited to the application."""
        if not self._shows_usage or scope.get("path") != USAGE_PATH:
            await self.app(scope, receive, send)
            return
        limiter = self.limiter if self._started and self.limiter else await self.start()
        method = scope["method"] if scope["type"] == "http" else "CONNECT"  # which opens websockets over HTTP/2
        asked = UsageRequest(
            method, lambda: self._token(scope), lambda: self._describe(scope), self._headers, self._anonymous
        )
        await self._answer(scope, receive, send, await usage_answer_awaited(limiter, asked))

    async def start(self) -> Limiter:
        """Start the limiter, once, and return it. Without lifespan events, the first request calls this."""
        async with self._starting:
            if self.limiter is None:
                self.limiter = Limiter.from_env()
            if not self._started:
                await self.limiter.start()
                self._started = True
        return self.limiter

    async def close(self) -> None:
        """Close the limiter, if it was started."""
        if self._started and self.limiter is not None:
            self._started = False
            if self._settled is not None:
                await self._settled()
            await self.limiter.close()

    async def _guard(self, limiter: Limiter, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request whose plan is not cached by its header field to the application, or send a denial."""
        try:
            admitted = await self._admit(limiter, scope)
        except Refusal as refusal:
            shape = self._shape(scope)
            answer = refusal.answer(f"{self._headers}+{shape}" if shape else self._headers)
            await self._answer(scope, receive, send, answer)
        except Denied as denied:
            await self._answer(scope, receive, send, denial(denied.decision, self._headers, self._shape(scope)))
        else:
            if isinstance(admitted, Decision):
                await self._pass(admitted, scope, receive, send)
            else:
                await self._pass_held(admitted, scope, receive, send)

    async def _admit(self, limiter: Limiter, scope: Scope) -> Decision | Admission:
        """
        Charge a request, and return its decision, or an admission if it holds slots or is charged by status. Raises
        Refusal or Denied if it may not pass.
        """
        shown = self._token(scope)
        token = shown or without_token(shown, self._anonymous)
        attributes = self._describe(scope)
        plan = await limiter.find_plan(token, attributes)
        if isinstance(plan, Decision):
            raise Denied(plan)
        costs = self._costs(scope) if self._costs else 1
        if plan.has_slots or plan.has_charge_on:
            return await limiter.admit_plan(plan, costs, attributes)
        if self._by_usual_fields:
            field = only_value(scope, b"authorization")
            if field is not None and shows(field, token):
                limiter.keep_field(field, token)
        decision = await limiter.decide(plan, costs)
        if not decision.allowed:
            raise Denied(limiter.noted(decision, attributes))
        return decision

    def _pass(self, decision: Decision, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return an awaitable that calls the application and adds the header fields of the decision to its response."""
        scope[DECISION] = decision
        if self._headers != "ietf" or decision.source == "fallback":
            return self.app(scope, receive, self._joining_to(send, decision))
        lines = draft_lines(decision)

        # Return the server's awaitable itself: a coroutine around it would only cost time.
        def adding(message: Message) -> Awaitable[None]:
            if message["type"] in STARTS:
                # The draft's fields are lists, so they can follow the application's own without a comparison.
                message = {**message, "headers": [*message.get("headers", ()), *lines]}
            return send(message)

        return self.app(scope, receive, adding)

    def _joining_to(self, send: Send, decision: Decision) -> Send:
        """
        Return a function that adds the decision's header fields that are lists or that the application has not set
        itself, and sends.
        """

        def joining_to(message: Message) -> Awaitable[None]:
            if message["type"] in STARTS:
                theirs = list(message.get("headers", ()))
                added = joining((name for name, _ in theirs), added_headers(decision, self._headers))
                message = {**message, "headers": theirs + encoded(added)}
            return send(message)

        return joining_to

    async def _pass_held(self, admission: Admission, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, add the header fields, and finish the admission when the response is complete."""
        exchange = Exchange()
        app = partial(self._pass, admission.decision)
        await exchange.run(app, scope, receive, send, lambda: admission.finish(exchange.status))

    def _describe(self, scope: Scope) -> RequestAttributes:
        peer = scope.get("client")
        forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        values: dict[str, str | None] = {
            "method": scope.get("method", "GET"),  # a websocket begins with a GET
            "path": scope["path"],
            "ip": self._proxies.client(peer[0] if peer else None, forwarded),
        }
        if self._attributes:
            values.update(self._attributes(scope))
        return RequestAttributes(values, lambda name: header_of(scope, name.encode("latin-1", "replace")))


class _Lifespan:
    """Start the limiter before the application starts, and close it after the application has shut down."""

    def __init__(self, door: LimitMiddleware, receive: Receive, send: Send) -> None:
        self._door = door
        self._receive_event = receive
        self._send_event = send
        self._asked_to_start = False
        self._answered = False

    async def run(self, scope: Scope) -> None:
        try:
            await self._door.app(scope, self._receive, self._send)
        except Exception as exc:  # an application without lifespan may raise any exception
            if self._answered:
                raise
            if self._asked_to_start:  # it may as well have failed to start, which nothing else would tell
                logger.warning("The application does not start, or has no lifespan: %s: %s", type(exc).__name__, exc)
        if not self._answered:
            await self._alone()

    async def _receive(self) -> Message:
        message = await self._receive_event()
        if message["type"] == "lifespan.startup":
            self._asked_to_start = True
            try:
                await self._door.start()
            except BaseException as exc:  # if the start is cancelled, _send() closes what it has opened
                await self._send({"type": "lifespan.startup.failed", "message": f"Sluicegate: {exc}"})
                raise
        return message

    async def _send(self, message: Message) -> None:
        if not message["type"].startswith("lifespan."):
            raise ValueError(f"The application answered a lifespan event with {message['type']!r}.")
        self._answered = True
        if message["type"] != "lifespan.startup.complete":
            await self._door.close()
        await self._send_event(message)

    async def _alone(self) -> None:
        """Answer the lifespan events in place of an application that ignores them."""
        if not self._asked_to_start:
            await self._receive()
        await self._send({"type": "lifespan.startup.complete"})
        await self._receive()
        await self._send({"type": "lifespan.shutdown.complete"})


async def _answer(scope: Scope, receive: Receive, send: Send, answer: PlainResponse) -> None:
    """Send a response in place of the application, or close a websocket that cannot get one."""
    prefix = ""
    if scope["type"] == "websocket":
        await receive()  # the connection request itself
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": answer.phrase})
            return
        prefix = "websocket."
    body = b"" if scope.get("method") == "HEAD" else answer.body
    await send({"type": f"{prefix}http.response.start", "status": answer.status, "headers": encoded(answer.headers)})
    await send({"type": f"{prefix}http.response.body", "body": body})
