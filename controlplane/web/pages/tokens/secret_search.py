"""The search for a token or management key by its whole secret, of which only the digest is stored."""

from typing import Any

from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect

from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.projects.models import Token
from controlplane.web.kit.page import PartsPage, page_of
from controlplane.web.kit.parts import View
from controlplane.web.kit.site import change_url, list_url
from enforcement.model.tokens import PREFIX_LENGTH, SECRET_HEADS, digest, is_well_formed


def answer_by_secret(page: PartsPage, request: HttpRequest) -> HttpResponse:
    """Return a redirect to the credential with a secret, which the page sends in a body, so that no log has it."""
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    return owner_of(page, request, request.POST.get("secret", "").strip())


def owner_of(page: PartsPage, request: HttpRequest, secret: str) -> HttpResponse:
    """Return a redirect to the page of the credential if the user may see it, else to the list, with a warning."""
    for model in (Token, ManagementKey):
        other = page_of(model)
        row = other.get_queryset(request).filter(digest=digest(secret)).first()
        if row and other.has_view_permission(request, row):
            return HttpResponseRedirect(change_url(row))
    messages.warning(request, f"No token or key has the secret that begins with {secret[:PREFIX_LENGTH]}.")
    return HttpResponseRedirect(list_url(page.model))


def searched_secret(request: HttpRequest) -> str:
    """
    Return the secret that a list is searched for, or an empty string.

    Without scripts, the address holds the secret. A redirect takes it out of the history and the next referer.
    """
    searched = request.GET.get("q", "").strip()
    return searched if request.method == "GET" and is_well_formed(searched) else ""


def read_secrets(rows: QuerySet[Any], words: list[str]) -> tuple[QuerySet[Any], list[str]]:
    """Return the words of a search with the stored beginning in place of each part of a secret."""
    return rows, [word[:PREFIX_LENGTH] if word.lower().startswith(SECRET_HEADS) else word for word in words]


BY_SECRET_VIEW = View(path="by-secret/", name="by_secret", answer=answer_by_secret)
