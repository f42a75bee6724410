"""POST /api/v1/explain says why a request was denied, with the quota that was in force then."""

from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.changes.change.transaction import change
from controlplane.objects.emergency.models import BreakGlass, Suspension
from controlplane.objects.overrides.actions import save_override
from controlplane.objects.overrides.models import Override
from controlplane.objects.projects.actions import revoke_token
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.installation import decision_secret
from controlplane.releases.publishing.models import PublishedDocument
from controlplane.traffic.usage import rollup
from enforcement import Anonymous
from enforcement.plan.decision_id import DecisionFacts, DecisionKey
from tests.controlplane.operations.explain.conftest import ANN, set_quota
from tests.factories import ManagementKeyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)


def limits_of(answer):
    """The explained limits by name."""
    return {limit["limit"]: limit for limit in answer.json()["limits"]}


def test_a_decision_names_the_limit_that_denied(api, denied):
    """With the counts of that minute, the counter now, and a sentence for each reader."""
    answer = api("POST", "explain", {"decision": denied.decision})

    found = answer.json()
    limit = limits_of(answer)["free/per-day"]
    assert answer.status_code == 200
    assert found["decision"]["limit"] == "free/per-day"
    assert (found["decision"]["reason"], found["decision"]["source"]) == ("limited", "store")
    assert (found["project"], found["token"]) == ("chat", denied.token.pk)
    assert (limit["result"], limit["matches"], limit["quota"], limit["used"]) == ("denied", "yes", 2, 2)
    assert (limit["allowed"], limit["denied"], limit["used_now"], limit["remaining_now"]) == (2, 1, 2, 0)
    assert found["summary"].startswith("kestrel had used up 2 requests per day of free / per-day.")
    assert "In that minute it sent 3 requests, and 1 was denied." in found["summary"]
    assert (found["passes_now"], found["blocked_by"]) == (False, ["free/per-day"])
    assert "was limited by per-day: 2 requests per day were used up" in found["reply"]
    assert "free" not in found["reply"]
    assert "kestrel" not in found["reply"]


def test_after_two_changes_the_quota_of_then_is_named(api, denied):
    """And the quota of now beside it."""
    then = publisher.last_revision()
    set_quota(denied.policy, 20)
    now = set_quota(denied.policy, 5)

    answer = api("POST", "explain", {"decision": denied.decision})

    found, limit = answer.json(), limits_of(answer)["free/per-day"]
    assert (limit["quota"], limit["quota_now"], limit["used_now"]) == (2, 5, 2)
    assert (found["revision_then"], found["revision_now"], found["change_count"]) == (then, now, 2)
    assert [change["revision"] for change in found["changes"]] == [now - 1, now]
    assert found["passes_now"] is None  # the address of the request is not known, and per-ip counts by it
    assert "By now your limit is 5." in found["reply"]


def test_an_override_of_then_is_the_source(api, issue, start_limiter):
    """It has ended since, and the audit says who made it and why."""
    token, secret = issue({"quota": 100})
    ends_at = timezone.now() + timedelta(hours=1)
    with change(actor=ANN, reason="abuse") as tx:
        override = Override(limit=token.policy.limits.get(), token=token, quota=1, reason="abuse", ends_at=ends_at)
        save_override(tx, override)
    with start_limiter() as enforcer:
        decision = [enforcer.check(secret) for _ in range(2)][-1].id
    with change(actor=ANN) as tx:
        tx.delete(override)

    limit = limits_of(api("POST", "explain", {"decision": decision}))["free/per-day"]

    assert (limit["quota"], limit["quota_now"], limit["override_now"]) == (1, 100, None)
    assert (limit["override"]["id"], limit["override"]["reason"], limit["override"]["by"]) == (
        limit["override"]["id"],
        "abuse",
        "ann",
    )


@pytest.mark.parametrize("named", ["secret", "id", "prefix", "name"])
def test_a_token_is_found_by_what_people_have(api, denied, named):
    """At a time: what applied then, and what was denied in that minute."""
    given = {"secret": denied.secret, "id": denied.token.pk, "prefix": denied.token.prefix, "name": "kestrel"}

    found = api("POST", "explain", {"token": given[named], "attributes": {"ip": "10.0.0.1"}}).json()

    assert (found["token"], found["decision"]) == (denied.token.pk, None)
    assert {limit["limit"]: limit["matches"] for limit in found["limits"]} == {
        "free/per-day": "yes",
        "free/per-ip": "yes",
    }
    assert found["reply"] == ""


