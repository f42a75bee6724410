"""Who is near a limit is read live, for those who were active lately, within 200 commands."""

import random
import re
from datetime import timedelta

import pytest
from django.db.models import Sum
from django.utils import timezone

from controlplane.core import store as store_of
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.explain import near
from controlplane.operations.explain.question import Reach
from controlplane.releases.publishing import publisher
from controlplane.traffic.stream.batches import Row
from controlplane.traffic.usage import rollup
from controlplane.traffic.usage.models import UsageRow
from controlplane.web.pages import near as panels
from tests.factories import (
    DeniedRequestFactory,
    LimitFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
    UsageRowFactory,
)
from tests.scale import scale

pytestmark = pytest.mark.django_db(transaction=True)


def everything():
    return Reach(Project.objects.all(), Token.objects.all(), True)


def listed(reach=None):
    return near.near_list(reach or everything(), timezone.now(), store_of.connection())


def test_those_at_80_per_cent_are_listed(issue, use):
    """Those below are not, nor those who were not active."""
    _, full = issue({"quota": 10}, {"name": "wide", "quota": 1_000}, slug="a", project="a")
    _, half = issue({"quota": 10}, slug="b", project="b")
    use(full, 8)
    use(half, 7)

    found = listed()

    assert [(str(row.holder), row.held.rule.limit.name, row.share) for row in found.rows] == [
        (str(Token.objects.get(project__slug="a")), "per-day", 0.8)
    ]
    assert (found.candidates, found.is_cut) == (2, False)


def test_the_soonest_to_run_out_is_first(issue, use):
    """After what has nothing left, and before what resets first."""
    steady, secret = issue({"quota": 100}, {"name": "gone", "quota": 90}, {"name": "calm", "quota": 110}, slug="a")
    use(secret, 90)
    now = timezone.now()
    week_ago = now - timedelta(days=7)
    for name, cost in (("per-day", 3_600), ("calm", 0)):
        for hours in range(-25, 25):  # so that each hour until midnight has one of a week ago
            at = (week_ago + timedelta(hours=hours)).replace(minute=0, second=0, microsecond=0)
            ids = {"project_id": steady.project_id, "token_id": steady.pk, "policy_id": steady.policy_id}
            UsageRowFactory(period="hour", at=at, limit_name=name, cost=cost, **ids)

    rows = listed().rows

    assert [row.held.rule.limit.name for row in rows] == ["gone", "per-day", "calm"]
    assert rows[0].forecast.at <= rows[1].forecast.at
    assert rows[2].forecast.at is None


def test_a_limit_of_the_project_is_that_of_the_project(issue, use):
    """It is listed once, however many tokens use it."""
    token, secret = issue({"quota": 1_000})
    shared = LimitFactory(policy=PolicyFactory(slug="team"), name="team-day", quota=5, window_seconds=86_400)
    Project.objects.filter(pk=token.project_id).update(policy=shared.policy)
    publisher.publish_all()
    use(secret, 5)

    assert [(row.holder, row.held.rule.limit.name) for row in listed().rows] == [(token.project, "team-day")]


def test_those_that_are_refused_anyway_are_not_listed(issue, use):
    """A revoked token, an expired one, and one of a project that is not active."""
    for number in range(4):
        use(issue({"quota": 5}, slug=f"p{number}", project=f"p{number}")[1], 5)
    revoked, expired, inactive, live = Token.objects.order_by("project__slug")
    Token.objects.filter(pk=revoked.pk).update(revoked_at=timezone.now())
    Token.objects.filter(pk=expired.pk).update(expires_at=timezone.now())
    Project.objects.filter(pk=inactive.project_id).update(active=False)

    assert [row.holder for row in listed().rows] == [live]


def test_a_member_sees_their_own_projects(issue, use):
    """Neither the rows of others nor how many were looked at."""
    _, secret = issue({"quota": 5}, slug="a", project="a")
    use(secret, 5)
    other = ProjectFactory(slug="other")
    reach = Reach(Project.objects.filter(pk=other.pk), Token.objects.filter(project=other), False)

    found = listed(reach)

    assert (found.rows, found.candidates) == ([], 0)


