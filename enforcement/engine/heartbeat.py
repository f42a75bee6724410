"""The heartbeat, by which the control plane and the other instances know that this one is alive."""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from enforcement.engine.store_clock import StoreClock
from enforcement.lua import function
from enforcement.model.keys import Keys
from enforcement.state.published import PublishedState
from enforcement.store.base_client import StoreClient
from enforcement.store.client import call_function
from enforcement.store_calls.instances import HEARTBEAT_LIFETIME_MS
from enforcement.usage.counts import UsageLog

FLEET_SECONDS: Final = 600.0

LimitReports = Mapping[str, Callable[[], str | Sequence[Sequence[str]] | Mapping[str, int]]]
"""See :class:`Heartbeat`."""

logger = logging.getLogger("sluicegate.agent")


class Identity(NamedTuple):
    """Names one instance. Its id is unique in the fleet, and its version is that of this library."""

    id: str
    host: str
    pid: int
    version: str

    def of_child(self) -> Identity:
        """Return a new identity for this process, which was forked from the process with the present identity."""
        pid = os.getpid()
        return self._replace(id=f"{self.id[:80]}-{pid}-{secrets.token_hex(2)}", pid=pid)


class Heartbeat:
    """
    Reports this instance to the store, and counts the live instances.

    Args:
        identity: That of this instance.
        keys: The keys of the store.
        documents: Their revision is reported.
        usage: Its totals are reported.
        clock: Adopts the time in each reply.
        fallbacks: Returns how many decisions were made without the store.
        limits: Functions by member of the heartbeat. Each returns the limits of which something was lately noticed. For
            ``overflowing``, which had no room for a value, that is project id, policy id and name. For ``unmetered``,
            which requests gave no cost for, it is project id, policy slug and name. For ``unsupported``, which this
            process cannot enforce, a key of ``UNSUPPORTED_REASONS`` follows.
        problems: Returns what is wrong with a store that answers.
        remembered: Returns the fleet size before this process began, or 0 if it is unknown.

    Attributes:
        identity: That of this instance. A forked child gets its own.
        reported_revision: The revision in the last heartbeat, or 0 if there was none.
    """

    def __init__(
        self,
        identity: Identity,
        keys: Keys,
        documents: PublishedState,
        usage: UsageLog,
        clock: StoreClock,
        *,
        fallbacks: Callable[[], int],
        limits: LimitReports,
        problems: Callable[[], Sequence[str]],
        remembered: Callable[[], int],
    ) -> None:
        self.identity = identity
        self._fleet_size = 0
        self.reported_revision = 0
        self._given = identity
        self._keys = keys
        self._documents = documents
        self._usage = usage
        self._clock = clock
        self._fallbacks = fallbacks
        self._limits = dict(limits)
        self._problems = problems
        self._remembered = remembered
        self._started_at_us = clock.wall_us()
        # The revision that was noticed last, and when.
        self._noticed = (0, 0)
        self._sizes: deque[tuple[float, int]] = deque()

    @property
    def fleet_size(self) -> int:
        """The highest number of live instances in ten minutes, including this one."""
        return self._fleet_size or max(1, self._remembered())

    @property
    def knows_fleet(self) -> bool:
        """Whether the store or an earlier process has said how many instances there are."""
        return bool(self._fleet_size or self._remembered())

    @property
    def counted(self) -> bool:
        """Whether the store has said how many instances there are."""
        return self._fleet_size > 0

    def reset(self) -> None:
        """Set the reported revision to 0 and drop the fleet sizes seen so far, as the thread is about to start."""
        self.reported_revision = 0
        self._sizes.clear()

    def report(self, name: str, report: Callable[[], Mapping[str, int]]) -> None:
        """Have each heartbeat say under *name* what a function returns. The name is none that a heartbeat has."""
        self._limits[name] = report

    def notice(self) -> bool:
        """Note when this instance got its revision, and return whether no heartbeat has reported that revision yet."""
        revision = self._documents.current.revision
        if revision != self._noticed[0]:
            self._noticed = (revision, self._clock.now_us())
        return revision != self.reported_revision

    def after_fork(self) -> None:
        """Set a new identity and the time of its start in a child process."""
        self.identity = self._given.of_child()
        self._started_at_us = self._clock.wall_us()

    def send(self, client: StoreClient, state: str, degraded_since_us: int | None) -> None:
        """
        Send one heartbeat, set the clock by the reply, and set the fleet size to the highest of the last ten minutes.
        Raises redis-py's errors.

        Args:
            state: ``starting``, ``ok`` or ``degraded``.
            degraded_since_us: When a part of the store became unavailable, or None if all of it is available.
        """
        self.notice()
        sent_us, self.reported_revision = self._clock.monotonic_us(), self._documents.current.revision
        text = json.dumps(self._document(state, degraded_since_us), separators=(",", ":"))
        ident = self.identity.id
        keys = (self._keys.instance(ident), self._keys.instances)
        args = ("", ident, text, HEARTBEAT_LIFETIME_MS)
        now_us, alive = call_function(client, function("heartbeat"), keys, args, on_load=_log_load)
        self._clock.set(now_us, sent_us)
        self._count_fleet(alive)

    def remove(self, client: StoreClient) -> None:
        """Remove the heartbeat from the store. Raises redis-py's errors."""
        client.unlink(self._keys.instance(self.identity.id))
        client.zrem(self._keys.instances, self.identity.id)

    def _document(self, state: str, degraded_since_us: int | None) -> Mapping[str, object]:
        current, revision = self._documents.current, self._documents.price_revision
        dropped, emergency, now_us = self._usage.metered_dropped, current.emergency, self._clock.now_us()
        fields, broken = self._usage.recent_refusals(now_us), self._usage.most_broken()
        return {
            "id": self.identity.id,
            "host": self.identity.host,
            "pid": self.identity.pid,
            "version": self.identity.version,
            "revision": current.revision,
            "revision_at_us": self._noticed[1] or None,
            "state": state,
            "started_at_us": self._started_at_us,
            "seen_at_us": now_us,
            "store_id": current.store_id,
            "decisions": {
                "allowed": self._usage.allowed,
                "denied": self._usage.denied,
                "fallback": self._fallbacks(),
            },
            "degraded_since_us": degraded_since_us,
            **{name: report() for name, report in self._limits.items()},
            "problems": self._problems(),
            # Only of instances that use prices, so that a heartbeat of the others is as it was.
            **({} if revision is None else {"price_revision": revision}),
            **({"metered_dropped": dropped} if dropped else {}),
            # By day for the control plane, which keeps them when the instance has ended.
            **({"fields": fields, "field_days": self._usage.refusals_by_day(now_us)} if fields else {}),
            **({"broken": broken} if broken else {}),
            **({"glass_until_us": emergency.glass_until_us} if emergency.is_glass_broken(now_us) else {}),
        }

    def _count_fleet(self, alive: int) -> None:
        # The highest number counts, as an instance that the store cannot see now may be admitting requests on its own.
        now = self._clock.monotonic()
        if not self._fleet_size:
            self._sizes.append((now, self._remembered()))
        self._sizes.append((now, alive))
        while self._sizes[0][0] < now - FLEET_SECONDS:
            self._sizes.popleft()
        self._fleet_size = max(1, *(size for _, size in self._sizes))


def _log_load() -> None:
    logger.warning("The store had no function library, so it was loaded.")
