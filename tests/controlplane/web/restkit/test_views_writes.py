"""What a write answers: who it was, what it became, and the revision that carries it."""

import json
import threading

import pytest
from django.db import connection

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project, Token
from tests.factories import (
    LimitFactory,
    ManagementKeyFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)

pytestmark = pytest.mark.django_db(transaction=True)

PER_MINUTE = {"name": "per-minute", "algorithm": "sliding_window", "quota": 100, "window_seconds": 60}


def published(client_of_store, name: str):
    text = client_of_store.hget("sg:{doc}:documents", name)
    return text and json.loads(text)


def test_a_write_is_published_before_its_reply(api, store, client_of_store):
    """The header names the revision under which enforcers read it."""
    response = api("POST", "policies", {"slug": "free", "name": "Free", "limits": [PER_MINUTE]})

    assert (response.status_code, response["Sluicegate-Revision"]) == (201, "1")
    assert response["Location"] == "/api/v1/policies/free"
    assert published(client_of_store, f"policy:{response.json()['id']}")["limits"] == [PER_MINUTE]


def test_a_write_without_the_store_succeeds_and_is_pending(api):
    """A store that is away delays a change and never loses it."""
    response = api("POST", "projects", {"slug": "chat", "name": "Chat"})

    assert (response.status_code, response["Sluicegate-Revision"]) == (201, "pending")
    assert Project.objects.exists()


def test_a_write_with_a_frozen_store_answers_in_time(api, store):
    """Nobody waits longer than the publisher's short patience."""
    store.freeze()

    response = api("POST", "projects", {"slug": "chat", "name": "Chat"})

    assert (response.status_code, response["Sluicegate-Revision"]) == (201, "pending")


def test_a_write_that_changes_nothing_names_the_present_revision(api, store):
    """Repeating a request is harmless and leaves no trace."""
    api("POST", "projects", {"slug": "chat", "name": "Chat"})

    response = api("PATCH", "projects/chat", {"name": "Chat"})

    assert (response.json()["version"], response["Sluicegate-Revision"]) == (1, "1")
    assert AuditEntry.objects.count() == 1


def test_a_refused_write_has_no_revision(api, store):
    """Nor has it changed anything."""
    response = api("POST", "projects", {"slug": "chat"})

    assert not response.has_header("Sluicegate-Revision")
    assert not AuditEntry.objects.exists()


def test_the_audit_says_who_and_why(api):
    """The reason comes in a header, for any write."""
    api("POST", "projects", {"slug": "chat", "name": "Chat"}, sluicegate_reason="launch", x_request_id="req-7")

    entry = AuditEntry.objects.get()
    assert (entry.actor, entry.channel, entry.action) == ("ann", "api", "project.create")
    assert (entry.reason, entry.request_id) == ("launch", "req-7")


@pytest.mark.parametrize(
    "reason",
    ["für Jörg", "für 5 €", "日本", "a\u00a0b", "é" * 500, "plain"],
    ids=["umlauts", "euro", "kanji", "no-break space", "longest", "plain"],
)
def test_a_reason_is_read_as_utf_8(api, reason):
    """A WSGI server passes each byte that curl sent as one character."""
    sent = reason.encode().decode("latin-1")

    response = api("POST", "projects", {"slug": "chat", "name": "Chat"}, sluicegate_reason=sent)

    assert response.status_code == 201
    assert AuditEntry.objects.get().reason == reason


def test_a_reason_in_latin_1_is_read_as_such(api):
    """Older clients send it, and their bytes are no UTF-8."""
    api("POST", "projects", {"slug": "chat", "name": "Chat"}, sluicegate_reason="für Jörg")

    assert AuditEntry.objects.get().reason == "für Jörg"


@pytest.mark.parametrize(
    "reason",
    ["x" * 501, ("é" * 501).encode().decode("latin-1"), "a\tb", "\u202ea".encode().decode("latin-1"), "a\x85"],
    ids=["too long", "too long in UTF-8", "unprintable", "right to left", "NEL"],
)
def test_a_reason_that_could_not_be_kept_is_refused(api, reason):
    """Nothing is cut off silently."""
    response = api("POST", "projects", {"slug": "chat", "name": "Chat"}, sluicegate_reason=reason)

    assert response.json()["errors"][0]["code"] == "invalid_reason"
    assert not Project.objects.exists()


