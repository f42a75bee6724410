"""What the admin does with a form: one change, told, at the field, never over somebody else's."""

from html.parser import HTMLParser

import pytest
from django.contrib.sessions.models import Session
from django.urls import reverse
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import change
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.models import OutboxEntry, Revision
from controlplane.web.kit.forms import version_of
from tests.controlplane.conftest import ANN
from tests.controlplane.web.kit.reviews import enforce
from tests.factories import (
    LimitFactory,
    ManagementKeyFactory,
    MembershipFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)

pytestmark = pytest.mark.django_db(transaction=True)

PROJECTS = "/admin/projects/project/"
POLICIES = "/admin/policies/policy/"
TOKENS = "/admin/projects/token/"

NEW_PROJECT = {"slug": "a", "name": "A", "time_zone": "UTC"}


def limit_fields(*limits, initial=0):
    """The fields of the limits in a policy's form, as a browser sends them."""
    fields = {"limits-TOTAL_FORMS": len(limits), "limits-INITIAL_FORMS": initial}
    usual = {
        "algorithm": "sliding_window",
        "quota": 100,
        "unit": "requests",
        "window_seconds": "1 minute",
        "mode": "enforce",
        "consistency": "strict",
        "on_store_failure": "local",
    }
    for index, limit in enumerate(limits):
        fields |= {f"limits-{index}-{name}": value for name, value in {**usual, **limit}.items()}
    return fields


def policy_fields(policy, *limits, initial=0, **changed):
    fields = {"slug": policy.slug, "name": policy.name, "seen_version": version_of(policy)}
    return {**fields, **limit_fields(*limits, initial=initial), **changed}


def fields_of(limit, **changed):
    return {"id": limit.pk, "policy": limit.policy_id, "name": limit.name, **changed}


class HiddenAndTyped(HTMLParser):
    """The inputs of a page, as a browser posts them."""

    def __init__(self, response):
        super().__init__()
        self.fields = {}
        self.feed(response.content.decode())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "input" and attributes.get("type") in ("hidden", "text", "number") and "name" in attributes:
            self.fields[attributes["name"]] = attributes.get("value", "")


def errors_of(response):
    return response.context["adminform"].form.errors


def test_a_saved_project_is_published_and_told(as_ann, told, store):
    """One message says what was saved, and as which revision it is live."""
    response = as_ann.post(f"{PROJECTS}add/", {**NEW_PROJECT, "change_reason": "new"}, follow=True)

    (message,) = told(response)
    assert message.endswith("was added successfully. Published as revision 1.")
    assert AuditEntry.objects.values_list("actor", "channel", "action", "reason").get() == (
        "ann",
        "admin",
        "project.create",
        "new",
    )


def test_a_store_that_is_away_delays_and_loses_nothing(as_ann, told):
    """The row is saved, and whoever saved it is told what is still to come."""
    response = as_ann.post(f"{PROJECTS}add/", NEW_PROJECT, follow=True)

    (message,) = told(response)
    assert message.endswith("Saved. The change will be published when the store is available.")
    assert Project.objects.get().slug == "a"
    assert OutboxEntry.objects.filter(revision=None).count() == 1


def test_a_form_that_changes_nothing_publishes_nothing(as_ann, told, store):
    """Pressing Save is no change by itself."""
    project = ProjectFactory()
    fields = {**NEW_PROJECT, "slug": project.slug, "name": project.name, "active": "on"}
    fields["seen_version"] = version_of(project)

    response = as_ann.post(f"{PROJECTS}{project.pk}/change/", fields, follow=True)

    assert response.status_code == 200
    assert not AuditEntry.objects.exists()
    assert not Revision.objects.exists()


def test_a_refused_form_says_nothing_of_publishing(as_ann, told):
    """What is pending from before is no fate of what was refused."""
    as_ann.post(f"{PROJECTS}add/", NEW_PROJECT, follow=True)

    response = as_ann.post(f"{PROJECTS}add/", {**NEW_PROJECT, "slug": "Not a slug"})

    assert list(errors_of(response)) == ["slug"]
    assert told(response) == []


