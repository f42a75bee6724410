"""
Answer the ``ShouldRateLimit`` calls of Envoy's rate limit filter, and of all that speak version 3 of its service.

A descriptor is a list of keys and values. The key ``token`` has the token of the request, ``remote_address`` its
address, and every other key is an attribute of that name. Requests without a token count for the project whose slug is
the domain. Descriptors of one call are one request: it is charged to all its limits, or to none.

Field numbers are those of ``envoy/service/ratelimit/v3/rls.proto`` and
``envoy/extensions/common/ratelimit/v3/ratelimit.proto``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from enforcement.http.asgi import Scope
from enforcement.http.messages import (
    Header,
    PlainResponse,
    Refusal,
    RequestAttributes,
    added_headers,
    denial,
    find_token,
)
from enforcement.model.tokens import Anonymous
from enforcement.plan.decision import Decision
from enforcement.service.judge import Judge
from enforcement.service.settings import ServiceSettings
from enforcement.service.wire import Malformed, integer, part, parts, text, write, write_integer

PATH: Final = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
TOKEN_KEY: Final = "token"
_NAMES: Final = {"remote_address": "ip"}
"""Keys that Envoy's own actions write, and the attribute that each stands for."""

# RateLimitRequest
_DOMAIN, _DESCRIPTORS, _HITS = 1, 2, 3
_ENTRIES, _OWN_HITS, _REFUND = 1, 3, 4
_KEY, _VALUE = 1, 2
# RateLimitResponse
_OVERALL, _STATUSES, _TO_CLIENT, _BODY = 1, 2, 3, 5
_OK, _OVER_LIMIT = 1, 2


class RateLimitService:
    """
    The method ``ShouldRateLimit``.

    Args:
        judge: Decides.
        settings: Those of the service.
    """

    def __init__(self, judge: Judge, settings: ServiceSettings) -> None:
        self._judge = judge
        self._settings = settings

    async def __call__(self, scope: Scope, message: bytes) -> bytes:
        """Return a RateLimitResponse to a RateLimitRequest. Raises Malformed or Refusal."""
        descriptors = parts(message, _DESCRIPTORS)
        try:
            entries = dict(_entries(descriptors))
            shown = _token(entries.pop(TOKEN_KEY, None))
            decision = await self._decide(message, shown, entries, descriptors)
        except Malformed:
            raise
        except ValueError as exc:
            raise Refusal(400, "Bad request", str(exc), "bad_request") from exc
        if not decision.allowed:
            return _response(_OVER_LIMIT, denial(decision, self._settings.headers), len(descriptors))
        answer = PlainResponse(200, tuple(added_headers(decision, self._settings.headers)))
        return _response(_OK, answer, len(descriptors))

    async def _decide(
        self, message: bytes, shown: str | None, entries: dict[str, str], descriptors: list[bytes]
    ) -> Decision:
        own = max((hits for it in descriptors if (hits := integer(part(it, _OWN_HITS), 1)) is not None), default=None)
        if any(integer(it, _REFUND) for it in descriptors):
            raise ValueError("is_negative_hits: must be false, because refunds are not supported.")
        costs = own if own is not None else integer(message, _HITS) or 1
        attributes = RequestAttributes({_NAMES.get(key, key): value for key, value in entries.items()}, lambda _: None)
        anonymous = None if shown is not None else Anonymous(text(part(message, _DOMAIN)))
        return await self._judge.decide(shown, costs, attributes, anonymous)


def denied(answer: PlainResponse) -> bytes:
    """Return the RateLimitResponse that denies a request with a response, of which Envoy sends 429 as the status."""
    return _response(_OVER_LIMIT, answer, 1)


def _entries(descriptors: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Yield the keys and values of all descriptors. Raises ValueError if a key has two values."""
    seen: dict[str, str] = {}
    for descriptor in descriptors:
        for entry in parts(descriptor, _ENTRIES):
            key, value = text(part(entry, _KEY)), text(part(entry, _VALUE))
            if seen.setdefault(key, value) != value:
                raise ValueError(f"descriptors: the key {key!r} must have one value in a call, got two.")
            yield key, value


def _token(value: str | None) -> str | None:
    """Return the token of an entry, which holds it alone or is a whole ``Authorization`` field."""
    if value is None:
        return None
    return find_token(value, None) or find_token(None, value)


def _response(code: int, answer: PlainResponse, descriptors: int) -> bytes:
    status = write(_STATUSES, write_integer(1, code))
    body = write(_BODY, answer.body) if answer.body else b""
    headers = [it for it in answer.headers if it[0] != "Content-Length"]
    return write_integer(_OVERALL, code) + status * descriptors + _values(headers) + body


def _values(headers: Iterable[Header]) -> bytes:
    """Return header fields as a repeated HeaderValue."""
    return b"".join(
        write(_TO_CLIENT, write(_KEY, name.encode("latin-1")) + write(_VALUE, value.encode("latin-1")))
        for name, value in headers
    )


__all__ = ["PATH", "TOKEN_KEY", "RateLimitService", "denied"]