def test_the_overview_and_the_lists_show_them(issue, use, admin_client):
    """As a card, a column and a filter."""
    token, secret = issue({"quota": 5}, slug="free", project="chat")
    _, calm = issue({"quota": 100}, slug="big", project="calm")
    use(secret, 5)
    use(calm, 5)

    overview = admin_client.get("/admin/").content.decode()
    tokens = admin_client.get("/admin/projects/token/").content.decode()
    filtered = admin_client.get("/admin/projects/token/?near=yes")

    assert "5 of 5" in overview
    assert "full, denying" in overview
    assert "per-day 100 %" in tokens
    assert "per-day 5 %" in tokens
    assert [row.pk for row in filtered.context["cl"].result_list] == [token.pk]
    assert "5 of 5" in admin_client.get("/admin/near-limit/").content.decode()


def test_a_column_that_not_all_rows_are_read_for_says_so(issue, use, admin_client, monkeypatch):
    """Such a row has a limit. Nobody knows how much of it is used."""
    for number in range(3):
        use(issue({"quota": 4}, slug=f"p{number}", project=f"p{number}")[1], 1)
    monkeypatch.setattr(panels, "COLUMN_COMMANDS", 3)

    page = admin_client.get("/admin/projects/token/").content.decode()

    assert (page.count("per-day 25 %"), page.count("not read")) == (2, 1)


def test_those_with_nothing_left_say_when_it_resets(issue, use, admin_client):
    """Until when somebody is denied is the question after who is."""
    _, secret = issue({"quota": 10})
    use(secret, 10)

    page = admin_client.get("/admin/near-limit/").content.decode()

    assert "full, denying" in page
    assert re.search(r"resets in \d+ (h|min|s)", page)


def test_a_limit_that_admits_before_it_resets_says_so(issue, use, admin_client):
    """A sliding window gives back as time goes on. Until it resets, nobody has to wait."""
    _, secret = issue({"quota": 10, "algorithm": "token_bucket", "window_seconds": 36_000})
    use(secret, 10)

    page = admin_client.get("/admin/near-limit/").content.decode()

    assert re.search(r"admits again in (1 h|59 min \d+ s|60 min)<", page)
    assert re.search(r"resets in (10 h|9 h 59 min)", page)


def test_a_shadow_with_nothing_left_denies_nobody(issue, use, admin_client):
    """So it does not look as one that denies. A reset that is far away has its date."""
    _, secret = issue({"quota": 10, "mode": "shadow", "window_seconds": 30 * 86_400})
    use(secret, 10)

    page = admin_client.get("/admin/near-limit/").content.decode()

    assert "full, in shadow" in page
    assert "denies" not in page
    assert re.search(r"resets in [0-9 dhmins]+, [A-Z][a-z]{2} \d\d [A-Z][a-z]{2}, \d\d:\d\d", page)


def test_without_the_store_nobody_is_known_to_be_near(issue, use, admin_client, settings):
    """The filter then shows none, and says why."""
    use(issue({"quota": 5})[1], 5)
    settings.REDIS_URL = "redis://127.0.0.1:1/0"

    overview = admin_client.get("/admin/").content.decode()
    filtered = admin_client.get("/admin/projects/token/?near=yes", follow=True)

    assert "nobody knows who is near a limit" in overview
    assert list(filtered.context["cl"].result_list) == []
    assert "nobody knows who is near a limit" in filtered.content.decode()


def test_usage_older_than_five_minutes_makes_nobody_a_candidate(db, store):
    """Whoever is quiet does not come nearer."""
    token = TokenFactory()
    UsageRowFactory(at=timezone.now() - timedelta(minutes=7), project_id=token.project_id, token_id=token.pk)

    assert listed().candidates == 0
    assert UsageRow.objects.count() == 1


def test_of_many_in_a_minute_the_busiest_are_looked_at(monkeypatch):
    """Those with denials come first, and then those with most requests in some minute."""
    monkeypatch.setattr(near, "MOST_A_MINUTE", 3)
    now = timezone.now().replace(second=0, microsecond=0)
    requests = {f"tok_{number}": (number, 0) for number in range(1, 16)}
    requests |= {"tok_denied": (1, 1), "tok_busy": (300, 0), "tok_next": (70, 0)}
    rollup.add(
        [Row(now, ("proj_1", token, "", "", "requests"), (*counts, 0, 1)) for token, counts in requests.items()], now
    )
    earlier = now - timedelta(minutes=4)
    rollup.add([Row(earlier, ("proj_1", "tok_1", "", "", "requests"), (100, 0, 0, 1))], now)

    names, is_cut = near.candidates_of(everything(), now, 3)

    assert names == [("proj_1", "tok_denied"), ("proj_1", "tok_busy"), ("proj_1", "tok_1")]
    assert is_cut


