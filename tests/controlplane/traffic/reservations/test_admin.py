"""Reservations in the admin: an operator sees what runs and what is lost, and settles it once, with a reason."""

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.projects.models import Project
from controlplane.traffic.reservations import recording
from controlplane.traffic.reservations.models import Reservation
from enforcement.model.keys import Keys
from enforcement.plan.records import RecordKeys
from enforcement.store_calls.reservations import settle_reservation
from tests.factories import MembershipFactory, UserFactory

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/reservations/reservation/"
TOKENS = {"way": "usage", "input": "90", "output": "40", "reason": "The proxy was killed."}


def page_of(pk: str) -> str:
    return f"{LIST}{pk}/settle/"


def test_the_list_shows_whose_it_is_and_what_it_holds(as_ann, reserved):
    text = as_ann.get(LIST).content.decode()

    for shown in (f'data-id="{reserved}"', 'data-state="open"', "gpt-x", "proxy-2", "chat", "600 tokens", "0.0021 USD"):
        assert shown in text


def test_filters(as_ann, reserved):
    shown = {
        "state=open": True,
        "state=lost": False,
        "state=settled": False,
        "project=chat": True,
        "token=ci": True,
        "older=1+hour": False,
        "older=0+seconds": True,
    }
    assert {
        query: f'data-id="{reserved}"' in as_ann.get(f"{LIST}?{query}").content.decode() for query in shown
    } == shown


def test_a_wrong_filter_lists_nothing_and_says_why(as_ann, reserved):
    for query, text in (
        ("state=any", "Select a valid choice"),
        ("project=none", "There is no project &#x27;none&#x27;."),
        ("token=none", "Must be an id: no token has this name."),
        ("older=soon", "Must be a duration"),
        ("older=1000000+days", "Must be at most 30 days."),
    ):
        shown = as_ann.get(f"{LIST}?{query}").content.decode()
        assert (text in shown, reserved in shown) == (True, False), query


def test_settled_by_tokens_with_the_audit(as_ann, reserved, used_by_limit):
    answer = as_ann.post(page_of(reserved), TOKENS, follow=True)

    assert "The reservation is settled, and its counters are corrected." in answer.content.decode()
    assert (used_by_limit()["tpm"], used_by_limit()["usd"]) == (130, 250)
    entry = AuditEntry.objects.get(object_type="reservation")
    assert (entry.actor, entry.channel, entry.reason) == ("ann", "admin", "The proxy was killed.")
    assert "+" not in (page := as_ann.get(page_of(reserved)).content.decode()).partition("Corrected by")[2][:400]
    assert "-470" in page
    assert "Settle by hand" not in page


WRONG_FORMS = (
    ({"reason": ""}, "This field is required."),
    ({"reason": "a\u0007b"}, "Must have printable characters only"),
    ({"way": "guess"}, "Select a valid choice"),
    ({"input": ""}, "0 is a number, too."),
    ({"output": "-1"}, "greater than or equal to 0"),
    ({"way": "costs"}, "Name at least one unit"),
    ({"way": "costs", "costs": "images = 3"}, "No limit of this reservation counts"),
    ({"way": "costs", "costs": "tokens = 1.5"}, "Each line must hold a name and an integer"),
)


def test_a_wrong_form_changes_nothing(as_ann, reserved, used_by_limit):
    for changed, text in WRONG_FORMS:
        assert text in as_ann.post(page_of(reserved), {**TOKENS, **changed}).content.decode(), changed
    assert used_by_limit()["tpm"] == 600
    assert not Reservation.objects.exists()


def test_one_that_was_settled_meanwhile_is_not_settled_again(as_ann, told, reserved, client_of_store):
    where = RecordKeys.from_id(Keys(), reserved)
    client_of_store.zadd(where.index, {where.ident: 1})
    recording.record(timezone.now(), client_of_store)
    settle_reservation(client_of_store, Keys(), reserved, {"tokens": 5})

    answer = as_ann.post(page_of(reserved), TOKENS, follow=True)

    assert told(answer) == ["The reservation is settled already. Nothing was changed."]
    assert not AuditEntry.objects.filter(object_type="reservation").exists()


