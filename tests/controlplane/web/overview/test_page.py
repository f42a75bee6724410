"""The first page: what needs a hand, the decisions, the fleet, and what ends soon."""

import html
import json
import re
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

import pytest
import redis
from django.contrib.auth.models import Group, User
from django.test import Client
from django.utils import timezone

from controlplane.core.store import keys
from controlplane.objects.people.models import Membership
from controlplane.objects.prices.models import BrokenBound
from controlplane.objects.projects.models import Project
from controlplane.operations.health.conditions import latest
from controlplane.traffic.fleet.heartbeats import live_instances, lost_instances
from controlplane.traffic.usage.models import DailyReport, UsageRow
from controlplane.web.kit.filters import InstantRangeForm
from controlplane.web.kit.site import link_to
from controlplane.web.overview.chart import chart
from controlplane.web.overview.decisions import Point, most_denied_tokens, series_of, without_store
from controlplane.web.overview.spans import SPANS
from enforcement import Limiter
from tests.enforcement.world import eventually
from tests.factories import (
    CountedUsageFactory,
    LimitFactory,
    ManagementKeyFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)

pytestmark = pytest.mark.django_db


def minute_of(now=None):
    return (now or timezone.now()).replace(second=0, microsecond=0)


@pytest.fixture
def page(admin_client):
    """``page("24h")``: the Overview as an operator sees it."""
    return lambda span="1h": admin_client.get(f"/admin/?range={span}")


def lines(shown, subject):
    """Return the lines about conditions whose key begins so."""
    hands = shown.context["hands"]
    return [line for line in (*hands["lines"], *hands["rest"]) if line.condition.subject.startswith(subject)]


def test_each_count_is_a_link_to_its_rows(page):
    """The range of the list is that of the page, sorted by the count."""
    CountedUsageFactory(at=minute_of(), allowed=10, denied=2, would_deny=3)

    shown = page()

    assert shown.context["totals"] == {"allowed": 10, "denied": 2, "would_deny": 3}
    for name in ("allowed", "denied", "would_deny"):
        url = shown.context["urls"][name]
        assert url.replace("&", "&amp;") in shown.text
        assert shown.client.get(url).status_code == 200


@pytest.mark.parametrize("span", [SPANS["1h"], SPANS["7d"], SPANS["30d"]], ids=lambda span: span.name)
def test_a_link_of_the_table_shows_the_rows_of_its_step(page, admin_client, span):
    """Not those of the steps beside it."""
    starts = span.starts(timezone.now())[-3:]
    for at in starts:
        CountedUsageFactory(period=span.period, at=at, denied=1)

    urls = re.findall(r'<th scope="row"><a href="(/admin/usage/[^"]+)">', page(span.name).text)
    shown = [admin_client.get(html.unescape(url)).context["cl"].result_list for url in urls]
    assert [[row.at for row in rows] for rows in shown] == [[at] for at in reversed(starts)]


def test_a_link_to_the_hour_that_a_zone_has_twice_shows_one_of_them():
    """The local time alone would be refused, and the list empty."""
    span, now = SPANS["24h"], datetime(2026, 10, 25, 6, 30, tzinfo=UTC)
    with timezone.override("Europe/Berlin"):
        urls = {point.at.hour: urlsplit(point.url) for point in series_of({}, span, now)}
        queries = [dict(parse_qsl(urls[hour].query)) for hour in (0, 1, 2)]
        forms = [InstantRangeForm({"gte": "at_from", "lte": "at_to"}, query) for query in queries]
        assert all(form.is_valid() for form in forms)

    begins = [form.cleaned_data["at_from"].astimezone(UTC).hour for form in forms]
    ends = [form.cleaned_data["at_to"].astimezone(UTC).hour for form in forms]
    assert (begins, ends) == ([0, 1, 2], [0, 1, 2])


def test_a_denied_token_names_the_limit_that_denied_most(page, django_assert_num_queries):
    """With a link to its policy. One query finds it for all tokens of the panel."""
    policy = PolicyFactory(slug="chat-free")
    tokens = [TokenFactory(name=name) for name in ("web", "batch")]
    for token, denied in zip(tokens, ({"per-minute": 7, "per-day": 2}, {"per-day": 3}), strict=True):
        of_token = {"at": minute_of(), "project_id": token.project_id, "token_id": token.pk}
        CountedUsageFactory(**of_token, denied=9)
        for name, count in denied.items():
            CountedUsageFactory(**of_token, policy_id=policy.pk, limit_name=name, denied=count)
    CountedUsageFactory(at=minute_of(), policy_id=policy.pk, limit_name="per-day", denied=50)  # of another token

    shown = page()

    named = [(row["by"]["link"], row["by"]["limit_name"]) for row in shown.context["denied_tokens"]]
    assert sorted(named, key=lambda one: one[1]) == [(link_to(policy), "per-day"), (link_to(policy), "per-minute")]
    assert f"mostly by {link_to(policy)} / per-minute" in shown.text
    with django_assert_num_queries(4):  # the sums, their tokens, the limits, and their policies
        most_denied_tokens(UsageRow.objects.all(), names_limits=True)


