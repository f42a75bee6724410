"""Overrides for one value of what a limit is partitioned by, so that a shared budget is raised for one team."""

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.overrides.models import Override
from controlplane.releases.publishing.publisher import publish_pending
from enforcement import Limiter
from tests.controlplane.pages import text_of
from tests.controlplane.web.kit.reviews import enforce
from tests.factories import LimitFactory, OverrideFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

ADD = "/admin/policies/override/add/"
LIST = "/admin/policies/override/"
WEB = {"label.team": "web"}


@pytest.fixture
def limit():
    """A budget of each team, of a project that all of its tokens share."""
    return LimitFactory(policy=PolicyFactory(slug="teams"), name="budget", quota=2, partition_by=["label.team"])


@pytest.fixture
def project(limit):
    return ProjectFactory(slug="chat", policy=limit.policy)


def fields(limit, project, **more):
    given = {
        "limit": limit.pk,
        "project": project.pk,
        "partition": "label.team = web",
        "quota": "4",
        "reason": "launch",
    }
    return {**given, **more}


def body(**more):
    return {"limit": "teams/budget", "project": "chat", "partition": WEB, "quota": 4, "reason": "launch", **more}


def through_the_form(client, api, limit, project):
    enforce(client, client.post(ADD, fields(limit, project)))


def through_rest(client, api, limit, project):
    response = api("POST", "overrides", body())
    assert (response.status_code, response.json()["partition"]) == (201, WEB), response.json()


@pytest.mark.parametrize("give", [through_the_form, through_rest])
def test_all_tokens_of_a_team_are_raised_in_one_counter(as_ann, api, store, limit, project, give):
    """What is published is what enforcers apply: to the counter of the team, and to no other one."""
    tokens = {}
    for name, team in (("one", "web"), ("two", "web"), ("other", "data")):
        response = api("POST", "projects/chat/tokens", {"name": name, "labels": {"team": team}})
        tokens[name] = response.json()["secret"]

    give(as_ann, api, limit, project)
    publish_pending()

    with Limiter(store.url, timeout=2.0) as limiter:
        allowed = [limiter.check(tokens[name]).allowed for name in ("one", "two", "one", "two", "one")]
        counters = {name: limiter.check(tokens[name]).explain()["limits"][0]["counter"] for name in tokens}
        quotas = {name: limiter.check(tokens[name], costs=0).limits[0].quota for name in tokens}
    assert allowed == [True, True, True, True, False]
    assert counters["one"] == counters["two"] != counters["other"]
    assert quotas == {"one": 4, "two": 4, "other": 2}


def test_the_list_shows_and_finds_the_value(as_ann, store, limit, project):
    """And says of an override whose limit was changed since that it applies to nothing."""
    OverrideFactory(limit=limit, token=None, project=project, partition="label.team = web", quota=40)
    OverrideFactory(limit=limit, token=None, project=project, partition="label.team = data", quota=50)
    OverrideFactory(limit=limit, token=None, project=project, quota=60)

    assert "every value" in text_of(as_ann.get(LIST))
    found = text_of(as_ann.get(LIST, {"q": "team = web"}))
    assert ("label.team = web" in found, "label.team = data" in found) == (True, False)
    assert "applies to nothing" not in found

    limit.partition_by = ["label.owner"]
    limit.save()
    assert "applies to nothing" in text_of(as_ann.get(LIST, {"q": "team = web"}))


def test_the_review_and_the_audit_name_the_value(as_ann, api, store, limit, project):
    TokenFactory(project=project, labels={"team": "web"})
    TokenFactory(project=project, labels={"team": "data"})
    reply = api("POST", "overrides?dry_run=true", body(quota=1)).json()

    assert reply["headline"] == (
        "The override of teams/budget for the project chat with label.team = web begins: 2 becomes 1"
    )
    assert (reply["tokens"], reply["result"]["partition"]) == (1, WEB)
    assert not Override.objects.exists()

    api("POST", "overrides", body())
    assert AuditEntry.objects.first().object_label == "teams/budget for chat with label.team = web"
    assert "4 with label.team = web" in text_of(as_ann.get("/admin/publishing/revision/"))


def test_a_limit_has_one_override_of_a_holder_for_each_value(api, store, limit, project):
    """And one for all others, which it comes before."""
    assert api("POST", "overrides", body()).status_code == 201
    assert api("POST", "overrides", body(partition={"label.team": "data"})).status_code == 201
    assert api("POST", "overrides", body(partition={})).status_code == 201

    twice = api("POST", "overrides", body())
    assert twice.status_code == 400
    assert "with label.team = web already exists, with the quota 4" in str(twice.json())
    items = [body(partition={"label.team": name}) for name in ("a", "b", "a")]
    wrong = api("POST", "overrides/batch", {"items": items})
    assert (wrong.status_code, Override.objects.count()) == (400, 3)
    assert api("POST", "overrides/batch", {"items": items[:2]}).status_code == 201


@pytest.mark.parametrize(
    ("partition", "rule"),
    [
        ({"label.owner": "ann"}, "Must name only what teams/budget is partitioned by (label.team), got label"),
        ({"label.team": ""}, "The value of label.team must be a string of 1 to 128 characters"),
        ({"label.team": 5}, "The value of label.team must be a string"),
        ({"Team": "web"}, "An attribute must be"),
        (["label.team"], "Must be an object of 1 to 4 names and values"),
        ("label.team = web", "Must be an object of 1 to 4 names and values"),
        (None, "This field may not be null."),
    ],
)
def test_a_wrong_value_is_told_at_its_field(api, store, limit, project, partition, rule):
    response = api("POST", "overrides", body(partition=partition))

    assert response.status_code == 400
    (error,) = response.json()["errors"]
    assert (error["pointer"], error["detail"][: len(rule)]) == ("#/partition", rule)


@pytest.mark.parametrize(
    ("partition", "rule"),
    [
        ("label.owner = ann", "Must name only what teams/budget is partitioned by"),
        ("web", "Each line must hold one value"),
        ("label.team = a\nlabel.team = b", "Each line must hold one value"),
    ],
)
def test_the_form_tells_it_too(as_ann, store, limit, project, partition, rule):
    response = as_ann.post(ADD, fields(limit, project, partition=partition))

    assert response.context["adminform"].form.errors["partition"][0].startswith(rule)


def test_an_undone_override_comes_back_with_its_value(as_ann, api, store, limit, project):
    """Deleted by one revision, and given again by its undo."""
    made = api("POST", "overrides", body()).json()
    publish_pending()
    deleted = api("DELETE", f"overrides/{made['id']}")
    publish_pending()

    undone = api("POST", f"revisions/{deleted['Sluicegate-Revision']}/undo", {"reason": "no"})

    assert undone.status_code in (200, 201), undone.json()
    assert Override.objects.get().values == WEB


def test_a_raise_of_all_values_leaves_the_override_of_one(as_ann, store, limit, project):
    """The page that raises limits offers the other form for one value."""
    own = OverrideFactory(limit=limit, token=None, project=project, partition="label.team = web", quota=40)
    page = as_ann.get(f"{LIST}raise/project/{project.pk}/")
    seen = page.context["form"].present
    assert f"?limit={limit.pk}&amp;project={project.pk}" in page.content.decode()

    fields = {"limit": limit.pk, "quota": "9", "until": "never", "reason": "launch", "seen": seen}
    as_ann.post(f"{LIST}raise/project/{project.pk}/", fields)

    assert dict(Override.objects.values_list("partition", "quota")) == {"": 9, "label.team = web": own.quota}