def test_editing_a_limit_keeps_its_row_and_its_overrides(api):
    """A limit is its name: other numbers reset nothing."""
    limit = LimitFactory(policy=PolicyFactory(slug="free"), name="per-minute", algorithm="sliding_window")
    OverrideFactory(limit=limit)

    api("PATCH", "policies/free", {"limits": [{**PER_MINUTE, "quota": 150}]})

    assert Limit.objects.get().pk == limit.pk
    assert Limit.objects.get().quota == 150
    assert Override.objects.count() == 1


def test_limits_are_replaced_as_a_list(api):
    """What the list leaves out is gone, and the order is the list's."""
    policy = PolicyFactory(slug="free")
    LimitFactory(policy=policy, name="old")
    LimitFactory(policy=policy, name="per-minute")

    limits = [{**PER_MINUTE, "name": "new"}, PER_MINUTE]
    response = api("PUT", "policies/free", {"slug": "free", "name": "Free", "limits": limits})

    assert [limit["name"] for limit in response.json()["limits"]] == ["new", "per-minute"]
    assert response.json()["version"] == 2


def test_a_patch_without_limits_leaves_them(api):
    """Merge, not replace."""
    LimitFactory(policy=PolicyFactory(slug="free"))

    assert len(api("PATCH", "policies/free", {"name": "Gratis"}).json()["limits"]) == 1


def test_a_put_needs_the_limits(api):
    """Whoever forgets them does not lose them."""
    LimitFactory(policy=PolicyFactory(slug="free"))

    response = api("PUT", "policies/free", {"slug": "free", "name": "Free"})

    assert response.json()["errors"] == [
        {"pointer": "#/limits", "code": "required", "detail": "This field is required."}
    ]
    assert Limit.objects.exists()


def test_a_put_sets_what_it_leaves_out_to_the_default(api):
    """PUT replaces: a project put without a policy has none."""
    ProjectFactory(slug="chat", policy=PolicyFactory(), active=False)

    response = api("PUT", "projects/chat", {"slug": "chat", "name": "Chat"})

    assert (response.json()["policy"], response.json()["active"]) == (None, True)


def test_every_field_of_a_limit_comes_back_as_it_was_sent(api):
    """What was read may be sent again, and is the same."""
    limit = {
        "name": "month",
        "algorithm": "fixed_window",
        "quota": 5000,
        "window_seconds": None,
        "calendar": "month",
        "time_zone": "Europe/Berlin",
        "anchor": 15,
        "burst": None,
        "rollover": None,
        "unit": "tokens",
        "partition_by": ["ip", "model"],
        "match": {"methods": ["POST"], "path": "/v1/*", "attributes": {"model": ["a", "b"], "header.x-team": "ops-*"}},
        "mode": "shadow",
        "consistency": "leased",
        "on_store_failure": "deny",
        "charge_on": ["2xx", "404"],
        "weights": {"cached_input": 100},
        "unpriced": "deny",
        "unmetered": "count_only",
    }
    money = {"unit": "micros", "weights": {}, "unpriced": {"charge_as": "gpt-4o"}}
    limits = [limit, {**limit, **money, "name": "money"}, {**limit, **money, "name": "free", "unpriced": "count_only"}]
    limits.append({**limit, "name": "rolling", "consistency": "strict", "rollover": 9007199254740991})

    api("POST", "policies", {"slug": "free", "name": "Free", "limits": limits})

    read = api("GET", "policies/free").json()
    assert read["limits"] == limits
    assert api("PUT", "policies/free", read).json() == read


def test_the_rules_for_metered_requests_come_back_as_they_were_sent(api):
    """A patch without them leaves them, and a PUT without them sets the defaults."""
    metering = {
        "estimate": "bound",
        "default_cap": 500,
        "part_tokens": {"image": 1000},
        "on_disconnect": "drain",
        "clamp_at_least": 16,
        "lost_after": 600,
    }
    usual = {
        "estimate": "typical",
        "default_cap": None,
        "part_tokens": {},
        "on_disconnect": "free",
        "clamp_at_least": None,
        "lost_after": 3_600,
    }
    body = {"slug": "free", "name": "Free", "limits": []}

    assert api("POST", "policies", {**body, "metering": metering}).json()["metering"] == metering
    assert api("PATCH", "policies/free", {"name": "Gratis"}).json()["metering"] == metering
    assert api("PATCH", "policies/free", {"metering": {"estimate": "bound"}}).json()["metering"] == {
        **usual,
        "estimate": "bound",
        "on_disconnect": "drain",
    }
    assert api("PUT", "policies/free", body).json()["metering"] == usual
    assert [entry.after.get("metering") for entry in AuditEntry.objects.order_by("id")] == [
        metering,
        metering,
        {"estimate": "bound", "on_disconnect": "drain"},
        None,
    ]


