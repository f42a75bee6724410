"""The search for a token or management key by its whole secret, of which only the digest is stored."""

from typing import Any

from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.urls import URLPattern, path

from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.projects.models import Token
from controlplane.web.kit.site import change_url, list_url
from enforcement.model.tokens import PREFIX_LENGTH, SECRET_HEADS, digest, is_well_formed


class SecretSearch:
    """A mixin for the pages of tokens and management keys. Their search finds a credential by its secret."""

    def get_urls(self) -> list[URLPattern]:
        name = f"projects_{self.opts.model_name}_by_secret"
        return [path("by-secret/", self.admin_site.admin_view(self.by_secret_view), name=name), *super().get_urls()]

    def by_secret_view(self, request: HttpRequest) -> HttpResponse:
        """Return a redirect to the credential with a secret, which the page sends in a body, so that no log has it."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        return self.owner_of(request, request.POST.get("secret", "").strip())

    def owner_of(self, request: HttpRequest, secret: str) -> HttpResponse:
        """Return a redirect to the page of the credential if the user may see it, else to the list, with a warning."""
        for model in (Token, ManagementKey):
            page = self.admin_site.get_model_admin(model)
            row = page.get_queryset(request).filter(digest=digest(secret)).first()
            if row and page.has_view_permission(request, row):
                return HttpResponseRedirect(change_url(row))
        messages.warning(request, f"No token or key has the secret that begins with {secret[:PREFIX_LENGTH]}.")
        return HttpResponseRedirect(list_url(self.model))

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        # Without scripts, the address holds the secret. The redirect takes it out of the history and the next referer.
        searched = request.GET.get("q", "").strip()
        if request.method == "GET" and is_well_formed(searched) and self.has_view_permission(request):
            return self.owner_of(request, searched)
        return super().changelist_view(request, extra_context)

    def get_search_results(self, request: HttpRequest, rows: QuerySet, term: str) -> tuple[QuerySet, bool]:
        """
        Return the matching rows, and whether they may contain duplicates.

        Of a part of a secret, only the beginning that is stored is searched for.
        """
        words = [word[:PREFIX_LENGTH] if word.lower().startswith(SECRET_HEADS) else word for word in term.split()]
        return super().get_search_results(request, rows, " ".join(words))
