"""A member of the project "alpha" learns nothing of the project "bravo"."""

import json
import re
from urllib.parse import urlencode

import pytest
from django.contrib import admin
from django.test import Client

from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Token
from controlplane.releases.publishing.models import OutboxEntry
from tests.controlplane.objects.people.addresses import address, is_of_a_row, patterns, row_of, unknown_key
from tests.controlplane.objects.people.world import Tenant
from tests.factories import (
    LimitFactory,
    ManagementKeyFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db


NAMED = [("projects", "project"), ("projects", "token"), ("policies", "policy")]
QUERIES = {
    "index": ["?range=24h", "?range=30d"],
    "usage_usagerow_changelist": ["?period=minute&o=-6", "?period=minute&of=limits&o=-8"],
    "usage_usagerow_csv": ["?period=minute", "?period=minute&of=limits"],
    "projects_token_changelist": ["?status=all&o=3"],
    "policies_auditentry_changelist": ["?o=2"],
}


@pytest.fixture
def owner(alpha: Tenant, client: Client) -> Client:
    """The session of somebody who may do in "alpha" whatever a member may do."""
    client.force_login(alpha.member("owner"))
    return client


def text_of(response) -> str:
    return b"".join(response).decode() if response.streaming else response.content.decode()


def without_keys(text: str, *keys: str) -> str:
    """Return a page without what differs in each response."""
    text = re.sub(r"csrfmiddlewaretoken[^>]*>|req_[0-9a-f]+|nonce[^ >]*|just now", "", text)
    return re.sub("|".join(map(re.escape, keys)), "KEY", text)


def test_a_row_of_others_is_like_one_that_is_not_there(owner, bravo):
    """At every address of a row: the same status, the same page, never 403."""
    for pattern in filter(is_of_a_row, patterns()):
        row = row_of(pattern, bravo.rows)
        if row is None:
            continue
        keys = str(row.pk), str(unknown_key(row))
        answers = [owner.get(address(pattern, row, key)) for key in keys]
        pages = [without_keys(text_of(answer), *keys) for answer in answers]
        assert [answer.status_code for answer in answers] == [answers[0].status_code] * 2, pattern.name
        assert pages[0] == pages[1], pattern.name
        assert "bravo" not in pages[0], pattern.name


def test_no_list_or_export_names_others(owner, alpha):
    """Nor sums them, in any order."""
    for pattern in patterns():
        if is_of_a_row(pattern) or pattern.name == "logout":
            continue
        url = address(pattern, None)
        for query in ("", *QUERIES.get(pattern.name, ())):
            assert "bravo" not in text_of(owner.get(url + query)), url + query


def test_no_menu_counts_what_waits_of_others(owner, bravo, client):
    """That would tell when they change something. Operators see it."""
    url = "/admin/usage/usagerow/"
    OutboxEntry.objects.all().delete()
    before = without_keys(text_of(owner.get(url)))
    OutboxEntry.objects.bulk_create(OutboxEntry(kind="token", object_id=str(n), by="bravo-actor") for n in range(7321))

    assert without_keys(text_of(owner.get(url))) == before
    client.force_login(UserFactory(operator=True))
    assert "7321" in text_of(client.get(url))


def test_lists_have_the_rows_of_the_member(owner, alpha):
    """So the tests above do not pass by showing nothing."""
    for name in (
        "projects_token",
        "projects_project",
        "policies_override",
        "policies_auditentry",
        "usage_deniedrequest",
    ):
        pattern = next(one for one in patterns() if one.name == f"{name}_changelist")
        assert "alpha" in text_of(owner.get(address(pattern, None))), name


def test_no_filter_by_an_id_names_others(owner, bravo):
    """A filter shows the name of what it is set to."""
    keys = {
        "project": bravo.project.pk,
        "token": bravo.rows["projects_token"].pk,
        "policy": bravo.rows["policies_policy"].pk,
    }
    for model, page in admin.site._registry.items():
        for entry in page.list_filter:
            field = entry[0] if isinstance(entry, tuple) else entry
            if field in keys:
                url = f"/admin/{model._meta.app_label}/{model._meta.model_name}/?{field}__id__exact={keys[field]}"
                assert "bravo" not in text_of(owner.get(url)), url


@pytest.mark.parametrize(
    "lookup",
    [
        "policies/limit/?overrides__gt=ovr_0",
        "policies/policy/?limits__overrides__isnull=0",
        "policies/policy/?%2B__isnull=0",
        "auth/user/?memberships__gt=mem_0",
        "auth/user/?email__startswith=a",
        "auth/user/?groups__isnull=0",
        "projects/token/?digest__startswith=0",
        "projects/managementkey/?digest__startswith=0",
        "usage/usagerow/?instance__startswith=a",
    ],
)
def test_no_address_filters_by_what_a_list_does_not_show(owner, lookup):
    """The number of hits would tell a hidden column, or what others do with a shared row, bit by bit."""
    response = owner.get(f"/admin/{lookup}")

    assert response.status_code == 400 or response.url.endswith("?e=1")


@pytest.mark.parametrize(
    "lookup",
    [
        "policies/policy/?project__id__exact={}",
        "projects/project/?policy__id__exact={}",
        "policies/auditentry/?object_type=token&object_id={}",
        "projects/token/?policy__id__exact={}&status=all&ends=soon",
        "policies/auditentry/?at_from=2026-11-01T00:00&deed=created",
    ],
)
def test_addresses_filter_by_what_pages_link_to(owner, alpha, lookup):
    """Also by columns without a filter beside the list."""
    assert owner.get(f"/admin/{lookup.format(alpha.project.pk)}").status_code == 200


@pytest.mark.parametrize("model", ["projects/token", "projects/project", "policies/policy", "policies/auditentry"])
def test_no_search_finds_others(owner, model):
    """Whatever is typed, the number of hits is that of the own rows."""
    changelist = owner.get(f"/admin/{model}/?q=bravo").context["cl"]

    assert (changelist.result_count, changelist.full_result_count) in [(0, count) for count in (1, 2, None)]


@pytest.mark.parametrize(
    ("model", "field"),
    [
        *(("projects.token", "project"), ("projects.token", "policy"), ("policies.override", "limit")),
        *(("policies.override", "token"), ("policies.override", "project"), ("projects.managementkey", "projects")),
        *(("access.membership", "project"), ("projects.project", "policy"), ("policies.policy", "project")),
    ],
)
def test_no_box_offers_others(owner, alpha, model, field):
    """Neither all of them nor what is typed."""
    app, name = model.split(".")
    query = {"app_label": app, "model_name": name, "field_name": field}

    every, typed = (owner.get(f"/admin/autocomplete/?{urlencode({**query, 'term': term})}") for term in ("", "bravo"))

    assert [found["text"] for found in every.json()["results"] if "bravo" in json.dumps(found)] == []
    assert any("alpha" in found["text"] for found in every.json()["results"])
    assert typed.json()["results"] == []


def test_the_palette_finds_nothing_of_others(owner):
    assert list(owner.get("/admin/search/?s=bravo").context["results"]) == []
    assert list(owner.get("/admin/search/?s=alpha").context["results"]) != []


def test_a_secret_of_others_is_like_an_unknown_one(owner, bravo, alpha):
    """Also that of a key that works for others besides."""
    token = TokenFactory(project=bravo.project)
    key = ManagementKeyFactory(projects=[bravo.project, alpha.project])

    for secret in (token.secret, key.secret, Token().set_secret("live")):
        response = owner.post("/admin/projects/token/by-secret/", {"secret": secret})
        assert (response.status_code, response.url) == (302, "/admin/projects/token/")


def test_a_key_of_several_projects_is_not_shown_to_the_owner_of_one(owner, bravo, alpha):
    """It names the others. Nor is one of all projects."""
    ManagementKeyFactory(projects=[bravo.project, alpha.project], name="wide")
    ManagementKeyFactory(name="everything")

    page = owner.get("/admin/projects/managementkey/")

    assert [key.name for key in page.context["cl"].result_list] == ["alpha-key"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("projects/token", {"name": "x"}),
        ("policies/policy", {"slug": "bravo--x", "name": "x", "limits-TOTAL_FORMS": "0", "limits-INITIAL_FORMS": "0"}),
        ("policies/override", {"quota": "1", "reason": "x"}),
        ("projects/managementkey", {"name": "x", "scopes": "projects:read"}),
        ("access/membership", {"person": "bravo-member", "role": "viewer"}),
    ],
)
def test_a_form_takes_no_project_of_others(owner, bravo, path, fields):
    """It says what it says of a project that is not there."""
    name = "projects" if path == "projects/managementkey" else "project"
    answers = [owner.post(f"/admin/{path}/add/", {**fields, name: key}) for key in (bravo.project.pk, "proj_none")]

    errors = [answer.context["adminform"].form.errors.get(name) for answer in answers]
    assert errors[0]
    assert str(errors[0]).replace(bravo.project.pk, "proj_none") == str(errors[1])


