"""
Find the plan of a request from its token.

A token that this process has not met yet is looked up in the store. The look-up has a budget and connections of its
own, and all requests that show the same token meanwhile wait for one look-up (single-flight). If the token is newer
than the documents of this process, and needs one that they lack, the look-up waits for it within the same budget.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from time import monotonic
from typing import Any, Final

from enforcement.failover.health import Health
from enforcement.model.documents import StateName
from enforcement.model.keys import Keys
from enforcement.model.matching import Attributes
from enforcement.plan.decision import Decision
from enforcement.run_steps import run, run_awaited
from enforcement.state.arrivals import Arrival
from enforcement.state.denial_cache import Denials
from enforcement.state.live_plan import LivePlan
from enforcement.state.planner import Planner
from enforcement.state.published import DerivedPlans, PublishedState, name_of
from enforcement.state.token_cache import Text, TokenEntry, read_entry
from enforcement.store import resp
from enforcement.store.connector import AwaitedPipe, Pipe
from enforcement.store.errors import StoreError

READING_SHARE: Final = 0.25
"""How much of its budget a look-up that waits for documents keeps, at least, for reading the token again."""

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

    def reading(self, name: str, until: float) -> Generator[bytes | Arrival, Any, Found]:
        """
        Yield the commands that read a token's document, and what to wait for between them, and return its entry or a
        denial.

        Nothing is waited for unless the token needs documents that this process lacks, and the store is ahead of it.
        The token is read again after that, because it may have been revoked meanwhile.

        Args:
            name: Digest of the token.
            until: When the budget of the look-up ends, in monotonic seconds.
        """
        health, refusal, documents = self._health, self._planner.refusal, self._documents
        if health.look_ups.breaker.open:
            return refusal("degraded_denied")
        waited_with: Text | None = None
        while True:
            generation, began = documents.generation, monotonic()
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
            present = name_of(*state.partition(b" ")[::2])
            if present is None or present < documents.current.name:
                return refusal("degraded_denied")  # a store that was emptied or set back may have an outdated token
            # A change that an unchanged token still lacks after the wait was not published with it or before it.
            arrival = None if document == waited_with else self._missing(document, present, began, until)
            if arrival is None or not (yield arrival):
                return documents.remember(name, document, generation)
            waited_with = document

    def _missing(self, document: Text, present: StateName, began: float, until: float) -> Arrival | None:
        """
        Return the arrival of the store's *present* state if a token needs it, and if there is time left to wait.

        Args:
            began: When the store was asked. To ask it again may take twice as long.
        """
        documents = self._documents
        if present <= documents.current.name or self._health.is_away(self._keys.revision):
            return None
        token, now = read_entry(document).token, monotonic()
        until -= max((until - began) * READING_SHARE, 2 * (now - began))
        if token is None or token.revoked or not self._planner.lacks(token) or until <= now:
            return None
        arrival = documents.arrivals.of(present, until)
        # A change that arrived before the arrival was asked for ends no waiting.
        return arrival if present > documents.current.name else None

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
        result: Found = self._planner.refusal("degraded_denied")  # for the others, if this thread is interrupted
        deadline = monotonic() + seconds
        try:
            result = run(
                self.reading(name, deadline),
                lambda step: pipe.call_again(step, deadline - monotonic()) if isinstance(step, bytes) else step.wait(),
            )
        finally:
            with self._lock:
                self._under_way.pop(name, None)
            own.set_result(result)
        return result

    async def awaited(self, name: str, pipe: AwaitedPipe, seconds: float) -> Found:
        """Return the entry of a token or a denial, from the store, in an event loop."""
        deadline = monotonic() + seconds
        result: Found = await run_awaited(
            self.reading(name, deadline),
            pipe,
            lambda step: pipe.call_again(step, deadline) if isinstance(step, bytes) else step.waited(),
        )
        return result
