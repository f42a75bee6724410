import threading

import pytest
import redis
from django.db import OperationalError, connection, connections

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.projects.models import Project
from enforcement import Limiter
from tests.factories import ManagementKeyFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def secret(api, store) -> str:
    """The secret of tok "ci" of "chat", which falls under its own policy and its project's."""
    ip = {"name": "ip", "quota": 5, "window_seconds": 3600, "partition_by": ["ip"]}
    hourly = {"name": "hourly", "algorithm": "sliding_window", "window_seconds": 3600}
    for slug, quota in (("team", 1000), ("free", 100)):
        api("POST", "policies", {"slug": slug, "name": slug, "limits": [{**hourly, "quota": quota}, ip]})
    api("POST", "projects", {"slug": "chat", "name": "Chat", "policy": "team"})
    return api("POST", "projects/chat/tokens", {"name": "ci", "policy": "free"}).json()["secret"]


@pytest.fixture
def token_id(api, secret) -> str:
    return api("GET", "projects/chat/tokens").json()["results"][0]["id"]


@pytest.fixture
def seven_requests(secret, store) -> None:
    """Seven requests, decided by a real enforcer."""
    with Limiter(store.url) as limiter:
        assert [limiter.check(secret).allowed for _ in range(7)] == [True] * 7


def shown(api, query: str) -> list[tuple]:
    counters = api("GET", f"counters?{query}").json()["results"]
    return [(c["limit"], c["scope"], c["quota"], c["used"], c["remaining"]) for c in counters if not c["partition_by"]]


def test_counters_show_what_enforcement_has_counted(api, token_id, seven_requests):
    """Of the token, and of its project, which it shares with others."""
    assert shown(api, f"token={token_id}") == [
        ("team/hourly", "project", 1000, 7, 993),
        ("free/hourly", "token", 100, 7, 93),
    ]


def test_counters_of_a_project_are_those_its_tokens_share(api, token_id, seven_requests):
    """Its tokens' own are theirs."""
    assert shown(api, "project=chat") == [("team/hourly", "project", 1000, 7, 993)]


def test_looking_charges_nothing(api, token_id, seven_requests):
    """However often."""
    first = shown(api, f"token={token_id}")

    assert shown(api, f"token={token_id}") == first


def test_an_override_is_in_the_numbers(api, token_id, seven_requests):
    """And named."""
    body = {"limit": "free/hourly", "token": token_id, "quota": 10, "reason": "abuse"}
    override = api("POST", "overrides", body).json()["id"]

    counters = api("GET", f"counters?token={token_id}").json()["results"]

    found = next(counter for counter in counters if counter["limit"] == "free/hourly")
    assert (found["quota"], found["used"], found["remaining"], found["override"]) == (10, 7, 3, override)


def test_a_partitioned_limit_has_no_single_count(api, token_id):
    """Its numbers are null, and it says by what it is partitioned."""
    counters = api("GET", f"counters?token={token_id}").json()["results"]

    found = next(counter for counter in counters if counter["limit"] == "free/ip")
    assert (found["partition_by"], found["used"], found["remaining"]) == (["ip"], None, None)


def test_a_reset_forgets_one_limit(api, token_id, seven_requests):
    """And tells enforcers, in a revision, and the audit, with the reason."""
    response = api("POST", f"counters/reset?token={token_id}", {"limit": "free/hourly", "reason": "goodwill"})

    assert response.json() == {"reset": 1}
    assert response["Sluicegate-Revision"].isdigit()
    assert shown(api, f"token={token_id}") == [
        ("team/hourly", "project", 1000, 7, 993),
        ("free/hourly", "token", 100, 0, 100),
    ]
    entry = AuditEntry.objects.get(action="counters.reset")
    assert (entry.reason, entry.after) == ("goodwill", {"limit": "free/hourly"})


def test_a_reset_of_a_token_leaves_what_it_shares(api, token_id, seven_requests):
    """The project's other tokens are none of its business."""
    api("POST", f"counters/reset?token={token_id}", {"reason": "goodwill"})

    assert shown(api, f"token={token_id}") == [
        ("team/hourly", "project", 1000, 7, 993),
        ("free/hourly", "token", 100, 0, 100),
    ]


