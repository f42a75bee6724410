"""
Answer the subrequests of nginx, Caddy, Traefik, HAProxy and Envoy by a status and header fields.

``/v1/check`` answers 200, or 401, 403, 429 or 503 with a problem. Two proxies do not take all of these for a denial:

- ``/v1/check403`` answers nginx, with 403 in place of 429 and 503. nginx takes no other status for a denial, and drops
  the body, so ``Sluicegate-Problem`` repeats it.
- ``/v1/envoy`` answers Envoy, with 403 in place of 503. Envoy takes 5xx for a failure, which may be permission.

The real status is then in ``Sluicegate-Status``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Container
from typing import Final
from urllib.parse import parse_qsl, unquote

from enforcement.http.asgi import Receive, Scope, Send, encoded, header_of, only_value, token_of
from enforcement.http.messages import (
    PlainResponse,
    Refusal,
    RequestAttributes,
    added_headers,
    denial,
    shows,
)
from enforcement.logs import RateLimitedLogger
from enforcement.model.checks import shown as quoted
from enforcement.model.sizes import MAX_ATTRIBUTES
from enforcement.plan.costs import Costs
from enforcement.plan.decision import Decision
from enforcement.plan.headers import draft_lines
from enforcement.service.judge import Judge, costs_of
from enforcement.service.settings import ServiceSettings

logger = logging.getLogger("sluicegate.service")

STATUS_FIELD: Final = "Sluicegate-Status"
"""Header field with the status that a denial has, where the proxy gets 403."""

PROBLEM_FIELD: Final = "Sluicegate-Problem"
"""Header field with the body that a denial has. It is JSON in ASCII without line breaks."""

_UNTRUSTED: Final = (
    "%s describes requests by X-Forwarded fields, but is no trusted proxy. Limits see no path and method of these "
    "requests, and all clients have its address. Name it in SLUICEGATE_TRUSTED_PROXIES."
)
_UNDESCRIBED: Final = (
    "%s does not describe requests by %s, so that limits see the path /, the method of the proxy or its address, and a "
    "client may send the field itself. Set it in the proxy."
)
_LENGTH: Final = (b"content-length", b"0")
_METHOD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET: Final = re.compile(r"/\S*|\*|[A-Za-z][A-Za-z0-9+.-]*://\S*")
_OWN_ATTRIBUTES: Final = frozenset({"method", "path", "ip", "ip.net"})


class ForwardAuth:
    """
    The HTTP endpoint below one path.

    Args:
        judge: Decides.
        settings: Those of the service.
        path: Its path. What follows it is the path of the request that is asked about, as Envoy sends it.
        denials: The statuses that the proxy takes for a denial. 403 takes the place of all others. None: all are taken.
        repeats_body: Whether a header field has the body of a denial as well, for a proxy that drops the body.
    """

    def __init__(
        self,
        judge: Judge,
        settings: ServiceSettings,
        path: str,
        denials: Container[int] | None = None,
        *,
        repeats_body: bool = False,
    ) -> None:
        self.path = path
        self._judge = judge
        self._limiter = judge.limiter
        self._settings = settings
        self._trusted = settings.trusted
        self._denials = denials
        self._repeats_body = repeats_body
        self._say = RateLimitedLogger(logger)
        self._say_daily = RateLimitedLogger(logger, seconds=86_400.0)  # a caller may mean it
        self._draft = settings.headers == "ietf"
        self._plain = not (settings.costs_field or settings.attributes_field)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Decide on the request that a subrequest describes, and answer the subrequest."""
        plan = self._limiter.by_fields(scope["headers"]) if self._plain else None
        if plan is not None:
            decision = self._limiter.from_lease(plan) or await self._limiter.decide(plan, 1)
        else:
            try:
                decision = await self._decide(scope)
            except Refusal as refusal:
                await self.refuse(refusal.answer(self._settings.headers), send)
                return
        if not decision.allowed:
            await self.refuse(denial(decision, self._settings.headers), send)
            return
        if self._draft and decision.source != "fallback":
            lines = draft_lines(decision)
        else:
            lines = encoded(added_headers(decision, self._settings.headers))
        await send({"type": "http.response.start", "status": 200, "headers": [_LENGTH, *lines]})
        await send({"type": "http.response.body", "body": b""})

    async def _decide(self, scope: Scope) -> Decision:
        shown = token_of(scope)
        trusted = self._trusted.trusts(_peer(scope))
        try:
            costs = self._costs(scope) if trusted else 1
            decision = await self._judge.decide(shown, costs, self._attributes(scope, trusted))
        except ValueError as exc:
            raise Refusal(400, "Bad request", str(exc), "bad_request") from exc
        field = only_value(scope, b"authorization") if self._plain else None
        if shown and field is not None and shows(field, shown):
            self._limiter.keep_field(field, shown)
        return decision

    def _attributes(self, scope: Scope, trusted: bool) -> RequestAttributes:
        forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        method, path = scope["method"], scope["path"].removeprefix(self.path)
        values: dict[str, str | None] = {}
        if trusted:
            forwarded_method = _described(scope, b"x-forwarded-method", _METHOD, "a method") or (path and method)
            method = forwarded_method or method
            # A path after that of this endpoint is the proxy's own word. The header field may be its client's.
            path = path or path_of(_described(scope, b"x-forwarded-uri", _TARGET, "a path or a URL without blanks"))
            values |= self._further(scope)
            if not (forwarded_method and path and forwarded):
                fields = {"X-Forwarded-Method": forwarded_method, "X-Forwarded-Uri": path, "X-Forwarded-For": forwarded}
                missing = [name for name, value in fields.items() if not value]
                names = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
                self._say_daily.warning(missing[0], _UNDESCRIBED, _peer(scope), names)
        elif header_of(scope, b"x-forwarded-uri"):
            self._say.warning("untrusted", _UNTRUSTED, _peer(scope))
        values |= {"method": method, "path": path or "/", "ip": self._trusted.client(_peer(scope), forwarded)}
        return RequestAttributes(values, lambda name: header_of(scope, name.encode("latin-1", "replace")))

    def _costs(self, scope: Scope) -> Costs:
        return costs_of(_pairs(scope, field)) if (field := self._settings.costs_field) else 1

    def _further(self, scope: Scope) -> dict[str, str]:
        further = _pairs(scope, field) if (field := self._settings.attributes_field) else {}
        for name in further:
            if name in _OWN_ATTRIBUTES or name.startswith("header."):
                raise ValueError(f"attributes: must not name {quoted(name)}, which the request itself has.")
        return further

    async def refuse(self, answer: PlainResponse, send: Send) -> None:
        """Answer a subrequest with the response that denies the request."""
        status, headers = answer.status, answer.headers
        if self._denials is not None:
            headers = (*headers, (STATUS_FIELD, str(status)))
            status = status if status in self._denials else 403
        if self._repeats_body:
            headers = (*headers, (PROBLEM_FIELD, answer.body.decode("ascii")))
        await send({"type": "http.response.start", "status": status, "headers": encoded(headers)})
        await send({"type": "http.response.body", "body": answer.body})


