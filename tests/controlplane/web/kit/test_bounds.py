"""What the busiest requests of the admin may ask of the database, so that they stay fast with more rows."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from controlplane.objects.projects.models import Token
from controlplane.operations.jobs import many_tokens
from controlplane.operations.jobs.models import Job
from controlplane.traffic.usage.models import UsageRow
from tests.controlplane.web.pages.tokens.test_bulk import TOKENS, HiddenFields, tick_all
from tests.factories import LimitFactory, MembershipFactory, ProjectFactory
from tests.million.measuring import Cost, counted
from tests.million.plans import rows_read
from tests.scale import scale

pytestmark = pytest.mark.django_db(transaction=True)

# PostgreSQL alone says which rows it reads, and reads few tables of another size by their indexes.
HOURS, ROWS_AN_HOUR = 30 * 24, 30 if connection.vendor == "postgresql" else 5
USAGE = "usage_usagerow"


@pytest.fixture
def usage():
    """Rows of a month, by the hour, and of the last ten minutes. A tenth of them has denials."""
    now = timezone.now()
    hour, minute = now.replace(minute=0, second=0, microsecond=0), now.replace(second=0, microsecond=0)
    limit = LimitFactory()
    project = ProjectFactory()
    starts = [("hour", hour - timedelta(hours=back)) for back in range(HOURS)]
    starts += [("minute", minute - timedelta(minutes=back)) for back in range(10)]
    UsageRow.objects.bulk_create(
        UsageRow(
            period=period,
            at=at,
            project_id=project.pk,
            token_id=f"tok_{number // 2:026d}",
            unit="requests",
            policy_id=limit.policy_id if number % 2 else "",
            limit_name=limit.name if number % 2 else "",
            allowed=5,
            denied=3 if number % 10 == 1 else 0,
        )
        for period, at in starts
        for number in range(ROWS_AN_HOUR)
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    return project


def queries_of(client, url) -> list[str]:
    client.get(url)  # what is read once
    with CaptureQueriesContext(connection) as found:
        assert client.get(url).status_code == 200
    return [one["sql"] for one in found.captured_queries]


@pytest.mark.proof
@pytest.mark.parametrize(("span", "hours"), [("7d", 7 * 24), *scale((), (("1h", 0), ("24h", 24)))])
def test_the_overview_asks_few_queries_and_reads_the_rows_of_its_range(as_ann, usage, span, hours):
    """Twice, as it compares the range with the one before, and the denials once more. It reads no other rows."""
    asked = queries_of(as_ann, f"/admin/?range={span}")

    assert len(asked) <= 40
    if connection.vendor == "postgresql":
        decisions, denials = ROWS_AN_HOUR // 2, ROWS_AN_HOUR // 10
        in_range = 2 * hours * (decisions + denials) + 60
        near = 10 * ROWS_AN_HOUR
        assert rows_read(asked, USAGE) <= in_range + 6 * near


def test_the_overview_of_a_member_asks_few_queries(client, usage):
    """However many pages there are, the roles are read once."""
    client.force_login(MembershipFactory(project=usage).user)

    asked = queries_of(client, "/admin/?range=24h")

    assert len(asked) <= 35
    assert sum("access_membership" in sql for sql in asked) <= 2


def test_the_list_of_those_near_a_limit_reads_the_last_minutes(as_ann, usage):
    """Its candidates are in the rows of some minutes."""
    asked = queries_of(as_ann, "/admin/near-limit/")

    assert len(asked) <= 30
    if connection.vendor == "postgresql":
        assert rows_read(asked, USAGE) <= 3 * 10 * ROWS_AN_HOUR


def revoke(client, number: int) -> Cost:
    """Revoke all tokens of a new project by the list, and return what the request that confirms it costs."""
    project = ProjectFactory()
    rows = [Token(project=project, name=f"t{n}") for n in range(number)]
    for row in rows:
        row.set_secret("live")
    Token.objects.bulk_create(rows)
    query = f"?project__id__exact={project.pk}"
    asked = HiddenFields(tick_all(client, "revoke_selected", query)).fields
    with counted() as cost:
        assert client.post(TOKENS + query, {**asked, "change_reason": "leaked"}).status_code == 302
    return cost


def test_to_start_a_job_costs_the_same_for_more_tokens(as_ann, store):
    """The job cuts them into parts. On PostgreSQL, the request does not even read their keys."""
    few, many = (revoke(as_ann, many_tokens.MOST_IN_A_REQUEST + more) for more in (1, 500))

    assert sorted(Job.objects.values_list("total", flat=True)) == [501, 1_000]
    assert many.queries == few.queries <= 40
    if connection.vendor == "postgresql":
        assert many.rows == few.rows <= 200


def test_an_action_on_what_a_search_finds_searches_for_all_of_it_once(as_ann, store):
    """To ask and to start a job: once for all rows, and once more for the first names or for the keys of the job."""
    project = ProjectFactory()
    rows = [Token(project=project, name=f"edge-{n}") for n in range(many_tokens.MOST_IN_A_REQUEST + 1)]
    for row in rows:
        row.set_secret("live")
    Token.objects.bulk_create(rows)
    ticked = {"action": "revoke_selected", "select_across": "1", "index": "0", "_selected_action": rows[0].pk}
    found = f"{TOKENS}?q=edge"

    with CaptureQueriesContext(connection) as asking:
        asked = HiddenFields(as_ann.post(found, ticked)).fields
    with CaptureQueriesContext(connection) as starting:
        assert as_ann.post(found, {**asked, "change_reason": "leaked"}).status_code == 302

    assert Job.objects.get().total == len(rows)
    for queries in (asking, starting):
        searches = [one["sql"] for one in queries.captured_queries if "edge%" in one["sql"] and "FROM" in one["sql"]]
        assert 1 <= sum('"projects_token"' in sql for sql in searches) <= 2


def test_a_change_at_once_asks_the_same_for_more_tokens(as_ann, store):
    """Some hundred tokens are changed by few statements, and not by one for each."""
    revoke(as_ann, 5)  # the first publication asks more

    few, many = revoke(as_ann, 20).queries, revoke(as_ann, 40).queries

    assert not Token.objects.filter(revoked_at=None).exists()
    assert few == many
