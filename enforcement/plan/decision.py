"""Hold a decision, and derive from it what remains, the headers and the body of the HTTP response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from enforcement.plan.binding import BoundLimit
from enforcement.plan.costs import Costs
from enforcement.plan.error_shapes import error_body
from enforcement.plan.headers import labels, presets
from enforcement.plan.limit_state import LimitState, seconds, state_of
from enforcement.plan.plan import NO_PLAN, Plan
from enforcement.plan.reply import NO_REPLY, Reply
from enforcement.plan.sentences import sentence, title

QUOTA_EXCEEDED: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"
REDUCED_CAPACITY: Final = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"

STATUSES: Final = {
    "ok": 200,
    "limited": 429,
    "cost_exceeds_capacity": 429,
    "too_many_reservations": 429,
    "too_many_of_token": 429,
    "unpriced_model": 403,
    "unmetered": 403,
    "unknown_token": 401,
    "revoked": 401,
    "expired": 401,
    "inactive_project": 403,
    "suspended": 403,
    "token_required": 401,
    "unknown_project": 401,
    "degraded_denied": 503,
}
"""The HTTP status that belongs to each reason."""

_REFUSED_RETRY_MS: Final = 1_000
# Denials that no limit decides, and that a wait may help.
_WITHOUT_LIMIT: Final = ("degraded_denied", "too_many_reservations", "too_many_of_token", "suspended")
_UNKNOWN: Final = "not computed yet"
_NO_TROUBLE: Final = ("", False)


class Decision:
    """
    The decision on one request. It is true exactly if the request is allowed.

    It keeps the store's reply, and computes its properties only when they are read.

    Attributes:
        allowed: Whether the request may pass.
        reason: ``ok``, or the reason of the denial, which is a key of :data:`STATUSES`.
        source: Where it was made, which is ``store``, ``lease``, ``denial_cache`` or ``fallback``. ``documents`` if the
            token is refused, so that no counter was read.
        plan: The counters of the request.
        reply: The store's reply, or one that this process made in the same form.
        held: Permits that this process has leased and not used. They are charged in the store, and still remain.
    """

    __slots__ = (
        "_costs",
        "_currency",
        "_detail",
        "_id",
        "_limit",
        "_states",
        "_suspended",
        "_trouble",
        "allowed",
        "held",
        "plan",
        "reason",
        "reply",
        "source",
    )

    def __init__(
        self,
        allowed: bool,
        reason: str,
        source: str,
        plan: Plan = NO_PLAN,
        reply: Reply = NO_REPLY,
        held: int = 0,
    ) -> None:
        self.allowed = allowed
        self.reason = reason
        self.source = source
        self.plan = plan
        self.reply = reply
        self.held = held
        self._states: tuple[LimitState, ...] | None = None
        self._limit: LimitState | str | None = _UNKNOWN

    def __bool__(self) -> bool:
        return self.allowed

    def on(self, costs: Costs) -> Decision:
        """
        Keep the units that the costs of the request name, from which :attr:`unmetered` follows, and return this
        decision.
        """
        self._costs = costs if isinstance(costs, int) else frozenset(costs)  # the caller may change its mapping
        return self

    def after(self, cause: str, *, ambiguous: bool) -> Decision:
        """Set why the call to the store failed before this decision was made, and return the decision."""
        self._trouble = (cause, ambiguous)
        return self

    def because(self, detail: str) -> Decision:
        """Set the sentence that says to the client why the request is denied, and return the decision."""
        self._detail = detail
        return self

    def counting(self, currency: str) -> Decision:
        """Set the currency of the limits that count money, such as ``USD``, and return the decision."""
        self._currency = currency
        return self

    def until(self, ends_at_us: int | None, now_us: int) -> Decision:
        """Set when the suspension ends that refuses the request, if it has an end, and return the decision."""
        if ends_at_us is not None:
            self._suspended = ends_at_us, now_us
        return self

    def __getstate__(self) -> object:
        self._id = self.id  # made before the state is taken, as it needs the limiter
        return super().__getstate__()

    def __repr__(self) -> str:
        return f"<Decision {self.reason} by {self.source}: {', '.join(f'{s.name} {s.remaining}' for s in self.limits)}>"

    @property
    def width(self) -> int:
        """How many numbers the reply has for each limit."""
        return self.reply.width

    @property
    def revision(self) -> int:
        """The published revision of the decision's limits, which is 0 for limits in code."""
        return self.plan.revision

    @property
    def id(self) -> str:
        """
        The name of this decision in a denial's response and in logs. It is opaque without the key of the fleet.

        Empty for a decision that no limiter made. A denial from the cache is one decision for 10 ms, and so has one id.
        """
        result: str | None = getattr(self, "_id", None)
        if result is None:
            ids = self.plan.ids
            self._id = result = "" if ids is None else ids.of(self)
        return result

    @property
    def degraded(self) -> bool:
        """Whether this process made the decision because the store, or a part of it, could not."""
        return self.source == "fallback"

    @property
    def bounds(self) -> Sequence[BoundLimit]:
        """The limits of the request, each bound to its counter, in the order of ``limits``."""
        return self.plan.bounds

    @property
    def decided_at_us(self) -> int:
        """
        The time of the decision by the store's clock, in microseconds since the epoch.

        Without the store it is an estimate of that clock. It is 0 if no counter was read.
        """
        return self.reply.now_us

    @property
    def cause(self) -> str:
        """Why the call to the store failed, such as ``timeout``, ``auth`` or ``oom``, or empty if no call failed."""
        # Only the few decisions that follow a failed call have this attribute. The others save the time to set it.
        return getattr(self, "_trouble", _NO_TROUBLE)[0]

    @property
    def ambiguous(self) -> bool:
        """Whether the call to the store failed in such a way that the store may have charged the request."""
        return getattr(self, "_trouble", _NO_TROUBLE)[1]

    @property
    def suspended_until_us(self) -> int | None:
        """When the suspension ends that refuses the request, microseconds since the epoch. None: it has no end."""
        # Only denials because of a suspension with an end have this attribute.
        return getattr(self, "_suspended", (None, 0))[0]

    @property
    def status(self) -> int:
        """The HTTP status of the response, which is 200 if the request may pass."""
        return STATUSES[self.reason]

    @property
    def limits(self) -> tuple[LimitState, ...]:
        """The state of each limit of the request, in the order of the call."""
        if self._states is None:
            reply, now_us = self.reply, self.reply.now_us
            fleet = self.plan.fleet() if self.plan.fleet else 0
            self._states = tuple(
                state_of(bound, fleet, now_us, self.held, *reply.row(i)) for i, bound in enumerate(self.plan.bounds)
            )
        return self._states

    @property
    def unmetered(self) -> tuple[str, ...]:
        """
        The names of the limits that counted nothing, because the costs of the request do not name their unit.

        Such a limit neither denies nor decides, and header fields leave it out. A cost of 0 is a cost.
        """
        return tuple(self.plan.bounds[i].limit.name for i in self.unmetered_at())

    def unmetered_at(self) -> tuple[int, ...]:
        """Return the index of each limit in :attr:`unmetered`."""
        # Only decisions on limits of units other than requests have this attribute.
        costs: int | frozenset[str] | None = getattr(self, "_costs", None)
        return () if costs is None else self.plan.unmetered(costs)

    @property
    def limit(self) -> LimitState | None:
        """
        The state of the limit that decides, or None if there is none.

        If limits deny the request, it is one that no wait helps, or the one with the longest wait. Otherwise it is the
        one with the smallest share of its capacity left. None if there is no limit, or each is in shadow mode or
        :attr:`unmetered`.
        """
        if isinstance(self._limit, str):
            self._limit = self._find_limit()
        return self._limit

    def _find_limit(self) -> LimitState | None:
        left_out = self.unmetered_at()
        enforced = [it for i, it in enumerate(self.limits) if it.mode == "enforce" and i not in left_out]
        if len(enforced) < 2:
            return enforced[0] if enforced else None
        deniers = [state for state in enforced if not state.allowed]
        return min(deniers, key=_mildness) if deniers else min(enforced, key=lambda state: state.tightness)

    @property
    def denied_by(self) -> tuple[str, ...]:
        """The names of the limits that deny the request, without those in shadow mode."""
        return tuple(state.name for state in self.limits if state.mode == "enforce" and not state.allowed)

    @property
    def remaining(self) -> int | None:
        """Permits that the deciding limit has left, or None if no limit decides."""
        return None if self.limit is None else self.limit.remaining

    @property
    def reset_ms(self) -> int | None:
        """Milliseconds until the deciding limit is full again, or None if it never is, or if no limit decides."""
        return None if self.limit is None else self.limit.reset_ms

    @property
    def retry_after_ms(self) -> int | None:
        """Milliseconds until the same request is worth another try, or None if it is allowed, or if no wait helps."""
        if self.reason in _WITHOUT_LIMIT:
            return self._resumed_ms() if self.reason == "suspended" else _REFUSED_RETRY_MS
        return None if self.allowed or self.limit is None or self.limit.hopeless else self.limit.retry_after_ms

    def _resumed_ms(self) -> int | None:
        ends_at_us, now_us = getattr(self, "_suspended", (None, 0))
        return None if ends_at_us is None else max(1, -(-(ends_at_us - now_us) // 1_000))

    def headers(self, preset: str = "ietf") -> dict[str, str]:
        """
        Return the header fields for a client as a new dictionary of names and values.

        Args:
            preset: ``ietf`` (draft-ietf-httpapi-ratelimit-headers-11), ``legacy-delta``, ``legacy-epoch``, ``openai``,
                ``anthropic``, ``gemini``, ``bedrock`` and ``cohere`` (which have none), or several joined by ``+``.
        Returns:
            Names and values. A denial that can pass later has ``Retry-After`` as well, with every preset.
        Raises:
            ValueError: A preset is unknown.
        """
        fields: dict[str, str] = {}
        spells = presets(preset)
        if self.shown:
            for spell in spells:
                fields.update(spell(self))
        if not self.allowed and self.retry_after_ms is not None:
            fields["Retry-After"] = str(max(1, seconds(self.retry_after_ms)))
        return fields

    @property
    def shown(self) -> bool:
        """Whether the response shows limits. It shows none if the token is refused."""
        if self.reason == "ok":
            return self.plan.enforces
        return self.limit is not None and self.status in (429, 503)

    def problem(self, preset: str = "ietf") -> dict[str, Any]:
        """
        Return the body of the response to a denial as a new dictionary of JSON values.

        Args:
            preset: As in :meth:`headers`. With ``openai``, ``anthropic`` or ``gemini`` the body has the shape of that
                provider's errors, for its SDK. Otherwise it has the members of ``application/problem+json`` (RFC 9457).
        Raises:
            ValueError: A preset is unknown.
        """
        presets(preset)
        said, unit = self._sentence(), "" if self.limit is None else self.limit.unit
        shaped = error_body(preset, self.status, self.reason, unit, said, self.retry_after_ms, self.id)
        if shaped is not None:
            return shaped
        kind = {429: QUOTA_EXCEEDED, 503: REDUCED_CAPACITY}.get(self.status, "about:blank")
        body: dict[str, Any] = {
            "type": kind,
            "title": title(self.reason),
            "status": self.status,
            "code": self.reason,
        }
        if self.status == 429 or hasattr(self, "_detail") or hasattr(self, "_suspended"):
            body["detail"] = said
        if kind != "about:blank":
            rows = zip(labels(self.plan), self.limits, strict=True)
            body["violated-policies"] = [name for name, it in rows if it.mode == "enforce" and not it.allowed]
        return body | self._names()

    def _sentence(self) -> str:
        """Return why the request is denied, for the client."""
        # Only denials of metered requests have these attributes.
        detail, currency = getattr(self, "_detail", ""), getattr(self, "_currency", "")
        return detail or sentence(self.status, self.reason, self.limit, self.retry_after_ms, currency)

    def _names(self) -> dict[str, str]:
        """Return the members of a problem that name the policy and the limit that deny, and the decision."""
        limit, body = self.limit, {}
        if not self.allowed and limit is not None:
            body = {"policy": limit.policy, "limit": limit.name} if limit.policy else {"limit": limit.name}
        if self.id:
            body["decision"] = self.id
        return body

    def explain(self) -> dict[str, Any]:
        """
        Return how this decision was made, as a dictionary.

        Returns:
            The source, the revision, and the policy, override and counter of each limit. ``decided_by`` repeats the
            entry of the limit that decides, see :attr:`limit`. It is None if no limit decides.
        """
        origins = [bound.origin() for bound in self.plan.bounds]
        return {
            "allowed": self.allowed,
            "reason": self.reason,
            "source": self.source,
            "revision": self.revision,
            "decided_by": next((o for o, it in zip(origins, self.limits, strict=True) if it is self.limit), None),
            "limits": origins,
        }


class Denied(Exception):
    """
    Raised if a request is denied and the call cannot return the decision.

    Attributes:
        decision: The decision that denied it.
    """

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision)  # an argument, so that it can be pickled
        self.decision = decision

    def __str__(self) -> str:
        return self.decision._sentence()


def _mildness(state: LimitState) -> tuple[bool, float, float, float]:
    """Return a sort key for limits that deny, by which one that no wait helps comes first, then the longest wait."""
    wait_ms = math.inf if state.retry_after_ms is None else state.retry_after_ms
    return not state.hopeless, -wait_ms, *state.tightness