def test_attributes_decide_what_matches(api, issue):
    """Those that are not given are said to be unknown, and count neither for nor against a limit."""
    match = {"match_methods": ["POST"], "match_path": "/login*"}
    token, _ = issue({"name": "logins", "quota": 5, **match}, {"name": "per-ip", "quota": 5, "partition_by": ["ip"]})
    asked = {"token": token.pk, "attributes": {"method": "GET", "path": "/login/form"}}

    limits = limits_of(api("POST", "explain", asked))

    assert (limits["free/logins"]["matches"], limits["free/logins"]["why"]) == ("no", "method is not POST")
    assert limits["free/per-ip"]["matches"] == "unknown"
    assert limits["free/per-ip"]["why"] == "ip of the request is not known"


def test_a_counter_of_a_partition_is_read_for_its_value(api, denied):
    """The count of one address, not of all."""
    asked = {"token": denied.token.pk, "attributes": {"ip": "10.0.0.1"}}
    other = {"token": denied.token.pk, "attributes": {"ip": "10.0.0.9"}}

    used = [limits_of(api("POST", "explain", body))["free/per-ip"]["used_now"] for body in (asked, other)]

    assert used == [2, 0]


def test_labels_that_differ_are_a_reason(api, issue):
    """A limit for another team does not match."""
    team = {"name": "red", "quota": 5, "match_attributes": {"label.team": "red"}}
    token, _ = issue(team, labels={"team": "blue"})

    limit = limits_of(api("POST", "explain", {"token": token.pk}))["free/red"]

    assert (limit["matches"], limit["why"]) == ("no", "team of the token is not red")


def test_a_minute_that_is_no_longer_kept_says_so(api, denied):
    """The hour is still there."""
    rollup.prune(timezone.now() + timedelta(hours=49))
    # Not in the last minute of an hour, at the end of which the hour says how much was used.
    decision = _older(denied, timedelta(days=3, minutes=10 if timezone.now().minute > 55 else 0))

    found = api("POST", "explain", {"decision": decision}).json()

    assert "That minute is no longer kept; hours are." in found["summary"]
    assert found["limits"][0]["used"] is None


def _older(denied, age):
    """The same decision, of which the id says that it is older."""
    from django.conf import settings

    key = DecisionKey(decision_secret(settings.SECRET_KEY))
    facts = key.open(denied.decision)
    fields = {name: getattr(facts, name) for name in DecisionFacts.__slots__}
    return key.seal(DecisionFacts(**{**fields, "at_ms": facts.at_ms - int(age.total_seconds() * 1_000)}))


def test_documents_that_are_gone_are_named(api, denied):
    """The present ones in their place are not passed off as those of then."""
    set_quota(denied.policy, 20)
    PublishedDocument.objects.filter(revision__lt=publisher.last_revision()).delete()

    found = api("POST", "explain", {"decision": denied.decision}).json()

    assert found["documents_unknown"] == ["all documents of that revision"]


def test_a_revoked_token_explains_itself(api, denied, start_limiter):
    """The decision names no limit, and the token would be refused now."""
    with change(actor=ANN) as tx:
        revoke_token(tx, denied.token)
    with start_limiter() as enforcer:
        decision = enforcer.check(denied.secret).id

    found = api("POST", "explain", {"decision": decision}).json()

    assert found["summary"].startswith("kestrel was revoked.")
    assert (found["passes_now"], found["blocked_by"]) == (False, ["the token is revoked"])


def test_a_deleted_token_is_still_explained(api, denied):
    """From the documents of the revision."""
    with change(actor=ANN) as tx:
        tx.delete(denied.token)

    answer = api("POST", "explain", {"decision": denied.decision})

    assert limits_of(answer)["free/per-day"]["result"] == "denied"
    assert answer.json()["blocked_by"] == ["the token is deleted"]


def test_a_store_that_is_away_leaves_the_past(api, denied, settings):
    """Only the counters of now are missing."""
    settings.REDIS_URL = "redis://127.0.0.1:1/0"

    answer = api("POST", "explain", {"decision": denied.decision})

    assert (answer.status_code, answer.json()["store_reachable"], answer.json()["passes_now"]) == (200, False, None)
    assert limits_of(answer)["free/per-day"]["quota"] == 2