def test_a_policy_and_its_limits_are_one_revision(as_ann, store):
    """Enforcers never see a policy without the limits it was saved with."""
    policy = Policy(slug="starter", name="Starter")
    fields = policy_fields(policy, {"name": "m", "quota": 1}, {"name": "d", "quota": 9, "window_seconds": "1 day"})

    as_ann.post(f"{POLICIES}add/", fields)

    assert list(Limit.objects.values_list("name", "quota", "window_seconds")) == [("m", 1, 60), ("d", 9, 86_400)]
    assert Revision.objects.count() == 1
    assert AuditEntry.objects.get().action == "policy.create"


WRONG_LIMITS = [
    ({"window_seconds": ""}, "window_seconds", "Is required, unless a fixed_window follows the calendar."),
    ({"window_seconds": "0"}, "window_seconds", "Must last between a second and a year."),
    ({"window_seconds": "soon"}, "window_seconds", "Must be a duration such as 30 seconds"),
    ({"burst": "5"}, "burst", "Only a token_bucket has a burst."),
    ({"rollover": "5"}, "rollover", "Only a fixed_window of the calendar that ends"),
    ({"calendar": "month"}, "calendar", "Only a fixed_window follows the calendar."),
    ({"partition_by": "UPPER"}, "partition_by", "An attribute must be"),
    ({"match_methods": "get"}, "match_methods", "Must list HTTP methods in capitals."),
    ({"match_path": "v1/*"}, "match_path", "Must begin with / or a wildcard, because every path"),
    ({"match_attributes": "model"}, "match_attributes", "Each line must hold one rule"),
    ({"charge_on": "9xx"}, "charge_on", "Must list response classes"),
    ({"weights": "input = 5"}, "weights", "Only a limit of input_tokens, output_tokens, tokens has weights."),
    (
        {"unit": "tokens", "weights": "input"},
        "weights",
        'Each line must hold one rule such as "cached_input = 100"',
    ),
    ({"unit": "tokens", "weights": "input = x"}, "weights", "Each line must hold a name and an integer"),
    ({"unit": "tokens", "weights": "calls = 5"}, "weights", "Must name only input, cached_input"),
    ({"unpriced": "count_only"}, "unpriced", "Only a limit of micros asks for a price."),
    ({"unit": "money (USD)", "unpriced": "charge_as"}, "unpriced", "The model to charge as must be a string"),
    ({"unit": "money (USD)", "charge_as": "gpt-4o"}, "charge_as", "Must be empty, unless unpriced models"),
    ({"unmetered": "count_only"}, "unmetered", "Only a limit of input_tokens"),
    ({"quota": ""}, "quota", "This field is required."),
    ({"time_zone": "Mars/Base"}, "time_zone", "Must be the IANA name of a time zone"),
    ({"unit": "Requests"}, "unit", "Must be 1 to 32"),
]


def test_each_rule_of_enforcement_is_told_at_its_field(as_ann):
    """The rules are enforcement's own, and nothing is saved against them."""
    limits = [{"name": f"m{number}", **limit} for number, (limit, _, _) in enumerate(WRONG_LIMITS)]

    response = as_ann.post(f"{POLICIES}add/", policy_fields(Policy(slug="starter", name="Starter"), *limits))

    forms = response.context["inline_admin_formsets"][0].formset.forms
    for form, (limit, field, message) in zip(forms, WRONG_LIMITS, strict=True):
        assert [text[: len(message)] for text in form.errors[field]] == [message], limit
    assert not Policy.objects.exists()


def test_rules_for_tokens_and_money_are_saved_and_shown_again(as_ann, store):
    """A form that is sent back as it was shown changes nothing."""
    tokens = {"unit": "tokens", "weights": "cached_input = 100\noutput = 1500", "unmetered": "count_only"}
    money = {"unit": "money (USD)", "unpriced": "charge_as", "charge_as": "gpt-4o"}
    rules = {"estimate": "bound", "default_cap": 500, "part_tokens": "image = 1000", "on_disconnect": "drain"}
    policy = Policy(slug="starter", name="Starter")

    as_ann.post(f"{POLICIES}add/", policy_fields(policy, {"name": "t", **tokens}, {"name": "m", **money}, **rules))

    policy = Policy.objects.get()
    assert policy.metering == {**rules, "part_tokens": {"image": 1000}}
    first, second = (limit.as_value() for limit in policy.limits.all())
    assert (first.weights, first.unmetered) == ({"cached_input": 100, "output": 1500}, "count_only")
    assert second.unpriced == {"charge_as": "gpt-4o"}
    page = as_ann.get(f"{POLICIES}{policy.pk}/change/").content.decode()
    assert all(text in page for text in ("cached_input = 100", "output = 1500", "image = 1000", "gpt-4o"))


