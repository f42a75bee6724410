import json

import pytest
from django.db import OperationalError, connection

from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.web.restkit import problems
from tests.factories import PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db


def test_an_error_names_each_field_by_a_pointer(api):
    """One answer tells everything that is wrong, each with a stable code."""
    PolicyFactory(slug="free")

    response = api("POST", "projects", {"slug": "Chat", "nam": "Chat", "policy": "fre", "version": 3})

    assert response.status_code == 400
    assert response["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem["code"] == "validation_error"
    assert {(error["pointer"], error["code"]) for error in problem["errors"]} == {
        ("#/slug", "invalid"),
        ("#/name", "required"),
        ("#/policy", "does_not_exist"),
        ("#/nam", "unknown_field"),
        ("#/version", "read_only"),
    }


def test_an_unknown_field_is_told_its_likely_name(api):
    """A mistyped field is refused, not dropped."""
    response = api("POST", "projects", {"slug": "chat", "nam": "Chat", "name": "Chat"})

    assert response.json()["errors"] == [
        {"pointer": "#/nam", "code": "unknown_field", "detail": 'Unknown field. Did you mean "name"?'}
    ]


def test_a_pointer_leads_into_a_list(api):
    """The second limit's quota is named as such."""
    limits = [{"name": "a", "quota": 1, "window_seconds": 60}, {"name": "b", "quota": -1, "window_seconds": 60}]

    response = api("POST", "policies", {"slug": "free", "name": "Free", "limits": limits})

    assert [error["pointer"] for error in response.json()["errors"]] == ["#/limits/1/quota"]


def test_a_pointer_is_escaped(api):
    """Slashes, tildes and blanks in a name lead nobody astray (RFC 6901)."""
    response = api("POST", "projects", {"slug": "chat", "name": "Chat", "a/b~c d": 1})

    assert [error["pointer"] for error in response.json()["errors"]] == ["#/a~1b~0c%20d"]


def test_a_query_error_names_the_parameter(api):
    """A mistyped parameter is refused, not ignored."""
    response = api("GET", "projects?page_sise=3")

    assert response.json()["errors"] == [
        {"parameter": "page_sise", "code": "unknown_field", "detail": 'Unknown field. Did you mean "page_size"?'}
    ]


def test_a_repeated_parameter_is_refused(api):
    """Nobody has to guess which of two values counts."""
    response = api("GET", "projects?page_size=1&page_size=2")

    assert response.json()["errors"][0]["code"] == "repeated"


@pytest.mark.parametrize("path", ["nope", "projects/", "projects/chat/nope", "/api/nope", "/api/v2/projects"])
def test_an_unknown_address_is_a_problem_too(call, path):
    """Whoever parses errors parses this one; no page of HTML comes from under /api/."""
    response = call("GET", path)

    assert (response.status_code, response["Content-Type"]) == (404, "application/problem+json")
    assert response.json()["code"] == "not_found"


def test_an_address_with_a_slash_too_many_is_explained(call):
    """The commonest mistake gets its own hint."""
    assert "no slash at the end" in call("GET", "projects/").json()["detail"]


def test_a_method_that_is_not_there_names_those_that_are(api):
    """405 comes with Allow."""
    response = api("PUT", "projects", {})

    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert response["Allow"] == "GET, HEAD, POST"


def test_forms_are_refused(api):
    """JSON only."""
    response = api("POST", "projects", "slug=chat&name=Chat", content_type="application/x-www-form-urlencoded")

    assert response.status_code == 415
    assert response.json()["code"] == "unsupported_media_type"


def test_a_client_that_wants_html_is_refused(api):
    """JSON only, also in answers."""
    assert api("GET", "projects", accept="text/html").json()["code"] == "not_acceptable"


@pytest.mark.parametrize("accept", ["application/problem+json", "*/*", "application/json", "application/*"])
def test_a_client_that_takes_json_of_any_kind_is_served(api, accept):
    """Asking for our errors alone is no reason to refuse our answers."""
    response = api("GET", "projects", accept=accept)

    assert (response.status_code, response["Content-Type"]) == (200, "application/json")


@pytest.mark.parametrize(
    "body",
    [
        '{"slug":',
        '{"slug": "a", "slug": "b"}',
        '{"name": NaN}',
        '{"name": 1e400}',
        '{"name": "\\u0000"}',
        '{"name": "\\ud800"}',
        b"\xff",
        "[" * 21 + "]" * 21,
        "[" * 100_000,
    ],
    ids=["cut off", "twice", "NaN", "infinite", "NUL", "half a pair", "no UTF-8", "21 levels", "100000 levels"],
)
def test_what_json_readers_disagree_about_is_refused(api, body):
    """Duplicate names, numbers that are none, broken text and deep nesting never reach a model."""
    response = api("POST", "projects", body)

    assert (response.status_code, response.json()["code"]) == (400, "parse_error")


@pytest.mark.parametrize("body", [[], "text", 1, None, True])
def test_a_body_that_is_no_object_is_refused(api, body):
    """The error points at the whole body."""
    response = api("POST", "projects", json.dumps(body))

    assert response.status_code == 400
    assert response.json()["errors"][0]["pointer"] in ("#", "#/slug")


def test_a_body_beyond_a_mebibyte_is_refused(api):
    """It is not read to its end."""
    response = api("POST", "projects", b'"' + b"a" * 1024 * 1024 + b'"')

    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_the_request_id_of_the_client_is_kept(api):
    """It stands in the answer, in its header, and in the problem."""
    response = api("GET", "projects/none", x_request_id="trace-1")

    assert response["X-Request-Id"] == "trace-1"
    assert response.json()["request_id"] == "trace-1"


def test_a_request_id_that_is_none_is_replaced(api):
    """What goes into logs is of our alphabet."""
    response = api("GET", "projects", x_request_id="a b\x1b[31m")

    assert response["X-Request-Id"].startswith("req_")


def test_a_fault_of_ours_tells_nothing_but_its_id(api, monkeypatch):
    """No trace of the stack leaves the server."""
    monkeypatch.setattr(Project, "as_record", lambda self: 1 / 0)

    response = api("POST", "projects", {"slug": "chat", "name": "Chat"})

    assert (response.status_code, response["Content-Type"]) == (500, "application/problem+json")
    assert response.json()["code"] == "server_error"
    assert "division" not in response.content.decode()
    assert not Project.objects.exists()


def test_a_database_that_fails_is_told_as_such(api, monkeypatch):
    """The client may try again."""

    def fail(*_):
        raise OperationalError("database is locked")

    monkeypatch.setattr("controlplane.web.rest.projects.ProjectView.get_queryset", fail)

    response = api("GET", "projects")

    assert (response.status_code, response.json()["code"]) == (503, "database_unavailable")
    assert response["Retry-After"] == "1"


def test_a_deadlock_is_a_conflict(api, monkeypatch):
    """The database is there, and has ended one of two changes that waited for each other."""

    def fail(*_):
        deadlock = Exception("deadlock detected")
        deadlock.sqlstate = "40P01"
        raise OperationalError("deadlock detected") from deadlock

    monkeypatch.setattr("controlplane.web.rest.projects.ProjectView.get_queryset", fail)

    response = api("PATCH", "projects/chat", {"name": "New"})

    assert (response.status_code, response.json()["code"]) == (409, "conflict")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("others", "code", "named"), [(0, "conflict", False), (1, "in_use", True)])
