from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from controlplane.policies.models import AuditEntry
from controlplane.projects.models import ManagementKey
from enforcement.model.tokens import digest

pytestmark = pytest.mark.django_db


def test_the_key_is_printed_and_nothing_else():
    """A script can put the output into a variable; SQL holds its digest."""
    output = StringIO()

    call_command("create_management_key", "--name", "ci", "--scopes", "projects:read, tokens:write", stdout=output)

    key = ManagementKey.objects.get()
    assert key.digest == digest(output.getvalue().strip())
    assert (key.name, key.scopes) == ("ci", ["projects:read", "tokens:write"])


def test_the_creation_is_audited():
    """Who can change policies is itself a change that is written down."""
    call_command("create_management_key", "--name", "ci", "--scopes", "*", stdout=StringIO())

    entry = AuditEntry.objects.get()
    assert (entry.action, entry.channel) == ("managementkey.create", "command")
    assert "digest" not in entry.after


def test_an_unknown_scope_is_refused():
    """A typing error does not make a key that can do nothing."""
    with pytest.raises(CommandError, match="got projects:reed"):
        call_command("create_management_key", "--name", "ci", "--scopes", "projects:reed")

    assert not ManagementKey.objects.exists()