@pytest.mark.parametrize(
    ("chosen", "saved", "shown"),
    [
        ({"estimate": "bound", "on_disconnect": ""}, {"estimate": "bound", "on_disconnect": "drain"}, ""),
        ({"estimate": "bound", "on_disconnect": "free"}, {"estimate": "bound", "on_disconnect": "free"}, "free"),
        ({"estimate": "typical", "on_disconnect": "drain"}, {"on_disconnect": "drain"}, "drain"),
        ({"lost_after": "0"}, {"lost_after": 0}, ""),
    ],
)
def test_what_happens_if_the_client_leaves_goes_with_the_estimate(as_ann, store, chosen, saved, shown):
    """Unless somebody has chosen it. A form that is sent back as it was shown changes nothing."""
    as_ann.post(f"{POLICIES}add/", policy_fields(Policy(slug="starter", name="Starter"), {"name": "t"}, **chosen))

    policy = Policy.objects.get()
    assert policy.metering == saved
    form = as_ann.get(f"{POLICIES}{policy.pk}/change/").context["adminform"].form
    assert form["on_disconnect"].value() == shown


def test_a_rollover_is_saved_and_goes_with_its_calendar(as_ann, store):
    """The page does not send it for a window that cannot have one."""
    month = {"name": "m", "algorithm": "fixed_window", "window_seconds": "", "calendar": "month", "rollover": "9"}
    as_ann.post(f"{POLICIES}add/", policy_fields(Policy(slug="starter", name="Starter"), month))

    limit = Limit.objects.get()
    assert limit.as_value().rollover == 9
    plain = {**fields_of(limit), "algorithm": "fixed_window", "calendar": "lifetime", "window_seconds": ""}
    as_ann.post(f"{POLICIES}{limit.policy_id}/change/", policy_fields(limit.policy, plain, initial=1))

    assert Limit.objects.get().as_value().rollover is None


def test_a_limit_of_another_unit_loses_the_rules_that_its_page_does_not_send(as_ann, store):
    """The page hides them, so nobody could correct them."""
    charged = {"unpriced": "charge_as", "charge_as": "gpt-4o", "unmetered": "count_only"}
    money = LimitFactory(unit="micros", name="m", **charged)
    tokens = LimitFactory(unit="tokens", name="t", policy=money.policy, weights={"input": 5})
    fields = policy_fields(money.policy, fields_of(money), fields_of(tokens), initial=2)

    as_ann.post(f"{POLICIES}{money.policy.pk}/change/", fields)

    for limit in Limit.objects.all():
        assert (limit.unit, limit.weights, limit.unpriced) == ("requests", {}, "deny")
        assert (limit.charge_as, limit.unmetered) == ("", "deny")


@pytest.mark.parametrize(
    ("rules", "field"),
    [
        ({"default_cap": "0"}, "default_cap"),
        ({"clamp_at_least": "many"}, "clamp_at_least"),
        ({"part_tokens": "smell = 5"}, "part_tokens"),
        ({"estimate": "exact"}, "estimate"),
    ],
)
def test_a_wrong_rule_for_metered_requests_is_told_at_its_field(as_ann, rules, field):
    """Nothing is saved."""
    response = as_ann.post(f"{POLICIES}add/", policy_fields(Policy(slug="starter", name="Starter"), **rules))

    assert list(errors_of(response)) == [field]
    assert not Policy.objects.exists()


