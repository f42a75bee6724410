"""Webhooks and their messages over REST."""

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.operations.webhooks import actions, deliveries
from controlplane.operations.webhooks.models import Delivery, Destination
from tests.factories import DestinationFactory, ManagementKeyFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)

BODY = {"name": "ops", "project": "chat", "url": "https://alerts.example/hook"}


def test_a_webhook_is_made_with_a_secret_that_is_shown_once(api, store, chat):
    answer = api("POST", "webhooks", BODY, Sluicegate_Reason="on call")

    made = answer.json()
    row = Destination.objects.get()
    assert (answer.status_code, answer["Location"]) == (201, f"/api/v1/webhooks/{row.pk}")
    assert made["secret"] == actions.secret(row)
    assert "secret" not in api("GET", f"webhooks/{row.pk}").json()
    assert AuditEntry.objects.get(action="destination.create").project == chat.pk


def test_a_repeated_request_makes_one_webhook_and_hides_its_secret(api, store, chat):
    first, second = (api("POST", "webhooks", BODY, Idempotency_Key="k1").json() for _ in range(2))

    assert first["id"] == second["id"]
    assert (first["secret"][:6], second["secret"]) == ("whsec_", None)


@pytest.mark.parametrize(
    ("wrong", "pointer", "code"),
    [
        ({"url": "http://user:password@a.example/"}, "#/url", "url"),
        ({"url": "https://2130706433/"}, "#/url", "url"),
        ({"url": "https://169.254.169.254/latest"}, "#/url", "url"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "#/url", "url"),
        ({"url": "http://93.184.215.14/"}, "#/url", "url"),
        ({"url": 5}, "#/url", "invalid"),
        ({"url": ""}, "#/url", "url"),
        ({"name": "a\u202eb"}, "#/name", "unprintable"),
        ({"project": "nope"}, "#/project", "does_not_exist"),
        ({"active": "yes"}, "#/active", "invalid"),
        ({"secret": "whsec_mine"}, "#/secret", "unknown_field"),
    ],
)
def test_a_wrong_webhook_is_refused_with_its_field(api, store, chat, wrong, pointer, code):
    answer = api("POST", "webhooks", {**BODY, **wrong})

    assert answer.status_code == 400
    assert [(error["pointer"], error["code"]) for error in answer.json()["errors"]] == [(pointer, code)]
    assert not Destination.objects.exists()


def test_a_webhook_of_the_installation_is_meant_only_by_null(api, store):
    """Whoever forgets the project makes none."""
    body = {name: value for name, value in BODY.items() if name != "project"}

    assert api("POST", "webhooks", body).json()["errors"][0]["pointer"] == "#/project"


def test_a_webhook_is_changed_but_not_moved(api, store, chat):
    row = DestinationFactory(project=chat)
    ProjectFactory(slug="other")

    assert api("PATCH", f"webhooks/{row.pk}", {"active": False}).json()["active"] is False
    assert api("PATCH", f"webhooks/{row.pk}", {"project": "other"}).json()["errors"][0]["code"] == "immutable"
    assert api("DELETE", f"webhooks/{row.pk}").status_code == 204


def test_a_secret_is_rotated(api, store, chat):
    row = DestinationFactory(project=chat)
    former = actions.secret(row)

    answer = api("POST", f"webhooks/{row.pk}/rotate")

    row.refresh_from_db()
    assert answer.json()["secret"] == actions.secret(row) != former
    assert api("POST", f"webhooks/{row.pk}/rotate", {"secret": "mine"}).status_code == 400


def test_nothing_is_tested_that_is_not_active(api, receiver, webhook, store):
    """Its message would wait until somebody makes it active."""
    answer = api("POST", f"webhooks/{webhook(active=False).pk}/test")

    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "#/active")
    assert not Delivery.objects.exists()


def test_a_test_is_sent_and_replayed(api, receiver, webhook, store):
    """Its delivery is at the address in the response."""
    answer = api("POST", f"webhooks/{webhook().pk}/test")
    at = answer["Location"]
    deliveries.run()

    first = api("GET", at).json()
    assert (answer.status_code, first["state"], first["type"], first["attempts"]) == (201, "delivered", "test", 1)
    assert first["body"]["data"]["title"].startswith("A test of webhook-")
    assert api("POST", f"{at}/replay").json()["state"] == "pending"
    deliveries.run()
    assert {request.headers["webhook-id"] for request in receiver.requests} == {first["message"]}
    assert len(receiver.requests) == 2


def test_messages_are_listed_by_webhook_and_state(api, store, db):
    one, other = DestinationFactory(), DestinationFactory()
    deliveries.enqueue([one, other], "evt_1", "test", {})
    Delivery.objects.filter(destination=other).update(state="failed")

    def listed(query):
        return [row["webhook"] for row in api("GET", f"deliveries?{query}").json()["results"]]

    assert listed(f"webhook={one.pk}") == [one.pk]
    assert listed("state=failed") == [other.pk]
    assert listed("message=evt_2") == []


def test_a_key_of_a_project_sees_nothing_of_others(call, store, chat):
    """Nor of the installation, and it can make nothing there."""
    key = ManagementKeyFactory(projects=[chat])
    foreign, shared = DestinationFactory(project=ProjectFactory(slug="other")), DestinationFactory()
    own = DestinationFactory(project=chat)
    deliveries.enqueue([own, foreign, shared], "evt_1", "test", {})

    def listed(path):
        return [row["id"] for row in call("GET", path, key=key).json()["results"]]

    assert listed("webhooks") == [own.pk]
    assert listed("deliveries") == [own.deliveries.get().pk]
    for row in (foreign, shared):
        assert call("GET", f"webhooks/{row.pk}", key=key).status_code == 404
        assert call("POST", f"webhooks/{row.pk}/test", key=key).status_code == 404
        assert call("POST", f"deliveries/{row.deliveries.get().pk}/replay", key=key).status_code == 404
    answer = call("POST", "webhooks", {**BODY, "project": None}, key=key)
    assert answer.json()["errors"][0]["code"] == "key_limited_to_projects"
    assert Destination.objects.count() == 3