@pytest.mark.parametrize("field", ["policy", "anonymous_policy", "token_policy"])
def test_a_project_takes_no_policy_of_others(owner, alpha, bravo, field):
    form = {"name": "Alpha", field: bravo.rows["policies_policy"].pk}

    response = owner.post(f"/admin/projects/project/{alpha.project.pk}/change/", form)

    assert "Select a valid choice." in str(response.context["adminform"].form.errors[field])


def test_slugs_in_use_by_others_cannot_be_probed(owner, alpha):
    """One in use and one that is free get the same answer. Slugs of the own part are free to choose."""
    form = {"name": "x", "project": alpha.project.pk, "limits-TOTAL_FORMS": "0", "limits-INITIAL_FORMS": "0"}
    url = "/admin/policies/policy/add/"

    errors = [
        dict(owner.post(url, {**form, "slug": slug}).context["adminform"].form.errors)
        for slug in ("bravo--plan", "bravo--none")
    ]

    rule = 'Must be "alpha--" and a name without "--", because only operators choose other names.'
    assert [error["slug"][-1] for error in errors] == [rule] * 2
    assert errors[0] == errors[1]
    assert owner.post(url, {**form, "slug": "alpha--new"}).status_code == 302


def test_the_slug_and_the_cap_of_a_project_are_for_operators(owner, alpha):
    """A slug in use is refused, and the memory of the store is shared."""
    form = {"name": "Alpha", "slug": "bravo", "partition_cap": "1000000", "active": "on", "time_zone": "UTC"}
    page = owner.get(f"/admin/projects/project/{alpha.project.pk}/change/")
    form["seen_version"] = page.context["adminform"].form.initial["seen_version"]
    form["policy"] = alpha.project.policy_id or ""

    assert owner.post(f"/admin/projects/project/{alpha.project.pk}/change/", form).status_code == 302

    alpha.project.refresh_from_db()
    assert (alpha.project.slug, alpha.project.partition_cap) == ("alpha", 10_000)