def test_two_limits_of_one_name_are_refused(as_ann):
    """The name is what overrides and usage know a limit by."""
    fields = policy_fields(Policy(slug="starter", name="Starter"), {"name": "m"}, {"name": "m"})

    response = as_ann.post(f"{POLICIES}add/", fields)

    assert "Please correct the duplicate data for name." in response.content.decode()
    assert not Policy.objects.exists()


def test_a_renamed_limit_keeps_its_overrides(as_ann, store):
    """The row is known by its id, and the documents of its overrides' holders follow."""
    override = OverrideFactory(limit=LimitFactory(name="old"))
    policy = override.limit.policy

    fields = policy_fields(policy, fields_of(override.limit, name="new"), initial=1)
    enforce(as_ann, as_ann.post(f"{POLICIES}{policy.pk}/change/", fields))

    assert Override.objects.get().limit.name == "new"
    assert ("token", override.token.digest) in set(OutboxEntry.objects.values_list("kind", "object_id"))


def test_two_limits_exchange_their_names(as_ann, store):
    """Whichever is saved first, neither stands in the other's way."""
    one = LimitFactory(name="one")
    two = LimitFactory(name="two", policy=one.policy)
    fields = policy_fields(one.policy, fields_of(one, name="two"), fields_of(two, name="one"), initial=2)

    as_ann.post(f"{POLICIES}{one.policy.pk}/change/", fields)

    assert dict(Limit.objects.values_list("pk", "name")) == {one.pk: "two", two.pk: "one"}


def test_a_removed_limit_is_taken_from_its_overrides_holders(as_ann, store):
    """Their documents name a limit that is gone."""
    override = OverrideFactory()
    policy = override.limit.policy
    fields = policy_fields(policy, fields_of(override.limit, DELETE="on"), initial=1)

    enforce(as_ann, as_ann.post(f"{POLICIES}{policy.pk}/change/", fields))

    assert not Limit.objects.exists()
    assert ("token", override.token.digest) in set(OutboxEntry.objects.values_list("kind", "object_id"))


def test_a_form_opened_before_somebody_elses_change_is_not_saved(as_ann):
    """Whoever was slower is told, and finds what was typed."""
    limit = LimitFactory(name="m", quota=1)
    fields = policy_fields(limit.policy, fields_of(limit, quota=2), initial=1, name="Mine")
    Policy.objects.update(name="Theirs")

    response = as_ann.post(f"{POLICIES}{limit.policy.pk}/change/", fields)

    assert "was changed after you opened it" in str(errors_of(response)["__all__"])
    assert 'value="Mine"' in response.content.decode()
    assert Policy.objects.get().name == "Theirs"


def test_a_limit_that_was_deleted_meanwhile_is_shown_again_and_can_be_saved(as_ann, told, store):
    """The page names the conflict and shows every row. Saved again, the form replaces the change, as the page says."""
    first = LimitFactory(name="first", position=0)
    second, third = (LimitFactory(policy=first.policy, name=name) for name in ("second", "third"))
    rows = [fields_of(first, quota=77), fields_of(second, quota=78), fields_of(third), {"name": "new"}]
    fields = policy_fields(first.policy, *rows, initial=3)
    first.delete()
    third.delete()

    page = f"{POLICIES}{second.policy_id}/change/"
    response = as_ann.post(page, fields)

    assert "__all__" in errors_of(response)
    shown = HiddenAndTyped(response).fields
    names = [shown[f"limits-{row}-name"] for row in range(4)]
    assert (names, shown["limits-INITIAL_FORMS"]) == (["second", "first", "third", "new"], "1")
    assert "was changed successfully" in told(as_ann.post(page, {**fields, **shown}, follow=True))[0]
    saved = Limit.objects.values_list("name", "quota")
    assert list(saved) == [("second", 78), ("first", 77), ("third", 100), ("new", 100)]


def test_the_secret_is_in_the_answer_and_nowhere_else(as_ann, store, caplog):
    """Not in an address, the session, the log, the audit, or another page."""
    project = ProjectFactory()

    response = as_ann.post(f"{TOKENS}add/", {"project": project.pk, "name": "ci"})

    secret = response.context["secret"]
    assert "no-store" in response.headers["Cache-Control"]
    assert response.content.decode().count(secret) >= 1
    token = Token.objects.get()
    assert secret not in as_ann.get(f"{TOKENS}{token.pk}/change/").content.decode()
    kept = [str(session.get_decoded()) for session in Session.objects.all()]
    kept += [str(entry.after) for entry in AuditEntry.objects.all()] + [caplog.text]
    assert not any(secret in text for text in kept)


