"""The pages of alert rules and their events."""

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.db.models import CASCADE
from django.test import RequestFactory
from django.urls import reverse
from django.utils import timezone

from controlplane.operations.alerts.events import decide
from controlplane.operations.alerts.findings import AlertFinding, Found
from controlplane.operations.alerts.models import AlertRule
from tests.factories import AlertRuleFactory, DestinationFactory, MembershipFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)

RULES, EVENTS = "/admin/alerts/alertrule/", "/admin/alerts/alertevent/"
FORM = {"name": "80 %", "kind": "usage", "limit": "*", "thresholds": "80, 100 %", "cool_down_seconds": "30 minutes"}


def test_a_rule_is_added_on_the_page(as_ann, store):
    """With words for its times, and per cent as people write them."""
    project = ProjectFactory()
    webhook = DestinationFactory(project=project)

    as_ann.post(f"{RULES}add/", {**FORM, "project": project.pk, "destinations": [webhook.pk], "active": "on"})

    rule = AlertRule.objects.get()
    assert (rule.thresholds, rule.cool_down_seconds, list(rule.destinations.all())) == ([80, 100], 1_800, [webhook])
    page = as_ann.get(RULES).content.decode()
    assert "a share of a limit is used" in page
    assert webhook.name in page


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"thresholds": "80, 50"}, "thresholds"),
        ({"thresholds": "many"}, "thresholds"),
        ({"kind": "denials", "within_seconds": "2 hours"}, "within_seconds"),
        ({"kind": "spend"}, "amount"),
        ({"kind": "spend", "amount": "-1"}, "amount"),
        ({"limit": "free/none"}, "limit"),
        ({"cool_down_seconds": "soon"}, "cool_down_seconds"),
        ({"kind": "expiring", "within_seconds": "1 second"}, "within_seconds"),
    ],
)
def test_a_wrong_rule_is_an_error_at_its_field(as_ann, store, wrong, field):
    page = as_ann.post(f"{RULES}add/", {**FORM, **wrong})

    assert page.context["adminform"].form.errors.keys() == {field}
    assert not AlertRule.objects.exists()


def test_thresholds_that_nobody_chooses_are_the_usual_ones(as_ann, store):
    as_ann.post(f"{RULES}add/", {**FORM, "kind": "denials", "thresholds": ""})
    as_ann.post(f"{RULES}add/", {**FORM, "kind": "spend", "thresholds": "", "amount": "12.50"})

    rules = AlertRule.objects.order_by("kind").values_list("thresholds", "within_seconds", "amount")
    assert list(rules) == [([10], 300, None), ([50, 80, 100], None, 12_500_000)]


def test_a_webhook_of_another_project_cannot_be_chosen(as_ann, store):
    webhook = DestinationFactory(project=ProjectFactory())

    page = as_ann.post(f"{RULES}add/", {**FORM, "destinations": [webhook.pk]})

    assert page.context["adminform"].form.errors.keys() == {"destinations"}


def test_a_member_sees_the_rules_and_events_of_the_own_projects(client, store):
    member = MembershipFactory(role="editor")
    rules = [
        AlertRuleFactory(project=project, name=name)
        for name, project in (("own", member.project), ("foreign", ProjectFactory()), ("everywhere", None))
    ]
    events = [
        decide(rule, Found([AlertFinding("s", f"{rule}-title", project=member.project.pk)]), timezone.now())[0]
        for rule in rules
    ]
    DestinationFactory(project=member.project, name="own-webhook")
    for project in (rules[1].project, None):
        DestinationFactory(project=project, name="foreign-webhook")
    client.force_login(member.user)

    form = client.get(f"{RULES}add/").text
    assert ("own-webhook" in form, "foreign-webhook" in form) == (True, False)
    assert [str(row) for row in client.get(RULES).context["cl"].result_list] == ["own"]
    assert [str(row) for row in client.get(EVENTS).context["cl"].result_list] == ["own-title"]
    statuses = [client.get(reverse("admin:alerts_alertevent_change", args=[row.pk])).status_code for row in events]
    assert statuses == [200, 404, 404]
    # Neither a rule of the installation nor one of a kind that is about it.
    for wrong in ({"project": ""}, {"project": member.project.pk, "kind": "store_outage"}):
        assert client.post(f"{RULES}add/", {**FORM, **wrong}).status_code == 200
    assert AlertRule.objects.count() == 3


def test_an_event_says_what_and_whom_it_told(as_ann, store):
    rule = AlertRuleFactory(told=[DestinationFactory(name="ops")])
    (event,) = decide(rule, Found([AlertFinding("s", "ci has reached 80 %", data={"quota": 100})]), timezone.now())

    page = as_ann.get(reverse("admin:alerts_alertevent_change", args=[event.pk])).content.decode()

    for text in ("ci has reached 80 %", "firing", "quota", "ops", "pending"):
        assert text in page
    assert event.title in as_ann.get(reverse("admin:alerts_alertrule_change", args=[rule.pk])).content.decode()


@pytest.mark.parametrize("whose", ["operator", "owner"])
@pytest.mark.parametrize("kind", ["alertrule", "destination", "project"])
def test_events_and_messages_are_deleted_with_what_they_belong_to(client, ann, store, kind, whose):
    """Nobody deletes one of them, which must not keep the rule, the destination or the project."""
    project = ProjectFactory()
    rule = AlertRuleFactory(project=project, told=[DestinationFactory(project=project)])
    decide(rule, Found([AlertFinding("ci", "ci has reached 80 %", level=80, project=project.pk)]), timezone.now())
    client.force_login(ann if whose == "operator" else MembershipFactory(project=project, role="owner").user)
    row = {"alertrule": rule, "destination": rule.destinations.get(), "project": project}[kind]
    url = reverse(f"admin:{row._meta.app_label}_{kind}_delete", args=[row.pk])
    page = client.get(url)

    assert "cannot be deleted" not in page.content.decode()
    client.post(url, {"post": "yes", "object_name": str(row), "change_reason": "unused"})

    assert not type(row).objects.filter(pk=row.pk).exists()


def test_every_row_that_nobody_deletes_goes_with_its_owner():
    """In the admin, a page without the right to delete keeps the owner, too, unless it says otherwise."""
    operator = User(is_superuser=True, is_staff=True)
    request = RequestFactory().get("/")
    request.user = operator
    kept = [
        (model.__name__, field.related_model.__name__)
        for model, page in admin.site._registry.items()
        if not getattr(page, "ends_with_owner", False) and not page.has_delete_permission(request)
        for field in model._meta.concrete_fields
        if field.is_relation and field.remote_field.on_delete is CASCADE
    ]
    # Revisions are never deleted.
    assert kept == [("OutboxEntry", "Revision")]