@pytest.mark.parametrize(
    ("metering", "pointer", "detail"),
    [
        ([], "#/metering", "Must be an object."),
        ({"cap": 5}, "#/metering/cap", "Unknown field."),
        ({"default_cap": 0}, "#/metering/default_cap", "Must be an integer from 1 to 2147483647, got 0."),
        ({"lost_after": 604_801}, "#/metering/lost_after", "Must be an integer from 0 to 604800, got 604801."),
        ({"on_disconnect": None}, "#/metering/on_disconnect", "Must be one of free, drain, got None."),
        ({"part_tokens": {"smell": 1}}, "#/metering/part_tokens", "Must name only image, audio, video, file, other,"),
    ],
)
def test_a_wrong_rule_for_metered_requests_is_told_by_its_pointer(api, metering, pointer, detail):
    """Nothing is saved."""
    response = api("POST", "policies", {"slug": "free", "name": "Free", "limits": [], "metering": metering})

    (error,) = response.json()["errors"]
    assert (response.status_code, error["pointer"]) == (400, pointer)
    assert error["detail"].startswith(detail)
    assert not Policy.objects.exists()


def test_a_policy_stays_with_its_project(api):
    """Tokens of others may have it already."""
    PolicyFactory(slug="free")
    ProjectFactory(slug="chat")

    response = api("PATCH", "policies/free", {"project": "chat"})

    assert response.json()["errors"][0]["code"] == "immutable"


def test_a_new_token_tells_its_secret_once(api, store, client_of_store):
    """The reply may not be stored; no later answer and no row holds it."""
    ProjectFactory(slug="chat")

    response = api("POST", "projects/chat/tokens", {"name": "ci"})

    token = response.json()
    assert (response.status_code, response["Cache-Control"]) == (201, "no-store")
    assert token["secret"].startswith(token["prefix"])
    later = [api("GET", path).content.decode() for path in (response["Location"], "projects/chat/tokens", "audit")]
    assert not any(token["secret"] in text or Token.objects.get().digest in text for text in later)


def test_a_rotated_token_gives_a_new_secret_and_an_end_to_the_old(api):
    """Both work during the overlap."""
    token = TokenFactory(name="ci")

    response = api("POST", f"tokens/{token.pk}/rotate", {"overlap_seconds": 60})

    assert (response.status_code, response.json()["name"]) == (201, "ci")
    assert response.json()["secret"] != token.secret
    token.refresh_from_db()
    assert token.status == "active"
    assert token.expires_at is not None


def test_a_rotation_overlaps_for_a_day_if_nothing_is_said(api):
    """Nobody is cut off by an empty request."""
    token = TokenFactory()

    api("POST", f"tokens/{token.pk}/rotate")

    token.refresh_from_db()
    assert 86_300 < (token.expires_at - token.created_at).total_seconds() < 86_500


def test_a_token_that_is_dead_is_not_rotated(api):
    """It would come back to life."""
    token = TokenFactory(revoked=True)

    response = api("POST", f"tokens/{token.pk}/rotate")

    assert (response.status_code, response.json()["code"]) == (409, "token_not_live")


def test_revoking_twice_answers_the_same(api, store):
    """A client that lost the first reply repeats it without harm."""
    token = TokenFactory()
    first = api("POST", f"tokens/{token.pk}/revoke")

    second = api("POST", f"tokens/{token.pk}/revoke", {})

    assert first.json()["status"] == "revoked"
    assert second.json() == first.json()
    assert AuditEntry.objects.count() == 1


@pytest.mark.parametrize("status", ["active", "revoked", "expired"])
def test_tokens_are_listed_by_status(api, status):
    """As their status says."""
    project = ProjectFactory(slug="chat")
    tokens = {
        "active": TokenFactory(project=project),
        "revoked": TokenFactory(project=project, revoked=True),
        "expired": TokenFactory(project=project, expired=True),
    }

    found = api("GET", f"projects/chat/tokens?status={status}").json()["results"]

    assert [(token["id"], token["status"]) for token in found] == [(tokens[status].pk, status)]


def test_an_override_names_its_limit_and_its_holder(api):
    """By slugs and ids that people know."""
    limit = LimitFactory(policy=PolicyFactory(slug="free"), name="a/b")
    ProjectFactory(slug="chat", policy=limit.policy)

    body = {"limit": "free/a/b", "project": "chat", "quota": 500, "reason": "A launch"}
    response = api("POST", "overrides", body)

    assert response.status_code == 201
    assert {name: response.json()[name] for name in body} == body
    assert response.json()["created_by"] == "ann"
    assert Override.objects.get().limit == limit