def test_who_may_only_look_settles_nothing(client, reserved, used_by_limit):
    looks = UserFactory()
    client.force_login(looks)
    assert client.get(LIST).status_code == 403
    assert client.get(page_of(reserved)).status_code == 403

    MembershipFactory(user=looks, project=Project.objects.get(slug="chat"))
    page = client.get(page_of(reserved)).content.decode()
    assert "Settle by hand" not in page
    assert "proxy-1" not in page + client.get(LIST).content.decode()
    assert client.post(page_of(reserved), TOKENS).status_code == 403
    assert used_by_limit()["tpm"] == 600


def test_an_editor_settles_the_reservations_of_the_project_only(client, reserved, used_by_limit):
    """To members of other projects they do not exist."""
    client.force_login(MembershipFactory(role="owner").user)
    assert reserved not in client.get(LIST).content.decode()
    assert client.get(page_of(reserved)).status_code == 404
    assert client.post(page_of(reserved), TOKENS).status_code == 404
    assert "There is no project" in client.get(f"{LIST}?project=chat").content.decode()
    assert used_by_limit()["tpm"] == 600

    client.force_login(MembershipFactory(project=Project.objects.get(slug="chat"), role="editor").user)
    assert reserved in client.get(f"{LIST}?project=chat").content.decode()
    assert client.post(page_of(reserved), TOKENS).status_code == 302
    assert used_by_limit()["tpm"] != 600


@pytest.mark.parametrize("pk", ["x", "proj_x.0", "proj_1." + "0" * 32, "%2e%2e"])
def test_an_id_that_is_none_is_not_found(as_ann, store, pk):
    assert as_ann.get(page_of(pk)).status_code == 404


def test_without_the_store_the_settled_ones_are_still_listed(as_ann, reserved, store):
    as_ann.post(page_of(reserved), TOKENS)
    store.kill()
    try:
        away = as_ann.get(LIST).content.decode()
        kept = as_ann.get(f"{LIST}?state=settled").content.decode()
    finally:
        store.start()

    assert "The store is not reachable" in away
    assert f'data-id="{reserved}"' in kept


def test_metered_usage_is_listed_and_downloaded(as_ann, reserved):
    as_ann.post(page_of(reserved), TOKENS)

    listed = as_ann.get("/admin/usage/meteredrow/").content.decode()
    file = as_ann.get("/admin/usage/meteredrow/export.csv").getvalue().decode().splitlines()

    assert "exact" in listed
    assert file[0].endswith("requests,input,cached_input,cache_write,output,micros,estimated_input,calls,project,token")
    assert file[1].endswith(",gpt-x,exact,False,7,1,90,0,0,40,250,100,0,chat,ci")


def test_in_a_browser(walker, reserved, client_of_store):
    """From the list to a lost one, which is settled by what the provider's bill says, and given a reason."""
    walker.enter("ann")
    walker.open(LIST)
    where = RecordKeys.from_id(Keys(), reserved)
    client_of_store.zadd(where.index, {where.ident: int(timezone.now().timestamp() - 3_600) * 1_000_000})
    recording.record(timezone.now(), client_of_store)
    walker.page.get_by_label("State").select_option("lost")
    walker.press("Filter")
    walker.look("lost")
    walker.page.get_by_role("link", name="Settle").click()
    walker.page.get_by_label("Reason").fill("The proxy was killed.")
    walker.press("Settle this reservation")
    walker.reads("0 is a number, too.")
    walker.look("reservation", elsewhere=True)
    walker.page.get_by_label("Input tokens", exact=True).fill("90")
    walker.page.get_by_label("Output tokens", exact=True).fill("40")
    walker.press("Settle this reservation")
    walker.reads("The reservation is settled, and its counters are corrected.")
    walker.open(f"{LIST}?state=settled")
    walker.page.get_by_role("link", name="Show").click()
    walker.reads("Corrected by the settlement")