def test_what_projects_share_is_read_and_not_changed(owner, alpha, bravo):
    """A shared policy counts only the own tokens. Its limits are not overridden, and its history is not shown."""
    limit = LimitFactory(policy=PolicyFactory(slug="shared"), name="all")
    for project, count in ((alpha.project, 1), (bravo.project, 3)):
        for _ in range(count):
            TokenFactory(project=project, policy=limit.policy)
    url = f"/admin/policies/policy/{limit.policy.pk}/"
    page = text_of(owner.get(f"{url}change/"))

    assert "1 token<" in page
    assert "1 token<" in text_of(owner.get("/admin/policies/policy/?q=shared"))
    assert owner.post(f"{url}change/", {"slug": "mine"}).status_code == 403
    assert owner.post(f"{url}delete/", {"post": "yes"}).status_code == 403
    override = {
        "limit": limit.pk,
        "token": Token.objects.filter(policy=limit.policy).last().pk,
        "quota": 9,
        "reason": "x",
    }
    response = owner.post("/admin/policies/override/add/", override)
    assert "Only operators override what all projects share." in str(response.context["adminform"].form.errors["limit"])


def test_a_shared_policy_cannot_be_made_by_a_member(owner):
    """The form asks for the project."""
    form = {"slug": "x", "name": "x", "limits-TOTAL_FORMS": "0", "limits-INITIAL_FORMS": "0"}

    response = owner.post("/admin/policies/policy/add/", form)

    assert response.context["adminform"].form.errors["project"] == ["This field is required."]
    assert not Policy.objects.filter(name="x").exists()


def test_bulk_actions_reach_only_rows_that_one_may_change(client, alpha, bravo):
    """An editor of one project who reads another one revokes nothing there, also by "select all"."""
    editor = alpha.member("editor")
    read = ProjectFactory(slug="read")
    from_read = TokenFactory(project=read)
    read.memberships.create(user=editor, role="viewer")
    client.force_login(editor)
    own, theirs = alpha.rows["projects_token"], bravo.rows["projects_token"]
    form = {"_selected_action": [own.pk, theirs.pk, from_read.pk], "select_across": "1"}

    asked = client.post("/admin/projects/token/", {**form, "action": "revoke_selected"})
    assert asked.context["selection"]["count"] == 1
    client.post("/admin/projects/token/", {**form, "action": "revoke_selected", "change_reason": "leak"})

    assert list(Token.objects.exclude(revoked_at=None)) == [own]
    named = {"change_reason": "leak", "asked_name": own.name}
    client.post("/admin/projects/token/?status=all", {**form, "action": "delete_selected", **named})
    assert set(Token.objects.all()) == {theirs, from_read}


def test_overrides_of_a_shared_limit_are_read_and_kept(owner, alpha):
    """An operator has set them, perhaps to less than others have."""
    limit = LimitFactory(policy=PolicyFactory(slug="shared"), name="all")
    token = TokenFactory(project=alpha.project, policy=limit.policy)
    override = Override.objects.create(limit=limit, token=token, quota=1, reason="abuse")
    url = f"/admin/policies/override/{override.pk}/"

    assert owner.get(f"{url}change/").status_code == 200
    assert owner.post(f"{url}change/", {"quota": "99"}).status_code == 403
    assert owner.post(f"{url}delete/", {"post": "yes"}).status_code == 403
    owner.post(
        "/admin/policies/override/", {"_selected_action": [override.pk], "action": "delete_selected", "post": "yes"}
    )
    assert Override.objects.get(pk=override.pk).quota == 1
