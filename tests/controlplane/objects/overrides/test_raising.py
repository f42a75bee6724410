"""A limit of a token or project is raised from its page, for a reason and until an end."""

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.overrides.models import Override
from controlplane.objects.projects.actions import issue_token
from controlplane.releases.publishing import publisher
from controlplane.web.pages.overrides.raising import offers
from enforcement import Limiter
from tests.controlplane.web.kit.reviews import ReviewForm, enforce
from tests.factories import (
    LimitFactory,
    MembershipFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db(transaction=True)

TOMORROW = timedelta(days=1)
PAST = "Must be in the future, got 2020-01-01T00:00:00+00:00."
ABOVE = "Must be above the 25 that the policy gives, and at most 2^53 - 1 permits."


def url(holder) -> str:
    return f"/admin/policies/override/raise/{holder._meta.model_name}/{holder.pk}/"


def form(client, holder, **fields) -> dict:
    """What a browser sends of the page as it is now."""
    page = client.get(url(holder))
    limit = next(iter(page.context["form"].offers), "")
    sent = {"seen": page.context["form"].present, "limit": limit, "quota": "60", "until": "friday", "reason": "SUP-1"}
    return {**sent, **fields}


def errors(response) -> dict:
    return {name: list(found) for name, found in response.context["form"].errors.items()}


def test_a_limit_is_raised_until_friday(as_ann, token, store):
    """One reason, which the override and the audit keep. The page of the token says that it is published."""
    publisher.publish_all()
    page = as_ann.post(url(token), form(as_ann, token), follow=True)

    override = Override.objects.get()
    assert (override.token, override.quota, override.reason, override.created_by) == (token, 60, "SUP-1", "ann")
    assert (override.ends_at.weekday(), override.ends_at.hour, override.ends_at.minute) == (4, 18, 0)
    assert timezone.now() < override.ends_at <= timezone.now() + timedelta(days=7)
    assert (AuditEntry.objects.first().action, AuditEntry.objects.first().reason) == ("override.create", "SUP-1")
    told = [str(one) for one in page.context["messages"]]
    assert told == ["free/per-minute is raised to 60. Published as revision 2."]
    assert page.redirect_chain[0][0] == f"/admin/projects/token/{token.pk.replace('_', '_5F')}/change/"


def test_the_end_is_meant_in_the_zone_of_the_browser(as_ann, token, store):
    """Friday 18:00 is Friday evening for whoever presses it."""
    as_ann.cookies["sluicegate_zone"] = "Asia/Tokyo"
    page = as_ann.get(url(token)).content.decode()
    assert "18:00 Asia/Tokyo (Fri 09:00 UTC)" in page

    as_ann.post(url(token), form(as_ann, token))
    assert Override.objects.get().ends_at.astimezone(ZoneInfo("Asia/Tokyo")).hour == 18

    as_ann.post(url(token), form(as_ann, token, until="other", ends_at="2199-01-01T12:00"))
    assert Override.objects.get().ends_at == datetime(2199, 1, 1, 3, tzinfo=UTC)


def test_a_present_override_is_changed(as_ann, token, limit, store):
    """There is one for each limit."""
    OverrideFactory(limit=limit, token=token, quota=60, ends_at=timezone.now() + TOMORROW)
    assert "already raised from 25" in as_ann.get(url(token)).content.decode()

    as_ann.post(url(token), form(as_ann, token, quota="1,200", until="never"))

    assert Override.objects.get().quota == 1200
    assert AuditEntry.objects.first().action == "override.update"


MISTAKES = [
    (
        {"until": "other", "ends_at": "2020-01-01T00:00"},
        "ends_at",
        "Must be in the future, got 2020-01-01T00:00:00+00:00.",
    ),
    (
        {"until": "other", "ends_at": "9999-12-31T23:59"},
        "ends_at",
        "Must be before the year 2255, got 9999-12-31T23:59:00+00:00.",
    ),
    ({"until": "other", "ends_at": ""}, "ends_at", "Enter the time at which it ends."),
    ({"until": "other", "ends_at": "soon"}, "ends_at", "Enter a valid date/time."),
    ({"until": ""}, "until", "Choose when it ends."),
    ({"until": "always"}, "until", "Select a valid choice. always is not one of the available choices."),
    ({"quota": "25"}, "quota", ABOVE),
    (
        {"quota": "9007199254740992"},
        "quota",
        "Must be above the 25 that the policy gives, and at most 2^53 - 1 permits.",
    ),
    ({"quota": "1.5"}, "quota", "Must be an integer such as 1,200, got '1.5'."),
    ({"quota": "10000000000000000"}, "quota", ABOVE),
    ({"quota": "nan"}, "quota", "Must be an integer such as 1,200, got 'nan'."),
    ({"quota": "٣٠"}, "quota", "Must be an integer such as 1,200, got '٣٠'."),
    ({"quota": ""}, "quota", "This field is required."),
    ({"reason": " "}, "reason", "This field is required."),
    ({"reason": "a\x1bb"}, "reason", "Must have printable characters only, but contains U+001B."),
    ({"reason": "x" * 501}, "reason", "Ensure this value has at most 500 characters (it has 501)."),
    ({"limit": "lim_1"}, "limit", "Select a valid choice. lim_1 is not one of the available choices."),
    ({"seen": "x"}, "seen", "An override was changed after you opened this page. Check and save again."),
]


def test_a_mistake_is_told_at_its_field(as_ann, token, store):
    """And nothing is raised."""
    sent = form(as_ann, token)
    for fields, field, message in MISTAKES:
        response = as_ann.post(url(token), sent | fields)
        assert errors(response) == {field: [message]}, fields
        assert message.replace("'", "&#x27;") in response.content.decode()
    assert not Override.objects.exists()


def test_money_is_typed_as_money(as_ann, store):
    """And kept in millionths."""
    limit = LimitFactory(name="budget", unit="micros", quota=40_000_000, calendar="month", window_seconds=None)
    token = TokenFactory(policy=limit.policy)
    assert errors(as_ann.post(url(token), form(as_ann, token, quota="0.0000001"))) == {
        "quota": ["Must have at most 6 decimals, got '0.0000001'."]
    }
    assert errors(as_ann.post(url(token), form(as_ann, token, quota="40"))) == {
        "quota": ["Must be above the 40.00 USD that the policy gives, and at most 9,007,199,254.740991 USD."]
    }

    as_ann.post(url(token), form(as_ann, token, quota="60.5"))

    assert Override.objects.get().quota == 60_500_000


def test_an_end_is_required_without_the_permission(client, store):
    """An editor of the project raises its own limits, but for ever only an operator does."""
    project = ProjectFactory(slug="chat")
    limit = LimitFactory(policy=PolicyFactory(project=project), quota=25)
    token = TokenFactory(project=project, policy=limit.policy)
    user = UserFactory()
    MembershipFactory(user=user, project=project, role="editor")
    client.force_login(user)

    assert "No end" not in client.get(url(token)).content.decode()
    assert list(errors(client.post(url(token), form(client, token, until="never")))) == ["until"]
    fields = {"limit": limit.pk, "token": token.pk, "quota": 60, "reason": "x"}
    page = client.post("/admin/policies/override/add/", fields)
    assert page.context["adminform"].form.errors["ends_at"] == [
        "An override needs an end. Only operators give one without."
    ]

    client.post(url(token), form(client, token))
    assert Override.objects.get().ends_at is not None


def test_an_operator_may_leave_out_the_end(as_ann, token, store):
    """By a choice, and not by forgetting a field."""
    as_ann.post(url(token), form(as_ann, token, until="never"))

    assert Override.objects.get().ends_at is None


def test_a_member_raises_no_limit_that_all_projects_share(client, token, limit, store):
    """The page says whose it is."""
    user = UserFactory()
    MembershipFactory(user=user, project=token.project, role="editor")
    client.force_login(user)

    page = client.get(url(token)).content.decode()

    assert "free is shared by all projects. Only operators raise its limits." in re.sub(r"\s+", " ", page)
    assert (
        client.post(
            url(token), {"limit": limit.pk, "quota": "60", "until": "friday", "reason": "x", "seen": ""}
        ).status_code
        == 200
    )
    assert not Override.objects.exists()


def test_others_learn_nothing(client, token, store):
    """A member of another project finds no token, and a viewer changes nothing."""
    viewer, other = UserFactory(), UserFactory()
    MembershipFactory(user=viewer, project=token.project, role="viewer")
    MembershipFactory(user=other, project=ProjectFactory(), role="owner")

    client.force_login(other)
    assert [client.get(address).status_code for address in (url(token), url(token.project))] == [404, 404]
    client.force_login(viewer)
    assert [client.get(address).status_code for address in (url(token), url(token.project))] == [403, 403]
    assert client.post(url(token), {}).status_code == 403


@pytest.mark.parametrize("address", ["token/tok_1", "policy/pol_1", "project/proj_1"])
def test_what_does_not_exist_is_not_found(as_ann, address):
    """Nor is a kind that has no overrides."""
    assert as_ann.get(f"/admin/policies/override/raise/{address}/", follow=True).status_code == 404


def test_the_nearest_limit_comes_first_with_its_use(store):
    """Read from the counters on which proxies decide."""
    actor = Actor("ann", "command")
    limit = LimitFactory(policy__slug="free", name="per-minute", quota=10, window_seconds=86400)
    day = LimitFactory(policy=limit.policy, name="per-day", quota=1000, window_seconds=86400)
    team = LimitFactory(policy__slug="team", name="all", quota=100)
    everywhere = PolicyFactory(slug="everywhere", is_global=True)
    with change(actor=actor) as tx:
        project = ProjectFactory(policy=team.policy)
        token, secret = issue_token(tx, project=project, name="web", policy=limit.policy)
    publisher.publish_all()
    with Limiter(store.url, timeout=1.0) as limiter:
        for _ in range(9):
            assert limiter.check(secret).allowed

    offered = offers(token, timezone.now())

    assert [(row.limit, row.used, row.is_near) for row in offered.rows] == [
        (limit, "9 used, 90 %", True),
        (day, "9 used, 0 %", False),
    ]
    assert offered.elsewhere == [(team.policy, "project"), (everywhere, "global")]
    assert [row.limit for row in offers(project, timezone.now()).rows] == [team]


def test_without_the_store_a_limit_can_be_raised_all_the_same(as_ann, token):
    """The use is unknown, which is said, and is not 0."""
    page = as_ann.get(url(token)).content.decode()

    assert "nobody knows how much is used" in page
    assert "25 requests per minute · use unknown" in page
    as_ann.post(url(token), form(as_ann, token))
    assert Override.objects.get().quota == 60


def test_a_token_without_limits_says_so(as_ann, store):
    """There is nothing to choose."""
    page = as_ann.get(url(TokenFactory())).content.decode()

    assert "It has no limit of its own that you can raise." in page
    assert "Raise the limit" not in page


def test_the_pages_of_tokens_and_projects_lead_there(as_ann, token, store):
    """One click from where somebody looks at the counters."""
    for holder in (token, token.project):
        model = holder._meta.model_name
        action = f"/admin/projects/{model}/{holder.pk.replace('_', '_5F')}/raise_limit"
        page = as_ann.get(f"/admin/projects/{model}/{holder.pk}/change/").content.decode()

        assert "Raise a limit" in page
        found = re.search(rf'href="([^"]*/{model}/[^"]*raise[^"]*)"', page)[1]
        assert as_ann.get(found).url == url(holder), action


def test_who_does_not_know_the_limit_may_ask_which_apply(as_ann, token, limit, store):
    """The page of a token asks for that token. The form of an override leads to the question."""
    asking = f"/admin/explain/?token={token.pk}"

    assert f'href="{asking}"' in as_ann.get(url(token)).content.decode()
    assert 'href="/admin/explain/"' in as_ann.get("/admin/policies/override/add/").content.decode().split("<main")[-1]
    assert limit.name in as_ann.get(asking).content.decode()


def test_ended_overrides_are_history(as_ann, token, limit, store):
    """Listed when asked for, and changed or deleted by nobody."""
    past = OverrideFactory(limit=limit, token=token, ended=True, reason="load test")
    past.ended_at = past.ends_at
    past.save()
    OverrideFactory(limit=limit, token=token, quota=70, reason="launch")

    def listed(query: str) -> list[str]:
        page = as_ann.get(f"/admin/policies/override/{query}").content.decode()
        return [reason for reason in ("load test", "launch") if reason in page]

    assert [listed(query) for query in ("", "?state=ended", "?state=all")] == [
        ["launch"],
        ["load test"],
        ["load test", "launch"],
    ]
    address = f"/admin/policies/override/{past.pk}/"
    assert "ended" in as_ann.get(f"{address}change/").content.decode()
    assert as_ann.post(f"{address}change/", {"quota": 1}).status_code == 403
    assert as_ann.post(f"{address}delete/", {"post": "yes"}).status_code == 403
    assert Override.with_ended.count() == 2


def test_the_form_of_an_override_asks_for_one_reason(as_ann, token, limit, store):
    """Which the audit keeps, too."""
    end = (timezone.now() + TOMORROW).strftime("%Y-%m-%dT%H:%M")
    page = as_ann.get("/admin/policies/override/add/").content.decode()
    assert "change_reason" not in page

    fields = {"limit": limit.pk, "token": token.pk, "quota": 60, "reason": "SUP-2", "ends_at": end}
    enforce(as_ann, as_ann.post("/admin/policies/override/add/", fields))

    assert AuditEntry.objects.get().reason == Override.objects.get().reason == "SUP-2"


def test_an_override_that_somebody_else_has_changed_is_not_overwritten(as_ann, token, limit, store):
    """Two people raise one limit. The second sees what the first did."""
    sent = form(as_ann, token, quota="100")
    OverrideFactory(limit=limit, token=token, quota=80)

    response = as_ann.post(url(token), sent)

    assert "already raised from 25" in response.content.decode()
    assert list(errors(response)) == ["seen"]
    assert Override.objects.get().quota == 80
    assert as_ann.post(url(token), form(as_ann, token, quota="100", until="never")).status_code == 302


def test_a_raise_that_gives_less_than_before_is_reviewed(as_ann, token, limit, store):
    """More than the policy gives is less than the override gave. The review has the reason already."""
    OverrideFactory(limit=limit, token=token, quota=80)

    review = as_ann.post(url(token), form(as_ann, token, until="never"))

    page = review.content.decode()
    assert "80 becomes 60" in page
    assert ("<strong>Reason:</strong> SUP-1" in page, 'name="change_reason"' in page) == (True, False)
    assert Override.objects.get().quota == 80
    back = as_ann.post(url(token), ReviewForm(review).fields | {"_back": "1"}).content.decode()
    assert "Nothing is saved yet." in back
    assert enforce(as_ann, review).status_code == 302
    assert (Override.objects.get().quota, AuditEntry.objects.first().reason) == (60, "SUP-1")


def test_a_raise_that_ends_earlier_is_reviewed(as_ann, token, limit, store):
    """From then on it takes away what it gave."""
    OverrideFactory(limit=limit, token=token, quota=60)
    end = timezone.now() + TOMORROW

    page = as_ann.post(url(token), form(as_ann, token, quota="90", until="other", ends_at=f"{end:%Y-%m-%dT%H:%M}"))

    assert f"60 becomes 25 from {end:%Y-%m-%d %H:%M} UTC on" in page.content.decode()


def test_a_press_for_the_file_raises_nothing(as_ann, token, limit, store):
    """Also if there is nothing left to review, because somebody else has lowered the override meanwhile."""
    OverrideFactory(limit=limit, token=token, quota=80)
    review = as_ann.post(url(token), form(as_ann, token, until="never"))
    Override.objects.update(quota=50)

    fields = {**ReviewForm(review).fields, "seen": as_ann.get(url(token)).context["form"].present, "_file": "csv"}
    as_ann.post(url(token), fields)

    assert Override.objects.get().quota == 50