def test_a_key_of_another_project_learns_nothing(call, denied):
    """The same answer for a decision of theirs and for one that nobody made."""
    key = ManagementKeyFactory(projects=[ProjectFactory(slug="other")])

    answers = [
        call("POST", "explain", {name: value}, key=key)
        for name, value in (("decision", denied.decision), ("token", denied.token.pk), ("token", denied.secret))
    ]

    assert [answer.status_code for answer in answers] == [400, 400, 400]
    assert all("chat" not in answer.content.decode() for answer in answers)
    assert denied.secret not in answers[-1].content.decode()
    unknown = call("POST", "explain", {"token": "tok_unknown"}, key=key)
    assert unknown.json()["errors"] == answers[1].json()["errors"]


@pytest.mark.parametrize("partition_by", [[], ["ip"]])
def test_a_key_of_the_project_sees_no_sums_over_others(call, denied, partition_by):
    """Neither a counter of a global limit, whose attributes anybody may name, nor the name of the instance."""
    from controlplane.objects.policies.actions import set_global_policy
    from tests.factories import LimitFactory, PolicyFactory

    everywhere = LimitFactory(policy=PolicyFactory(slug="guard"), name="all", partition_by=partition_by).policy
    with change(actor=ANN) as tx:
        tx.created(everywhere)
        set_global_policy(tx, everywhere)
    key = ManagementKeyFactory(projects=[denied.token.project])

    asked = {"token": denied.token.pk, "attributes": {"ip": "10.0.0.1"}}
    found = call("POST", "explain", asked, key=key).json()
    decision = call("POST", "explain", {"decision": denied.decision}, key=key).json()["decision"]

    guard = next(limit for limit in found["limits"] if limit["limit"] == "guard/all")
    assert (guard["used_now"], guard["allowed"], guard["used"]) == (None, None, None)
    assert decision["instance"] is None


def test_two_tokens_of_one_name_are_told_apart_by_their_ids(api, denied):
    """The ids are in the error."""
    TokenFactory(name="kestrel")

    answer = api("POST", "explain", {"token": "kestrel"})

    assert answer.status_code == 400
    assert denied.token.pk in answer.content.decode()


def test_what_is_suspended_would_be_denied_now(api, denied):
    """A value of the request, too, and no limit is named for it."""
    Suspension.objects.create(name="ip", value="10.0.0.1", within=denied.token.project, reason="x")
    asked = {"token": denied.token.pk, "attributes": {"ip": "10.0.0.1"}}

    found = api("POST", "explain", asked).json()

    assert (found["passes_now"], found["blocked_by"]) == (
        False,
        ["the value 10.0.0.1 of ip is suspended, until somebody resumes it (x)"],
    )


def test_while_the_glass_is_broken_no_limit_denies(api, denied):
    """Its end is in the page's words, and what is full passes."""
    now = timezone.now()
    BreakGlass.objects.create(began_at=now, ends_at=now + timedelta(hours=1), reason="outage", by="ann")

    found = api("POST", "explain", {"token": denied.token.pk}).json()

    assert (found["passes_now"], found["blocked_by"]) == (True, [])


def summary_of(api, decision):
    found = api("POST", "explain", {"decision": decision}).json()
    return found["summary"], found["reply"]


def test_an_allowed_request_was_not_denied(api, issue, start_limiter):
    """Logs may have the id of such a decision, too."""
    _, secret = issue({"quota": 2})
    with start_limiter() as enforcer:
        summary, reply = summary_of(api, enforcer.check(secret).id)

    assert summary.startswith("It was allowed.")
    assert reply.endswith("was allowed.")


def test_a_process_that_decides_alone_gives_a_part_of_the_quota(api, issue, start_limiter, store):
    """The quota itself was not used up, and a wait until the window ends is not what helps."""
    _, secret = issue({"quota": 2})
    with start_limiter() as enforcer:
        enforcer.check(secret)
        store.freeze()
        decisions = [enforcer.check(secret) for _ in range(4)]
        store.thaw()
    allowed, denied = (summary_of(api, decisions[n].id) for n in (0, -1))

    assert allowed[0].startswith("It was allowed without the store, which was not reachable.")
    assert "kestrel had used up the part of free / per-day that one process admits alone." in denied[0]
    assert "The next request was possible" not in denied[0]
    assert "of which we could give out only a part for a moment" in denied[1]


def test_requests_without_a_token_are_named_as_such(api, issue, start_limiter):
    """Not as one request."""
    token, _ = issue({"quota": 1})
    with change(actor=ANN) as tx:
        before = token.project.as_record()
        token.project.anonymous_policy = token.policy
        token.project.save()
        tx.updated(token.project, before)
    with start_limiter() as enforcer:
        decision = [enforcer.check(Anonymous("chat")) for _ in range(2)][-1]

    assert summary_of(api, decision.id)[0].startswith("Requests without a token of chat had used up 1 request per day")
