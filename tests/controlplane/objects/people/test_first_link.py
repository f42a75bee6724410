"""The first account, by a link that works once."""

import re

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.projects.models import Project
from controlplane.web.login import first_link as links
from controlplane.web.login.first_link import first_link

pytestmark = pytest.mark.django_db

PASSWORD = "correct horse battery staple"
FORM = {"username": "ann", "password1": PASSWORD, "password2": PASSWORD}


@pytest.fixture
def link() -> str:
    return first_link("")


def test_the_link_leads_to_an_account_that_is_signed_in(client, link):
    """Name and password, nothing else; the account runs the installation, and a first project is there."""
    page = client.get(link)
    done = client.post(link, FORM, follow=True)

    assert (page.status_code, page["Cache-Control"]) == (200, "max-age=0, no-cache, no-store, must-revalidate, private")
    assert done.redirect_chain == [("/admin/first-steps/", 302)]
    assert "Get to the first decision" in done.text
    assert (User.objects.get().username, User.objects.get().is_superuser) == ("ann", True)
    assert Project.objects.get().slug == "first"


def test_the_account_is_in_the_audit_without_its_password(client, link):
    """Who created it, by which request, and nothing of the password."""
    done = client.post(link, FORM)

    entry = AuditEntry.objects.get(action="user.create")
    assert (entry.actor, entry.channel, entry.request_id) == ("ann", "admin", done["X-Request-Id"])
    assert PASSWORD not in str(entry.after)


def test_the_link_works_once(client, link):
    """Whoever finds it in a history later gets nowhere."""
    client.post(link, FORM)

    again = Client().get(link)
    second = Client().post(link, FORM | {"username": "eve"})

    assert (again.status_code, second.status_code, User.objects.count()) == (403, 403, 1)
    assert "This link is not valid any more" in again.text


@pytest.mark.parametrize("key", ["", "?key=", "?key=forged", "?key=ImZpcnN0Ig:1w:abc"])
def test_a_link_that_this_server_did_not_sign_is_refused(client, key):
    """Nobody becomes an operator by guessing."""
    response = client.post(links.PATH + key, FORM)

    assert (response.status_code, User.objects.count()) == (403, 0)


def test_the_link_ends_after_a_day(client, link, monkeypatch):
    """It stays in the terminal and in its history."""
    monkeypatch.setattr(links, "VALID_SECONDS", -1)

    assert client.get(link).status_code == 403


def test_a_weak_password_is_refused_at_its_field(client, link):
    """The rules of every other account."""
    page = client.post(link, {"username": "ann", "password1": "12345678", "password2": "12345678"})

    assert "at least 12 characters" in str(page.context["form"].errors["password2"])
    assert not User.objects.exists()


def test_the_command_prints_a_link_that_works(client, capsys):
    """For a server that was not started by `make up`."""
    call_command("first_link", "https://limits.example/")
    printed = capsys.readouterr().out.strip()

    assert re.match(r"https://limits\.example/admin/first-account/\?key=", printed)
    assert client.get(printed.removeprefix("https://limits.example")).status_code == 200


def test_the_command_refuses_if_there_is_an_account(admin_user):
    """The link would not work."""
    with pytest.raises(CommandError, match="There is an account already"):
        call_command("first_link", "https://limits.example")