def test_a_management_key_is_issued_with_its_scopes(as_ann):
    """It is recorded once, and enforcers hear nothing of it."""
    project = ProjectFactory()
    fields = {"name": "ci", "scopes": ["tokens:read", "usage:read"], "projects": [project.pk]}

    response = as_ann.post("/admin/projects/managementkey/add/", fields)

    key = ManagementKey.objects.get()
    assert response.context["secret"].startswith("sg_mgmt_")
    assert (key.scopes, list(key.projects.all())) == (["tokens:read", "usage:read"], [project])
    assert [entry.action for entry in AuditEntry.objects.all()] == ["managementkey.create"]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({}, "Name at least one project, or choose all projects."),
        ({"all_projects": "on", "projects": "some"}, "Must be empty for a key that works for every project."),
    ],
    ids=["neither", "both"],
)
def test_the_form_of_a_key_asks_what_it_may_reach(as_ann, chosen, message):
    """Nothing chosen is not everything."""
    some = {"projects": [ProjectFactory().pk]} if "projects" in chosen else {}

    response = as_ann.post("/admin/projects/managementkey/add/", {"name": "ci", "scopes": ["*"], **chosen, **some})

    assert errors_of(response) == {"projects": [message]}
    assert not ManagementKey.objects.exists()


@pytest.mark.parametrize(
    ("typed", "kept", "shown"),
    [
        ("192.0.2.7, 2001:DB8::/32", ["192.0.2.7/32", "2001:db8::/32"], "192.0.2.7/32, 2001:db8::/32"),
        ("", None, "everywhere"),
    ],
)
def test_a_key_may_be_limited_to_networks(as_ann, typed, kept, shown):
    """The list and the page show from where it may be used."""
    fields = {"name": "ci", "scopes": ["*"], "all_projects": "on", "networks": typed}

    as_ann.post("/admin/projects/managementkey/add/", fields)

    key = ManagementKey.objects.get()
    assert key.networks == kept
    for path in ("", f"{key.pk}/change/"):
        assert shown in as_ann.get(f"/admin/projects/managementkey/{path}").content.decode()


def test_a_key_of_no_network_is_refused(as_ann):
    """The message names the field, the rule and what was typed."""
    fields = {"name": "ci", "scopes": ["*"], "all_projects": "on", "networks": "office"}

    response = as_ann.post("/admin/projects/managementkey/add/", fields)

    assert errors_of(response) == {
        "networks": ["Must be networks such as 192.0.2.0/24 or 2001:db8::/32, got 'office'."]
    }
    assert not ManagementKey.objects.exists()


def test_a_key_of_all_projects_says_so(as_ann):
    """On its page, and in the audit."""
    as_ann.post("/admin/projects/managementkey/add/", {"name": "ci", "scopes": ["*"], "all_projects": "on"})

    key = ManagementKey.objects.get()
    assert (key.all_projects, AuditEntry.objects.get().after["all_projects"]) == (True, True)


def test_a_revoked_token_is_published_as_such(as_ann, store):
    """The dialog's answer leads back to the token."""
    token = TokenFactory()
    sent = {"_form_submitted": "on", "reason": "leaked"}

    response = as_ann.post(f"{TOKENS}{token.pk}/revoke/", sent, headers={"HX-Request": "true"})

    assert response.headers["HX-Redirect"] == f"/admin/projects/token/{token.pk.replace('_', '_5F')}/change/"
    assert Token.objects.get().status == "revoked"
    assert AuditEntry.objects.get().reason == "leaked"


@pytest.mark.parametrize("name", ["revoke", "rotate", "reset_counters"])
def test_what_is_done_to_others_needs_a_reason(as_ann, name):
    """Without one nothing happens."""
    token = TokenFactory()

    response = as_ann.post(f"{TOKENS}{token.pk}/{name}/", {"_form_submitted": "on", "overlap": "0"})

    assert "This field is required." in response.content.decode()
    assert not AuditEntry.objects.exists()


