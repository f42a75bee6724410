"""The list of policies: what each decided in the last hour, and which deny now or never matched."""

import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from controlplane.core.periods import start_of
from controlplane.releases.publishing.models import OutboxEntry, PublishedDocument
from controlplane.traffic.stream.batches import Row
from controlplane.traffic.usage import rollup
from controlplane.traffic.usage.models import DecisionCount
from tests.controlplane.web.kit.test_tags import cells
from tests.factories import LimitFactory, MembershipFactory, PolicyFactory, ProjectFactory

pytestmark = pytest.mark.django_db

POLICIES = "/admin/policies/policy/"


def count(policy, project, ago=timedelta(), *, allowed=0, denied=0, would_deny=0, limit="per-minute"):
    """Count decisions as the drain does."""
    now = timezone.now()
    names = (project.pk, "tok_1", policy.pk, limit, "requests")
    rollup.add([Row(start_of("minute", now - ago), names, (allowed, denied, would_deny, allowed))], now)


def slugs(response) -> list[str]:
    return [policy.slug for policy in response.context["cl"].result_list]


def test_a_policy_shows_its_last_hour(as_operator):
    """What is older does not count, and nothing recorded is not 0."""
    policy, project = LimitFactory(policy__slug="chat").policy, ProjectFactory()
    PolicyFactory(slug="quiet")
    count(policy, project, allowed=1200, denied=34, would_deny=5)
    count(policy, project, timedelta(minutes=30), allowed=1)
    count(policy, project, timedelta(minutes=70), denied=1000)

    response = as_operator.get(POLICIES)

    assert cells(response, "last_hour") == ["1,201 allowed, 34 denied, 5 would deny", "nothing recorded"]
    assert re.search(r'<rect class="sg-d" x="97%" width="3%" height="6"/>', response.content.decode())


def test_a_member_sees_the_hour_of_the_own_projects(client, as_operator):
    """Of a shared policy, what others do with it is theirs."""
    member = MembershipFactory()
    policy, others = LimitFactory(policy__slug="shared").policy, ProjectFactory()
    count(policy, others, allowed=70, denied=9)
    client.force_login(member.user)

    before, denying = client.get(POLICIES), client.get(f"{POLICIES}?traffic=denying")
    never = client.get(f"{POLICIES}?traffic=never")
    count(policy, member.project, allowed=2)

    assert cells(before, "last_hour") == ["nothing recorded"]
    assert (slugs(denying), slugs(never)) == ([], ["shared"])
    assert cells(client.get(POLICIES), "last_hour") == ["2 allowed, 0 denied"]


@pytest.mark.parametrize(
    ("traffic", "expected"),
    [
        ("", ["denied-before", "denying", "new", "old", "quiet"]),
        ("denying", ["denying"]),
        ("quiet", ["new", "old"]),
        ("never", ["new"]),
        ("nonsense", []),
    ],
)
def test_policies_are_filtered_by_their_traffic(as_operator, traffic, expected):
    """Denials of the last 5 minutes are now. Without usage is not the same as without denials."""
    project = ProjectFactory()
    made = {slug: PolicyFactory(slug=slug) for slug in ("denying", "denied-before", "quiet", "old", "new")}
    count(made["denying"], project, timedelta(minutes=2), denied=1)
    count(made["denied-before"], project, timedelta(minutes=8), denied=1)
    count(made["quiet"], project, allowed=1)
    count(made["old"], project, timedelta(days=40), allowed=1)

    assert sorted(slugs(as_operator.get(POLICIES, {"traffic": traffic}))) == expected


@pytest.mark.parametrize(
    ("modes", "text"),
    [
        ([], "no limits"),
        (["enforce"], "enforced"),
        (["shadow"], "in shadow"),
        (["shadow", "enforce"], "part in shadow"),
    ],
)
def test_the_mode_is_said_in_words_beside_an_icon(as_operator, modes, text):
    """The colour only repeats it."""
    policy = PolicyFactory()
    for mode in modes:
        LimitFactory(policy=policy, mode=mode)

    response = as_operator.get(POLICIES)

    assert cells(response, "mode") == [text]
    assert 'class="material-symbols-outlined sg-icon" aria-hidden="true"' in response.content.decode()


def test_a_policy_says_by_what_it_is_managed_and_whether_it_is_published(as_operator):
    """A change that waits for the store is not published, whatever was before."""
    kept, waits = PolicyFactory(slug="a-kept", managed_by="limits/chat.yaml"), PolicyFactory(slug="b-waits")
    for policy, revision in ((kept, 1_200), (kept, 1_199), (waits, 3)):
        PublishedDocument.objects.create(name=f"policy:{policy.pk}", revision=revision, document={})
    OutboxEntry.objects.create(kind="policy", object_id=waits.pk)

    response = as_operator.get(POLICIES)

    assert cells(response, "published") == ["revision 1,200 changed just now", "waiting changed just now"]
    assert cells(response, "managed") == ["from files", "by hand"]
    assert slugs(as_operator.get(f"{POLICIES}?managed=files")) == ["a-kept"]
    assert slugs(as_operator.get(f"{POLICIES}?managed=hand")) == ["b-waits"]


def test_the_list_asks_no_more_for_more_policies(as_operator):
    """One query for the bars of a page, whatever is on it."""
    project = ProjectFactory()

    def queries(more: int) -> list[str]:
        for _ in range(more):
            count(LimitFactory().policy, project, allowed=3, denied=1)
        with CaptureQueriesContext(
            connection,
        ) as found:
            assert as_operator.get(f"{POLICIES}?traffic=denying").status_code == 200
        return [one["sql"] for one in found]

    few, many = queries(2), queries(40)

    assert len(many) == len(few)
    assert sum("SUM(" in sql and "usage_decisioncount" in sql for sql in many) == 1


def test_sums_of_policies_are_pruned_when_their_time_is_over():
    """Minutes stay for two hours, days for two years, and there are no hours."""
    policy, project, now = PolicyFactory(), ProjectFactory(), timezone.now()
    for ago in (timedelta(minutes=90), timedelta(hours=3)):
        count(policy, project, ago, allowed=1)

    assert DecisionCount.objects.filter(period="minute").count() == 1
    assert not DecisionCount.objects.filter(period="hour").exists()
    rollup.prune(now + timedelta(hours=1))
    assert not DecisionCount.objects.filter(period="minute").exists()
    rollup.prune(now + timedelta(days=732))
    assert not DecisionCount.objects.exists()


def test_an_unknown_choice_finds_nothing(as_operator):
    """An action on all rows of the list would otherwise be on every policy."""
    PolicyFactory()

    assert slugs(as_operator.get(f"{POLICIES}?managed=nothing")) == []