def test_a_policy_attached_twice_is_reset_where_it_is_closest(api, token_id, seven_requests):
    """The token's own counter, not its project's of the same name."""
    api("PATCH", "projects/chat", {"policy": "free"})

    response = api("POST", f"counters/reset?token={token_id}", {"limit": "free/hourly", "reason": "goodwill"})

    assert response.json() == {"reset": 1}


@pytest.mark.parametrize(("limit", "code"), [("free/ip", "partitioned"), ("free/nope", "does_not_exist")])
def test_what_cannot_be_reset_is_refused(api, token_id, limit, code):
    """An answer of "done" would be a lie."""
    response = api("POST", f"counters/reset?token={token_id}", {"limit": limit, "reason": "x"})

    assert [(error["pointer"], error["code"]) for error in response.json()["errors"]] == [("#/limit", code)]


def test_a_limit_that_does_not_fall_on_the_holder_is_refused(api, token_id):
    """The token's own limit is not the project's."""
    response = api("POST", "counters/reset?project=chat", {"limit": "free/hourly", "reason": "x"})

    assert response.json()["errors"][0]["pointer"] == "#/limit"


@pytest.mark.parametrize("query", ["", "token=x&project=chat"])
def test_one_holder_is_asked_for(api, query):
    """Not none, and not two."""
    assert api("GET", f"counters?{query}").json()["errors"][0]["code"] == "one_of_two"


def test_a_store_that_is_away_is_told_and_nothing_is_recorded(api, token_id, store):
    """A reset that did not happen is in no audit."""
    store.kill()

    responses = [
        api("GET", f"counters?token={token_id}"),
        api("POST", f"counters/reset?token={token_id}", {"reason": "x"}),
    ]

    assert [(r.status_code, r.json()["code"]) for r in responses] == [(503, "store_unavailable")] * 2
    assert not AuditEntry.objects.filter(action="counters.reset").exists()


def test_a_reset_that_cannot_be_recorded_resets_nothing(api, token_id, seven_requests, monkeypatch):
    """Counters must not vanish without an audit entry, so the commit comes first."""

    def failing():
        raise OperationalError("server closed the connection unexpectedly")

    with monkeypatch.context() as patched:
        patched.setattr(connections["default"], "_commit", failing)
        response = api("POST", f"counters/reset?token={token_id}", {"limit": "free/hourly", "reason": "x"})

    assert (response.status_code, response.json()["code"]) == (503, "database_unavailable")
    assert not AuditEntry.objects.filter(action="counters.reset").exists()
    assert shown(api, f"token={token_id}")[1] == ("free/hourly", "token", 100, 7, 93)


def test_a_reset_during_which_the_store_dies_is_said_and_recorded(api, token_id, seven_requests, monkeypatch):
    """The audit says what was asked for, and that it was not finished. The same request again finishes it."""

    def failing(*args, **options):
        raise redis.ConnectionError("closed")

    with monkeypatch.context() as patched:
        patched.setattr("enforcement.store_calls.inspection.reset_counters", failing)
        response = api("POST", f"counters/reset?token={token_id}", {"limit": "free/hourly", "reason": "x"})

    assert (response.status_code, response.json()["code"]) == (503, "reset_unfinished")
    entries = AuditEntry.objects.filter(object_id=token_id, action__startswith="counters.")
    assert {entry.action for entry in entries} == {"counters.reset", "counters.reset_unfinished"}
    assert {entry.change for entry in entries} == {entries[0].change}
    assert api("POST", f"counters/reset?token={token_id}", {"limit": "free/hourly", "reason": "x"}).json() == {
        "reset": 1
    }


def test_a_store_that_lost_its_functions_gets_them_back(api, token_id, seven_requests, client_of_store):
    """Whoever misses them first loads them."""
    client_of_store.function_flush()

    assert shown(api, "project=chat") == [("team/hourly", "project", 1000, 7, 993)]