def test_without_the_right_to_see_policies_no_limit_is_named():
    """Nor read."""
    token = TokenFactory()
    CountedUsageFactory(at=minute_of(), project_id=token.project_id, token_id=token.pk, denied=1)

    (row,) = most_denied_tokens(UsageRow.objects.all(), names_limits=False)

    assert row["by"] is None


def test_the_share_of_denials_is_compared_with_the_range_before(page):
    """No data is said, and is not 0 %."""
    now = minute_of()
    CountedUsageFactory(at=now, allowed=9, denied=1)
    assert page().context["denied_share"] == "10.0 %, the hour before no data"

    CountedUsageFactory(at=now - timedelta(minutes=70), allowed=3, denied=1)
    assert page().context["denied_share"] == "10.0 %, the hour before 25.0 %"


def test_the_chart_has_a_table_with_the_same_numbers(page):
    """For people who do not see it."""
    CountedUsageFactory(at=minute_of(), allowed=1_000, denied=2)

    text = page().text

    assert "1,000 allowed, 2 denied, last hour. The table below has the numbers." in text
    assert '<td class="sg-n">1,000</td><td class="sg-n">2</td>' in text


def test_the_parts_of_a_bar_add_up():
    """What a shadow limit would deny is a part of what was allowed."""
    drawn = chart([Point(timezone.now(), "12:00", "", {"allowed": 60, "would_deny": 20, "denied": 20})])

    parts = re.findall(r'class="sg-(.)" x="16.0%" width="68.0%" y="([^"]+)" height="([^"]+)"', drawn["bars"])
    assert parts == [("a", "88.0", "88.0"), ("w", "44.0", "44.0"), ("d", "0.0", "44.0")]
    assert "12:00: 60 allowed, of which 20 would be denied by shadow limits; 20 denied" in drawn["bars"]
    assert [line["value"] for line in drawn["grid"]] == [0, 20, 40, 60, 80]


def test_an_unknown_range_is_the_last_hour(page):
    """Whatever stands in the address."""
    assert page("nope").context["span"] is SPANS["1h"]


@pytest.fixture
def lost(client_of_store: redis.Redis, instance):
    """``lost("proxy-1", minutes=5)``: an instance that fell silent without a goodbye."""

    def silent(name: str, *, minutes: int, goodbye: bool = False):
        at = timezone.now() - timedelta(minutes=minutes)
        row = instance(name, host="vm-7", seen_at=at)
        if not goodbye:
            client_of_store.zadd(keys().instances, {name: at.timestamp() * 1e6})
        return row

    return silent


def test_lost_instances_are_a_red_line(page, lost):
    """Two of them in the last hour, with names; one that stopped in order is not lost."""
    lost("us-1", minutes=5)
    lost("us-2", minutes=31)
    lost("stopped", minutes=5, goodbye=True)

    shown = page()

    (line,) = lines(shown, "lost")
    assert (line.is_urgent, line.sentence) == (True, "us-1 and us-2 are lost 0 still report")


def test_those_that_still_report_do_not_let_the_lost_be_forgotten(page, lost, store):
    """A heartbeat drops from the set only those that nobody asks about any more."""
    lost("us-1", minutes=31)
    lost("us-2", minutes=25 * 60)

    with Limiter(store.url, instance="us-3"):
        shown = page()

    (line,) = lines(shown, "lost")
    assert line.sentence == "us-1 is lost 1 still reports"
    assert line.condition.deed == "See us-1"


def test_who_reports_is_not_lost_though_the_worker_is_late(page, lost, store):
    """The worker saves heartbeats some time after the store has them."""
    lost("us-3", minutes=5)

    with Limiter(store.url, instance="us-3"):
        assert eventually(live_instances)
        shown = page()

    assert lines(shown, "lost") == []


def test_an_older_loss_is_in_the_table_only(page, lost):
    """For a day, then nobody needs to know."""
    lost("us-1", minutes=90)
    lost("us-2", minutes=25 * 60)

    shown = page()

    assert lines(shown, "lost") == []
    assert [row["link"].split(">")[1].split("<")[0] for row in shown.context["fleet"]] == ["us-1"]


def test_nobody_is_called_lost_while_the_store_is_away(page, instance, lost_at):
    """It knows who said goodbye, and the page says that it is not reachable."""
    instance("us-1", seen_at=lost_at)

    shown = page()

    assert [line.condition.subject for line in shown.context["hands"]["lines"]] == ["store"]
    assert "The store does not answer" in shown.text


def test_a_stopped_fleet_asks_the_store_only_if_somebody_is_silent(django_assert_num_queries):
    """One query, and no call, while all report."""
    with django_assert_num_queries(1):
        assert lost_instances(timezone.now()) == []


def test_decisions_without_the_store_are_counted_by_hour(instance):
    """The hour before the range began is not in it."""
    now = timezone.now()
    hours = {(now - timedelta(hours=back)).strftime("%Y-%m-%dT%H"): 10**back for back in (0, 1, 30)}
    instance("proxy-1", decisions={"fallback": 1011, "fallback_by_hour": hours})

    assert [without_store(SPANS[name], now).decisions for name in ("24h", "7d")] == [11, 11 + 10**30]


