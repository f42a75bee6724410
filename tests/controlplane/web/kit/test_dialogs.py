"""Dialogs that fail: somebody else was faster, the session has ended, or the server is gone. Each says so."""

import pytest
from playwright.sync_api import expect

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.projects.models import Token
from tests.factories import LimitFactory, ManagementKeyFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

ROWS = {"projects/token": TokenFactory, "projects/managementkey": ManagementKeyFactory}
ROWS |= {"projects/project": ProjectFactory, "policies/policy": PolicyFactory}
OF_A_ROW = [
    ("projects/token", "rotate"),
    ("projects/token", "revoke"),
    ("projects/token", "reset_counters"),
    ("projects/project", "reset_counters"),
    ("projects/managementkey", "revoke"),
    ("policies/policy", "copy"),
    ("policies/policy", "apply_everywhere"),
    ("policies/policy", "apply_where_attached"),
    ("publishing/revision", "roll_back"),
]
GONE = "does not exist any more. Another user may have deleted it. Nothing was changed."


@pytest.mark.parametrize("in_dialog", [True, False])
@pytest.mark.parametrize(("page", "action"), OF_A_ROW)
def test_an_action_on_a_deleted_row_says_so(as_ann, store, page, action, in_dialog):
    """Another user has deleted it while the dialog was open."""
    key = "7"
    if page in ROWS:
        row = ROWS[page]()
        key = row.pk
        row.delete()
    headers = {"HX-Request": "true"} if in_dialog else {}
    form = {"_form_submitted": "on", "reason": "leaked", "overlap": "0", "slug": "copy", "name": "Copy"}

    response = as_ann.post(f"/admin/{page}/{key}/{action}/", form, headers=headers)

    where = response["HX-Redirect"] if in_dialog else response["Location"]
    assert (response.status_code, where) == (200 if in_dialog else 302, f"/admin/{page}/")
    assert GONE in as_ann.get(where).content.decode()
    assert not AuditEntry.objects.exists()


@pytest.mark.parametrize(
    ("page", "action"),
    [
        *(("projects/token", "rotate"), ("projects/token", "revoke"), ("projects/token", "suspend")),
        *(("projects/project", "reset_counters"), ("projects/managementkey", "revoke"), ("policies/policy", "copy")),
    ],
)
def test_a_dialog_opened_by_its_address_is_a_page(as_ann, page, action):
    """With the frame of the admin, a way back to the row, and a form that needs no script."""
    row = ROWS[page]()
    change = f"/admin/{page}/{row.pk.replace('_', '_5F')}/change/"

    opened = as_ann.get(f"/admin/{page}/{row.pk}/{action}/")
    refused = as_ann.post(f"/admin/{page}/{row.pk}/{action}/", {"_form_submitted": "on"})

    for shown in (opened, refused):
        assert shown.text.count("<html") == 1
        assert f'href="{change}"' in shown.text
        assert f": {row} |" in shown.text  # its title names the row
        assert "hx-post" not in shown.text.partition('id="dialog"')[2].partition("</form>")[0]
    assert "This field is required." in refused.text
    assert "<html" not in as_ann.get(f"/admin/{page}/{row.pk}/{action}/", headers={"HX-Request": "true"}).text


def test_a_dialog_that_is_a_page_leads_back_to_the_row(as_ann):
    """An empty response, which a script would follow, would be an empty page."""
    token = TokenFactory()

    done = as_ann.post(f"/admin/projects/token/{token.pk}/revoke/", {"_form_submitted": "on", "reason": "leaked"})

    change = f"/admin/projects/token/{token.pk.replace('_', '_5F')}/change/"
    assert (done.status_code, done["Location"]) == (302, change)
    assert not Token.objects.get().is_live


@pytest.fixture
def revoking(walker):
    """The dialog that revokes a token, open and filled in."""
    token = TokenFactory(policy=LimitFactory().policy)
    walker.enter("ann")
    walker.open(f"/admin/projects/token/{token.pk}/change/")
    walker.page.get_by_role("link", name="Revoke").click()
    walker.page.locator("#dialog input[name=reason]").fill("leaked")
    return walker


@pytest.mark.parametrize(
    ("cookies", "sentence"),
    [
        ({"name": "sessionid"}, "You are signed out, so nothing was done. Sign in again"),
        ({}, "This form is no longer valid. You logged in or out after you opened the form"),
    ],
)
def test_a_dialog_says_that_the_session_has_ended(revoking, cookies, sentence):
    """What was typed stays, and nothing was done."""
    revoking.page.context.clear_cookies(**cookies)
    revoking.press("Revoke token")
    dialog = revoking.page.locator("#modal-content")

    expect(dialog.get_by_role("alert")).to_contain_text(sentence)
    expect(dialog.locator("input[name=reason]")).to_have_value("leaked")
    assert not revoking.graves()
    assert Token.objects.get().is_live
    assert all("revoke/" in fault or "counters/" in fault for fault in revoking.faults)
    revoking.faults.clear()
    dialog.get_by_role("link").last.click()
    revoking.page.wait_for_load_state("load")
    revoking.page.wait_for_url("**/change/**")


def test_a_dialog_says_that_the_server_does_not_answer(revoking):
    """Nobody knows then whether the request has arrived."""
    revoking.page.route("**/revoke/", lambda route: route.abort())
    revoking.press("Revoke token")

    alert = revoking.page.locator("#modal-content").get_by_role("alert")
    expect(alert).to_contain_text("The server does not answer. It may have received the request.")
    revoking.page.unroute("**/revoke/")
    revoking.press("Revoke token")
    revoking.reads("is revoked. Published as revision 1.")
    revoking.faults.clear()


def test_a_dialog_that_cannot_be_opened_leads_to_the_login(walker):
    """Not to the page of the log-in inside of a dialog."""
    token = TokenFactory()
    walker.enter("ann")
    walker.open(f"/admin/projects/token/{token.pk}/change/")
    walker.press("Pause updates")
    walker.page.context.clear_cookies(name="sessionid")
    walker.page.get_by_role("link", name="Revoke").click()

    walker.page.wait_for_url("**/admin/login/?next=**change/**")
    walker.faults.clear()