def test_a_token_that_has_ended_is_not_rotated(as_ann):
    """A new secret for a revoked token would undo the revocation."""
    token = TokenFactory(revoked=True)
    fields = {"_form_submitted": "on", "reason": "r", "overlap": "0"}

    response = as_ann.post(f"{TOKENS}{token.pk}/rotate/", fields)

    assert "This token is revoked. Only an active token can be rotated." in response.content.decode()
    assert Token.objects.count() == 1


def test_selected_tokens_are_revoked_after_a_reason_was_given(as_ann, store):
    """The first answer asks, the second does."""
    token, other = TokenFactory(), TokenFactory()
    chosen = {"action": "revoke_selected", "_selected_action": [token.pk]}

    asked = as_ann.post(TOKENS, chosen)
    as_ann.post(TOKENS, {**chosen, "change_reason": "left the company"})

    assert "Proxies refuse these tokens within a second." in asked.content.decode()
    assert {row.pk: row.status for row in Token.objects.all()} == {token.pk: "revoked", other.pk: "active"}
    assert AuditEntry.objects.get().reason == "left the company"


def test_a_deleted_policy_takes_its_limits_and_is_published(as_ann, told, store):
    """With a reason, as one change."""
    limit = LimitFactory()
    publisher.publish_all()

    sent = {"post": "yes", "object_name": limit.policy.slug, "change_reason": "unused"}
    response = as_ann.post(f"{POLICIES}{limit.policy.pk}/delete/", sent, follow=True)

    assert told(response)[0].endswith("was deleted successfully. Published as revision 2.")
    assert not Policy.objects.exists()
    assert AuditEntry.objects.values_list("action", "reason").get() == ("policy.delete", "unused")


def test_a_policy_that_somebody_has_is_not_deleted(as_ann):
    """The page names who has it."""
    token = TokenFactory(policy=PolicyFactory())

    response = as_ann.post(f"{POLICIES}{token.policy.pk}/delete/", {"post": "yes"})

    assert str(token) in response.content.decode()
    assert Policy.objects.exists()


def test_selected_projects_are_deleted_one_by_one(as_ann, store):
    """Each deletion is recorded: enforcers are told of every token that falls."""
    token = TokenFactory()

    chosen = {"action": "delete_selected", "_selected_action": [token.project_id]}
    as_ann.post(PROJECTS, {**chosen, "post": "yes", "object_name": token.project.slug})

    assert [entry.action for entry in AuditEntry.objects.all()] == ["token.delete", "project.delete"]
    assert {("token", token.digest), ("project", token.project_id)} <= set(
        OutboxEntry.objects.values_list("kind", "object_id")
    )


def test_an_override_is_saved_by_the_same_verb_as_elsewhere(as_ann, store):
    """It says who granted it, and is published with its holder."""
    limit = LimitFactory()
    token = TokenFactory(policy=limit.policy)
    fields = {"limit": limit.pk, "token": token.pk, "quota": 500, "reason": "launch", "ends_at": "2027-01-01T00:00"}

    enforce(as_ann, as_ann.post("/admin/policies/override/add/", fields))

    override = Override.objects.get()
    assert (override.created_by, override.quota, override.ends_at.year) == ("ann", 500, 2027)
    assert [entry.action for entry in AuditEntry.objects.all()] == ["override.create"]


def test_an_override_for_two_holders_is_refused(as_ann):
    """The form says so, and the database is not asked."""
    limit, token = LimitFactory(), TokenFactory()
    fields = {"limit": limit.pk, "token": token.pk, "project": token.project_id, "quota": 5, "reason": "launch"}

    response = as_ann.post("/admin/policies/override/add/", fields)

    assert errors_of(response) == {"project": ["Choose a token or a project, one of the two."]}


def test_an_override_without_a_holder_is_refused_at_the_field(as_ann):
    """Once, and not above the form."""
    response = as_ann.post("/admin/policies/override/add/", {"limit": LimitFactory().pk, "quota": 5, "reason": "x"})

    assert errors_of(response) == {"token": ["Choose a token or a project, one of the two."]}