def test_decisions_without_the_store_of_a_month_come_from_the_reports():
    """The rows of instances are kept for days only."""
    now = timezone.now()
    for back, decisions in ((1, 5), (20, 7), (40, 9)):
        summary = {"without_store": {"decisions": decisions}}
        DailyReport.objects.create(day=(now - timedelta(days=back)).date(), csv="", html="", summary=summary)

    assert without_store(SPANS["30d"], now).decisions == 12


def test_what_ends_is_counted_with_links(page, admin_client):
    """Each number is that of the list behind it."""
    soon, late = timezone.now() + timedelta(days=3), timezone.now() + timedelta(days=30)
    token = TokenFactory(name="soon", expires_at=soon, last_used_at=timezone.now())
    TokenFactory(project=token.project, expires_at=late)
    TokenFactory(project=token.project, expires_at=soon)
    OverrideFactory(token=token, ends_at=soon)
    ManagementKeyFactory(expires_at=soon)

    rows = page().context["ending"]

    assert [(row["title"], row["count"]) for row in rows] == [
        *(("Tokens", 2), ("Tokens in use", 1), ("Overrides", 1), ("Management keys", 1)),
    ]
    for row in rows:
        assert len(admin_client.get(row["url"]).context["cl"].result_list) == row["count"]


def test_shadow_limits_are_counted(page):
    """With a link to what they would have denied."""
    LimitFactory(mode="shadow")
    LimitFactory()

    assert page().context["shadow_limits"] == 1
    assert "1 limit in shadow" in page().text


@pytest.fixture
def member():
    """The session of a viewer of the project "mine"."""
    user = User.objects.create_user("vera", is_staff=True)
    Membership.objects.create(user=user, project=ProjectFactory(slug="mine"), role="viewer")
    client = Client()
    client.force_login(user)
    return client


def test_a_member_sees_the_decisions_of_their_projects_only(member):
    """Neither counts nor names of others, and nothing of the installation."""
    mine = TokenFactory(name="my-token", project__slug="other").project
    theirs = TokenFactory(name="their-token", project=mine, expires_at=timezone.now() + timedelta(days=1))
    policy = PolicyFactory(slug="their-policy", project=mine)
    for fields in ({}, {"policy_id": policy.pk, "limit_name": "per-minute"}):
        CountedUsageFactory(at=minute_of(), project_id=mine.pk, token_id=theirs.pk, denied=4_711, **fields)
    CountedUsageFactory(at=minute_of(), project_id=Project.objects.get(slug="mine").pk, allowed=3, would_deny=1)

    page = member.get("/admin/")

    assert page.context["totals"] == {"allowed": 3, "denied": 0, "would_deny": 1}
    for text in ("their-token", "their-policy", "4,711", "The store does not answer", "Decided without", "First steps"):
        assert text not in page.text
    assert [row["count"] for row in page.context["ending"]] == [0] * len(page.context["ending"])


def test_an_operator_of_the_group_sees_everything(page):
    """Not only superusers."""
    user = User.objects.create_user("olga", is_staff=True)
    user.groups.add(Group.objects.get_or_create(name="operators")[0])
    client = Client()
    client.force_login(user)

    shown = client.get("/admin/")

    assert "The store does not answer" in shown.text
    assert "Ends within 7 days" in shown.text


def test_a_broken_bound_needs_a_hand(page):
    """For a day."""
    assert lines(page(), "bounds") == []
    row = BrokenBound.objects.create(
        project_id="proj_1", model="gpt-x", format="openai-chat", requests=1, added=5, last_at=timezone.now()
    )
    latest.forget()

    (line,) = lines(page(), "bounds")
    assert line.condition.fault == "A bound of gpt-x was broken"
    BrokenBound.objects.filter(pk=row.pk).update(last_at=timezone.now() - timedelta(hours=25))
    latest.forget()
    assert lines(page(), "bounds") == []


def test_instances_are_judged_as_by_the_doctor(page, client_of_store):
    """One that is degraded needs a hand, and the line says what to do. One that is behind is an amber fact."""
    now_us = time.time_ns() // 1_000
    for name, more in (
        ("us-1", {"state": "degraded", "problems": ["evicting"]}),
        ("us-2", {"state": "ok", "unmetered": [["proj_1", "api", "tokens"]]}),
    ):
        beat = {"id": name, "revision": 0, "started_at_us": now_us, "seen_at_us": now_us, **more}
        client_of_store.set(keys().instance(name), json.dumps(beat), px=15_000)
        client_of_store.zadd(keys().instances, {name: now_us})

    shown = page()

    (degraded,) = lines(shown, "degraded|evicting")
    assert degraded.sentence.startswith("us-1 is degraded the store evicts keys")
    assert "set maxmemory-policy to noeviction" in shown.text
    (unmetered,) = lines(shown, "unmetered|")
    assert (unmetered.is_urgent, unmetered.condition.deed) == (False, "Fix the unit")
