import json
import re

import pytest
from django.contrib.staticfiles import finders
from drf_spectacular.validation import validate_schema

from controlplane.api.limit_schema import LIMIT
from enforcement.model.limits import Limit

pytestmark = pytest.mark.django_db


@pytest.fixture
def openapi(call) -> dict:
    return call("GET", "openapi.json").json()


def operations(openapi: dict) -> list[tuple[str, dict]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]


def test_the_document_is_valid(call, openapi):
    """OpenAPI 3.1, for everybody, as JSON."""
    validate_schema(openapi)
    assert openapi["openapi"].startswith("3.1")
    assert call("GET", "openapi.json")["Content-Type"] == "application/json"


def test_the_document_is_the_same_each_time(call, openapi):
    """What builds it leaves its parts as they were."""
    assert call("GET", "openapi.json").json() == openapi


def test_every_operation_names_its_scope_and_its_errors(openapi):
    """A reader knows which key to make and what may come back."""
    for name, operation in operations(openapi):
        assert re.search(r"Scope: `\w+:\w+`", operation["description"]), name
        refused = operation["responses"]["401"]["content"]
        assert refused["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}, name


def test_every_write_documents_its_revision(openapi):
    """And the header for the reason."""
    for name, operation in operations(openapi):
        if name.split()[0] != "GET":
            done = next(body for code, body in operation["responses"].items() if code.startswith("2"))
            assert "Sluicegate-Revision" in done["headers"], name
            assert "Sluicegate-Reason" in [parameter["name"] for parameter in operation["parameters"]], name


def test_bodies_allow_no_unknown_field(openapi):
    """As the server does not."""
    bodies = {name: schema for name, schema in openapi["components"]["schemas"].items() if name.endswith("Request")}

    assert [name for name, schema in bodies.items() if schema.get("additionalProperties") is not False] == []


def test_the_document_shows_every_field_of_a_limit():
    """A new field of enforcement is documented or this fails."""
    assert set(LIMIT["properties"]) == set(Limit.FIELDS)


def test_no_secret_is_in_any_answer_but_two(openapi):
    """The ones that create a token and rotate it."""
    holders = [
        name for name, schema in openapi["components"]["schemas"].items() if "secret" in schema.get("properties", {})
    ]
    using = [name for name, operation in operations(openapi) if "IssuedToken" in json.dumps(operation)]

    assert holders == ["IssuedToken"]
    assert using == ["POST /api/v1/projects/{slug}/tokens", "POST /api/v1/tokens/{id}/rotate"]


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
