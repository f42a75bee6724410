"""The shapes of calls that block: what is set up, what is called, and by what a decision must have been made."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from time import perf_counter_ns, sleep
from typing import Any, Self

from enforcement import Limit, Limiter
from enforcement.embedded import free_port
from enforcement.testing import Published

PATIENCE = 0.25
"""Seconds a decision may take here, instead of 0.025: on a busy machine a process loses its core for that long."""
SUBJECTS = 64
"""Tokens, or keys, that take turns."""
FAR = 1_000_000_000
"""A quota that no run comes near."""
DECISIONS = 500
"""Of how many decisions a block reads the headers or the limits: each is fetched from the store before."""

MINUTE = Limit(name="minute", algorithm="fixed_window", quota=FAR, window_seconds=60)
DAY = Limit(name="day", algorithm="fixed_window", quota=FAR, calendar="day")
PROJECT = Limit(name="project-minute", algorithm="fixed_window", quota=FAR, window_seconds=60)
SLIDING = Limit(name="sliding", algorithm="sliding_window", quota=FAR, window_seconds=60)
BUCKET = Limit(name="bucket", algorithm="token_bucket", quota=FAR, window_seconds=60)
LEASED = Limit(name="leased", algorithm="fixed_window", quota=FAR, window_seconds=60, consistency="leased")
CLOSED = Limit(name="closed", algorithm="fixed_window", quota=1, window_seconds=86_400)
SLOTS = Limit(name="slots", algorithm="concurrency", quota=1_000, window_seconds=60)
POLICIES = {
    "fixed": (MINUTE,),
    "leased": (LEASED,),
    "closed": (CLOSED,),
    "slots": (SLOTS,),
    "two": (MINUTE, DAY),
    "project": (PROJECT,),
}
USERS = [f"user:{i}" for i in range(SUBJECTS)]
ATTRIBUTES = {"method": "GET", "path": "/v1/things"}


class Missing(Exception):
    """A tree has not got what a shape measures."""


class Site:
    """The store with its published documents. Every tree has keys of its own there, told apart by their prefix."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url = url
        self.prefix = prefix
        self._published = Published(url, prefix=prefix)
        for slug, limits in POLICIES.items():
            self._published.policy(slug, *limits)
        self._published.project()
        self._published.project("shared", policy="project")

    def metered(self, slug: str, limits: Sequence[Limit], rules: dict[str, Any], price: dict[str, Any]) -> None:
        """Publish a policy with rules for metered requests, and the price of the only model."""
        self._published.policy(slug, *limits)
        document = {"schema": 1, "id": f"pol_{slug}", "slug": slug, "name": slug, "version": 2, "metering": rules}
        self._published.publish({f"policy:pol_{slug}": {**document, "limits": [limit.to_json() for limit in limits]}})
        self._published.prices(price)

    def tokens(self, policy: str, count: int = SUBJECTS, *, project: str = "test") -> list[str]:
        """Publish tokens and return their secrets."""
        return [self._published.token(policy=policy, project=project) for _ in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._published.close()


class Timed:
    """
    A call that can be timed, subjects in turn.

    Args:
        call: Gets a subject and returns a decision.
        source: By what its decisions are to be made.
        state: Returns the limiter's state; it must be *expected* after a block.
    """

    step = 1
    most: int | None = None

    def __init__(
        self,
        call: Callable[[Any], Any],
        subjects: Sequence[Any],
        state: Callable[[], str],
        *,
        source: str = "store",
        expected: str = "ok",
    ) -> None:
        self._call = call
        self._turns = itertools.cycle(subjects)
        self._state = state
        self._source = source
        self._expected = expected

    def warm(self) -> None:
        """Call until decisions are made by the expected source: the first ones of a lease or a denial are not."""
        for _ in range(2_000):
            if all(self.decision().source == self._source for _ in range(10)):
                return
            sleep(0.001)
        raise RuntimeError(f"decision: must be made by {self._source}, got {self.decision()!r}")

    def prepare(self, calls: int) -> None:
        """Do what must be done before so many calls, and is not timed."""

    def run(self, calls: int) -> int:
        """Run calls and return the nanoseconds that they took together."""
        call, subjects = self._call, list(itertools.islice(self._turns, calls))
        start = perf_counter_ns()
        for subject in subjects:
            call(subject)
        return perf_counter_ns() - start

    def problem(self) -> str:
        """Return why the last block does not count; empty if it does."""
        state, sources = self._state(), {self.decision().source for _ in range(20)}
        if state == self._expected and self._source in sources:
            return ""
        return f"the limiter is {state}, and decisions are made by {', '.join(sorted(sources))}"

    def decision(self) -> Any:
        """Return the decision of one call that is not timed."""
        return self._call(next(self._turns))


class TimedReading(Timed):
    """What is read off decisions, each of which is read once."""

    most = DECISIONS

    def __init__(self, read: Callable[[Any], Any], fetch: Callable[[str], Any], state: Callable[[], str]) -> None:
        super().__init__(fetch, USERS, state)
        self._read = read
        self._decisions: list[Any] = []

    def prepare(self, calls: int) -> None:
        """Fetch the decisions."""
        self._decisions = [self.decision() for _ in range(calls)]

    def run(self, calls: int) -> int:
        """Read so many of the decisions; fetch what is missing."""
        read = self._read
        self._decisions += [self.decision() for _ in range(calls - len(self._decisions))]
        decisions = [self._decisions.pop() for _ in range(calls)]
        start = perf_counter_ns()
        for decision in decisions:
            read(decision)
        return perf_counter_ns() - start


SetUp = Callable[[Site], AbstractContextManager[Timed]]


def limiter_of(site: Site) -> Limiter:
    """Return a limiter of a site."""
    return Limiter(site.url, prefix=site.prefix, timeout=PATIENCE)


def _checking(policy: str, count: int = SUBJECTS, project: str = "test", **more: Any) -> SetUp:
    @contextmanager
    def set_up(site: Site) -> Iterator[Timed]:
        tokens = site.tokens(policy, count, project=project)
        with limiter_of(site) as limiter:
            yield Timed(limiter.check, tokens, lambda: limiter.state, **more)

    return set_up


def _hitting(limits: Any, users: Sequence[str] = USERS, **more: Any) -> SetUp:
    @contextmanager
    def set_up(site: Site) -> Iterator[Timed]:
        with limiter_of(site) as limiter:
            yield Timed(lambda key: limiter.hit(limits, key), users, lambda: limiter.state, **more)

    return set_up


@contextmanager
def _attributes(site: Site) -> Iterator[Timed]:
    tokens = site.tokens("fixed")
    with limiter_of(site) as limiter:
        yield Timed(lambda token: limiter.check(token, 1, ATTRIBUTES), tokens, lambda: limiter.state)


@contextmanager
def _fallback(site: Site) -> Iterator[Timed]:
    away = f"redis://127.0.0.1:{free_port()}/0"
    with closing(Limiter(away, prefix=site.prefix, timeout=PATIENCE)) as limiter:
        limiter.start(0)  # there are no documents to wait for
        yield Timed(
            lambda key: limiter.hit(MINUTE, key),
            USERS,
            lambda: limiter.state,
            source="fallback",
            expected="degraded",
        )


@contextmanager
def _admit(site: Site) -> Iterator[Timed]:
    tokens = site.tokens("slots")
    with limiter_of(site) as limiter:

        def call(token: str) -> Any:
            with limiter.admit(token) as admission:
                return admission.decision

        yield Timed(call, tokens, lambda: limiter.state)


@contextmanager
def _peek(site: Site) -> Iterator[Timed]:
    with limiter_of(site) as limiter:
        yield Timed(lambda key: limiter.peek(MINUTE, key), USERS, lambda: limiter.state)


def _reading(read: Callable[[Any], Any]) -> SetUp:
    @contextmanager
    def set_up(site: Site) -> Iterator[Timed]:
        with limiter_of(site) as limiter:
            yield TimedReading(read, lambda key: limiter.hit((MINUTE, DAY, PROJECT), key), lambda: limiter.state)

    return set_up


SYNC_SHAPES: dict[str, SetUp] = {
    "check-1": _checking("fixed"),
    "check-3": _checking("two", project="shared"),
    "check-attributes": _attributes,
    "hit-fixed": _hitting(MINUTE),
    "hit-sliding": _hitting(SLIDING),
    "hit-bucket": _hitting(BUCKET),
    "hit-3": _hitting((MINUTE, DAY, PROJECT)),
    "check-leased": _checking("leased", 1, source="lease"),
    "hit-leased": _hitting(LEASED, ["user:1"], source="lease"),
    "check-denied": _checking("closed", 1, source="denial_cache"),
    "hit-denied": _hitting(CLOSED, ["user:1"], source="denial_cache"),
    "fallback": _fallback,
    "admit": _admit,
    "peek": _peek,
    "headers": _reading(lambda decision: decision.headers()),
    "limits": _reading(lambda decision: decision.limits),
}
