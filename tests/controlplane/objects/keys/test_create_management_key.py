from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.keys.models import ManagementKey
from enforcement.model.tokens import digest
from tests.factories import ProjectFactory

pytestmark = pytest.mark.django_db


def create(*arguments: str, scopes: str = "*") -> str:
    output = StringIO()
    call_command("create_management_key", "--name", "ci", "--scopes", scopes, *arguments, stdout=output)
    return output.getvalue().strip()


def test_the_key_is_printed_and_nothing_else():
    """A script can put the output into a variable; SQL holds its digest."""
    secret = create("--all-projects", scopes="projects:read, tokens:write")

    key = ManagementKey.objects.get()
    assert key.digest == digest(secret)
    assert (key.name, key.scopes, key.all_projects) == ("ci", ["projects:read", "tokens:write"], True)
    assert (key.projects.count(), key.expires_at) == (0, None)


def test_a_key_is_limited_to_the_projects_that_are_named():
    """By their slugs, as everywhere."""
    projects = [ProjectFactory(slug="chat"), ProjectFactory(slug="shop")]
    ProjectFactory(slug="other")

    create("--projects", "chat, shop")

    key = ManagementKey.objects.get()
    assert (key.all_projects, list(key.projects.all())) == (False, projects)


@pytest.mark.parametrize(
    ("text", "end"),
    [("2031-02-03T04:05:06Z", datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)), ("90 days", None)],
)
def test_a_key_ends_when_it_should(text, end):
    """At a time, or a while from now."""
    create("--all-projects", "--expires", text)

    end = end or timezone.now() + timedelta(days=90)
    assert abs(ManagementKey.objects.get().expires_at - end) < timedelta(minutes=1)


def test_a_key_is_limited_to_the_networks_that_are_named():
    """Each has one spelling."""
    create("--all-projects", "--networks", "192.0.2.7, 2001:DB8::/32")

    assert ManagementKey.objects.get().networks == ["192.0.2.7/32", "2001:db8::/32"]


def test_the_creation_is_audited():
    """Who can change policies is itself a change that is written down."""
    create("--all-projects")

    entry = AuditEntry.objects.get()
    assert (entry.action, entry.channel) == ("managementkey.create", "command")
    assert (entry.after["all_projects"], entry.after["projects"]) == (True, [])
    assert "digest" not in entry.after


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --projects --all-projects is required"),
        (["--projects", "chat", "--all-projects"], "not allowed with argument"),
        (["--projects", " , "], "projects: Name at least one project, or choose all projects."),
        (["--projects", "chat,chatt"], "projects: There is no project 'chatt'."),
        (["--all-projects", "--expires", "soon"], "expires: Must be a duration .*, got 'soon'"),
        (["--all-projects", "--expires", "2031-02-03T04:05:06"], "expires: Must be .* with an offset"),
        (["--all-projects", "--expires", "2020-01-01T00:00:00Z"], "expires_at: Must be in the future"),
    ],
)
def test_what_would_not_say_what_the_key_may_do_is_refused(arguments, message):
    """Nothing is guessed: least of all that no projects are all projects."""
    ProjectFactory(slug="chat")

    with pytest.raises(CommandError, match=message):
        create(*arguments)

    assert not ManagementKey.objects.exists()


def test_an_unknown_scope_is_refused():
    """A typing error does not make a key that can do nothing."""
    with pytest.raises(CommandError, match="got projects:reed"):
        create("--all-projects", scopes="projects:reed")

    assert not ManagementKey.objects.exists()
