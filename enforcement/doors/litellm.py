"""
Integration for the proxy of LiteLLM. Its requests are charged before they are sent, and settled by what they did cost.

A module beside the configuration of LiteLLM, ``limits.py``:

>>> from enforcement.doors.litellm import SluicegateHooks
>>> hooks = SluicegateHooks()

And in the configuration:

>>> litellm_settings:
>>>   callbacks: limits.hooks
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final

from enforcement.extras import Requirement

with Requirement("The LiteLLM integration", "litellm[proxy]"):
    from fastapi import HTTPException
    from litellm.integrations.custom_logger import CustomLogger

from enforcement.aio import Admission, Limiter
from enforcement.doors.metered.admitting import open_metered
from enforcement.http.messages import (
    CAP_FIELD,
    Refusal,
    RequestAttributes,
    added_headers,
    check_anonymous,
    check_preset,
    log_denial,
    without_token,
)
from enforcement.logs import RateLimitedLogger
from enforcement.metering.amounts import Usage
from enforcement.metering.bound import field_rates
from enforcement.metering.opening import Opening
from enforcement.metering.reported import read_report
from enforcement.metering.request import FURTHER_MODELS, MeteredRequest, Unmetered, read_request
from enforcement.metering.settlement import MeteredReservation, Settlement
from enforcement.plan.decision import Decision, Denied
from enforcement.plan.error_shapes import retry_fields

OPEN_SECONDS: Final = 900.0
"""After which a call that LiteLLM has never ended keeps its estimate, and its slots are freed."""

MAX_OPEN: Final = 10_000
"""Calls of a process that are open at once. Beyond it the oldest one is ended as above."""

TOKEN_FIELD: Final = "x-sluicegate-token"
TOKEN_METADATA: Final = "sluicegate_token"

# LiteLLM puts objects of its own among the fields of a body, and into these.
_LITELLMS: Final = frozenset({"metadata", "litellm_metadata", "proxy_server_request"})
_JSON: Final = (str, int, float, list, dict)

_HOOKS: Final = (
    "async_pre_call_hook",
    "async_log_success_event",
    "async_post_call_failure_hook",
    "async_post_call_response_headers_hook",
)

_BROKEN: Final = frozenset(("Timeout", "APIConnectionError", "MidStreamFallbackError"))

_SAY: Final = RateLimitedLogger(logging.getLogger("sluicegate.doors"))


@dataclass(slots=True)
class _OpenCall:
    """One admitted call, until it is settled. *cap* was written into it, and *look* gets its settlement."""

    admission: Admission
    cap: int | None
    reservation: MeteredReservation
    look: Callable[[Settlement], None]
    expiry: asyncio.TimerHandle | None = None


class SluicegateHooks(CustomLogger):  # type: ignore[misc]
    """
    Admits and settles the calls of LiteLLM's proxy.

    The token of a call is ``sluicegate_token`` in the metadata of its virtual key, or else the header field
    ``x-sluicegate-token``. Limits may match ``method``, ``path``, ``model``, ``stream``, ``session``, ``team`` and
    ``user``, which are the ids of LiteLLM, and ``header.<name>``.

    Args:
        limiter: None: one is made from the environment at the first call.
        headers: Preset of the header fields of responses.
        anonymous: Slug of the project that calls without a token count for. None: they are refused with 401.
        allowed_fields: Fields of calls that a bound admits beside those that it knows, see
            :func:`~enforcement.metering.bound.field_rates`.
    Raises:
        ValueError: The preset, the project or a field is not valid.
    """

    def __init__(
        self,
        limiter: Limiter | None = None,
        *,
        headers: str = "ietf+openai",
        anonymous: str | None = None,
        allowed_fields: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        self._allowed = field_rates(allowed_fields or {})
        self._limiter = limiter
        self._preset = check_preset(headers)
        self._anonymous = check_anonymous(anonymous)
        self._started = False
        self._starting = asyncio.Lock()
        self._calls: OrderedDict[str, deque[_OpenCall]] = OrderedDict()
        self._open = 0

    def __init_subclass__(cls, **arguments: object) -> None:
        """Put the hooks into the subclass itself, because LiteLLM calls none that a class inherits."""
        super().__init_subclass__(**arguments)
        for name in _HOOKS:
            if name not in vars(cls):
                setattr(cls, name, getattr(cls, name))

    async def async_pre_call_hook(
        self, user_api_key_dict: object, cache: object, data: dict[str, Any], call_type: str
    ) -> object:
        """Charge what a call may cost, and return it with the cap and the option that make its cost known."""
        limiter = await self._start()
        try:
            opening, call = await self._admit(limiter, user_api_key_dict, data)
        except Refusal as refusal:
            raise HTTPException(refusal.status, str(refusal), dict(refusal.fields)) from None
        except Denied as denied:
            raise self._denial(denied.decision) from None
        data.setdefault("litellm_call_id", call.admission.reservation.ident)
        self._keep(data["litellm_call_id"], call)
        if isinstance(opening.asked, MeteredRequest):
            _write(data, opening.asked.changes)
        return data

    async def async_log_success_event(
        self, kwargs: Any, response_obj: object, start_time: object, end_time: object
    ) -> None:
        """Settle a call by the usage of its answer, which LiteLLM also has for streams, and after a client has left."""
        call = self._take(kwargs.get("litellm_call_id"))
        if call is None or self._limiter is None:
            return
        reservation, now_us = call.reservation, self._limiter.now_us()
        reservation.answered(200, now_us)
        try:
            reservation.reported(read_report(response_obj).usage, now_us, final=True)
        except ValueError:
            reservation.unreadable()
        await _settle(call, reservation.ended(now_us))

    async def async_post_call_failure_hook(
        self, request_data: Any, original_exception: Any, user_api_key_dict: Any, traceback_str: str | None = None
    ) -> None:
        """Give back what a call has charged that the provider has refused, or settle it by its answer."""
        call = self._take(request_data.get("litellm_call_id"))
        if call is not None and self._limiter is not None:
            now_us = self._limiter.now_us()
            await _settle(call, _failed(call.reservation, request_data, original_exception, now_us))

    async def async_post_call_response_headers_hook(
        self, data: Any, user_api_key_dict: object, response: object, request_headers: object = None, **more: object
    ) -> dict[str, str] | None:
        """Return the header fields that say what remains, and what cap was written into the call."""
        calls = self._calls.get(data.get("litellm_call_id"))
        if not calls:
            return None
        written = {} if calls[-1].cap is None else {CAP_FIELD: str(calls[-1].cap)}
        return {**dict(added_headers(calls[-1].admission.decision, self._preset)), **written}

    async def close(self) -> None:
        """Close the limiter, if it was started."""
        if self._started and self._limiter is not None:
            self._started = False
            await self._limiter.close()

    async def _start(self) -> Limiter:
        async with self._starting:
            if self._limiter is None:
                self._limiter = Limiter.from_env()
            if not self._started:
                await self._limiter.start()
                self._started = True
        return self._limiter

    async def _admit(self, limiter: Limiter, key: object, data: dict[str, Any]) -> tuple[Opening, _OpenCall]:
        request = data.get("proxy_server_request") or {}
        fields = {str(name).lower(): value for name, value in (request.get("headers") or {}).items()}
        shown = (getattr(key, "metadata", None) or {}).get(TOKEN_METADATA) or fields.get(TOKEN_FIELD)
        asked = _read(request, fields, data)
        attributes = RequestAttributes(_attributes(request, key), fields.get)
        if isinstance(asked, MeteredRequest):
            attributes = attributes.beside(asked.attributes)
        plan = await limiter.find_plan(shown or without_token(shown, self._anonymous), attributes)
        if isinstance(plan, Decision):
            raise Denied(plan)
        at_us = limiter.now_us()
        opening, admission = await open_metered(limiter, plan, asked, attributes, at_us, self._allowed)
        look = partial(limiter.metered_tally().broken.look, plan.subject[0], at_us, opening)
        return opening, _OpenCall(admission, opening.written_cap, MeteredReservation.of(opening, at_us), look)

    def _denial(self, decision: Decision) -> HTTPException:
        log_denial(decision)
        headers = dict([*added_headers(decision, self._preset), *retry_fields("openai", decision.retry_after_ms)])
        return HTTPException(decision.status, str(Denied(decision)), headers)

    def _keep(self, ident: str, call: _OpenCall) -> None:
        """Keep a call until it is settled. A client may name two calls alike, so that each name has a list of them."""
        self._calls.setdefault(ident, deque()).append(call)
        self._open += 1
        call.expiry = asyncio.get_running_loop().call_later(OPEN_SECONDS, self._expire, ident)
        if self._open > MAX_OPEN:
            self._expire(next(iter(self._calls)))

    def _take(self, ident: str | None) -> _OpenCall | None:
        calls = self._calls.get(ident or "")
        if not calls:
            return None
        call = calls.popleft()
        if not calls:
            del self._calls[ident or ""]
        self._open -= 1
        if call.expiry is not None:
            call.expiry.cancel()
        return call

    def _expire(self, ident: str) -> None:
        """End a call of which LiteLLM has told nothing more. The provider may have generated all of its estimate."""
        call = self._take(ident)
        if call is not None:
            _SAY.warning("never ended", "LiteLLM has never ended a call. It keeps its estimate.")
            ending = asyncio.ensure_future(call.admission.conclude(is_last_word=False))
            _ENDING.add(ending)
            ending.add_done_callback(_ENDING.discard)


_ENDING: Final[set[asyncio.Future[None]]] = set()


async def _settle(call: _OpenCall, settlement: Settlement | None) -> None:
    if settlement is not None:
        call.look(settlement)
        costs = call.reservation.terms.named(settlement.costs)
        await call.admission.conclude(costs, is_last_word=settlement.is_last_word)


def _failed(
    reservation: MeteredReservation, data: Mapping[str, object], error: Exception, now_us: int
) -> Settlement | None:
    """
    Settle a call that has failed in LiteLLM.

    Its provider may have answered all the same: a guardrail blocks answers, a stream breaks off, and a provider goes on
    after LiteLLM has stopped waiting for it.

    Args:
        data: The call. LiteLLM has added when it was sent, and the usage that it knows or estimates.
        error: What has failed.
    """
    usage = _usage_seen(data.get("combined_usage_object"))
    is_sent = isinstance(data.get("first_api_call_start_time"), datetime)
    # LiteLLM gives these a status of its own. The provider has not answered, or not to the end.
    is_broken = type(error).__name__ in _BROKEN
    is_refused = getattr(error, "llm_provider", None) is not None and not is_broken
    if usage is None and (is_refused or not is_sent):
        status = getattr(error, "status_code", None)
        return reservation.refused(status if type(status) is int and status >= 400 else None, now_us)
    if usage is not None:
        reservation.reported(usage, now_us, final=False)
    # LiteLLM has seen all of an answer that is not streamed, or nothing.
    return reservation.ended(now_us, whole=usage is not None)


def _usage_seen(found: object) -> Usage | None:
    """Return the usage of an answer of which LiteLLM has seen output. Otherwise it only estimates the input."""
    dump = getattr(found, "model_dump", None)  # what a client has sent under this name is no such object
    if not callable(dump):
        return None
    try:
        usage = read_report({"object": "chat.completion", "usage": dump()}).usage
    except ValueError:
        return None
    return usage if usage.all_output else None


def _read(request: Mapping[str, Any], fields: Mapping[str, str], data: Mapping[str, Any]) -> MeteredRequest | Unmetered:
    """Return what a call may cost, by what LiteLLM will send of the body that its client has sent."""
    names = {*(request.get("body") or ()), "model", "stream"}
    model = data.get("model")
    if (isinstance(model, str) and "," in model) or any(data.get(name) for name in FURTHER_MODELS):
        return Unmetered("batch")  # LiteLLM asks each model of such a list
    body = {name: data[name] for name in names - _LITELLMS if isinstance(data.get(name), _JSON)}
    try:
        raw = json.dumps(body).encode()
    except (TypeError, ValueError):
        return Unmetered("invalid_json")
    header = {name: value for name, value in fields.items() if name != "content-encoding"}.get
    return read_request(str(request.get("method") or "POST"), _path_of(request), header, raw)


def _path_of(request: Mapping[str, object]) -> str:
    _, _, rest = str(request.get("url") or "").partition("://")
    return "/" + rest.partition("/")[2].partition("?")[0]


def _attributes(request: Mapping[str, object], key: object) -> dict[str, str | None]:
    return {
        "method": str(request.get("method") or "POST"),
        "path": _path_of(request),
        "team": getattr(key, "team_id", None),
        "user": getattr(key, "user_id", None),
    }


def _write(data: dict[str, Any], changes: Mapping[str, int | bool]) -> None:
    """Write values at JSON pointers into the call."""
    for pointer, value in changes.items():
        *parents, name = pointer.split("/")[1:]
        inner = data
        for parent in parents:
            inner[parent] = dict(inner.get(parent) or {})
            inner = inner[parent]
        inner[name] = value


__all__ = ["MAX_OPEN", "OPEN_SECONDS", "TOKEN_FIELD", "TOKEN_METADATA", "SluicegateHooks"]
