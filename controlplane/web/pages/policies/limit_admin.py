"""The page of limits, which other forms search."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet, Value
from django.db.models.functions import Concat
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect

from controlplane.objects.policies.models import Limit, Policy
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.site import change_url, list_url
from controlplane.web.scope.rows import RowScope


@admin.register(Limit)
class LimitAdmin(PartsPage):
    """A page that other forms search. Limits are edited in the form of their policy."""

    # "shown" is the name that the box shows, such as "free/per-minute".
    search_fields = ["shown", "name", "policy__slug"]
    list_select_related = ["policy"]
    ordering = ["policy__slug", "position"]
    scope = RowScope(paths=("policy__project_id",), shared=True)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Limit]:
        rows = super().get_queryset(request).select_related("policy")
        return rows.annotate(shown=Concat("policy__slug", Value("/"), "name"))

    def has_delete_permission(self, request: HttpRequest, obj: Limit | None = None) -> bool:
        """Return whether the user may delete the limit, because a policy is deleted with its limits."""
        return self.allows(request, "delete", obj)

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **options: Any) -> HttpResponse:
        """Return a redirect to the limit's policy, or to the list of policies if the limit is deleted."""
        limit = self.get_queryset(request).filter(pk=self.key_of(object_id)).first()
        return HttpResponseRedirect(change_url(limit.policy) if limit else list_url(Policy))

    delete_view = change_view