def test_a_user_that_is_deleted_meanwhile_is_not_named(api, others, code, named):
    """The names are read after the deletion was refused, when another request may have deleted some of them."""
    policy = PolicyFactory(slug="free")
    gone = TokenFactory(name="gone", policy=policy)
    kept = [TokenFactory(name="kept", policy=policy) for _ in range(others)]

    def delete_one(execute, sql, params, many, context):
        if "LIMIT 21" in sql and gone.pk in params:
            Token.objects.filter(pk=gone.pk).delete()
        return execute(sql, params, many, context)

    with connection.execute_wrapper(delete_one):
        response = api("DELETE", "policies/free")

    assert (response.status_code, response.json()["code"]) == (409, code)
    assert [f"The object is still used by token {token}." for token in kept] == [response.json()["detail"]] * named


def test_what_is_in_use_is_not_deleted(api):
    """The answer says by whom."""
    policy = PolicyFactory(slug="free")
    ProjectFactory(slug="chat", policy=policy)

    response = api("DELETE", "policies/free")

    assert (response.status_code, response.json()["code"]) == (409, "in_use")
    assert response.json()["detail"] == "The object is still used by project chat."
    assert Policy.objects.exists()


def test_a_host_that_is_not_ours_is_refused_as_a_problem(api):
    """Django's own refusals have the same shape."""
    response = api("GET", "projects", host="evil.example")

    assert (response.status_code, response["Content-Type"]) == (400, "application/problem+json")


@pytest.mark.parametrize(
    ("path", "expected"), [((), "#"), (("a", 0, "b"), "#/a/0/b"), (("",), "#/"), (("ü",), "#/%C3%BC")]
)
def test_pointers_are_fragments(path, expected):
    """RFC 6901, section 6."""
    assert problems.pointer(path) == expected