def test_a_key_of_some_projects_resets_nothing_that_all_share(api, call, token_id):
    """The counter of the global policy is everybody's."""
    limit = {"name": "all", "quota": 10, "window_seconds": 60}
    api("POST", "policies", {"slug": "everyone", "name": "Everyone", "limits": [limit]})
    api("PUT", "global", {"policy": "everyone"})
    key = ManagementKeyFactory(projects=[Project.objects.get(slug="chat")])

    response = call("POST", f"counters/reset?token={token_id}", {"limit": "everyone/all", "reason": "x"}, key=key)

    assert (response.status_code, response.json()["code"]) == (403, "key_limited_to_projects")


def test_null_is_not_every_limit(api, token_id, seven_requests):
    """A program that has not found the limit resets none. Whoever means all of them leaves the field out."""
    response = api("POST", f"counters/reset?token={token_id}", {"reason": "x", "limit": None})

    assert response.json()["errors"] == [
        {"pointer": "#/limit", "code": "null", "detail": "This field may not be null."}
    ]
    assert shown(api, f"token={token_id}")[1] == ("free/hourly", "token", 100, 7, 93)


def test_a_token_that_nobody_remembers_has_no_counters(api, store):
    """It expired days ago."""
    token_id = TokenFactory(expires_at="2020-01-01T00:00:00Z")

    assert api("GET", f"counters?token={token_id.pk}").status_code == 404


def test_a_reset_of_a_forgotten_token_leaves_its_project_alone(api, token_id, seven_requests):
    """What is no longer known has nothing to reset, and its project's counters are others' too."""
    gone = TokenFactory(project=Project.objects.get(slug="chat"), expires_at="2020-01-01T00:00:00Z")

    assert api("POST", f"counters/reset?token={gone.pk}", {"reason": "x"}).status_code == 404
    assert shown(api, "project=chat") == [("team/hourly", "project", 1000, 7, 993)]


def test_counters_of_a_project_that_is_deleted_meanwhile_are_not_found(api, secret):
    """The request has found the project, and its documents are gone: 404, and no error of the server."""
    reads = []

    def deleting(execute, sql, params, many, context):
        if 'FROM "projects_project"' in sql and threading.current_thread() is here:
            reads.append(sql)
            if len(reads) == 2:
                other = threading.Thread(target=lambda: (api("DELETE", "projects/chat"), connection.close()))
                other.start()
                other.join()
        return execute(sql, params, many, context)

    here = threading.current_thread()
    for _ in range(2):  # deleted between the two reads, and before both
        reads.clear()
        with connection.execute_wrapper(deleting):
            response = api("GET", "counters?project=chat")
        assert response.status_code == 404


def test_a_reset_with_a_key_is_done_once(api, token_id, seven_requests, secret, store):
    """The number of counters is known after the commit, in the first response and in its repetition."""

    def reset():
        return api("POST", f"counters/reset?token={token_id}", {"reason": "goodwill"}, idempotency_key="a")

    first = reset()
    with Limiter(store.url) as limiter:
        assert limiter.check(secret).allowed
    again = reset()

    assert (first.status_code, first.json()) == (200, {"reset": 1})
    assert (again.json(), again["Idempotency-Replayed"]) == ({"reset": 1}, "true")
    assert shown(api, f"token={token_id}")[1] == ("free/hourly", "token", 100, 1, 99)
    assert AuditEntry.objects.filter(action="counters.reset").count() == 1


def test_a_reset_with_a_key_that_was_not_finished_runs_again(api, token_id, seven_requests, monkeypatch):
    """The response says so, as without a key, and the same request finishes it."""

    def failing(*args, **options):
        raise redis.ConnectionError("closed")

    def reset():
        return api("POST", f"counters/reset?token={token_id}", {"reason": "x"}, idempotency_key="a")

    with monkeypatch.context() as patched:
        patched.setattr("enforcement.store_calls.inspection.reset_counters", failing)
        response = reset()

    assert (response.status_code, response.json()["code"]) == (503, "reset_unfinished")
    assert (reset().json(), "Idempotency-Replayed" in reset()) == ({"reset": 1}, True)
