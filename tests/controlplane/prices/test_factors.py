"""The factors of models: learned from usage, of no tenant alone, and published with the prices."""

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from hypothesis import given
from hypothesis import strategies as st

from controlplane.policies.models import AuditEntry
from controlplane.prices import factors, tasks
from controlplane.prices.actions import learn_factors
from controlplane.prices.models import ModelFactor
from controlplane.publishing.models import Revision
from controlplane.publishing.reconcile import reconcile
from controlplane.usage.models import MeteredRow
from tests.controlplane.conftest import at_once
from tests.enforcement.metering.fleet import examples
from tests.factories import ManagementKeyFactory, ModelFactorFactory, ModelPriceFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
TODAY = datetime(2026, 11, 26, tzinfo=UTC)


def add_usage(
    model="gpt-x", *, per_mille=1_500, days=(1, 2, 3), project="proj_1", token="tok_1", requests=20, size=40_000
):
    """Count text on some days before today, of which a token has 4,000 bytes for each *per_mille*."""
    for day in days:
        key = {"project_id": project, "token_id": token, "model": model, "settled_as": "exact"}
        counts = {"requests": requests, "text_requests": requests, "text_bytes": size}
        read = size * per_mille // 4_000
        MeteredRow.objects.create(
            period="day", at=TODAY - timedelta(days=day), **key, **counts, input=read, text_input=read
        )


def measured():
    return {one.model: one.per_mille for one in factors.measure(NOON)}


@pytest.fixture
def published_prices(client_of_store):
    """The document that an enforcer would read, None when there is nothing."""

    def read():
        text = client_of_store.get("sg:{doc}:prices")
        return text and json.loads(text)

    return read


def test_a_factor_is_learned_and_published_with_its_audit(store, actor, published_prices):
    ModelPriceFactory(pattern="gpt-*")
    add_usage(per_mille=1_400, token="tok_1")
    add_usage(per_mille=1_600, token="tok_2", days=(1, 2, 3, 4))

    tx, found = learn_factors(actor, NOON, "weekly")
    assert [str(one) for one in found] == ["gpt-x: 1.00 -> 1.60, by 140 requests of 1 projects on 4 days"]
    assert published_prices()["factors"] == {"gpt-x": 1_600}
    assert published_prices()["overrides"][0]["model"] == "gpt-*"
    assert published_prices()["revision"] == tx.revision
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.reason, entry.before) == ("modelfactor.create", "weekly", None)
    assert entry.after == {
        "id": entry.object_id,
        "model": "gpt-x",
        "per_mille": 1_600,
        "requests": 140,
        "projects": 1,
        "days": 4,
    }
    assert reconcile(full=True) == []


def test_a_run_that_is_repeated_changes_nothing(store, actor):
    add_usage()
    learn_factors(actor, NOON)
    for later in (0, 5, 11):
        tx, found = learn_factors(actor, NOON + timedelta(hours=later))
        assert (tx.is_empty, found) == (True, [])
    assert (Revision.objects.count(), AuditEntry.objects.count()) == (1, 1)


def test_of_two_workers_at_once_one_publishes(store, actor):
    """Also if one of them was killed before its commit: then the other one finds what it would have found."""
    add_usage()
    add_usage("other", per_mille=700)

    def work():
        with closing(connection):
            return len(learn_factors(actor, NOON)[1])

    assert sorted(at_once([work] * 3)) == [0, 0, 2]
    assert ModelFactor.objects.by_model() == {"gpt-x": 1_500, "other": 700}
    assert AuditEntry.objects.count() == 2


@pytest.mark.parametrize(("present", "per_mille", "changes"), [(1_000, 1_049, 0), (1_000, 1_050, 1), (1_500, 1_426, 0)])
def test_a_small_change_is_not_published(store, actor, present, per_mille, changes):
    """Each publication is a revision that all instances load."""
    if present != 1_000:
        ModelFactorFactory(model="gpt-x", per_mille=present)
    add_usage(per_mille=per_mille, size=400_000)

    _, found = learn_factors(actor, NOON)
    assert len(found) == Revision.objects.count() == changes


def test_a_factor_follows_and_returns(store, actor, published_prices):
    ModelFactorFactory(model="gpt-x", per_mille=1_500)
    add_usage(per_mille=1_000)
    learn_factors(actor, NOON)
    assert published_prices()["factors"] == {"gpt-x": 1_000}
    assert AuditEntry.objects.get().action == "modelfactor.update"


@pytest.mark.parametrize(
    "usage",
    [
        {"days": (1, 2)},
        {"days": (0, 1, 2)},
        {"days": (1, 2, 8)},
        {"requests": 19},
        {"size": 999},
        {"model": ""},
    ],
    ids=["two days", "today is not over", "a week ago", "few requests", "little text", "no model"],
)
def test_too_little_usage_says_nothing(usage):
    add_usage(**usage)
    assert measured() == {}


def test_only_days_are_counted():
    """Hours and minutes repeat what the days say."""
    add_usage()
    MeteredRow.objects.update(period="hour")
    assert measured() == {}


def test_one_token_cannot_decide_for_its_project():
    """However much it sends."""
    add_usage(per_mille=1_200, token="tok_1")
    add_usage(per_mille=1_300, token="tok_2")
    add_usage(per_mille=10, token="evil", requests=1_000_000, size=10**12)
    assert measured() == {"gpt-x": 1_200}


def test_one_project_cannot_decide_for_all():
    """However many tokens it makes."""
    for number in range(20):
        add_usage(per_mille=10, project="evil", token=f"tok_{number}", requests=10_000)
    for project in ("proj_1", "proj_2"):
        add_usage(per_mille=1_200, project=project, token=project)
    assert measured() == {"gpt-x": 1_200}


