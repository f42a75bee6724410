"""The choice of the global policy goes through a review as well, because it concerns every project."""

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import change
from controlplane.objects.policies.actions import set_global_policy
from controlplane.objects.policies.models import Limit, Policy
from tests.controlplane.pages import html_of
from tests.controlplane.web.kit.reviews import ReviewForm
from tests.controlplane.web.kit.test_forms import POLICIES
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db
EVERYWHERE, ATTACHED = "apply_everywhere", "apply_where_attached"
REASON = {"change_reason": "the whole fleet is too fast"}


@pytest.fixture
def policy():
    limit = LimitFactory(policy=PolicyFactory(slug="fleet"), name="per-minute", quota=10, algorithm="fixed_window")
    return limit.policy


@pytest.fixture
def make_global(actor):
    def choose(policy):
        with change(actor=actor) as tx:
            set_global_policy(tx, policy)
        return Policy.objects.get(pk=policy.pk)

    return choose


@pytest.fixture
def review(as_ann):
    """``review(policy, EVERYWHERE)``: the page before the change."""
    return lambda policy, to: as_ann.get(f"{POLICIES}{policy.pk}/{to}/", follow=True)


@pytest.fixture
def confirm(as_ann):
    """Post a review with a decision, and return the page that follows."""

    def post(response, **decision):
        fields = ReviewForm(response).fields | decision
        return as_ann.post(response.request["PATH_INFO"], fields, follow=True)

    return post


def test_the_review_says_what_every_request_will_meet(review, policy, sent):
    """All projects together are counted, and nothing is changed yet."""
    sent(TokenFactory(), 30, minutes_ago=30, now=timezone.now())

    page = html_of(review(policy, EVERYWHERE))

    assert "fleet applies to every request" in page
    assert "10 requests per minute for all projects together" in page
    assert "1 of 1 caller and 20 of 30 requests would have been limited." in page
    assert not Policy.objects.filter(is_global=True).exists()


def test_a_policy_is_made_global_and_back(review, confirm, policy):
    """With the reason in the audit. Only what denies more needs one."""
    page = confirm(review(policy, EVERYWHERE), _start="enforce", **REASON)
    assert "fleet applies to every request." in html_of(page)
    assert (Policy.objects.get().is_global, AuditEntry.objects.first().reason) == (True, REASON["change_reason"])

    page = review(policy, ATTACHED)
    assert "fleet stops applying to every request" in html_of(page)
    assert "fleet applies only to its tokens and projects." in html_of(confirm(page))
    assert not Policy.objects.get().is_global


def test_the_policy_that_it_replaces_is_shown(review, confirm, make_global, policy):
    """Its limits go, and a shadow would let pass what they deny, so none is offered."""
    former = make_global(LimitFactory(policy__slug="old", name="per-day").policy)
    page = review(policy, EVERYWHERE)

    assert "fleet applies to every request, in place of old" in html_of(page)
    assert "old/per-day" in html_of(page)
    assert 'value="shadow"' not in html_of(page)
    assert "Choose how to start." in html_of(confirm(page, _start="shadow", **REASON))
    confirm(page, _start="enforce", **REASON)
    assert Policy.objects.get(is_global=True) == policy
    assert former in Policy.objects.filter(is_global=False)


def test_rules_for_metered_requests_come_with_the_policy(review, policy):
    """They are in the review as its limits are."""
    Policy.objects.filter(pk=policy.pk).update(metering={"estimate": "bound"})

    assert "Input estimate" in html_of(review(policy, EVERYWHERE))


def test_shadow_first_counts_every_request_and_denies_none(review, confirm, policy):
    """It is chosen already, where nothing else is enforced by it."""
    confirm(review(policy, EVERYWHERE), **REASON)

    assert (Policy.objects.get().is_global, Limit.objects.get().mode) == (True, "shadow")


def test_no_shadow_is_offered_for_what_is_enforced_already(review, policy):
    """A project that uses the policy would be without its limits."""
    ProjectFactory(policy=policy)

    assert 'value="shadow"' not in html_of(review(policy, EVERYWHERE))


def test_a_reason_is_needed_where_more_is_denied(review, confirm, policy):
    """The review comes back and says so."""
    page = html_of(confirm(review(policy, EVERYWHERE), _start="enforce", change_reason=" "))

    assert "Say why, because requests may be denied that passed before." in page
    assert not Policy.objects.get().is_global


@pytest.mark.parametrize("meanwhile", ["limit", "global"])
def test_a_review_that_is_out_of_date_changes_nothing(review, confirm, make_global, policy, meanwhile):
    """Somebody changed the policy, or chose another one, while the page was open."""
    page = review(policy, EVERYWHERE)
    if meanwhile == "limit":
        Limit.objects.update(quota=1)
    else:
        make_global(PolicyFactory(slug="other"))

    assert "was changed after you opened the review" in html_of(confirm(page, _start="enforce", **REASON))
    assert not Policy.objects.get(pk=policy.pk).is_global


def test_another_range_of_time_decides_nothing(review, confirm, policy):
    """The button beside the preview shows it again, whatever else was filled in."""
    page = html_of(confirm(review(policy, EVERYWHERE), _span="7d", **REASON))

    assert 'value="7d" formnovalidate aria-pressed="true"' in page
    assert not Policy.objects.get().is_global


def test_what_is_so_already_or_cannot_be_is_said(review, make_global, policy):
    """Another tab may have been faster, and the policy of one project is not for others."""
    assert "applies to every request already" in html_of(review(make_global(policy), EVERYWHERE))
    own = PolicyFactory(project=ProjectFactory(slug="chat"))
    assert "cannot apply to other projects" in html_of(review(own, EVERYWHERE))


def test_a_program_tries_it_first(api, policy, make_global):
    """The same review over REST, and nothing is changed."""
    make_global(LimitFactory(policy__slug="old", name="per-day").policy)

    response = api("PUT", "global?dry_run=true", {"policy": "fleet"})
    gone = api("PUT", "global?dry_run=true", {"policy": None}).json()
    same = api("PUT", "global?dry_run=true", {"policy": "old"}).json()

    review = response.json()
    assert (response.status_code, response.has_header("Sluicegate-Revision")) == (200, False)
    assert review["headline"] == "fleet applies to every request, in place of old"
    assert [(one["limit"], one["effect"]) for one in review["changes"]] == [
        ("per-minute", "new"),
        ("old/per-day", "removed"),
    ]
    assert (review["needs_reason"], gone["headline"]) == (True, "old stops applying to every request")
    assert (same["headline"], same["changes"]) == ("Nothing changes", [])
    assert Policy.objects.get(is_global=True).slug == "old"


def test_a_dry_run_refuses_what_the_change_would_refuse(api):
    """The policy of a project cannot be the global one."""
    PolicyFactory(slug="own", project=ProjectFactory(slug="chat"))

    for query in ("", "?dry_run=true"):
        assert api("PUT", f"global{query}", {"policy": "own"}).status_code == 400
    assert api("PUT", "global?dry_run=1", {"policy": None}).json()["errors"][0]["parameter"] == "dry_run"
    assert api("PUT", "global?dry_run=true", {"policy": None}).json()["headline"] == "Nothing changes"


@pytest.mark.parametrize("to", [EVERYWHERE, ATTACHED])
def test_a_policy_that_is_gone_is_said_to_be_gone(as_ann, to):
    """Somebody else has deleted it since the page was opened."""
    page = as_ann.get(f"{POLICIES}pol_gone/{to}/", follow=True)

    assert "does not exist any more" in next(str(one) for one in page.context["messages"])
