"""Each kind of problem has a title of its own, and a page that says what it means and what to do."""

import ast

import pytest

from controlplane.objects.keys.bounds import CODE as EXCEEDS
from controlplane.web.restkit.problem_types import TYPES
from controlplane.web.site.error_pages import ERRORS
from tests.factories import ProjectFactory
from tests.repository import ROOT

pytestmark = pytest.mark.django_db

# Codes that Django REST framework gives to its own exceptions, and that models give to those that become a conflict.
OF_FRAMEWORK = {
    *("authentication_failed", "not_authenticated", "permission_denied", "not_found", "method_not_allowed"),
    *("not_acceptable", "unsupported_media_type", "parse_error", "validation_error", "server_error"),
}
OF_MODELS = {"already_rotated", "token_not_live", EXCEEDS}
# Why a proxy refuses a token, which the addresses of consumers tell in the same words.
OF_PROXIES = {"token_required", "unknown_token", "revoked", "expired", "inactive_project", "suspended"}


def raised() -> dict[str, str]:
    """Each code that a problem of this source has, with its file."""
    found = {}
    for path in sorted((ROOT / "controlplane").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for code in of_class(node) if isinstance(node, ast.ClassDef) else of_call(node):
                found[code] = path.name
    return found


def of_class(node: ast.ClassDef) -> list[str]:
    """The code of the problems of a class."""
    assigned = [item for item in node.body if isinstance(item, ast.Assign)]
    codes = [item.value for item in assigned if ast.unparse(item.targets[0]) == "default_code"]
    return [code.value for code in codes if isinstance(code, ast.Constant)]


def of_call(node: ast.AST) -> list[str]:
    """The code that a call of a class of problems names."""
    names = ("Conflict", "StoreUnavailable", "Unavailable", "Problem", "LimitedKey")
    if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") in (*names, "plain_problem")):
        return []
    place = 2 if node.func.id == "plain_problem" else 1
    return [one.value for one in node.args[place : place + 1] if isinstance(one, ast.Constant)]


def test_every_code_has_a_page_and_every_page_a_code():
    """A new problem is explained, or this fails."""
    known = set(raised()) | OF_FRAMEWORK | OF_MODELS | OF_PROXIES | {problem[0] for problem, _ in ERRORS.values()}

    assert known == set(TYPES)


def test_titles_tell_problems_apart():
    """A list of errors in a log says what happened."""
    titles = [kind.title for kind in TYPES.values()]

    assert len(set(titles)) == len(titles)
    assert [kind for kind in TYPES.values() if not (kind.meaning.endswith(".") and kind.remedy.endswith("."))] == []


def test_the_type_of_a_problem_is_the_address_of_its_page(api, client):
    """Whoever gets it opens it, without a log-in."""
    ProjectFactory(slug="chat")
    refused = [
        api("POST", "projects", {}),
        api("GET", "projects/none"),
        api("PATCH", "projects/chat", {"name": "x"}, if_match='"old"'),
        client.get("/api/v1/projects"),
        api("POST", "tokens/batch", {"items": [1] * 1001}),
    ]

    for answer in refused:
        problem = answer.json()
        page = client.get(problem["type"])
        assert (problem["type"], page.status_code) == (f"/docs/problems/{problem['code']}", 200)
        assert "<h1 id=" in page.text
        assert problem["title"] in page.text
        assert problem["title"] == TYPES[problem["code"]].title
        assert answer.status_code == TYPES[problem["code"]].status


@pytest.mark.parametrize("code", TYPES)
def test_a_page_says_what_to_do(client, code):
    """Without a script or a style of its own."""
    page = client.get(f"/docs/problems/{code}")

    assert (page.status_code, "What to do." in page.text) == (200, True)
    assert "<script" not in page.text


def test_the_list_leads_to_each_page(client):
    """It is linked from the page about REST."""
    page = client.get("/docs/problems/").text

    assert [code for code in TYPES if f'href="/docs/problems/{code}"' not in page] == []
    assert 'href="/docs/problems/"' in client.get("/docs/rest-by-example/").text
    assert client.get("/docs/problems/none").status_code == 404