@pytest.mark.parametrize(
    ("changed", "field", "message"),
    [
        (
            {"token": "same policy", "ends_at": "2020-01-01T00:00"},
            "ends_at",
            "Must be in the future, got 2020-01-01T00:00:00+00:00.",
        ),
        ({"token": "another policy"}, "limit", "Must apply to "),
        ({}, "limit", " already exists, with the quota 700 and the id ovr_"),
    ],
    ids=["past end", "limit of another policy", "duplicate"],
)
def test_an_override_that_would_do_nothing_is_refused_at_its_field(as_ann, changed, field, message):
    """The form says why, and names the override that is there already."""
    present = OverrideFactory(quota=700)
    fields = {"limit": present.limit_id, "token": present.token_id, "quota": 5, "reason": "x", **changed}
    if "token" in changed:
        fields["token"] = TokenFactory(policy=present.limit.policy if changed["token"] == "same policy" else None).pk

    response = as_ann.post("/admin/policies/override/add/", fields)

    assert list(errors_of(response)) == [field]
    (error,) = errors_of(response)[field]
    assert message in error
    assert Override.objects.count() == 1


@pytest.mark.parametrize(
    ("end", "rule"),
    [("2020-01-01T00:00", "Must be in the future"), ("9999-12-31T23:59", "Must be before the year 2255")],
)
def test_a_token_whose_end_no_enforcer_would_take_is_not_created(as_ann, end, rule):
    """No page shows the secret of a dead token, or of one whose document enforcers refuse."""
    fields = {"project": ProjectFactory().pk, "name": "ci", "expires_at": end}

    response = as_ann.post(f"{TOKENS}add/", fields)

    assert errors_of(response) == {"expires_at": [f"{rule}, got {end}:00+00:00."]}
    assert not Token.objects.exists()


def test_a_revision_is_rolled_back(as_ann, store):
    """What enforcers were told then is told again, as a new revision."""
    limit = LimitFactory(quota=1)
    publisher.publish_all()
    fields = policy_fields(limit.policy, fields_of(limit, quota=2, algorithm="fixed_window"), initial=1)
    as_ann.post(f"{POLICIES}{limit.policy.pk}/change/", fields)

    as_ann.post("/admin/publishing/revision/1/roll_back/", {"_form_submitted": "on", "reason": "too much"})

    assert Limit.objects.get().quota == 1
    assert Revision.objects.count() == 3
    assert AuditEntry.objects.first().reason == "too much"


def test_history_is_the_audit_of_every_door(as_ann, store):
    """Not only what was done in the admin."""
    project = ProjectFactory()

    response = as_ann.get(f"{PROJECTS}{project.pk}/history/")

    assert response.url == f"/admin/policies/auditentry/?object_type=project&object_id={project.pk}"
    assert as_ann.get(response.url).status_code == 200


@pytest.fixture
def as_reader(client):
    """A viewer of the project "mine"."""
    client.force_login(MembershipFactory(project__slug="mine").user)
    return client


@pytest.mark.parametrize("name", ["revoke", "rotate", "reset_counters"])
def test_a_reader_changes_nothing(as_reader, name):
    """An address that is typed is refused like a button that is not there."""
    token = TokenFactory(project=Project.objects.get())

    response = as_reader.post(f"{TOKENS}{token.pk}/{name}/", {"_form_submitted": "on", "reason": "r", "overlap": "0"})

    assert response.status_code == 403
    assert Token.objects.get().is_live


def test_a_reader_sees_the_token_and_its_counters(as_reader, store):
    """Without a form, and without the actions."""
    token = TokenFactory(project=Project.objects.get())

    page = as_reader.get(f"{TOKENS}{token.pk}/change/")

    assert page.status_code == 200
    assert "Revoke" not in page.content.decode()
    assert as_reader.get(f"{TOKENS}{token.pk}/counters/").status_code == 200


def test_a_reader_of_tokens_does_not_see_keys(as_reader):
    """They are for owners."""
    key = ManagementKeyFactory(projects=[Project.objects.get()])

    assert as_reader.get("/admin/projects/managementkey/").status_code == 403
    assert as_reader.get(f"/admin/projects/managementkey/{key.pk}/change/").status_code == 403


