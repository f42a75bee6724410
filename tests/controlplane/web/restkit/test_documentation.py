import json
import re
from importlib.resources import files

import jsonschema_rs
import pytest
from django.contrib.staticfiles import finders
from jsonschema import Draft202012Validator

from controlplane.web.restkit.limit_schema import LIMIT
from enforcement.model.limits import Limit

pytestmark = pytest.mark.django_db


texts: list[str] = []
"""The document, once a test has asked for it. Building it takes seconds."""


@pytest.fixture
def openapi(call) -> dict:
    if not texts:
        texts.append(call("GET", "openapi.json").text)
    return json.loads(texts[0])


def operations(openapi: dict) -> list[tuple[str, dict]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]


def test_the_document_is_valid(call, openapi):
    """OpenAPI 3.1, for everybody, as JSON."""
    rules = json.loads(files("drf_spectacular.validation").joinpath("openapi_3_1_schema.json").read_text())
    jsonschema_rs.validate(rules, openapi)  # not by drf-spectacular itself, whose validator takes 15 s
    assert openapi["openapi"].startswith("3.1")
    assert call("GET", "openapi.json")["Content-Type"] == "application/json"


def test_the_document_is_the_same_each_time(call, openapi):
    """What builds it leaves its parts as they were."""
    assert call("GET", "openapi.json").json() == openapi


def test_each_example_is_one_of_its_schema(openapi):
    """Whoever begins with an example changes it step by step, and gets no error before the first one."""
    bodies = [
        content for _, it in operations(openapi) for content in it.get("requestBody", {}).get("content", {}).values()
    ]
    shown = [(body["schema"], example["value"]) for body in bodies for example in body.get("examples", {}).values()]
    for fields in [schema.get("properties", {}) for schema in openapi["components"]["schemas"].values()]:
        shown += [(field, field["example"]) for field in fields.values() if "example" in field]
    assert len(shown) > 40

    for schema, example in shown:
        jsonschema_rs.validate({**schema, "components": openapi["components"]}, example)


# Their credential is a token, which has no scopes.
OF_CONSUMERS = {"GET /api/v1/me", "GET /api/v1/me/usage"}


def test_every_operation_names_its_scope_and_its_errors(openapi):
    """A reader knows which key to make and what may come back."""
    for name, operation in operations(openapi):
        assert re.search(r"Scope: `\w+:\w+`", operation["description"]) or name in OF_CONSUMERS, name
        refused = operation["responses"]["401"]["content"]
        assert refused["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}, name


# They ask what must not be in an address, and write nothing.
ASKING = {"POST /api/v1/explain", "POST /api/v1/preview"}


def test_every_write_documents_its_revision(openapi):
    """And the header for the reason."""
    for name, operation in operations(openapi):
        if name.split()[0] != "GET" and name not in ASKING:
            *_, done = (body for code, body in operation["responses"].items() if code.startswith("2"))
            assert "Sluicegate-Revision" in done["headers"], name
            assert "Sluicegate-Reason" in [parameter["name"] for parameter in operation["parameters"]], name


def test_bodies_allow_no_unknown_field(openapi):
    """As the server does not."""
    bodies = {name: schema for name, schema in openapi["components"]["schemas"].items() if name.endswith("Request")}

    assert [name for name, schema in bodies.items() if schema.get("additionalProperties") is not False] == []


def test_the_document_shows_every_field_of_a_limit():
    """A new field of enforcement is documented or this fails."""
    assert set(LIMIT["properties"]) == set(Limit.FIELDS)


def test_no_secret_is_in_any_answer_but_these(openapi):
    """The ones that create a token, a management key or a webhook, and that rotate it."""
    holders = [
        name for name, schema in openapi["components"]["schemas"].items() if "secret" in schema.get("properties", {})
    ]
    using = [
        name for name, operation in operations(openapi) if any(holder in json.dumps(operation) for holder in holders)
    ]

    assert holders == ["IssuedKey", "IssuedToken", "MadeWebhook"]
    assert using == [
        "POST /api/v1/management-keys",
        "POST /api/v1/management-keys/{id}/rotate",
        "POST /api/v1/projects/{slug}/tokens",
        "POST /api/v1/tokens/{id}/rotate",
        "POST /api/v1/webhooks",
        "POST /api/v1/webhooks/{id}/rotate",
    ]


def test_the_page_asks_no_other_host(call):
    """It works on a machine without the internet."""
    page, script = call("GET", "docs/"), call("GET", "docs/?script")

    assert page.status_code == script.status_code == 200
    text = page.content.decode() + script.content.decode()
    assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text) == []
    assert "swagger-ui-bundle.js" in text


def test_what_the_page_refers_to_is_there(call):
    """Scripts and styles come from this server."""
    page = call("GET", "docs/").content.decode()

    found = re.findall(r'(?:src|href)="(/[^"]+)"', page)

    assert len(found) >= 4
    assert [path for path in found if path.startswith("/static/") and not finders.find(path[8:])] == []
    assert [path for path in found if not path.startswith("/static/")] == ["/api/v1/docs/?script="]


def test_every_operation_has_a_summary_and_a_description_of_its_own(openapi):
    """A list of operations tells them apart: nobody has to read the address to know what is created or deleted."""
    summaries = [operation["summary"] for _, operation in operations(openapi)]
    descriptions = [operation["description"] for _, operation in operations(openapi)]

    twins = {summary for summary in summaries if summaries.count(summary) > 1}
    assert twins == set()
    assert len(set(descriptions)) == len(descriptions)


def test_the_server_is_the_one_that_sent_the_document(openapi):
    """A relative address is true wherever the server stands."""
    assert openapi["servers"] == [{"url": "/"}]


def test_412_is_listed_where_if_match_is(openapi):
    """A client generator offers the condition for each operation that heeds it."""
    for name, operation in operations(openapi):
        conditional = "If-Match" in [parameter["name"] for parameter in operation.get("parameters", [])]
        assert conditional == ("412" in operation["responses"]), name


def test_the_headers_of_every_response_are_documented(openapi):
    """Those of the view itself; the HTTP server has none of them."""
    for name, operation in operations(openapi):
        for status, response in operation["responses"].items():
            if status not in ("414", "431"):
                assert {"X-Request-Id", "Cache-Control"} <= set(response["headers"]), name
        assert "Retry-After" in operation["responses"]["503"]["headers"], name


def test_created_changed_and_deleted_are_in_the_audit_as_documented(api, openapi):
    """A created object had no fields before, a deleted one has none afterwards: null, once."""
    api("POST", "projects", {"slug": "chat", "name": "Chat"})
    api("PATCH", "projects/chat", {"name": "Talk"})
    api("DELETE", "projects/chat")

    entries = api("GET", "audit").json()["results"]

    validator = Draft202012Validator({**openapi["components"]["schemas"]["Audit"], "components": openapi["components"]})
    assert [(entry["before"] is None, entry["after"] is None) for entry in entries] == [
        (False, True),
        (False, False),
        (True, False),
    ]
    assert [error.message for entry in entries for error in validator.iter_errors(entry)] == []


def test_the_rule_of_names_is_in_the_document(openapi):
    """A form that is made from it refuses the same names."""
    schemas = openapi["components"]["schemas"]

    for schema in ("ProjectRequest", "TokenRequest", "PolicyRequest"):
        pattern = re.compile(schemas[schema]["properties"]["name"]["pattern"])
        assert [name for name in ("für Jörg", "a\nb", "\x1b[31m", "\u202ea") if pattern.search(name)] == ["für Jörg"]
