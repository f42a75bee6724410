"""What a member of "alpha" sends with ids of "bravo" is answered as with ids that nobody has, and changes nothing."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.messages import get_messages
from django.core import serializers
from django.test import Client
from django.urls import reverse

from controlplane.changes.audit.models import AuditEntry
from controlplane.releases.publishing.models import OutboxEntry
from tests.controlplane.objects.people.addresses import address, is_of_a_row, patterns, row_of, unknown_key
from tests.controlplane.objects.people.test_other_projects import text_of, without_keys
from tests.scale import scale

pytestmark = pytest.mark.django_db

# What the forms of all addresses ask for.
FORM = {
    "post": "yes",
    "_form_submitted": "on",
    "reason": "r",
    "change_reason": "r",
    "overlap": "0",
    "way": "release",
    "slug": "alpha--copy",
    "name": "copy",
    "quota": "7",
    "until": "tonight",
}


def kept(rows: dict[str, Any]) -> tuple[str, int, int]:
    """The rows as they are in the database, and how much was recorded and is to be published."""
    present = [type(row)._base_manager.get(pk=row.pk) for row in rows.values() if row._meta.model_name != "user"]
    return serializers.serialize("json", present), AuditEntry.objects.count(), OutboxEntry.objects.count()


def outcome(response: Any, *keys: str) -> tuple[int, str, str]:
    """What a response tells: its status, where it leads to with which messages, and its text."""
    where = response.headers.get("Location", "") or response.headers.get("HX-Redirect", "")
    messages = " ".join(map(str, get_messages(response.wsgi_request)))
    response.client.cookies.pop("messages", None)  # which the next response would repeat
    longest_first = sorted(keys, key=len, reverse=True)
    return response.status_code, *(
        without_keys(text, *longest_first) for text in (f"{where} {messages}", text_of(response))
    )


@pytest.mark.proof
@pytest.mark.parametrize(
    ("role", "headers"), scale([("owner", {})], [("editor", {}), ("owner", {}), ("owner", {"HX-Request": "true"})])
)
def test_a_post_to_a_row_of_others_is_like_one_to_no_row(client: Client, alpha, bravo, role: str, headers):
    client.force_login(alpha.member(role))
    before = kept(bravo.rows)

    for pattern in filter(is_of_a_row, patterns()):
        row = row_of(pattern, bravo.rows)
        if row is None:
            continue
        keys = str(row.pk), str(unknown_key(row))
        answers = (client.post(address(pattern, row, key), FORM, headers=headers) for key in keys)
        theirs, nobodys = (outcome(answer, *keys) for answer in answers)
        assert theirs == nobodys, pattern.name
        assert theirs[0] < 500, pattern.name
        assert "bravo" not in str(theirs), pattern.name
    assert kept(bravo.rows) == before


def actions() -> Iterator[tuple[str, str]]:
    """Each list with the actions that it may offer."""
    for model, page in admin.site._registry.items():
        for name in {*(action.name for action in page.bulk_actions), "delete_selected"}:
            yield f"{model._meta.app_label}_{model._meta.model_name}", name


def test_an_action_on_rows_of_others_is_like_one_on_no_row(client: Client, alpha, bravo):
    """Asked for and confirmed at once."""
    client.force_login(alpha.member("editor"))
    before = kept(bravo.rows)

    for name, action in actions():
        row = bravo.rows.get(name)
        if row is None:
            continue
        keys = str(row.pk), str(unknown_key(row))
        form = {"action": action, "index": "0", "asked_name": str(row), "object_name": str(row)}
        form |= {"change_reason": "r", "post": "yes"}
        url = reverse(f"admin:{name}_changelist")
        theirs, nobodys = (outcome(client.post(url, {**form, "_selected_action": [key]}), *keys) for key in keys)
        assert theirs == nobodys, (name, action)
        assert theirs[0] < 500, (name, action)
    assert kept(bravo.rows) == before


# The address and the fields with "KEY" for the id of a row of others, "ID" for those of own rows, and that row.
FIELDS = [
    ("policies/policy/advice/", {"policy": "KEY"}, "policies_policy"),
    ("policies/policy/advice/", {"project": "KEY", "limits-TOTAL_FORMS": "0"}, "projects_project"),
    ("explain/", {"token": "KEY"}, "projects_token"),
    ("policies/override/add/", {"limit": "KEY", "token": "ID", "quota": "1", "reason": "x"}, "policies_limit"),
    ("policies/override/add/", {"token": "KEY", "quota": "1", "reason": "x"}, "projects_token"),
    ("policies/override/raise/token/ID/", {"limit": "KEY", "quota": "900", "until": "hour"}, "policies_limit"),
    ("projects/token/ID/reset_counters/", {"limit": "KEY", "reason": "r"}, "policies_limit"),
    ("projects/token/ID/change/", {"name": "x", "policy": "KEY"}, "policies_policy"),
    ("projects/token/add/", {"name": "x", "project": "KEY"}, "projects_project"),
    ("projects/token/add/", {"name": "x", "policy": "KEY"}, "policies_policy"),
    (
        "emergency/suspension/value/",
        {"value-name": "ip", "value-value": "1", "value-within": "KEY"},
        "projects_project",
    ),
    ("emergency/suspension/KEY/resume/", {"reason": "r"}, "emergency_suspension"),
    ("jobs/job/KEY/cancel/", {}, "jobs_job"),
    ("access/membership/add/", {"person": "x", "role": "viewer", "project": "KEY"}, "projects_project"),
    ("projects/managementkey/add/", {"name": "x", "scopes": "projects:read", "projects": "KEY"}, "projects_project"),
    ("reservations/reservation/KEY/settle/", {"way": "release", "reason": "r"}, "reservations_reservation"),
]


@pytest.mark.proof
@pytest.mark.parametrize("role", ["owner", *scale((), ("editor",))])
def test_the_id_of_others_in_a_field_is_like_no_id(client: Client, alpha, bravo, role: str):
    client.force_login(alpha.member(role))
    before, own = kept(bravo.rows), alpha.rows["projects_token"].pk

    for path, form, name in FIELDS:
        row, found = bravo.rows[name], []
        keys = str(row.pk), str(unknown_key(row))
        for key in keys:
            fields = {field: value.replace("KEY", key).replace("ID", own) for field, value in form.items()}
            url = f"/admin/{path.replace('KEY', key).replace('ID', own)}"
            found.append(outcome(client.post(url, {"_form_submitted": "on", **fields}), *keys))
        assert found[0] == found[1], (path, form)
        assert found[0][0] < 500, path
        assert "bravo" not in str(found), path
    assert kept(bravo.rows) == before


# Pages that are asked by GET, with the name or id of others and one that nobody has.
QUERIES = [
    ("statements/monthrow/?project=KEY", "bravo", "brava"),
    ("statements/monthrow/?policy=KEY", "bravo--plan", "brava--plan"),
    ("statements/monthrow/?token=KEY&format=csv", "projects_token", None),
    ("usage/usagerow/export.csv?project_id=KEY", "projects_project", None),
    ("usage/usagerow/export.csv?policy_id=KEY&of=limits", "bravo--plan", "brava--plan"),
    ("usage/meteredrow/export.csv?token_id=KEY", "bravo-token", "brava-token"),
    ("policies/auditentry/export.csv?object_type=token&object_id=KEY", "projects_token", None),
    ("policies/auditentry/export.jsonl?q=KEY", "projects_token", None),
    ("reservations/reservation/?project=KEY", "bravo", "brava"),
    ("reservations/reservation/?token=KEY", "bravo-token", "brava-token"),
    ("explain/?token=KEY", "projects_token", None),
    ("search/?s=KEY", "projects_token", None),
    ("autocomplete/?app_label=projects&model_name=token&field_name=policy&term=KEY", "bravo", "brava"),
    ("projects/project/?policy__id__exact=KEY", "policies_policy", None),
]


def test_the_name_of_others_in_an_address_is_like_no_name(client: Client, alpha, bravo):
    client.force_login(alpha.member("owner"))

    for path, theirs, nobodys in QUERIES:
        row = bravo.rows.get(theirs)
        keys = (theirs, nobodys) if row is None else (row.pk, unknown_key(row))
        found = [outcome(client.get(f"/admin/{path.replace('KEY', key)}"), *keys) for key in keys]
        assert found[0] == found[1], path
        assert found[0][0] < 500, path


def test_a_confirmation_names_no_project_of_others(client: Client, alpha, bravo):
    """It says by which filters the rows were found, one of which may be given twice."""
    client.force_login(alpha.member("editor"))
    own, theirs = alpha.project.pk, bravo.project.pk
    url = f"/admin/projects/token/?project__id__exact={own}&project__id__exact={theirs}"

    page = client.post(url, {"action": "revoke_selected", "_selected_action": [alpha.rows["projects_token"].pk]})

    assert "bravo" not in text_of(page)


def test_a_policy_takes_no_limit_of_others(client: Client, alpha, bravo):
    """By the hidden id of a row of its form."""
    client.force_login(alpha.member("owner"))
    policy, theirs = alpha.rows["policies_policy"], bravo.rows["policies_limit"]
    before = kept(bravo.rows)

    keys, answers = (theirs.pk, unknown_key(theirs)), []
    for key in keys:
        form = {"slug": policy.slug, "name": "x", "limits-TOTAL_FORMS": "1", "limits-INITIAL_FORMS": "1"}
        form |= {"limits-0-id": key, "limits-0-name": "n", "limits-0-quota": "1", "limits-0-policy": policy.pk}
        answers.append(outcome(client.post(f"/admin/policies/policy/{policy.pk}/change/", form), *keys))

    assert answers[0] == answers[1]
    assert kept(bravo.rows) == before
