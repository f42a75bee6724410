"""A form that is sent without scripts after the session has ended."""

import pytest

from controlplane.web.login.signed_out import NOT_SAVED
from tests.controlplane.conftest import PASSWORD

pytestmark = pytest.mark.django_db(transaction=True)

EMERGENCY = "/admin/emergency/suspension/"


@pytest.mark.parametrize(
    ("form", "came_from", "leads_to"),
    [
        (f"{EMERGENCY}glass/break/", EMERGENCY, EMERGENCY),
        (f"{EMERGENCY}glass/break/", "", None),
        ("/admin/projects/project/add/", "/admin/projects/project/add/", "/admin/projects/project/add/"),
    ],
)
def test_whoever_logs_in_again_learns_that_nothing_was_saved(client, ann, store, form, came_from, leads_to):
    """And comes to the page of the form, not to an address that only takes forms."""
    sent = {"host": "testserver", **({"referer": f"http://testserver{came_from}"} if came_from else {})}
    refused = client.post(form, {"slug": "shop"}, headers=sent)
    assert NOT_SAVED in client.get(refused["Location"]).content.decode()

    entered = client.post(refused["Location"], {"username": "ann", "password": PASSWORD})

    assert entered["Location"] == (leads_to or "/admin/")
    assert client.get(entered["Location"]).status_code == 200


def test_a_dialog_and_a_page_say_nothing_of_a_form(client, ann, store):
    for answer in (
        client.post(f"{EMERGENCY}glass/break/", headers={"HX-Request": "true"}),
        client.get(EMERGENCY),
        client.post("/admin/login/?next=/admin/", {"username": "ann", "password": "wrong"}),
    ):
        shown = answer if answer.status_code == 200 else client.get(answer["Location"])
        assert NOT_SAVED not in shown.content.decode()
