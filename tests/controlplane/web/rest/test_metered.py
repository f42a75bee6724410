"""Metered usage by the labels of tokens: a filter of every resource, and the totals of each value."""

from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.traffic.usage.models import MeteredRow
from tests.factories import ManagementKeyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def shop():
    """A project with two red tokens, a blue one, one without labels and a deleted one, and what each has cost."""
    project = ProjectFactory(slug="shop")
    teams = {"red": 900, "also red": 100, "blue": 500, "plain": 30, "gone": 4}
    for name, micros in teams.items():
        labels = {"team": name.removeprefix("also ")} if "red" in name or name in ("blue", "gone") else {}
        token = TokenFactory(project=project, name=name, labels={**labels, "a__b.c": "1"} if labels else {})
        counts = {"requests": 2, "input": 10, "output": 5, "micros": micros, "estimated_input": 12}
        add_usage(project.pk, token.pk, **counts)
        add_usage(project.pk, token.pk, days=3, requests=1)
        if name == "gone":
            token.delete()
    add_usage(project.pk, "", requests=1, micros=1)
    return project


def add_usage(project, token, *, days=0, **counts):
    at = timezone.now().replace(minute=0, second=0, microsecond=0) - timedelta(days=days)
    key = {"project_id": project, "token_id": token, "model": "gpt-x", "settled_as": "exact", "price_revision": 1}
    MeteredRow.objects.create(period="hour", at=at, **key, **counts)


def listed(api, query, resource="labels"):
    response = api("GET", f"usage/{resource}?step=hour&{query}")
    assert response.status_code == 200, response.content
    return response.json()["results"]


def test_the_usage_of_each_team_is_summed(shop, api):
    """The dearest first. What belongs to no team is null, and is not lost."""
    rows = listed(api, "label=team")

    assert [(row["value"], row["micros"], row["requests"]) for row in rows] == [
        ("red", 1_000, 4),
        ("blue", 500, 2),
        (None, 35, 5),
    ]
    assert rows[0] == {
        "value": "red",
        "requests": 4,
        "input": 20,
        "cached_input": 0,
        "cache_write": 0,
        "output": 10,
        "micros": 1_000,
        "estimated_input": 24,
        "calls": 0,
    }
    assert sum(row["micros"] for row in rows) == sum(row["micros"] for row in listed(api, "", "models"))


def test_a_name_may_have_underscores_and_dots(shop, api):
    assert [(row["value"], row["micros"]) for row in listed(api, "label=a__b.c")] == [("1", 1_500), (None, 35)]
    assert [row["value"] for row in listed(api, "label=owner")] == [None]


def test_every_resource_filters_by_labels(shop, api):
    assert [(row["value"], row["micros"]) for row in listed(api, "label=a__b.c&label.team=red")] == [("1", 1_000)]
    assert [row["micros"] for row in listed(api, "label.team=blue", "models")] == [500]
    assert sorted(row["micros"] for row in listed(api, "label.team=red", "metered")) == [100, 900]
    assert listed(api, "label.team=re", "metered") == listed(api, "label.team=gone", "models") == []


def test_a_key_sees_the_labels_of_its_projects_only(shop, call):
    other = TokenFactory(project=ProjectFactory(), labels={"team": "secret"})
    add_usage(other.project.pk, other.pk, requests=1, micros=7)
    key = ManagementKeyFactory(scopes=["usage:read"], all_projects=False)
    key.projects.set([shop])

    rows = call("GET", "usage/labels?step=hour&label=team", key=key).json()["results"]
    assert [row["value"] for row in rows] == ["red", "blue", None]


@pytest.mark.parametrize(
    ("query", "parameter", "rule"),
    [
        ("", "label", "required"),
        ("label=", "label", "blank"),
        ("label=Team", "label", "a name must be 1 to 58 of a-z 0-9 . _ - and begin with a letter"),
        ("label=team&label=owner", "label", "at most once"),
        ("label=team&label.Team=x", "label.Team", "a name must be 1 to 58"),
        ("label=team&surprise=1", "surprise", "Unknown"),
    ],
)
def test_a_wrong_query_is_refused(api, query, parameter, rule):
    refused = api("GET", f"usage/labels?{query}")
    assert refused.status_code == 400
    (error,) = refused.json()["errors"]
    assert error["parameter"] == parameter
    assert rule in error["detail"]
