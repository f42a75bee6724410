"""The page that shows the secret of a new credential, once."""

from collections.abc import Sequence

from django.db.models import Model
from django.http import HttpRequest, HttpResponse

from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.site import change_url
from controlplane.web.kit.snippets import Snippet


def secret_page(
    page: PartsPage, request: HttpRequest, row: Model, secret: str, snippets: Sequence[Snippet], **context: object
) -> HttpResponse:
    """Return the page that shows the secret of a new credential, and how to use it."""
    title = f"{page.opts.verbose_name.capitalize()} created"
    shown = {"title": title, "credential": row, "secret": secret, "url": change_url(row), "snippets": snippets}
    response = page.page(request, "secret.html", **shown, **context)
    response["Cache-Control"] = "no-store"
    return response
