"""What a shadow limit saw, on the page of its policy."""

from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.policies.models import Limit, Policy
from controlplane.releases.review.verdicts import verdicts_of
from controlplane.web.kit.forms import version_of
from tests.factories import LimitFactory, PolicyFactory, TokenFactory, UsageRowFactory

pytestmark = pytest.mark.django_db

NOW = timezone.now()
OLD = NOW - timedelta(days=3)


@pytest.fixture
def policy():
    policy = PolicyFactory(slug="free")
    Policy.objects.filter(pk=policy.pk).update(created_at=OLD)
    policy.refresh_from_db()
    return policy


@pytest.fixture
def shadow(policy):
    LimitFactory(policy=policy, name="per-minute", quota=25)
    return LimitFactory(policy=policy, name="per-minute.candidate", quota=10, mode="shadow")


@pytest.fixture
def saw(policy):
    """One hour in which a limit counted requests of a token."""

    def row(limit, token, allowed, would_deny=0, hours_ago=5, denied=0):
        at = (NOW - timedelta(hours=hours_ago)).replace(minute=0, second=0, microsecond=0)
        names = {"project_id": token.project_id, "token_id": token.pk, "policy_id": policy.pk, "limit_name": limit}
        counts = {"allowed": allowed, "denied": denied, "would_deny": would_deny, "cost": allowed}
        return UsageRowFactory(period="hour", at=at, **names, **counts)

    return row


def enforcing(policy, limit):
    return reverse("admin:policies_policy_enforce", args=[policy.pk]) + f"?limit={limit}"


def page_of(client, policy):
    return client.get(reverse("admin:policies_policy_change", args=[policy.pk])).content.decode()


def test_the_verdict_says_what_shadow_saw(as_ann, policy, shadow, saw):
    """Requests and callers of the last 24 hours, beside what the enforced limit denied."""
    web, batch = TokenFactory(policy=policy, name="web"), TokenFactory(policy=policy)
    saw("per-minute.candidate", web, 60, 12)
    saw("per-minute.candidate", batch, 40)
    saw("per-minute.candidate", web, 900, 900, hours_ago=40)
    saw("per-minute", web, 60, denied=3)

    page = page_of(as_ann, policy)

    assert "would have denied 12 of 100 requests (12.0 %), of 1 of 2 callers." in page
    assert "per-minute, which is enforced with 25, denied 3." in page
    assert "1 caller would lose more than 15 %." in page
    assert '/enforce/?limit=per-minute.candidate">Enforce 10 requests' in page


def test_money_that_is_enforced_is_an_amount(as_ann, policy, saw):
    LimitFactory(policy=policy, name="usd", quota=50_000_000, unit="micros")
    LimitFactory(policy=policy, name="usd.candidate", quota=40_000_000, unit="micros", mode="shadow")
    saw("usd.candidate", TokenFactory(policy=policy), 1)

    assert "usd, which is enforced with 50.00 USD, denied 0." in page_of(as_ann, policy)


def test_requests_that_another_limit_denied_are_requests_too(as_ann, policy, shadow, saw):
    """A shadow limit would have denied some of them as well, so that it would deny more than were admitted."""
    web = TokenFactory(policy=policy)
    row = saw("per-minute.candidate", web, 26, 32)
    UsageRowFactory(period="hour", at=row.at, project_id=web.project_id, token_id=web.pk, allowed=26, denied=38)

    page = page_of(as_ann, policy)

    assert "would have denied 32 of 64 requests (50.0 %), of 1 of 1 caller." in page
    assert "<rect" in page
    assert 'height="-' not in page


@pytest.mark.parametrize(("requests", "days"), [(49, 3), (100, 0.5)])
def test_little_is_too_early(as_ann, policy, shadow, saw, requests, days):
    """Under 50 requests, or under 24 hours, there is no verdict and no main button."""
    Policy.objects.update(created_at=NOW - timedelta(days=days))
    saw("per-minute.candidate", TokenFactory(policy=policy), requests)

    page = page_of(as_ann, policy)

    assert "Too early:" in page
    assert 'class="sg-button sg-primary" href="/admin/policies/policy/' not in page


