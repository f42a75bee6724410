"""Show consumers their own limits. A proxy passes their requests for the page on, as any other upstream gets them."""

from __future__ import annotations

from urllib.parse import parse_qsl

from enforcement.aio import Limiter
from enforcement.http.asgi import Receive, Scope, Send, encoded, header_of, token_of
from enforcement.http.limits_page import as_page
from enforcement.http.messages import PlainResponse, Refusal, RequestAttributes
from enforcement.http.usage_request import UsageRequest, usage_answer_awaited
from enforcement.service.settings import ServiceSettings


class UsagePage:
    """
    The page of own limits, as an endpoint of the service.

    Args:
        limiter: Reads the counters.
        settings: Those of the service.
    """

    def __init__(self, limiter: Limiter, settings: ServiceSettings) -> None:
        self._limiter = limiter
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        asked = UsageRequest(
            scope["method"],
            lambda: token_of(scope),
            lambda: self._attributes(scope),
            self._settings.headers,
            self._settings.anonymous,
        )
        await _send(send, await usage_answer_awaited(self._limiter, asked))

    async def refuse(self, answer: PlainResponse, send: Send) -> None:
        """Answer a request that may not see the page, or that failed."""
        await _send(send, as_page(answer, "GET"))

    def _attributes(self, scope: Scope) -> RequestAttributes:
        """Return the address of the client and its header fields, with what a trusted proxy adds, or raise Refusal."""
        peer, field, trusted = scope.get("client"), self._settings.attributes_field, self._settings.trusted
        address = peer[0] if peer else None
        text = header_of(scope, field) if field and trusted.trusts(address) else None
        try:
            values: dict[str, str | None] = dict(
                parse_qsl(text, keep_blank_values=True, strict_parsing=True) if text else ()
            )
        except ValueError as exc:
            raise Refusal(400, "Bad request", f"attributes: {exc}", "bad_request") from exc
        forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        values["ip"] = trusted.client(address, forwarded)
        return RequestAttributes(values, lambda name: header_of(scope, name.encode("latin-1", "replace")))


async def _send(send: Send, answer: PlainResponse) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": encoded(answer.headers)})
    await send({"type": "http.response.body", "body": answer.body})
