import re

from django.conf import settings

from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.keys.scopes import IMPLIED, PRESETS, SCOPES


def test_the_documentation_lists_each_scope():
    """In their order, so that whoever adds one says what it allows, and whether it decides limits."""
    page = (settings.BASE_DIR / "templates/docs/access.md").read_text()

    assert re.findall(r"^\| `([a-z:*]+)` \|", page, re.MULTILINE) == list(SCOPES)


def test_a_greater_scope_comes_with_the_smaller_one():
    """And not the other way round."""
    issuer, writer = ManagementKey(scopes=["tokens:issue"]), ManagementKey(scopes=["tokens:write"])

    assert writer.allows("tokens:issue")
    assert not issuer.allows("tokens:write")


def test_presets_and_implications_name_scopes():
    """A misspelt one would allow nothing."""
    assert {scope for scopes in PRESETS.values() for scope in scopes} | {*IMPLIED, *IMPLIED.values()} <= set(SCOPES)
