"""A plan in use: what this process knows about its counters."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from enforcement.model.algorithms import Spec
from enforcement.plan.binding import BoundLimit
from enforcement.plan.plan import Plan
from enforcement.plan.reply import Reply
from enforcement.state.usage import TokenUsage


class LivePlan(Plan):
    """
    A plan, and what this process knows about its counters.

    What others keep here, so that a decision finds it without a look-up, is opaque: its owner alone makes and reads it.

    Attributes:
        name: Its name in the cache of plans with attributes; None: it is in none.
        usage: Where its decisions are counted; None for limits in code.
        lease: Permits held ahead (:class:`~enforcement.state.lease.Lease`); None: none may be taken.
        denied: A denial that is remembered (:class:`~enforcement.state.denial_cache.Denial`); None: none is.
        last: The latest reply of the store, from which a fallback starts; None: there is none.
        command: The encoded command that charges one request, once there is one and if it never expires.
        parts: Its parts of one hash tag each (:mod:`enforcement.engine.cross_slot`); None: not worked out yet.
        registered_until: Until when the values of its unregistered bounds are taken for registered, monotonic seconds.
        retry_at: When a plan over overflow counters looks for a place again, monotonic seconds.
    """

    __slots__ = (
        "_once",
        "command",
        "denied",
        "last",
        "lease",
        "name",
        "parts",
        "registered_until",
        "retry_at",
        "usage",
    )

    def __init__(
        self,
        bounds: tuple[BoundLimit, ...],
        *,
        revision: int = 0,
        fleet: Callable[[], int] | None = None,
        usage: TokenUsage | None = None,
        name: tuple[Hashable, ...] | None = None,
    ) -> None:
        super().__init__(bounds, revision=revision, fleet=fleet)
        self.name = name
        self.usage = usage
        self.lease: Any = None
        self.denied: Any = None
        self.last: Reply | None = None
        self.command: bytes | None = None
        self.parts: Any = None
        self.registered_until = 0.0
        self.retry_at = 0.0
        self._once: tuple[tuple[Spec, ...], bytes] | None = None  # in one value, since threads read it

    def once(self, now_us: int) -> bytes | None:
        """Return the encoded command that charges one request, if it is kept and good at *now_us*."""
        once = self._once
        return None if once is None or once[0] is not self._specs or self.expired(now_us) else once[1]

    def keep_once(self, command: bytes, specs: tuple[Spec, ...]) -> None:
        """Keep the encoded command that charges one request, made of *specs*; with others it is good no longer."""
        self._once = specs, command
        if not self.follows_calendar:
            self.command = command


__all__ = ["LivePlan"]
