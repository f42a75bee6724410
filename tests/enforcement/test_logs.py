"""What is logged, where, and how often: once for each change, and never so often that logging becomes the outage."""

import logging
import re
from contextlib import closing

import pytest

from enforcement import Limit, Limiter, logs
from enforcement.logs import MAX_CAUSES, RateLimitedLogger
from enforcement.store.breaker import Breaker
from tests.enforcement.world import eventually
from tests.repository import ROOT

LIMIT = Limit(name="rate", quota=1_000, window_seconds=3_600)


@pytest.fixture
def said(caplog):
    """The lines so far: logger, level and text."""
    caplog.set_level(logging.INFO, logger="sluicegate")
    return lambda: [(record.name, record.levelname, record.message) for record in caplog.records]


class Hands:
    """A clock that a test moves."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


def test_a_cause_is_told_once_a_second_with_what_was_left_out(said):
    """Another cause has a second of its own."""
    clock = Hands()
    seldom = RateLimitedLogger(logging.getLogger("sluicegate.test"), clock)
    for second in (0.0, 0.5, 0.999, 1.0, 1.5):
        clock.seconds = second
        seldom.warning("timeout", "%s.", "No answer")
        seldom.warning(f"other at {second}", "Other.")

    assert [text for _, _, text in said() if text != "Other."] == [
        "No answer.",
        "No answer. (2 similar warnings were suppressed.)",
    ]
    assert len(said()) == 7


def test_causes_that_are_never_the_same_take_no_room(said):
    """A cause may hold what a store said; a thousand of them are not kept."""
    seldom = RateLimitedLogger(logging.getLogger("sluicegate.test"), Hands())
    for number in range(10 * MAX_CAUSES):
        seldom.warning(str(number), "Text.")

    assert len(seldom._last) == MAX_CAUSES


def test_an_outage_is_two_warnings_of_one_logger(own_server, said):
    """Whether a request or the background thread found it: the store is away, and the store is back."""
    with closing(Limiter(own_server.url)) as limiter:
        limiter.hit(LIMIT, "k")
        assert eventually(lambda: limiter.stats().clock_offset_us or limiter.state == "starting")
        own_server.kill()
        for _ in range(200):
            limiter.hit(LIMIT, "k")
        assert eventually(lambda: limiter.state == "degraded")
        own_server.restart()
        assert eventually(lambda: limiter.state != "degraded")

    told = re.compile("The store is (away|back)")
    warnings = [(name, text) for name, level, text in said() if level == "WARNING" and told.match(text)]
    assert [name for name, _ in warnings] == ["sluicegate.failover"] * 2
    assert re.fullmatch(
        r"The store is away \(.+\); each limit is decided by its own rule until it is back\.", warnings[0][1]
    )
    assert re.fullmatch(r"The store is back after \d+\.\d s and decides again\.", warnings[1][1])


def test_a_store_that_comes_and_goes_does_not_fill_the_log(said):
    """A thousand openings within a second are one line for each of the two changes."""
    breaker = Breaker()
    for _ in range(1_000):
        breaker.trip("oom")
        breaker.close()

    assert len(said()) <= 2 * 2
    assert breaker.openings == 1_000


def test_loggers_are_those_that_are_documented():
    """Whoever sets up logging finds each name in the documentation of the module."""
    sources = "".join(path.read_text() for path in (ROOT / "enforcement").rglob("*.py"))
    used = set(re.findall(r'getLogger\("(sluicegate[^"]*)"\)', sources))

    assert used == set(re.findall(r"``(sluicegate\.\w+)``", logs.__doc__))
    assert not re.findall(r"getLogger\((?!\")", sources)


def test_a_logger_may_be_quiet_for_longer(caplog):
    clock = Hands()
    log = RateLimitedLogger(logging.getLogger("sluicegate.test"), clock, seconds=60.0)
    for clock.seconds in (0.0, 59.9, 60.0):
        log.warning("cause", "It was broken.")

    assert caplog.messages == ["It was broken.", "It was broken. (1 similar warnings were suppressed.)"]
