"""Errors outside REST are pages with a way back; errors of REST are problems."""

import re

import pytest
from django.contrib.auth import get_user_model
from django.test import Client

from controlplane.objects.projects.models import Project
from tests.factories import ProjectFactory

pytestmark = pytest.mark.django_db


def leads_back(page) -> bool:
    """Whether a page says its title, its request id and the way to the overview."""
    text = page.content.decode()
    title = re.search("<h1>(.+)</h1>", text)
    return bool(title) and page["X-Request-Id"] in text and 'href="/admin/"' in text


@pytest.mark.parametrize("path", ["/admin/nope/", "/nope", "/docs/nope/"])
def test_a_page_that_is_not_there_leads_back(admin_client, path):
    """It says what is wrong, its style is served, and it has a link to the overview."""
    page = admin_client.get(path)

    assert page.status_code == 404
    assert leads_back(page)
    assert "There is no page at this address" in page.content.decode()
    (style,) = re.findall(r'rel="stylesheet" href="([^"]+)"', page.content.decode())
    served = admin_client.get(style)
    served.close()
    assert served.status_code == 200


def test_a_page_without_the_permission_leads_back():
    """A member of the staff opens the list of users."""
    client = Client()
    client.force_login(get_user_model().objects.create_user("bob", is_staff=True))

    page = client.get("/admin/auth/user/")

    assert (page.status_code, leads_back(page)) == (403, True)


def test_a_form_of_another_session_leads_back(admin_user):
    """A log-in page that stood open for a day says what to do."""
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)

    page = client.post("/admin/projects/project/add/", {"slug": "chat", "name": "Chat"})

    assert (page.status_code, leads_back(page)) == (403, True)
    assert "Nothing was saved. Go back in your browser" in page.content.decode()


def test_a_refused_request_leads_back(admin_client):
    """The reason of a deletion holds a line break, which no browser sends."""
    project = ProjectFactory()
    form = {"post": "yes", "object_name": project.slug, "change_reason": "a\nb"}

    page = admin_client.post(f"/admin/projects/project/{project.pk}/delete/", form)

    assert (page.status_code, leads_back(page)) == (400, True)


def test_a_fault_of_ours_leads_back(admin_client, monkeypatch):
    """The page names the id by which the log is searched, and nothing of the fault."""
    monkeypatch.setattr(Project, "__str__", lambda self: 1 / 0)
    project = ProjectFactory()
    admin_client.raise_request_exception = False

    page = admin_client.get(f"/admin/projects/project/{project.pk}/change/")

    assert (page.status_code, leads_back(page)) == (500, True)
    assert "division" not in page.content.decode()


@pytest.fixture
def https(settings) -> None:
    settings.HTTPS = settings.SECURE_SSL_REDIRECT = True
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")


def test_a_key_in_plain_http_is_refused_and_not_redirected(api, https):
    """The client's address is wrong, and a redirect would hide that its key was sent unencrypted."""
    response = api("GET", "projects")

    assert (response.status_code, response["Content-Type"]) == (403, "application/problem+json")
    assert response.json()["code"] == "https_required"
    assert "Location" not in response


def test_over_https_rest_and_over_http_the_admin_work_as_before(api, call, https):
    """People who type an address without a scheme are redirected."""
    assert api("GET", "projects", x_forwarded_proto="https").status_code == 200
    assert call("GET", "/admin/")["Location"] == "https://testserver/admin/"


@pytest.mark.parametrize(
    ("referer", "shown"),
    [
        ("http://testserver/admin/projects/project/?q=a", 'href="/admin/projects/project/?q=a"'),
        ("http://elsewhere.example/admin/", ""),
        ("http://testserver//elsewhere.example/", ""),
        ("http://testserver/admin/nope/", ""),
        ("", ""),
    ],
)
def test_the_page_before_is_a_way_back(admin_client, referer, shown):
    """If it is one of ours, and not the one with the error."""
    page = admin_client.get("/admin/nope/", headers={"Referer": referer, "Host": "testserver"}).content.decode()

    assert ("Back to the page before" in page) == bool(shown)
    assert shown in page
    assert "elsewhere" not in page
