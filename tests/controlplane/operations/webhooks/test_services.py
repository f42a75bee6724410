"""Chats and pagers. The one of the tests is a receiver on loopback, which apprise reaches by its own "json"."""

import json
import logging

import pytest
from django.apps import apps
from django.core import serializers
from django.utils import timezone

from controlplane.operations.webhooks import deliveries, sealing, services
from controlplane.operations.webhooks.models import Delivery, Destination
from tests.factories import ProjectFactory

pytest.importorskip("apprise")
pytest.importorskip("cryptography")
pytestmark = pytest.mark.django_db(transaction=True)

CANARY = "canary-7f3a"
BODY = {"type": "test", "timestamp": "t", "data": {"title": "ci has reached 80 %", "text": "80 of 100 are used."}}


@pytest.fixture
def chat_destination(receiver, settings) -> Destination:
    """A chat whose URL has a secret."""
    settings.ALERT_SERVICES = ["slack", "json"]
    made = Destination(name="team", kind="chat")
    made.set_service(receiver.url.replace("http://", "json://").replace("/hook", f"/{CANARY}"))
    made.full_clean()
    made.save()
    return made


def send(destination: Destination) -> Delivery:
    (delivery,) = deliveries.enqueue([destination], "evt_1", "test", BODY)
    deliveries.run()
    delivery.refresh_from_db()
    return delivery


def test_an_alert_is_sent_to_a_chat(chat_destination, receiver):
    delivery = send(chat_destination)

    assert (delivery.state, delivery.result) == ("delivered", "The service json has accepted the message.")
    sent = json.loads(receiver.requests[0].body)
    assert (sent["title"], sent["message"]) == ("ci has reached 80 %", "80 of 100 are used.")


def test_what_a_chat_refuses_is_tried_again(chat_destination, receiver):
    receiver.answers = [b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"]

    delivery = send(chat_destination)

    assert (delivery.state, delivery.result) == ("pending", "The service json did not accept the message.")


def test_a_service_that_is_not_allowed_any_more_gets_nothing(chat_destination, receiver, settings):
    settings.ALERT_SERVICES = ["slack"]

    assert send(chat_destination).result == "The service json is not allowed any more."
    assert receiver.requests == []


def test_another_secret_key_reads_no_url(chat_destination, receiver, settings):
    """Unless the former one is among the fallbacks."""
    former, settings.SECRET_KEY = settings.SECRET_KEY, "another-" * 10
    assert "SECRET_KEY has changed" in send(chat_destination).result
    settings.SECRET_KEY_FALLBACKS = [former]

    assert sealing.unseal(chat_destination.sealed).startswith("json://")


@pytest.mark.parametrize(
    "url",
    [
        f"https://hooks.slack.com/services/{CANARY}",
        f"json://169.254.169.254/{CANARY}",
        f"file:///{CANARY}",
        f"slack://{CANARY}",
        f"slack://T1/{CANARY}\u202e/c",
        "slack",
        "slack://" + CANARY * 100,
        "",
    ],
)
def test_a_wrong_service_is_refused_without_its_secret(api, store, url):
    ProjectFactory(slug="chat")

    answer = api("POST", "webhooks", {"name": "t", "project": "chat", "kind": "chat", "service_url": url})

    assert answer.status_code == 400
    assert {error["pointer"] for error in answer.json()["errors"]} == {"#/service_url"}
    assert CANARY not in answer.content.decode()
    assert not Destination.objects.exists()


@pytest.mark.parametrize("template", ["/etc/hostname", "file:///etc/hostname", "http://127.0.0.1:{port}/t"])
@pytest.mark.parametrize(
    "url",
    [
        f"slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/?template={{}}&x={CANARY}",
        "tgram://123456789:AAbbccddeeffgghhiijjkkllmmnnoopp/12345?template={}",
        "discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js/?template={}",
    ],
)
def test_no_template_of_a_url_is_read(receiver, settings, url, template):
    """Which would be a file of this server, or an address inside the network."""
    settings.ALERT_SERVICES = ["slack", "tgram", "discord"]
    plain, given = url.split("?")[0], template.format(port=receiver.listener.getsockname()[1])
    assert services.check(plain)

    with pytest.raises(services.Refused, match="without a template"):
        services.check(url.format(given))
    assert not services.notify(url.format(given), "title", "text")
    assert receiver.requests == []


def test_a_url_does_not_choose_how_long_a_service_may_take(chat_destination, receiver, monkeypatch):
    """Nor whether it leads elsewhere."""
    monkeypatch.setattr(services, "SECONDS", 0.2)
    for answer in (receiver.hang, f"HTTP/1.1 307 Moved\r\nLocation: {receiver.url}\r\n\r\n".encode()):
        chat_destination.set_service(f"{receiver.url.replace('http://', 'json://')}?rto=600&cto=600&redirect=yes")
        receiver.answers = [answer]
        assert not services.notify(sealing.unseal(chat_destination.sealed), "title", "text")

    assert len(receiver.requests) == 2


def test_a_chat_needs_the_url_of_its_service(api, store):
    ProjectFactory(slug="chat")

    answer = api("POST", "webhooks", {"name": "t", "project": "chat", "kind": "chat"})

    assert answer.json()["errors"][0]["pointer"] == "#/service_url"


def test_the_url_of_a_service_is_nowhere_in_clear(api, as_ann, chat_destination, receiver, store, caplog):
    """Neither where it is kept, nor in what is shown, logged or audited."""
    caplog.set_level(logging.INFO)
    url = receiver.url.replace("http://", "json://").replace("/hook", f"/{CANARY}-2")
    receiver.answers = [b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"]
    made = api("POST", "webhooks", {"name": "t", "project": None, "kind": "chat", "service_url": url})
    form = {"name": "p", "kind": "chat", "service_url": f"{url}-3", "active": "on"}
    as_ann.post("/admin/webhooks/destination/add/", form)
    wrong = as_ann.post("/admin/webhooks/destination/add/", {**form, "name": ""})
    send(chat_destination)
    Delivery.objects.update(next_at=timezone.now())
    deliveries.run()

    assert Destination.objects.count() == 3
    assert (made.json()["secret"], made.json()["service"]) == (None, "json")
    kept = "".join(serializers.serialize("json", model.objects.all()) for model in apps.get_models())
    shown = "".join(as_ann.get(f"/admin/webhooks/{name}/").content.decode() for name in ("destination", "delivery"))
    one = as_ann.get(f"/admin/webhooks/destination/{chat_destination.pk}/change/").content.decode()
    for text in (made.content.decode(), kept, shown, one, wrong.content.decode(), caplog.text):
        assert CANARY not in text
    assert "json://…" in shown


def test_a_form_without_a_url_keeps_the_former_one(as_ann, chat_destination, store):
    page = as_ann.get(f"/admin/webhooks/destination/{chat_destination.pk}/change/")
    seen = page.context["adminform"].form.present
    form = {"name": "renamed", "kind": "chat", "seen_version": seen, "active": "on"}

    as_ann.post(f"/admin/webhooks/destination/{chat_destination.pk}/change/", form)

    former = chat_destination.sealed
    chat_destination.refresh_from_db()
    assert (chat_destination.name, chat_destination.sealed) == ("renamed", former)
