"""What will be removed is announced in the responses to those who use it, by one declaration."""

from datetime import UTC, datetime

import pytest
from drf_spectacular.generators import SchemaGenerator

from controlplane.web.rest.projects import ProjectSerializer, ProjectView
from controlplane.web.rest.tokens import TokenQuery
from controlplane.web.restkit.deprecation import Deprecation, headers_of
from tests.factories import ProjectFactory

pytestmark = pytest.mark.django_db

SINCE, SUNSET = datetime(2027, 1, 1, tzinfo=UTC), datetime(2027, 7, 1, 12, tzinfo=UTC)
GONE = Deprecation(SINCE, "/docs/rest-by-example/#old", SUNSET)
HEADERS = {
    "Deprecation": "@1798761600",
    "Sunset": "Thu, 01 Jul 2027 12:00:00 GMT",
    "Link": '</docs/rest-by-example/#old>; rel="deprecation"; type="text/html"',
}


def announced(response) -> dict[str, str]:
    return {name: response[name] for name in HEADERS if name in response}


@pytest.fixture(autouse=True)
def chat():
    return ProjectFactory(slug="chat")


def test_an_action_is_announced_where_it_is_used(api, monkeypatch):
    """Other actions of the same view are not."""
    monkeypatch.setattr(ProjectView, "deprecated", {"partial_update": GONE})

    assert announced(api("PATCH", "projects/chat", {"name": "New"})) == HEADERS
    assert announced(api("PATCH", "projects/chat", {"nam": "New"})) == HEADERS
    assert announced(api("GET", "projects/chat")) == {}


def test_a_field_is_announced_to_those_who_send_it(api, monkeypatch):
    """Nobody else has to change anything."""
    monkeypatch.setattr(ProjectSerializer, "deprecated", {"partition_cap": GONE})

    assert announced(api("PATCH", "projects/chat", {"partition_cap": 7})) == HEADERS
    assert announced(api("PATCH", "projects/chat", {"name": "New"})) == {}


def test_a_parameter_is_announced_beside_the_pages_of_a_list(api, monkeypatch):
    """The header Link has both."""
    monkeypatch.setattr(TokenQuery, "deprecated", {"status": GONE})
    for name in "ab":
        api("POST", "projects/chat/tokens", {"name": name})

    response = api("GET", "projects/chat/tokens?status=active&page_size=1")

    assert response["Deprecation"] == HEADERS["Deprecation"]
    assert response["Link"].endswith(f'rel="next", {HEADERS["Link"]}')
    assert "Deprecation" not in api("GET", "projects/chat/tokens?page_size=1")


def test_the_document_marks_it(monkeypatch):
    """Generated clients warn their authors."""
    monkeypatch.setattr(ProjectView, "deprecated", {"destroy": GONE})
    monkeypatch.setattr(ProjectSerializer, "deprecated", {"active": GONE})

    document = SchemaGenerator().get_schema(public=True)
    methods = document["paths"]["/api/v1/projects/{slug}"]

    assert [name for name, operation in methods.items() if operation.get("deprecated")] == ["delete"]
    for name in ("Project", "ProjectRequest"):
        fields = document["components"]["schemas"][name]["properties"]
        assert [field for field, shown in fields.items() if shown.get("deprecated")] == ["active"]


def test_of_several_the_earliest_dates_count():
    """Each page is linked once."""
    later = Deprecation(datetime(2027, 3, 1, tzinfo=UTC), "/docs/b/", datetime(2027, 6, 1, tzinfo=UTC))

    found = headers_of([GONE, later, GONE])

    assert (found["Deprecation"], found["Sunset"]) == ("@1798761600", "Tue, 01 Jun 2027 00:00:00 GMT")
    assert found["Link"].count("rel=") == 2
    assert "Sunset" not in headers_of([Deprecation(SINCE, "/docs/a/")])
    assert headers_of([]) == {}


def test_a_sunset_before_the_deprecation_is_refused():
    """RFC 9745, section 4."""
    with pytest.raises(ValueError, match="sunset: must not be before since"):
        Deprecation(SUNSET, "/docs/a/", SINCE)


def test_nothing_is_deprecated_by_itself(api):
    """Only a declaration does that."""
    assert announced(api("GET", "projects")) == {}