@pytest.mark.parametrize("field", ["token", "project"])
def test_an_override_needs_one_holder(api, field):
    """Not none, and not two. The error is told once, at the field that is missing or that is too many."""
    policy = LimitFactory(policy=PolicyFactory(slug="free"), name="per-minute").policy
    token = TokenFactory(project=ProjectFactory(slug="chat"), policy=policy)
    both = {"token": token.pk, "project": "chat"} if field == "project" else {}

    response = api("POST", "overrides", {"limit": "free/per-minute", "quota": 5, "reason": "x", **both})

    assert response.json()["errors"] == [
        {"pointer": f"#/{field}", "code": "one_of_two", "detail": "Choose a token or a project, one of the two."}
    ]


def test_the_global_policy_is_set_and_taken_away(api, store, client_of_store):
    """There is one, or none."""
    policy = PolicyFactory(slug="free")

    assert api("PUT", "global", {"policy": "free"}).json() == {"policy": "free"}
    assert published(client_of_store, "global")["policy"] == policy.pk
    assert api("PUT", "global", {"policy": None}).json() == {"policy": None}
    assert api("GET", "global").json() == {"policy": None}


def test_a_deleted_project_is_gone_with_its_tokens(api, store, client_of_store):
    """Enforcers know neither any more."""
    project = ProjectFactory(slug="chat")
    TokenFactory(project=project)

    response = api("DELETE", "projects/chat")

    assert (response.status_code, response.content) == (204, b"")
    assert (Project.objects.count(), Token.objects.count()) == (0, 0)
    assert published(client_of_store, f"project:{project.pk}") is None


def test_a_stale_write_is_refused_and_told_the_present_tag(api):
    """Two operators do not overwrite each other."""
    PolicyFactory(slug="free", name="Free")
    read = api("GET", "policies/free")
    api("PATCH", "policies/free", {"name": "Gratis"}, if_match=read["ETag"])

    response = api("PATCH", "policies/free", {"name": "Libre"}, if_match=read["ETag"])

    assert (response.status_code, response.json()["code"]) == (412, "stale_version")
    assert response["ETag"] == api("GET", "policies/free")["ETag"]
    assert Policy.objects.get().name == "Gratis"


@pytest.mark.parametrize("tag", ["*", '"other", {}'])
def test_a_write_under_its_tag_passes(api, tag):
    """One of several is enough, and * is any."""
    PolicyFactory(slug="free")
    present = api("GET", "policies/free")["ETag"]

    assert api("PATCH", "policies/free", {"name": "Libre"}, if_match=tag.format(present)).status_code == 200


@pytest.mark.parametrize("tag", ["W/{}", "", "nonsense"])
def test_a_tag_that_matches_nothing_refuses_the_write(api, tag):
    """A condition that cannot be met is not ignored."""
    PolicyFactory(slug="free")
    present = api("GET", "policies/free")["ETag"]

    assert api("PATCH", "policies/free", {"name": "Libre"}, if_match=tag.format(present)).status_code == 412


@pytest.mark.parametrize(("method", "verb"), [("DELETE", ""), ("PATCH", ""), ("POST", "/revoke"), ("POST", "/rotate")])
def test_conditions_hold_for_every_write_of_a_token(api, method, verb):
    """Also for things that count no versions."""
    token = TokenFactory()
    stale = api("GET", f"tokens/{token.pk}")["ETag"]
    api("PATCH", f"tokens/{token.pk}", {"name": "other"})

    assert api(method, f"tokens/{token.pk}{verb}", {}, if_match=stale).status_code == 412


def test_of_two_conditional_writes_at_once_one_wins(call, key):
    """The row is locked from the comparison to the commit."""
    PolicyFactory(slug="free")
    tag = call("GET", "policies/free", key=key)["ETag"]
    statuses = []

    def write(name: str) -> None:
        statuses.append(call("PATCH", "policies/free", {"name": name}, key=key, if_match=tag).status_code)
        connection.close()

    threads = [threading.Thread(target=write, args=(f"name-{number}",)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]

    assert sorted(statuses) == [200, 412, 412, 412]


def test_a_key_of_one_project_is_no_key_of_all_once_that_is_deleted(api, call):
    """Limited to nothing is not unlimited."""
    project = ProjectFactory(slug="chat")
    ProjectFactory(slug="other")
    limited = ManagementKeyFactory(projects=[project])

    api("DELETE", "projects/chat")

    assert call("GET", "projects/other", key=limited).status_code == 401
    assert ManagementKey.objects.get(pk=limited.pk).status == "revoked"
