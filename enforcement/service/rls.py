"""
Answer the ``ShouldRateLimit`` calls of Envoy's rate limit filter, and of all that speak version 3 of its service.

A descriptor is a list of keys and values, which are called entries. The entry ``token``, ``authorization``,
``x-api-key`` or ``api_key`` has the token of the request, ``remote_address`` its address, and every other entry is an
attribute of its own name. A mapping file gives them other meanings (:mod:`enforcement.service.rls_mapping`). Requests
without a token count for the project whose slug is the domain of the call.

The descriptors of a call describe one request: it is charged to all its limits, or to none. If they give an attribute
several values, it is charged to the counters of each of them. Its cost is the largest that a descriptor gives for each
unit.

Calls with ``is_negative_hits`` give permits back, to the present window of each limit and never above full. Calls with
the entry that the mapping names as ``after`` are charged whether the permits are left or not. Neither is ever denied
because of a limit. Whoever reaches the service could lift the limits of a token by giving back, so it gives back only
where callers are named or show a secret.

Field numbers are those of ``envoy/service/ratelimit/v3/rls.proto`` and
``envoy/extensions/common/ratelimit/v3/ratelimit.proto``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final
from urllib.parse import unquote

from enforcement.http.asgi import Scope, encoded
from enforcement.http.messages import PlainResponse, Refusal, RequestAttributes, added_headers, denial, find_token
from enforcement.model.tokens import Anonymous, is_well_formed
from enforcement.plan.costs import REQUESTS, Costs
from enforcement.plan.decision import Decision
from enforcement.plan.headers import draft_lines
from enforcement.plan.limit_state import seconds
from enforcement.service.judge import Judge, costs_of
from enforcement.service.rls_mapping import RlsMapping
from enforcement.service.settings import ServiceSettings
from enforcement.service.wire import Malformed, integer, parts, text, write, write_integer
from enforcement.state.live_plan import LivePlan

PATH: Final = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"

# RateLimitRequest
_DOMAIN, _DESCRIPTORS, _HITS = 1, 2, 3
_ENTRIES, _OWN_LIMIT, _OWN_HITS, _NEGATIVE = 1, 2, 3, 4
_KEY, _VALUE = 1, 2
# RateLimitResponse
_OVERALL, _STATUSES, _TO_CLIENT, _BODY = 1, 2, 3, 5
_CODE, _LIMIT, _REMAINING, _RESET = 1, 2, 3, 4
_PER_UNIT, _UNIT, _NAME, _SECONDS = 1, 2, 3, 1
_OK, _OVER_LIMIT = 1, 2
_ALLOWED: Final = write_integer(_OVERALL, _OK)
_ALLOWED_STATUS: Final = write(_STATUSES, write_integer(_CODE, _OK))
_UNITS: Final = {1: 1, 60: 2, 3_600: 3, 86_400: 4}
"""The numbers of RateLimit.Unit by the seconds of a window. Windows of another length have no unit."""
_MOST: Final = 2**32 - 1
_NO_REFUND: Final = Refusal(
    403,
    "Permits cannot be given back",
    "is_negative_hits: gives permits back only if SLUICEGATE_SERVICE_SECRET or SLUICEGATE_SERVICE_CALLERS is set.",
    "refund_refused",
)
_TOKEN_ENTRY: Final = (
    "The entry {!r} of the rate limit filter holds a token, but is an attribute here, so its requests count as those "
    "without a token. Name the entry 'token', or list it in SLUICEGATE_RLS_MAPPING."
)
_NO_ENTRY: Final = (
    "Limits look at {!r}, but the rate limit filter sends no entry {!r}, so they do not apply to its requests. Add the "
    "entry to the descriptors of Envoy, or name the one that it sends in SLUICEGATE_RLS_MAPPING."
)
MAX_ENTRIES: Final = 512
"""Entries in all descriptors of a call. To read more would keep everybody else waiting."""


@dataclass(slots=True)
class _Call:
    """
    The values that the descriptors of one call give.

    Attributes:
        shown: The values of all entries that hold a token.
        attributes: Attributes by name, of each descriptor.
        costs: Permits to charge by unit.
        refunds: Permits to give back by unit.
        after: For each descriptor, whether the request has ended.
    """

    shown: list[str] = field(default_factory=list)
    attributes: list[dict[str, str]] = field(default_factory=list)
    costs: dict[str, int] = field(default_factory=dict)
    refunds: dict[str, int] = field(default_factory=dict)
    after: set[bool] = field(default_factory=set)


_Limits = tuple[tuple[int, int, bytes], ...]


@dataclass(slots=True)
class _Asked:
    """
    The question of a message, as it is kept.

    Attributes:
        descriptors: How many it has.
        others: Further attributes, if descriptors give one several values.
        limits: What the statuses tell of the enforced limits of its plan. None: that was not asked yet.
    """

    token: str | None
    anonymous: Anonymous | None
    attributes: RequestAttributes
    costs: Costs
    descriptors: int
    others: list[RequestAttributes] = field(default_factory=list)
    limits: _Limits | None = None


class RateLimitService:
    """
    The method ``ShouldRateLimit``.

    Args:
        judge: Decides.
        settings: Those of the service.
    """

    def __init__(self, judge: Judge, settings: ServiceSettings) -> None:
        self._judge = judge
        self._limiter = judge.limiter
        self._settings = settings
        self._mapping = settings.rls
        self._draft = settings.headers == "ietf"

    async def __call__(self, scope: Scope, message: bytes) -> bytes:
        """Return a RateLimitResponse to a RateLimitRequest. Raises Malformed."""
        cached = self._limiter.derived.messages.get(message)
        if cached is None:
            return await self._read(message)
        plan, asked = cached
        if plan is None:
            return await self._decide(asked)
        decision = self._limiter.from_lease(plan) if asked.costs == 1 else None
        if decision is None:
            decision = await self._limiter.decide(plan, asked.costs)
        if asked.limits is None:
            asked.limits = _enforced(plan)
        return self._reply(decision, asked.descriptors, asked.limits)

    async def _read(self, message: bytes) -> bytes:
        """Answer a message that was not met before."""
        descriptors = parts(message, _DESCRIPTORS)
        try:
            return await self._answer(message, descriptors)
        except Malformed:
            raise
        except ValueError as exc:
            self._judge.warn("bad_request", f"A call of the rate limit service was refused. {exc}")
            return _denied(
                Refusal(400, "Bad request", str(exc), "bad_request").answer(self._settings.headers), len(descriptors)
            )
        except Refusal as refusal:
            return _denied(refusal.answer(self._settings.headers), len(descriptors))

    async def _answer(self, message: bytes, descriptors: list[bytes]) -> bytes:
        # The number has 32 bits, and protobuf drops those beyond.
        call = _call(descriptors, (integer(message, _HITS) or 0) & _MOST, self._mapping)
        token = _token(call.shown)
        anonymous = None if token is not None else self._mapping.project(text(message, _DOMAIN))
        attributes, *others = [RequestAttributes(values, lambda _: None) for values in _described(call.attributes)]
        if token is None:
            self._warn_of_tokens(call.attributes)
        if call.refunds and not self._settings.restricted:
            self._judge.warn("refund", _NO_REFUND.detail)
            raise _NO_REFUND
        if call.refunds or True in call.after:
            decision = await self._judge.amend(token, _deltas(call), attributes, anonymous, others)
            return self._reply(decision, len(descriptors)) if not decision.allowed else _amended(len(descriptors))
        costs: Costs = call.costs.get(REQUESTS, 1) if call.costs.keys() <= {REQUESTS} else call.costs
        asked = _Asked(token, anonymous, attributes, costs, len(descriptors), others)
        decision = await self._judge.decide(token, costs, attributes, anonymous, others)
        for name in {"path", "method", "ip"} & self._judge.looked_at(token, anonymous):
            if attributes.get(name) is None and not others:
                entry = "remote_address" if name == "ip" else name
                self._judge.warn(f"entry {name}", _NO_ENTRY.format(name, entry), daily=True)
        if decision.allowed or decision.bounds:  # who shows tokens that are not known must not clear what is kept
            self._keep(message, asked)
        return self._reply(decision, asked.descriptors)

    def _warn_of_tokens(self, described: Sequence[Mapping[str, str]]) -> None:
        """Log each attribute of a call without a token that has one for its value."""
        for name, value in ((name, value) for own in described for name, value in own.items()):
            if is_well_formed(find_token(value, None) or value):
                self._judge.warn("token_entry", _TOKEN_ENTRY.format(name), daily=True)

    def _keep(self, message: bytes, asked: _Asked) -> None:
        """
        Keep what a message asks until the documents change.

        Its plan is kept with it if it is the same for every request of the token.
        """
        derived = self._limiter.derived
        plan: LivePlan | None = derived.plans.get(asked.token or asked.anonymous)
        # The documents may have changed since the decision, and with them what the plan needs.
        unfit = plan is not None and (plan.has_slots or plan.has_charge_on)
        derived.keep_message(message, (None if unfit else plan, asked))

    async def _decide(self, asked: _Asked) -> bytes:
        """Answer a message that was met before, whose plan has to be found."""
        try:
            decision = await self._judge.decide(
                asked.token, asked.costs, asked.attributes, asked.anonymous, asked.others
            )
        except Refusal as refusal:
            return _denied(refusal.answer(self._settings.headers), asked.descriptors)
        return self._reply(decision, asked.descriptors)

    def _reply(self, decision: Decision, descriptors: int, limits: _Limits | None = None) -> bytes:
        """Return the RateLimitResponse that tells a decision on so many descriptors."""
        if not decision.allowed:
            return _denied(denial(decision, self._settings.headers), descriptors, decision)
        if self._draft and decision.source != "fallback":
            lines = draft_lines(decision)
        else:
            lines = encoded(added_headers(decision, self._settings.headers))
        status = _quick_status(decision, limits) if limits else _status(_OK, decision)
        return _ALLOWED + status + _ALLOWED_STATUS * (descriptors - 1) + _values(lines)


def denied(answer: PlainResponse) -> bytes:
    """Return the RateLimitResponse that denies a request with a response, of which Envoy sends 429 as the status."""
    return _denied(answer, 1)


def _call(descriptors: Sequence[bytes], hits: int, mapping: RlsMapping) -> _Call:
    """
    Return what the descriptors of a call say.

    Args:
        hits: The ``hits_addend`` of the call. 0: it has none.
    Raises:
        Malformed, ValueError: They cannot be read, contradict each other, or say what has no meaning here.
    """
    if not descriptors:
        raise ValueError("descriptors: a call must have at least one.")
    call, left = _Call(), MAX_ENTRIES
    for descriptor in descriptors:
        entries = parts(descriptor, _ENTRIES)
        left -= len(entries)
        if left < 0:
            raise ValueError(f"descriptors: a call must have at most {MAX_ENTRIES} entries.")
        if parts(descriptor, _OWN_LIMIT):
            raise ValueError("descriptors: a descriptor must have no limit, because policies set the limits.")
        said = _read_entries(call, entries, mapping)
        costs = costs_of({unit: said[key] for key, unit in mapping.costs.items() if key in said})
        unit = said.get(mapping.unit, REQUESTS)
        own = parts(descriptor, _OWN_HITS)
        if own or unit not in costs:
            costs[unit] = (integer(b"".join(own), 1) or 0) if own else hits or 1
        given = call.refunds if integer(descriptor, _NEGATIVE) else call.costs
        for name, cost in costs.items():
            given[name] = max(cost, given.get(name, 0))
        call.after.add(_is_after(mapping.after, said.get(mapping.after, "false")))
    return call


def _read_entries(call: _Call, entries: Iterable[bytes], mapping: RlsMapping) -> dict[str, str]:
    """Add the tokens and attributes of a descriptor to a call, and return the values of its other entries by key."""
    said: dict[str, str] = {}
    own: dict[str, str] = {}
    call.attributes.append(own)
    for entry in entries:
        key, value = text(entry, _KEY), text(entry, _VALUE)
        if key in mapping.token:
            call.shown.append(find_token(value, None) or value.strip())
        elif key and (key in (mapping.unit, mapping.after) or key in mapping.costs):
            _add(said, key, value)
        else:
            name = mapping.attributes.get(key, key)
            # Envoy's own :path has a query, and is encoded
            _add(own, name, unquote(value.partition("?")[0]) if name == "path" else value)
    return said


def _add(values: dict[str, str], name: str, value: str) -> None:
    """Add a value under a name, or raise ValueError if the name has another value already."""
    if values.setdefault(name, value) != value:
        raise ValueError(f"descriptors: {name!r:.80} must have one value in a descriptor, got two.")


def _described(attributes: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """
    Return the attributes of a request from those of each descriptor.

    Those with one value in all descriptors are of the request. Those with several are of each descriptor, which then
    describes the request in another way.
    """
    whole: dict[str, str] = {}
    differing = {name for own in attributes for name, value in own.items() if whole.setdefault(name, value) != value}
    if not differing:
        return [whole]
    common = {name: value for name, value in whole.items() if name not in differing}
    ways = [{name: value for name, value in own.items() if name in differing} for own in attributes]
    return [{**common, **way} for at, way in enumerate(ways) if way and way not in ways[:at]]


def _is_after(key: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError(f"descriptors: {key!r:.80} must be 'true' or 'false', got {value!r:.80}.")
    return value == "true"


def _deltas(call: _Call) -> dict[str, int]:
    """
    Return the permits to charge by unit, below 0 to give back.

    Raises:
        ValueError: The call also asks for a decision.
    """
    if len(call.after) > 1 or (call.costs and True not in call.after):
        raise ValueError("descriptors: a call must either ask for a decision, or charge and give back afterwards.")
    units = call.costs.keys() | call.refunds.keys()
    return {unit: call.costs.get(unit, 0) - call.refunds.get(unit, 0) for unit in units}


def _token(shown: Iterable[str]) -> str | None:
    """
    Return the token of a call, an empty string if it shows an empty one, or None if it shows none.

    Of several the well-formed one counts, as in the header fields of a request. The others may be credentials for the
    upstream.

    Raises:
        ValueError: Two of them are well-formed.
    """
    tokens = list(dict.fromkeys(shown))
    well_formed = [token for token in tokens if is_well_formed(token)]
    if len(well_formed) > 1:
        raise ValueError("descriptors: a call must have one token, got two.")
    found = well_formed or [token for token in tokens if token] or tokens
    return found[0] if found else None


def _denied(answer: PlainResponse, descriptors: int, decision: Decision | None = None) -> bytes:
    body = write(_BODY, answer.body) if answer.body else b""
    lines = encoded(it for it in answer.headers if it[0] != "Content-Length")
    status = _status(_OVER_LIMIT, decision) + _status(_OVER_LIMIT, None) * (descriptors - 1)
    return write_integer(_OVERALL, _OVER_LIMIT) + status + _values(lines) + body


def _amended(descriptors: int) -> bytes:
    return _ALLOWED + _ALLOWED_STATUS * descriptors


def _status(code: int, decision: Decision | None) -> bytes:
    """
    Return an entry of the statuses, with the limit that decides if there is one.

    Only the first of a call has it. Envoy would list it once for each, in fields of its own that it can be told to add.
    """
    status = write_integer(_CODE, code)
    limit = None if decision is None or not decision.shown else decision.limit
    if limit is not None:
        status += _current(limit.name, limit.quota, limit.window_seconds)
        status += _left(limit.remaining, None if limit.reset_ms is None else seconds(limit.reset_ms))
    return write(_STATUSES, status)


def _enforced(plan: LivePlan) -> _Limits:
    """
    Return the index, the capacity and the encoded current_limit of each enforced limit of a plan.

    Returns:
        Nothing for a plan that needs more than these to tell which limit decides.
    """
    if plan.counts_units or plan.follows_calendar:
        return ()
    rows = [(at, bound.limit) for at, bound in enumerate(plan.bounds) if not bound.limit.shadow]
    rows.sort(key=lambda row: -(row[1].window_seconds or inf))  # of two with the same share left, the longer counts
    return tuple((at, it.capacity, _current(it.name, it.quota, it.window_seconds)) for at, it in rows)


def _quick_status(decision: Decision, limits: _Limits) -> bytes:
    """Return what :func:`_status` does for an allowed request, by the numbers of the store's reply."""
    numbers, width, held, least = decision.reply.numbers, decision.reply.width, decision.held, 2.0
    left = reset = 0
    current = b""
    for at, capacity, named in limits:
        remaining = max(0, numbers[2 + at * width] + held)
        share = remaining / capacity if capacity else 0.0
        if share < least:
            least, left, reset, current = share, remaining, numbers[3 + at * width], named
    return write(_STATUSES, b"\x08\x01" + current + _left(left, None if reset < 0 else -(-reset // 1_000_000)))


def _current(name: str, quota: int, window_seconds: int | None) -> bytes:
    unit = _UNITS.get(window_seconds or 0, 0)
    named = write_integer(_PER_UNIT, min(quota, _MOST)) + write_integer(_UNIT, unit)
    return write(_LIMIT, named + write(_NAME, name.encode()))


def _left(remaining: int, reset_seconds: int | None) -> bytes:
    reset = b"" if reset_seconds is None else write(_RESET, write_integer(_SECONDS, reset_seconds))
    return write_integer(_REMAINING, min(remaining, _MOST)) + reset


def _values(lines: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return header fields as a repeated HeaderValue."""
    return b"".join([write(_TO_CLIENT, write(_KEY, name) + write(_VALUE, value)) for name, value in lines])