def _only(scope: Scope, name: bytes) -> str:
    """
    Return the value of a header field, or an empty string if there is none.

    Raises:
        ValueError: There are several. One may be the proxy's and another its client's.
    """
    values = [value for key, value in scope["headers"] if key == name]
    if len(values) > 1:
        raise ValueError(f"{name.decode()}: must be sent once, got {len(values)} fields.")
    # Not all servers remove the blanks around a value, which do not belong to it (RFC 9110, 5.5).
    return values[0].decode("latin-1").strip(" \t") if values else ""


def _described(scope: Scope, name: bytes, form: re.Pattern[str], rule: str) -> str:
    """Return what a proxy says of a request in a field, or an empty string. Raises ValueError if it breaks the rule."""
    text = _only(scope, name)
    if text and not form.fullmatch(text):
        raise ValueError(f"{name.decode()}: must be {rule}, got {quoted(text)}.")
    return text


def _pairs(scope: Scope, name: bytes) -> dict[str, str]:
    """
    Return the names and values in a field such as ``tokens=812&requests=1``.

    Raises:
        ValueError: It has another form, names something twice, or is no UTF-8.
    """
    text, field = _only(scope, name), name.decode()
    if not text:
        return {}
    try:
        # Bytes that are not percent-encoded mean the same as those that are.
        text = text.encode("latin-1").decode()
        pairs = parse_qsl(
            text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=MAX_ATTRIBUTES
        )
    except UnicodeDecodeError as exc:
        raise ValueError(f"{field}: must be UTF-8.") from exc
    except ValueError as exc:
        raise ValueError(
            f"{field}: must be at most {MAX_ATTRIBUTES} pairs as in 'a=1&b=2', got {quoted(text)}."
        ) from exc
    result = dict(pairs)
    if "" in result or len(result) < len(pairs):
        raise ValueError(f"{field}: must have a name before each '=', and no name twice.")
    return result


def path_of(target: str) -> str:
    """
    Return the decoded path of a request target, which is a path with a query, or an absolute URL (RFC 9112, 3.2.2).

    A client may send its proxy the URL, and the proxy hand it on, while the application sees the path.
    """
    path = target.partition("?")[0]
    if not path.startswith("/") and "://" in path:
        path = "/" + path.partition("://")[2].partition("/")[2]
    return unquote(path)


def _peer(scope: Scope) -> str | None:
    client = scope.get("client")
    return client[0] if client else None