def test_nothing_seen_is_no_data(as_ann, policy, shadow):
    """A shadow that no request matched has not passed a test."""
    page = page_of(as_ann, policy)

    assert "no data, because no request matched it." in page
    assert "/enforce/" not in page


def test_limits_without_data_share_one_card(as_ann, policy, shadow, saw):
    """One for each of them would push the form out of sight. Of one that saw requests, the card stays."""
    for name in ("per-day", "per-week"):
        LimitFactory(policy=policy, name=name, quota=7, mode="shadow")
    saw("per-minute.candidate", TokenFactory(policy=policy), 100)

    page = page_of(as_ann, policy)

    assert "2 limits in shadow: no data, because no request matched them." in page
    assert page.count('aria-label="Verdict on') == 1
    assert "<strong>per-week</strong> (7 requests)" in page


def test_usage_before_the_present_numbers_is_not_counted(policy, shadow, saw):
    """A verdict is on the numbers that the limit has now."""
    before = {"limits": [{"name": shadow.name, "quota": 50}]}
    AuditEntry.objects.create(
        at=NOW - timedelta(hours=4),
        actor="ann",
        channel="admin",
        action="policy.update",
        object_type="policy",
        object_id=policy.pk,
        object_label="free",
        before=before,
        after={"limits": [{"name": shadow.name, "quota": 10}]},
    )
    token = TokenFactory(policy=policy)
    saw(shadow.name, token, 80, hours_ago=5)
    saw(shadow.name, token, 20, hours_ago=2)

    [verdict] = verdicts_of(policy, NOW)

    assert (verdict.requests, verdict.since) == (20, NOW - timedelta(hours=4))


def test_enforce_leads_to_the_review_with_these_figures(as_ann, policy, shadow, saw):
    """The review shows what shadow saw, and offers no second shadow."""
    saw("per-minute.candidate", TokenFactory(policy=policy), 60, 12)

    page = as_ann.get(enforcing(policy, shadow.name)).content.decode()

    assert "free gets tighter: 25 becomes 10 (per-minute)" in page
    assert "What shadow saw:" in page
    assert 'value="shadow"' not in page


def test_an_enforced_candidate_takes_the_place_of_its_limit(as_ann, policy, shadow):
    """Its numbers are those of the limit from then on, and the candidate goes."""
    url = enforcing(policy, shadow.name)

    as_ann.post(url, {"_start": "enforce", "change_reason": "Watched for a day", "seen_version": version_of(policy)})

    assert list(Limit.objects.values_list("name", "quota", "mode")) == [("per-minute", 10, "enforce")]
    assert AuditEntry.objects.get().reason == "Watched for a day"


def test_a_shadow_limit_of_its_own_is_enforced_as_it_is(as_ann, policy):
    """Only its mode changes."""
    LimitFactory(policy=policy, name="per-hour", quota=50, mode="shadow")
    url = enforcing(policy, "per-hour")

    as_ann.post(url, {"_start": "enforce", "change_reason": "Watched", "seen_version": version_of(policy)})

    assert Limit.objects.get().mode == "enforce"


@pytest.mark.parametrize(
    "posted",
    [{"change_reason": ""}, {"change_reason": "Watched", "seen_version": "0" * 32}],
    ids=["without a reason", "after another change"],
)
def test_enforcing_is_refused(as_ann, policy, shadow, posted):
    """A reason is required, and nobody's change is overwritten."""
    url = enforcing(policy, shadow.name)

    as_ann.post(url, {"_start": "enforce", "seen_version": version_of(policy), **posted})

    assert Limit.objects.get(name="per-minute").quota == 25


def test_another_range_of_time_enforces_nothing(as_ann, policy, shadow):
    """The button beside the preview shows it again, whatever else was filled in."""
    posted = {"_start": "enforce", "change_reason": "Watched", "seen_version": version_of(policy), "_span": "7d"}

    response = as_ann.post(enforcing(policy, shadow.name), posted)

    assert (response.status_code, Limit.objects.get(name="per-minute").quota) == (200, 25)


def test_only_a_shadow_can_be_enforced(as_ann, policy, shadow):
    """Another name leads nowhere."""
    assert as_ann.get(enforcing(policy, "per-minute")).status_code == 404