def test_a_sample_of_more_than_are_looked_at_says_so():
    """Also if no usage of them has arrived yet."""
    now = timezone.now()
    for number in range(5):
        DeniedRequestFactory(at=now, token_id=f"tok_{number}", policy_id="pol_1", limit_name="per-day")

    assert [near.candidates_of(everything(), now, most)[1] for most in (4, 5)] == [True, False]


def test_who_was_denied_by_no_limit_is_no_candidate():
    """All tokens of a project that is not active would otherwise come before those that are near a limit."""
    now = timezone.now()
    for number in range(5):
        DeniedRequestFactory(at=now, reason="project_inactive", token_id=f"tok_{number}")
    UsageRowFactory(at=now.replace(second=0, microsecond=0), project_id="proj_1", token_id="tok_busy")

    assert near.candidates_of(everything(), now, 3) == ([("proj_1", "tok_busy")], False)


def test_counters_that_were_not_read_are_said_to_be_left_out(issue, use, admin_client, monkeypatch):
    """Nobody is near a limit among those that were read. Of the others nobody knows."""
    for number in range(3):
        use(issue({"quota": 1_000}, slug=f"p{number}", project=f"p{number}")[1], 1)
    now, client = timezone.now(), store_of.connection()
    assert not near.near_list(everything(), now, client).is_cut

    assert near.near_list(everything(), now, client, most=3).is_cut
    monkeypatch.setattr(panels, "MOST_COMMANDS", panels.COLUMN_COMMANDS + 3)

    page = admin_client.get("/admin/near-limit/").content.decode()
    filtered = admin_client.get("/admin/projects/token/?near=yes", follow=True).content.decode()

    assert "than this page looks at" in page
    assert "Nobody who was active" not in page
    assert "Only the busiest 3 of those" in filtered


@pytest.mark.proof
def test_candidates_are_those_of_a_plain_sum():
    """Of all tokens, and of some projects, though each minute came in pieces and a few were denied."""
    drawn, now = random.Random(7), timezone.now()
    minute = now.replace(second=0, microsecond=0)
    projects = [ProjectFactory(slug=f"p{number}") for number in range(6)]
    tokens = scale(200, 5_000)
    for _ in range(4):
        rows = []
        for number in drawn.sample(range(tokens), scale(150, 1_900)):
            at = minute - timedelta(minutes=drawn.randrange(8))
            counts = (drawn.choice([0, 1, 5, 63, 64, 5_000]), drawn.choice([0, 0, 0, 0, 1, 16]), 0, 1)
            rows.append(Row(at, (projects[number % 6].pk, f"tok_{number}", "", "", "requests"), counts))
        rollup.add(rows, now)
    some = Project.objects.filter(pk__in=[projects[1].pk, projects[4].pk])

    for reach in (everything(), Reach(some, Token.objects.filter(project__in=some), False)):
        recent = UsageRow.objects.filter(period="minute", at__gte=minute - near.ACTIVE, project_id__in=reach.projects)
        sums = recent.order_by().values_list("project_id", "token_id").annotate(Sum("denied"), Sum("allowed"))
        ordered = sums.order_by("-denied__sum", "-allowed__sum", "project_id", "token_id")
        plain = [(project, token) for project, token, *_ in ordered]
        assert near.candidates_of(reach, now, 60) == (plain[:60], True)
        assert near.candidates_of(reach, now, tokens) == (plain, False)


def test_usage_of_a_clock_ahead_makes_candidates():
    """The minutes are those of the store's clock, so web may be behind it."""
    now = timezone.now()
    UsageRowFactory(at=(now + timedelta(minutes=2)).replace(second=0, microsecond=0))

    assert near.candidates_of(everything(), now) == ([("proj_1", "tok_1")], False)


def test_who_has_no_project_has_no_candidates():
    """Nothing is not everything."""
    UsageRowFactory(at=timezone.now().replace(second=0, microsecond=0))
    nothing = Reach(Project.objects.none(), Token.objects.none(), False)

    assert near.candidates_of(nothing, timezone.now()) == ([], False)
