"""The addresses of statements, for the pages of what they are about."""

from django.urls import reverse
from django.utils.http import urlencode


def statement_url(**query: str) -> str:
    """Return the address of the statement of a ``project``, a ``policy`` (slugs) or a ``token`` (id) in this month."""
    return f"{reverse('admin:statements_monthrow_changelist')}?{urlencode(query)}"