def test_of_two_projects_the_one_with_more_tokens_counts():
    """An estimate that is too low lets a budget be exceeded, one that is too high is given back."""
    add_usage(per_mille=600, project="proj_1")
    add_usage(per_mille=1_200, project="proj_2")
    assert measured() == {"gpt-x": 1_200}


def test_a_bad_day_does_not_decide():
    add_usage(per_mille=900, days=(1, 2, 4, 5))
    add_usage(per_mille=2_000, days=(3,))
    assert measured() == {"gpt-x": 900}


@pytest.mark.parametrize(("per_mille", "factor"), [(3, 500), (9_000, 2_000)])
def test_a_factor_has_bounds(store, actor, per_mille, factor):
    add_usage(per_mille=per_mille)
    learn_factors(actor, NOON)
    assert ModelFactor.objects.by_model() == {"gpt-x": factor}
    with pytest.raises(IntegrityError), transaction.atomic():
        ModelFactor.objects.update(per_mille=2_001)


def test_a_factor_is_forgotten_when_its_model_is(store, actor, published_prices):
    """The last one takes the document with it."""
    ModelFactorFactory(model="old")
    ModelFactorFactory(model="quiet")
    add_usage("quiet", days=(89,))
    add_usage("old", days=(91,))

    _, found = learn_factors(actor, NOON)
    assert [str(one) for one in found] == ["old: 1.50 -> 1.00, not asked for in 90 days"]
    assert published_prices()["factors"] == {"quiet": 1_500}
    learn_factors(actor, NOON + timedelta(days=2))
    assert published_prices() is None
    assert not ModelFactor.objects.exists()


def test_made_up_names_do_not_take_all_places(monkeypatch, store, actor):
    """The models of more projects come first, and those that have a factor keep it."""
    monkeypatch.setattr(factors, "MAX_FACTORS", 2)
    ModelFactorFactory(model="kept", per_mille=800)
    add_usage("kept", per_mille=900)
    add_usage("a made up name", requests=10**9)
    add_usage("wanted", project="proj_2")
    add_usage("wanted", project="proj_3")

    learn_factors(actor, NOON)
    assert ModelFactor.objects.by_model() == {"kept": 900, "wanted": 1_500}


def test_a_store_that_is_away_delays_the_publication(store, actor):
    add_usage()
    store.kill()
    tx, found = learn_factors(actor, NOON)
    assert (tx.revision, len(found)) == (None, 1)
    assert ModelFactor.objects.by_model() == {"gpt-x": 1_500}


def test_the_task_learns_from_the_days_before_now(store, monkeypatch):
    add_usage()
    monkeypatch.setattr(tasks.timezone, "now", lambda: NOON)
    assert [tasks.learn_factors(), tasks.learn_factors()] == [1, 0]
    assert AuditEntry.objects.get().channel == "task"


def test_the_command_shows_the_difference_before_it_publishes(store, capsys, monkeypatch, published_prices):
    add_usage()
    monkeypatch.setattr("django.utils.timezone.now", lambda: NOON)
    line = "gpt-x: 1.00 -> 1.50, by 60 requests of 1 projects on 3 days\n"
    call_command("learn_factors", "--dry-run")
    assert capsys.readouterr().out == f"{line}Nothing was changed, because of --dry-run.\n"
    assert published_prices() is None
    call_command("learn_factors", "--reason", "by hand")
    assert capsys.readouterr().out == f"{line}Published as revision 1.\n"
    call_command("learn_factors")
    assert capsys.readouterr().out == "Nothing was changed.\n"


def test_factors_are_listed_over_rest(store, api, call):
    ModelFactorFactory(model="gpt-x", requests=60, projects=2, days=3)
    ModelFactorFactory(model="other")

    row, other = api("GET", "prices/factors").json()["results"]
    assert {**row, "changed_at": ""} == {
        "model": "gpt-x",
        "per_mille": 1_500,
        "requests": 60,
        "projects": 2,
        "days": 3,
        "changed_at": "",
    }
    assert api("GET", "prices/factors?model=other").json()["results"] == [other]
    assert api("GET", "prices/factors?surprise=1").status_code == 400
    assert api("PUT", "prices/factors", {}).status_code == 405


def test_factors_are_shown_to_those_who_see_all_projects(store, call):
    """They say which models the other projects ask for."""
    limited = ManagementKeyFactory(scopes=["prices:read"], all_projects=False)
    limited.projects.set([ProjectFactory()])
    assert call("GET", "prices/factors", key=limited).status_code == 403
    assert call("GET", "prices/factors", key=ManagementKeyFactory(scopes=["policies:read"])).status_code == 403
    assert call("GET", "prices/factors", key=ManagementKeyFactory(scopes=["prices:read"])).status_code == 200


VOTE = st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(1, 5), st.integers(0, 10**6))


@examples(30)
@given(st.lists(VOTE, max_size=12, unique_by=lambda vote: vote[:3]))
def test_a_factor_lies_between_the_votes(votes):
    """Whatever was reported, it is an integer in its bounds, and the order of the rows does not count."""
    with transaction.atomic():
        for project, token, day, read in votes:
            add_usage(project=project, token=token, days=(day,), per_mille=read)
        found = measured()
        MeteredRow.objects.all().delete()
        for project, token, day, read in reversed(votes):
            add_usage(project=project, token=token, days=(day,), per_mille=read)
        again = measured()
        transaction.set_rollback(True)
    bounded = [min(max(read, 500), 2_000) for *_, read in votes]
    assert found == again
    assert len(found) == (len({day for _, _, day, _ in votes}) >= 3)
    assert all(type(factor) is int and min(bounded) <= factor <= max(bounded) for factor in found.values())