def test_counters_of_a_store_that_is_away_say_so(as_ann):
    """The page stays, and tells what it cannot know."""
    token = TokenFactory(policy=LimitFactory().policy)

    response = as_ann.get(f"{TOKENS}{token.pk}/counters/")

    assert "cannot be read now" in response.content.decode()


def test_the_first_page_stands_without_a_store(as_ann):
    """It is the page that people open when something is wrong."""
    response = as_ann.get("/admin/")

    assert response.status_code == 200
    assert "The store does not answer" in response.content.decode()


def test_login_leads_to_the_first_page(client, ann):
    """Also without a page that was asked for."""
    response = client.post("/admin/login/", {"username": "ann", "password": "correct horse battery staple"})

    assert response.url == "/admin/"


def test_a_sentence_is_told_by_the_rules_that_save(as_ann):
    """The form's preview and the form agree."""
    limit = {"name": "m", "algorithm": "sliding_window", "quota": "100", "window_seconds": "1m", "unit": "requests"}
    rest = {"mode": "enforce", "consistency": "strict", "on_store_failure": "local"}

    def told(**changed):
        fields = {f"limits-0-{name}": value for name, value in {**limit, **rest, **changed}.items()}
        return as_ann.post(reverse("policy-advice"), {"limits-TOTAL_FORMS": 1, **fields}).json()["limits"]["limits-0"]

    assert told()["sentence"].startswith("100 requests per minute for each token or project")
    errors = {"window_seconds": ["Must last between a second and a year."]}
    refused = {"sentence": "", "errors": errors, "changed": True}
    assert told(window_seconds="0") == refused


def test_usage_leaves_as_csv_without_formulas(as_ann):
    """A name that a spreadsheet would run is told to be text."""
    from tests.factories import UsageRowFactory

    UsageRowFactory(limit_name="", token_id="=1+1", at=timezone.now())
    known = TokenFactory(name="=web", project__slug="shop")
    UsageRowFactory(project_id=known.project.pk, token_id=known.pk, at=timezone.now())

    lines = as_ann.get("/admin/usage/usagerow/export.csv?period=minute").getvalue().decode().splitlines()

    columns = "at,project_id,token_id,policy_id,limit_name,unit,allowed,denied,would_deny,cost,project,token,policy"
    assert lines[0] == columns
    rows = {tuple(line.split(",")[1:3]): line.split(",")[-3:] for line in lines[1:]}
    assert rows == {("proj_1", "'=1+1"): ["", "", ""], (known.project.pk, known.pk): ["shop", "'=web", ""]}


def test_a_policy_keeps_its_project(as_ann, told, store):
    """Otherwise keys that are limited to that project could change the limits of other projects' tokens."""
    token = TokenFactory(policy=LimitFactory(name="per-minute").policy)
    other, limit = ProjectFactory(), token.policy.limits.get()
    fields = policy_fields(token.policy, fields_of(limit), initial=1, name="Renamed", project=other.pk)

    asked = as_ann.post(f"{POLICIES}{token.policy.pk}/change/", fields)
    response = enforce(as_ann, asked, follow=True)

    assert "was changed successfully" in told(response)[0]
    assert Policy.objects.values_list("name", "project").get() == ("Renamed", None)
    assert "its tokens and projects" in as_ann.get(f"{POLICIES}{limit.policy_id}/change/").content.decode()


def test_a_conflict_says_in_words_what_somebody_else_changed(as_ann):
    """By what the limit allowed and allows now, and not by the names of columns."""
    limit = LimitFactory(policy__slug="free", name="per-minute", quota=25)
    form = policy_fields(limit.policy, fields_of(limit, quota=9), initial=1)
    with change(actor=ANN) as tx:
        before = limit.policy.as_record()
        limit.quota = 12
        limit.save()
        tx.updated(Policy.objects.get(), before)

    page = as_ann.post(f"{POLICIES}{limit.policy.pk}/change/", form)

    assert "ann changed this policy just now" in page.text
    assert "(per-minute: 25 requests per minute → 12 requests per minute)" in page.text
