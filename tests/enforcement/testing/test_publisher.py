"""Documents that a test publishes: limiters use each change when its call returns."""

from datetime import UTC, datetime, timedelta

import pytest

from enforcement import Limit, Limiter, Match
from enforcement.testing import Published, assert_allowed, assert_denied, assert_limited
from tests.enforcement.testing.limits import PER_DAY, PER_MINUTE, failure_of


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
        (lambda p: p.token(labels={"team": ""}), "labels: the value of team must have 1 to 128 characters, got 0"),
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
