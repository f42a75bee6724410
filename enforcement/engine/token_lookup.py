"""
Find the plan of a request from its token.

A token that this process has not met yet is looked up in the store. The look-up has a budget and connections of its
own, and all requests that show the same token meanwhile wait for one look-up.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from time import monotonic

from enforcement.driving import run_within
from enforcement.failover.health import Health
from enforcement.model.keys import Keys
from enforcement.model.matching import Attributes
from enforcement.plan.commands import Steps
from enforcement.plan.decision import Decision
from enforcement.state.denial_cache import Denials
from enforcement.state.live_plan import LivePlan
from enforcement.state.planner import Planner
from enforcement.state.published import DerivedPlans, PublishedState, TokenEntry
from enforcement.store import resp
from enforcement.store.connector import Pipe
from enforcement.store.errors import StoreError

Found = TokenEntry | Decision


class TokenLookup:
    """
    Finds the plan of a request from its token.

    Args:
        keys: The keys of the store.
        documents: The published documents, as far as this process has loaded them.
        planner: Makes plans from documents.
        health: Knows whether the store is available.
        denials: Counts denials for which no counter was read.
    """

    def __init__(
        self, keys: Keys, documents: PublishedState, planner: Planner, health: Health, denials: Denials
    ) -> None:
        self._keys = keys
        self._documents = documents
        self._planner = planner
        self._health = health
        self._denials = denials
        self.after_fork()

    def after_fork(self) -> None:
        """Drop the look-ups that are going on, in a child process, as they are made by threads of the parent."""
        self._under_way: dict[str, Future[Found]] = {}
        self._lock = threading.Lock()

    def known(self, token: object) -> Found | str:
        """Return the entry or the denial that this process has for a token, or the digest to ask the store for."""
        return self._planner.find(token)

    def plan(
        self, derived: DerivedPlans, token: object, found: Found, attributes: Attributes | None
    ) -> LivePlan | Decision:
        """
        Return the plan of a request with this token, or a denial if the token may not be used.

        Args:
            derived: Keeps the plan. It was read before *found*.
            found: What is known of the token.
        Raises:
            ValueError: The attributes are not a small mapping of strings.
        """
        plan = found if isinstance(found, Decision) else self._planner.plan_of(found, attributes)
        if isinstance(plan, Decision):
            self._denials.count(plan)
            return plan
        assert isinstance(found, TokenEntry)
        self._planner.keep_plan(derived, token, found, plan)
        return plan

    def reading(self, name: str) -> Steps:
        """
        Yield the commands that read a token's document, and return its entry or a denial.

        Args:
            name: Digest of the token.
        """
        health, refusal = self._health, self._planner.refusal
        if health.look_ups.breaker.open:
            return refusal("degraded_denied")
        generation = self._documents.generation
        try:
            found = yield resp.pack(("MGET", self._keys.token(name), self._keys.revision))
            document, state = resp.items(found, 2)
            if state is None:  # a store that lost its data, or that 0.2 published to
                fields = yield resp.pack(("HMGET", self._keys.documents, "revision", "store_id"))
                state = b" ".join(filter(None, fields))
        except StoreError as exc:
            health.failed_beside(exc)
            health.look_ups.failed(exc, store_away=health.is_away(self._keys.revision))
            return refusal("degraded_denied")
        health.look_ups.succeeded()
        # What a store that was emptied or set back says of a token may be outdated.
        lost = self._documents.is_ahead_of(*state.partition(b" ")[::2])
        return refusal("degraded_denied") if lost else self._documents.remember(name, document, generation)

    def once(self, name: str, pipe: Pipe, seconds: float) -> Found:
        """
        Return the entry of a token or a denial, from the store or from another thread that is reading the same token.

        Args:
            name: Digest of the token.
            pipe: Reaches the store.
            seconds: How long that may take.
        """
        own: Future[Found] = Future()
        with self._lock:
            other = self._under_way.setdefault(name, own)
        if other is not own:
            try:
                return other.result(seconds)
            except FutureTimeoutError:
                return self._planner.refusal("degraded_denied")
        found: Found = self._planner.refusal("degraded_denied")  # for the others, if this thread is interrupted
        try:
            found = run_within(self.reading(name), pipe, monotonic() + seconds)
        finally:
            with self._lock:
                self._under_way.pop(name, None)
            own.set_result(found)
        return found


__all__ = ["Found", "TokenLookup"]
