"""The pages of webhooks and of their messages."""

import json
import logging

import pytest
from django.apps import apps
from django.core import serializers
from django.urls import reverse
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.operations.webhooks import actions, deliveries
from controlplane.operations.webhooks.models import Delivery, Destination
from tests.factories import DestinationFactory, MembershipFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/webhooks/destination/"
DIALOG = {"_form_submitted": "on", "reason": "on call"}


def address(row, name="change"):
    return reverse(f"admin:{row._meta.label_lower.replace('.', '_')}_{name}", args=[row.pk])


def test_a_webhook_is_added_and_its_secret_shown_once(as_ann, store):
    project = ProjectFactory()
    form = {
        "name": "ops",
        "kind": "webhook",
        "project": project.pk,
        "url": "https://alerts.example/hook",
        "active": "on",
    }

    page = as_ann.post(f"{LIST}add/", form)

    row = Destination.objects.get()
    assert actions.secret(row) in page.content.decode()
    assert "no-store" in page["Cache-Control"]
    assert actions.secret(row) not in as_ann.get(address(row)).content.decode()


@pytest.mark.parametrize(
    "url", ["http://user:password@a.example/", "https://0177.0.0.1/", "https://10.1.2.3/", "alerts.example"]
)
def test_a_wrong_url_is_an_error_at_its_field(as_ann, store, url):
    page = as_ann.post(f"{LIST}add/", {"name": "ops", "kind": "webhook", "url": url, "active": "on"})

    assert page.context["adminform"].form.errors.keys() == {"url"}
    assert not Destination.objects.exists()


def test_the_page_says_that_nothing_is_sent_to_what_is_not_active(as_ann, store, receiver, webhook):
    """No message is saved, which would wait until somebody makes it active."""
    row = webhook(active=False)

    as_ann.post(address(row, "test"), DIALOG)

    assert "while it is not active" in as_ann.get(address(row)).text
    assert not Delivery.objects.exists()


def test_a_test_is_sent_from_the_page(as_ann, store, receiver, webhook):
    """The page of the message says how that went, and sends it again."""
    row = webhook()

    as_ann.post(address(row, "test"), DIALOG)
    deliveries.run()

    delivery = Delivery.objects.get()
    page = as_ann.get(address(delivery)).content.decode()
    assert "The response was 204." in page
    as_ann.post(address(delivery, "replay"), DIALOG)
    deliveries.run()
    assert len(receiver.requests) == 2
    assert ">delivered<" in as_ann.get(LIST).content.decode()
    assert ">delivered<" in as_ann.get("/admin/webhooks/delivery/").content.decode()


def test_nothing_is_sent_again_to_what_is_not_active(as_ann, api, store, receiver, webhook):
    """The message would wait until somebody activates the destination, and would be sent then."""
    as_ann.post(address(webhook(), "test"), DIALOG)
    deliveries.run()
    delivery = Delivery.objects.get()
    Destination.objects.update(active=False)
    before = Delivery.objects.values().get()

    as_ann.post(address(delivery, "replay"), DIALOG)
    page = as_ann.get(address(delivery)).text
    refused = api("POST", f"deliveries/{delivery.pk}/replay")

    assert "Nothing is sent to" in page
    assert "is sent again" not in page
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (400, "#/destination")
    assert Delivery.objects.values().get() == before
    assert not AuditEntry.objects.filter(action="delivery.replay").exists()


def test_nothing_is_sent_by_opening_an_address(as_ann, store, webhook):
    """A link in a mail would otherwise do it."""
    row = webhook()
    as_ann.get(address(row, "test"))
    deliveries.enqueue([row], "evt_1", "test", {})
    deliveries.run()

    as_ann.get(address(Delivery.objects.get(), "replay"))

    assert Delivery.objects.get().state == "delivered"


def test_a_secret_is_rotated_on_the_page(as_ann, store):
    row = DestinationFactory()

    page = as_ann.post(address(row, "rotate"), DIALOG)

    row.refresh_from_db()
    assert row.generation == 2
    assert actions.secret(row) in page.content.decode()


def test_a_member_sees_the_webhooks_of_the_own_projects(client, store):
    """Editors read them, and owners change them."""
    member = MembershipFactory(role="editor")
    own = DestinationFactory(project=member.project, name="own")
    other = DestinationFactory(project=ProjectFactory(), name="foreign")
    shared = DestinationFactory(name="shared")
    deliveries.enqueue([own, other, shared], "evt_1", "test", {})
    client.force_login(member.user)

    page = client.get(LIST).content.decode()

    assert ("own" in page, "foreign" in page, "shared" in page) == (True, False, False)
    sent = client.get("/admin/webhooks/delivery/")
    assert [row.destination for row in sent.context["cl"].result_list] == [own]
    for row in (other, shared):
        assert client.get(address(row)).status_code == 404
        client.post(address(row, "test"), DIALOG)
        client.post(address(row.deliveries.get(), "replay"), DIALOG)
    client.post(address(own, "test"), DIALOG)
    assert Delivery.objects.count() == 3


def test_no_secret_is_kept_or_logged(as_ann, api, receiver, webhook, store, caplog):
    """Of what was made, used, rotated, refused and exported, by each way."""
    caplog.set_level(logging.DEBUG)
    row = webhook()
    receiver.answers = [b"HTTP/1.1 500 Oops\r\n\r\n", b""]
    secrets = [actions.secret(row)]
    as_ann.post(address(row, "rotate"), DIALOG)
    api("POST", f"webhooks/{row.pk}/rotate", Idempotency_Key="k1")
    for generation in (2, 3):
        row.generation = generation
        secrets.append(actions.secret(row))
    for _ in range(3):
        api("POST", f"webhooks/{row.pk}/test")
        deliveries.run()
        Delivery.objects.update(next_at=timezone.now())
    kept = "".join(serializers.serialize("json", model.objects.all()) for model in apps.get_models())
    pages = "".join(
        as_ann.get(path).content.decode()
        for path in (LIST, address(row), "/admin/webhooks/delivery/", address(Delivery.objects.first()))
    )
    exported = b"".join(as_ann.get(reverse("admin:policies_auditentry_jsonl")).streaming_content).decode()

    for text in (kept, pages, exported, caplog.text, json.dumps(api("GET", "deliveries").json())):
        assert row.pk in text or text == caplog.text
        assert not [secret for secret in secrets if secret in text or secret.removeprefix("whsec_") in text]
