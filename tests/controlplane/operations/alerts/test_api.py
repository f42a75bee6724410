"""Alert rules and their events over REST."""

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.operations.alerts.events import decide
from controlplane.operations.alerts.findings import AlertFinding, Found
from controlplane.operations.alerts.models import AlertRule
from tests.factories import (
    AlertRuleFactory,
    DestinationFactory,
    LimitFactory,
    ManagementKeyFactory,
    PolicyFactory,
    ProjectFactory,
)

pytestmark = pytest.mark.django_db(transaction=True)

BODY = {"name": "80 %", "project": "chat", "kind": "usage"}


def test_a_rule_is_made_with_the_usual_numbers(api, store, chat):
    webhook = DestinationFactory(project=chat)

    answer = api("POST", "alert-rules", {**BODY, "webhooks": [webhook.pk]}, Sluicegate_Reason="on call")

    made = answer.json()
    assert answer.status_code == 201
    assert (made["thresholds"], made["limit"], made["within_seconds"]) == ([50, 80, 100], "*", None)
    assert (made["cool_down_seconds"], made["webhooks"], made["active"]) == (3_600, [webhook.pk], True)
    entry = AuditEntry.objects.get(action="alertrule.create")
    assert (entry.after["destinations"], entry.reason, entry.project) == ([webhook.pk], "on call", chat.pk)


@pytest.mark.parametrize(
    ("wrong", "pointer", "code"),
    [
        ({"kind": "weather"}, "#/kind", "invalid_choice"),
        ({"thresholds": []}, "#/thresholds", "range"),
        ({"thresholds": None}, "#/thresholds", "null"),
        ({"thresholds": [80, 50]}, "#/thresholds", "range"),
        ({"thresholds": [80, 80]}, "#/thresholds", "range"),
        ({"thresholds": [0]}, "#/thresholds", "range"),
        ({"thresholds": [101]}, "#/thresholds", "range"),
        ({"thresholds": [True]}, "#/thresholds", "range"),
        ({"thresholds": [80.5]}, "#/thresholds", "range"),
        ({"thresholds": {"80": 1}}, "#/thresholds", "range"),
        ({"thresholds": list(range(1, 12))}, "#/thresholds", "range"),
        ({"limit": "free/none"}, "#/limit", "does_not_exist"),
        ({"limit": "theirs/per-day"}, "#/limit", "does_not_exist"),
        ({"limit": ""}, "#/limit", "blank"),
        ({"kind": "store_outage"}, "#/project", "rule"),
        ({"kind": "expiring", "within_seconds": 59}, "#/within_seconds", "min_value"),
        ({"kind": "expiring", "within_seconds": "7 days"}, "#/within_seconds", "invalid"),
        ({"cool_down_seconds": 10**9}, "#/cool_down_seconds", "max_value"),
        ({"kind": "spend"}, "#/amount", "required"),
        ({"kind": "spend", "amount": 0}, "#/amount", "min_value"),
        ({"kind": "spend", "amount": 2.5}, "#/amount", "fraction"),
        ({"kind": "denials", "within_seconds": 3_601}, "#/within_seconds", "range"),
        ({"webhooks": "all"}, "#/webhooks", "invalid"),
        ({"webhooks": ["whk_none"]}, "#/webhooks", "does_not_exist"),
        ({"evaluated_at": None}, "#/evaluated_at", "unknown_field"),
    ],
)
def test_a_wrong_rule_is_refused_with_its_field(api, store, chat, wrong, pointer, code):
    LimitFactory(policy=PolicyFactory(slug="theirs", project=ProjectFactory(slug="other")), name="per-day")

    answer = api("POST", "alert-rules", {**BODY, **wrong})

    assert answer.status_code == 400
    assert [(error["pointer"], error["code"]) for error in answer.json()["errors"]] == [(pointer, code)]
    assert not AlertRule.objects.exists()


def test_a_rule_of_all_projects_tells_no_webhook_of_one(api, store, chat):
    """Its members would read the events of others."""
    webhook = DestinationFactory(project=chat)

    answer = api("POST", "alert-rules", {**BODY, "project": None, "webhooks": [webhook.pk]})
    assert answer.json()["errors"][0] == {
        "pointer": "#/webhooks",
        "code": "foreign",
        "detail": f"Must be of no project, as this rule is, but {webhook.name} is not.",
    }
    rule = AlertRuleFactory(project=chat, told=[webhook])
    answer = api("PATCH", f"alert-rules/{rule.pk}", {"project": None})
    assert answer.json()["errors"][0]["code"] == "foreign"


def test_a_rule_is_changed_and_deleted(api, store, chat):
    """A change of the webhooks alone is one, too."""
    rule, webhook = AlertRuleFactory(project=chat), DestinationFactory(project=chat)

    assert api("PATCH", f"alert-rules/{rule.pk}", {"webhooks": [webhook.pk]}).json()["webhooks"] == [webhook.pk]
    assert api("PATCH", f"alert-rules/{rule.pk}", {"kind": "expiring"}).json()["within_seconds"] == 604_800
    assert api("PATCH", f"alert-rules/{rule.pk}", {"kind": "expiring"}).status_code == 200
    assert AuditEntry.objects.filter(action="alertrule.update").count() == 2
    assert api("DELETE", f"alert-rules/{rule.pk}").status_code == 204


def test_a_key_of_a_project_sees_its_rules_and_events(call, store, chat):
    """Not what a rule of the installation has found in its project."""
    key = ManagementKeyFactory(projects=[chat])
    own, everywhere = AlertRuleFactory(project=chat), AlertRuleFactory()
    foreign = AlertRuleFactory(project=ProjectFactory(slug="other"))
    events = [
        decide(rule, Found([AlertFinding("s", "title", project=chat.pk)]), timezone.now())[0]
        for rule in (own, everywhere, foreign)
    ]

    def listed(path):
        return [row["id"] for row in call("GET", path, key=key).json()["results"]]

    assert listed("alert-rules") == [own.pk]
    assert listed("alert-events") == [events[0].pk]
    assert call("GET", f"alert-events/{events[0].pk}", key=key).json()["title"] == "title"
    for rule, event in zip((everywhere, foreign), events[1:], strict=True):
        assert call("GET", f"alert-rules/{rule.pk}", key=key).status_code == 404
        assert call("DELETE", f"alert-rules/{rule.pk}", key=key).status_code == 404
        assert call("GET", f"alert-events/{event.pk}", key=key).status_code == 404
    answer = call("POST", "alert-rules", {**BODY, "project": None}, key=key)
    assert answer.json()["errors"][0]["code"] == "key_limited_to_projects"
    answer = call("PATCH", f"alert-rules/{own.pk}", {"project": None}, key=key)
    assert answer.json()["errors"][0]["code"] == "key_limited_to_projects"
