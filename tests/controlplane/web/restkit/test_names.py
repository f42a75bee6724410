"""Names, descriptions and reasons are what a person can read, at every door."""

import pytest
from django.core.management import CommandError, call_command

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import change
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db

HIDDEN = {
    "CR and LF": "a\r\nX-Evil: 1",
    "ESC": "\x1b]0;pwned\x07",
    "BEL": "a\x07",
    "NEL": "a\x85b",
    "form feed": "a\x0cb",
    "line separator": "a\u2028b",
    "right-to-left override": "\u202egnp.exe",
    "zero-width space": "a\u200bb",
}
hidden = pytest.mark.parametrize("text", HIDDEN.values(), ids=HIDDEN)


@pytest.fixture
def rows() -> None:
    limit = LimitFactory(policy=PolicyFactory(slug="free"), name="minute")
    TokenFactory(project=ProjectFactory(slug="chat", policy=limit.policy), name="web")


def requests(text: str) -> list[tuple[str, str, dict]]:
    token = Token.objects.get().pk
    return [
        ("POST", "projects", {"slug": "new", "name": text}),
        ("PATCH", "projects/chat", {"name": text}),
        ("POST", "projects/chat/tokens", {"name": text}),
        ("PATCH", f"tokens/{token}", {"name": text}),
        ("POST", "policies", {"slug": "new", "name": text, "limits": []}),
        ("PATCH", "policies/free", {"name": text}),
        ("POST", "overrides", {"limit": "free/minute", "project": "chat", "quota": 5, "reason": text}),
        ("POST", f"counters/reset?token={token}", {"limit": "free/minute", "reason": text}),
    ]


@hidden
def test_rest_refuses_hidden_characters(api, rows, text):
    """Each field that people read, when a row is made and when it is changed."""
    for method, path, body in requests(text):
        response = api(method, path, body)

        assert response.status_code == 400, path
        assert [error["code"] for error in response.json()["errors"]] == ["unprintable"], path
    assert not AuditEntry.objects.exists()
    assert not Override.objects.exists()


def test_a_refusal_names_the_field_and_the_character(api):
    """What cannot be seen is named."""
    response = api("POST", "projects", {"slug": "chat", "name": "\u202egnp.exe"})

    assert response.json()["errors"] == [
        {
            "pointer": "#/name",
            "code": "unprintable",
            "detail": "Must have printable characters only, but contains U+202E RIGHT-TO-LEFT OVERRIDE.",
        }
    ]


def test_a_description_may_have_lines(api):
    """Nobody writes twenty sentences on one."""
    body = {"slug": "free", "name": "Free", "limits": [], "description": "For guests.\n\n\tSee the wiki."}

    assert api("POST", "policies", body).status_code == 201
    assert api("PATCH", "policies/free", {"description": "a\x1b[31m"}).status_code == 400


@hidden
def test_the_admin_refuses_hidden_characters(admin_client, rows, text):
    """The form names the field; nothing is saved, by a form or by a deletion whose reason is wrong."""
    project = Project.objects.get()
    form = {"slug": "chat", "name": text, "active": "on", "partition_cap": "10", "change_reason": text}

    page = admin_client.post(f"/admin/projects/project/{project.pk}/change/", form)
    sent = {"post": "yes", "object_name": "chat", "change_reason": text}
    deleted = admin_client.post(f"/admin/projects/project/{project.pk}/delete/", sent)

    assert {"name", "change_reason"} <= set(page.context["adminform"].errors)
    assert deleted.status_code == 400
    assert Project.objects.get().name == project.name


@hidden
def test_the_command_refuses_hidden_characters(text):
    """A key's name stands in the audit of every change that it makes."""
    with pytest.raises(CommandError, match="printable characters only"):
        call_command("create_management_key", "--name", text, "--scopes", "*", "--all-projects")

    assert not ManagementKey.objects.exists()


def test_an_old_row_can_be_rotated_and_renamed(api, rows):
    """Names that were saved before the rule do not keep a leaked token in use."""
    Token.objects.update(name="\x1b[31mred")
    old = Token.objects.get().pk

    rotated = api("POST", f"tokens/{old}/rotate", {"overlap_seconds": 0})
    renamed = api("PATCH", f"tokens/{rotated.json()['id']}", {"name": "red"})

    assert (rotated.status_code, rotated.json()["name"]) == (201, r"\x1b[31mred")
    assert (renamed.status_code, renamed.json()["name"]) == (200, "red")


@pytest.mark.django_db(transaction=True)
def test_an_old_state_can_be_restored(api, store, actor):
    """A roll-back to a revision with such a name goes through."""
    with change(actor=actor) as tx:
        tx.created(Policy.objects.create(slug="free", name="Fr\x07ee"))
    api("PATCH", "policies/free", {"name": "Free"})

    response = api("POST", f"revisions/{tx.revision}/rollback", {"reason": "wrong"})

    assert (response.status_code, Policy.objects.get().name) == (200, "Fr\x07ee")
