"""Build, start and stop the parts that enforce limits in one process."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Final

from enforcement.engine.agent import Agent
from enforcement.engine.decide import Decider
from enforcement.engine.heartbeat import Identity
from enforcement.engine.slot_renewal import SlotKeeper
from enforcement.engine.token_lookup import TokenLookup
from enforcement.failover.fallback import Fallback
from enforcement.failover.health import BACKGROUND_BUDGET, Health
from enforcement.failover.outage_copy import OutageCopy
from enforcement.latency import Timing
from enforcement.leases.manager import LeaseKeeper
from enforcement.model.keys import Keys, fingerprint
from enforcement.plan.costs import Costs
from enforcement.plan.decision import Decision
from enforcement.plan.decision_ids import DecisionIds
from enforcement.settings import ENFORCE, VERSION, Settings
from enforcement.state.counts import DecisionCounts
from enforcement.state.denial_cache import Denials
from enforcement.state.live_plan import LivePlan
from enforcement.state.parts import LeaseMaker
from enforcement.state.planner import Planner
from enforcement.state.published import PublishedState
from enforcement.state.reservation import HeldReservation
from enforcement.stats import DecisionCount, Stats
from enforcement.store.connector import StoreConnector, connector_of
from enforcement.usage.counts import UsageLog
from enforcement.waiting.queues import queues_of

if TYPE_CHECKING:
    from enforcement.engine.own_limit_reader import OwnLimitReader
    from enforcement.engine.prices import PriceLoader

STOP_SECONDS: Final = 2.0


class Engine:
    """
    The parts that enforce limits in one process, and their background threads.

    Attributes:
        settings: The settings of the process.
        keys: Names the keys of the store.
        documents: The published documents, as far as this process has loaded them.
        counts: Counts decisions and failed calls.
        fallback: Decides without the store, and records the charges to replay.
        outage_copy: Keeps on disk what a restart in an outage needs.
        health: Knows whether the store is available.
        planner: Finds the plan of a request.
        queues: Those who wait for permits.
        denials: The cached denials.
        leases: Fills leases and returns unused permits.
        slots: Renews the slots of open reservations.
        lookup: Finds the plan of a token.
        decider: Decides requests.
        agent: The background thread that loads documents and sends heartbeats and usage.
        usage: The usage that the agent delivers.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.keys = Keys(settings.prefix)
        self.documents, self.counts = PublishedState(), DecisionCounts()
        connector = connector_of(settings.url, settings.timeout, settings.credentials)
        self.fallback = Fallback(held=lambda key: self.slots.held(key))
        self.health = Health(
            connector,
            self.keys,
            self.fallback,
            timeout=settings.timeout,
            lookup=settings.lookup_seconds,
            clock=settings.clock,
            store_now_us=lambda: self.agent.now_us(),
            fleet=self._sharers,
            plans=lambda: self.planner.plans(),
            doubt=lambda: self.agent.doubt(),
            wake=lambda: self.agent.wake(),
            count_failure=self.counts.failed,
        )
        self._beginning = threading.Lock()  # the first requests of a process may come at the same time
        # Nobody has chosen which store a folder among the temporary ones is for.
        parts = [settings.prefix] if settings.state_dir else [settings.prefix, settings.url]
        share = settings.clock is None
        self.outage_copy = OutageCopy(settings.state_dir, fingerprint(parts)[:8], self.fallback, share=share)
        self.agent, self.usage = self._make_agent(connector)
        if settings.clock is None:
            self.health.now_us = self.agent.now_us  # without a call between them, as every decision asks for it
        # With a test's clock, which does not move by itself, nothing may be leased, because leases end by real time.
        fleet = self._fleet if settings.clock is None else None
        ids = DecisionIds(lambda: self.agent.identity.id, self.health.now_us, self._decision_key)
        mode = settings.in_code or ENFORCE
        leases = LeaseMaker(one_slot_per_call=connector.one_slot_per_call)
        self.planner = Planner(
            self.keys, self.documents, self.usage, self.health.now_us, fleet=fleet, leases=leases, ids=ids, mode=mode
        )
        self.documents.on_change = self.planner.follow_glass
        self.queues = queues_of(settings.url)
        self.denials = Denials(self.documents, self.counts, self.usage.sample, self.queues)
        self.leases = LeaseKeeper(self.health, self.denials, fleet=self._fleet)
        self.slots = SlotKeeper(self.health.background, renews=settings.clock is None)
        # A clock that was set ahead has ended slots, perhaps all of them.
        self.agent.clock.on_jump = self.slots.renew_soon
        self.lookup = TokenLookup(self.keys, self.documents, self.planner, self.health, self.denials)
        self.decider = Decider(
            self.planner,
            self.denials,
            self.health,
            self.leases,
            self.counts,
            unconfirmed_for=self.agent.unconfirmed_for,
        )

    @cached_property
    def own_limits(self) -> OwnLimitReader:
        """The reader of a consumer's own limits, for the page of the consumer."""
        from enforcement.engine.own_limit_reader import OwnLimitReader  # most processes show nobody's limits

        return OwnLimitReader(self.keys, self.planner, self.health, fleet=self._fleet)

    def _make_agent(self, connector: StoreConnector) -> tuple[Agent, UsageLog]:
        """Return a new agent, which is not started yet, and the log of the usage that it delivers."""
        settings = self.settings
        instance = settings.instance or f"{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        usage = UsageLog(instance, late=lambda: self.leases.count(), now_us=self.health.now_us)
        agent = Agent(
            client_factory=lambda: connector.client(BACKGROUND_BUDGET),
            keys=self.keys,
            documents=self.documents,
            usage=usage,
            identity=Identity(id=instance, host=socket.gethostname(), pid=os.getpid(), version=VERSION),
            hooks=self.health,
            state_dir=settings.state_dir,
            look=self._look,
            duty_failures=connector.duty_failures,
            fallbacks=lambda: self.decider.fallbacks,
            limits={
                "overflowing": lambda: self.planner.plan_cache.full.at(monotonic()),
                "unmetered": lambda: self.planner.unmetered.now(),
                "unsupported": lambda: self.planner.unsupported.at(monotonic()),
                **({} if settings.in_code == ENFORCE else {"in_code": lambda: settings.in_code or ENFORCE}),
            },
            failed=self.counts.failed,
            told_fleet=settings.fleet_size > 1,
            copy=self.outage_copy,
        )
        # A plan that was made when a suspension seemed to be over would admit until the next publication.
        agent.clock.on_back = self.documents.outdate
        return agent, usage

    def _look(self) -> None:
        self.planner.follow_glass()  # its time may have come
        self.health.connector.look()

    def reservation(self, plan: LivePlan, costs: Costs, decision: Decision, ident: str) -> HeldReservation:
        """Return a new reservation for a decision that was made with *ident*."""
        return HeldReservation(self.health, self.denials, plan, costs, decision, ident)

    def _decision_key(self) -> str:
        return self.settings.decision_key or self.documents.decision_key

    def _sharers(self) -> int:
        """Return among how many instances a quota is divided while the store is away."""
        if self.settings.fleet_size > 1 or self.agent.counts_fleet:
            return max(self.settings.fleet_size, self._fleet())
        return self.outage_copy.sharers()

    def _fleet(self) -> int:
        return max(1, self.agent.fleet_size)

    def start(self, timeout: float) -> bool:
        """Start the background threads, and return whether documents are loaded within *timeout* seconds."""
        self._begin()
        return self.agent.wait_loaded(timeout)

    def start_quietly(self) -> None:
        """
        Start the background threads without waiting for documents, unless the limiter has the clock of a test.

        With a test's clock nothing is started.
        """
        if self.settings.clock is None:
            self._begin()

    def _begin(self) -> None:
        with self._beginning:
            self.outage_copy.open()
            self.health.start()
            self.agent.start()
            self.slots.go_on()

    def prices(self) -> PriceLoader:
        """Return what loads the published prices. The first call begins to."""
        price_loader = self.agent.prices
        if price_loader is None:
            with self._beginning:  # the first requests may come at the same time
                price_loader = self.agent.prices or self.agent.follow_prices()
        return price_loader

    def stop(self) -> None:
        """Return leased permits, replay recorded charges, deliver usage and stop the background threads."""
        self.leases.close()
        self.slots.stop(STOP_SECONDS)
        ended = self.health.stop(STOP_SECONDS, self.agent.stop(STOP_SECONDS))
        self.health.close(replays=ended)  # otherwise the thread that replays may still be doing so
        self.outage_copy.close(self.agent.told_fleet_size)
        # Without these plans, the next call takes the slow path, which starts the engine again.
        self.documents.rest()
        self.planner.in_code.clear()

    def after_fork(self) -> None:
        """Prepare all parts for use in a child process, where no background thread is running."""
        self._beginning = threading.Lock()
        self.health.after_fork()
        for part in (self.slots, self.leases, self.counts, self.lookup):
            part.after_fork()
        self.planner.clear()
        self.outage_copy.after_fork()
        self.agent.after_fork()

    @property
    def state(self) -> str:
        """The state of the engine, which is ``starting``, ``ok`` or ``degraded``."""
        return "degraded" if self.health.breaker.open else self.agent.state

    def stats(self, timing: Timing | None) -> Stats:
        """Return a new record of this process's statistics, without taking a lock that a decision waits for."""
        agent, held, used, from_lease = self.agent, *self.leases.counts()
        servers_away, outages = self.health.connector.outages()
        rows = [*self.counts.decisions().items(), (("lease", "ok"), from_lease)]
        confirmed_at = agent.confirmed_at
        return Stats(
            instance=agent.identity.id,
            version=agent.identity.version,
            state=self.state,
            revision=self.documents.current.revision,
            store_id=self.documents.current.store_id,
            documents_age_seconds=None if confirmed_at is None else monotonic() - confirmed_at,
            fleet_size=agent.fleet_size,
            clock_offset_us=agent.clock.offset_us(),
            decisions=tuple(DecisionCount(*name, count) for name, count in rows if count),
            would_deny=self.usage.would_deny,
            store_failures=dict(self.counts.failures),
            servers_away=servers_away,
            outages=outages,
            journal_entries=len(self.fallback.journal) + len(self.fallback.in_doubt),
            journal_dropped=self.fallback.journal.dropped,
            lease_permits_held=held,
            lease_permits_used=used,
            overflow_decisions=self.planner.plan_cache.overflowed,
            reservations_open=self.slots.recorded(),
            usage_dropped=self.usage.dropped,
            metered_dropped=self.usage.metered_dropped,
            refused_fields=self.usage.refused_fields,
            broken_bounds=self.usage.broken_bounds,
            disk_failures=self.documents.disk_failures + self.outage_copy.failures,
            store_calls=None if timing is None else timing.histogram(),
        )
