"""A form that is sent twice, by a double click or a browser that repeats it, is saved once."""

import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.signals import request_started
from playwright.sync_api import expect

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.drafts.models import PolicyDraft
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory

FORMS = {
    "projects/project": (Project, {"slug": "shop", "name": "Shop"}),
    "policies/policy": (Policy, {"slug": "free", "name": "Free", "limits-TOTAL_FORMS": 0, "limits-INITIAL_FORMS": 0}),
    "projects/token": (Token, {"name": "web"}),
    "projects/managementkey": (ManagementKey, {"name": "ci", "scopes": ["tokens:read"], "all_projects": "on"}),
}


TWO_CLICKS = """async button => {
    button.click();
    await new Promise(done => setTimeout(done, 50));
    button.click();
}"""


def key_of(page) -> str:
    return re.search(r'name="form_key" value="([\w-]{20,})"', page.content.decode())[1]


@pytest.fixture
def limit(db):
    return LimitFactory(policy=PolicyFactory(slug="chat-free"), name="per-minute", quota=25)


@pytest.mark.parametrize("page", FORMS)
def test_a_form_that_is_sent_twice_adds_one_row(as_ann, told, page):
    """The second response leads to the row. The same values in a form that was opened anew are another row."""
    model, fields = FORMS[page]
    more = {"project": ProjectFactory(slug="other").pk} if model is Token else {}
    url, before = f"/admin/{page}/add/", set(model.objects.values_list("pk", flat=True))
    fields = {**fields, **more, "form_key": key_of(as_ann.get(url))}
    as_ann.post(url, fields)
    entries = AuditEntry.objects.count()
    again = as_ann.post(url, fields, follow=True)

    (added,) = set(model.objects.values_list("pk", flat=True)) - before
    assert again.redirect_chain[0][0] == f"/admin/{page}/{added.replace('_', '_5F')}/change/"
    assert any("The form was sent twice" in text for text in told(again))
    assert AuditEntry.objects.count() == entries
    if model is Token:
        as_ann.post(url, {**fields, "form_key": key_of(as_ann.get(url))})
        assert Token.objects.filter(name="web").count() == 2


def test_a_draft_that_is_sent_twice_is_one(as_ann, limit, told):
    """One message says that it is saved, also if a browser has dropped the first response and kept its cookie."""
    url = f"/admin/policies/policy/{limit.policy_id.replace('_', '_5F')}/change/"
    page = as_ann.get(url)
    names = ("name", "quota", "unit", "algorithm", "mode", "consistency", "on_store_failure")
    row = {f"limits-0-{name}": getattr(limit, name) for name in names} | {"limits-0-id": limit.pk}
    fields = {"slug": "chat-free", "name": limit.policy.name, "limits-TOTAL_FORMS": 1, "limits-INITIAL_FORMS": 1, **row}
    seen = re.search(r'name="seen_version" value="(\w+)"', page.content.decode())[1]
    fields |= {"limits-0-window_seconds": 60, "limits-0-quota": 7, "seen_version": seen, "_draft": "1"}
    fields |= {"form_key": key_of(page)}
    as_ann.post(url, fields)
    shown = told(as_ann.post(url, fields, follow=True))

    assert PolicyDraft.objects.count() == 1
    assert shown.count("Saved as a draft. Nothing is published.") == 1
    assert Limit.objects.get().quota == 25


def test_a_form_that_was_refused_may_be_sent_again(as_ann, db):
    """It was not saved, so what it holds is not remembered."""
    url = "/admin/projects/project/add/"
    taken = ProjectFactory(slug="shop")
    fields = {"slug": "shop", "name": "Shop", "form_key": key_of(as_ann.get(url))}
    assert as_ann.post(url, fields).status_code == 200
    taken.delete()
    assert as_ann.post(url, fields).status_code == 302
    assert Project.objects.get().slug == "shop"


@pytest.fixture
def may_answer() -> Iterator[threading.Event]:
    """Let the server answer a form when this event is set, so that the second click finds the page as it was."""
    event = threading.Event()

    def wait(environ: dict[str, Any], **_: object) -> None:
        if environ["REQUEST_METHOD"] == "POST" and not environ["PATH_INFO"].endswith("/advice/"):
            event.wait(60)

    request_started.connect(wait)
    yield event
    event.set()
    request_started.disconnect(wait)


@pytest.mark.django_db(transaction=True)
def test_a_double_click_writes_once(walker, may_answer):
    """In forms, and in dialogs, whose second request the theme would send after the first."""
    limit = LimitFactory(policy=PolicyFactory(slug="chat-free"), name="per-minute", quota=25)
    project = ProjectFactory(slug="shop")
    page, asked = walker.page, []
    page.on("request", lambda request: request.method == "POST" and asked.append(request.url))
    walker.enter("ann")

    def twice(name: str, text: str, requests: int = 1) -> None:
        may_answer.clear()
        page.get_by_role("button", name=name, exact=True).evaluate(TWO_CLICKS)
        may_answer.set()
        walker.reads(text)
        assert len([url for url in asked if not url.endswith("/advice/")]) == requests, asked
        asked.clear()

    walker.open("/admin/projects/project/add/")
    page.get_by_label("Slug").fill("mail")
    page.get_by_label("Name").fill("Mail")
    twice("Add project", "was added successfully")
    assert Project.objects.filter(slug="mail").count() == 1
    walker.open(f"/admin/projects/token/add/?project={project.pk}")
    page.get_by_label("Name").fill("web")
    twice("Add token", "Token created")
    token = Token.objects.get()
    page.locator("#stored").check()
    walker.open(f"/admin/policies/policy/{limit.policy_id}/change/")
    page.locator("#id_limits-0-quota").fill("10")
    twice("Save as draft", "Saved as a draft")
    expect(page.get_by_text("Saved as a draft. Nothing is published.")).to_have_count(1)
    assert PolicyDraft.objects.count() == 1
    walker.open(f"/admin/projects/token/{token.pk}/change/")
    page.get_by_role("link", name="Revoke").click()
    page.get_by_role("dialog").get_by_label("Reason").fill("leaked")
    twice("Revoke token", "is revoked")
    assert AuditEntry.objects.filter(object_id=token.pk, action="token.revoke").count() == 1
