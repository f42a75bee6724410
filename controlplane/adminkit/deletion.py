"""Deletions that ask for the name of what is deleted, because what goes with it cannot be made again."""

from collections.abc import Mapping
from typing import Any

from django.apps import apps
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict
from django.template.response import TemplateResponse

FIELD = "object_name"


class CountedDeletion:
    """
    A mixin for a page of rows whose deletion says how many rows of each kind go along.

    Rows of a page with ``ends_with_owner`` are only deleted with what they belong to, so nobody needs a right to that.
    """

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> tuple[Any, ...]:
        tree, counts, lacking, protected = super().get_deleted_objects(objs, request)
        pages = self.admin_site._registry.items()
        lacking -= {model._meta.verbose_name for model, page in pages if getattr(page, "ends_with_owner", False)}
        return tree, in_words(counts), lacking, protected


def in_words(counts: Mapping[str, int]) -> dict[str, int]:
    """
    Return numbers of rows by the word for one or for several.

    Args:
        counts: The numbers by the word for several. Rows that only connect two others are left out.
    """
    models = {str(model._meta.verbose_name_plural): model for model in apps.get_models()}
    known = [(models[str(name)]._meta, count) for name, count in counts.items() if str(name) in models]
    return {str(it.verbose_name if count == 1 else it.verbose_name_plural): count for it, count in known}


class NamedDeletion:
    """A mixin for a page of rows that are deleted only after their name, or for several their number, was typed."""

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        row = self.get_object(request, object_id)
        asked = _Asked(request, "" if row is None else str(row))
        if asked.refuses:
            request.POST = QueryDict()  # Django deletes for any field that is posted
        return super().delete_view(request, object_id, {**(extra_context or {}), **asked.context})

    def response_action(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        if request.POST.get("action") != "delete_selected":
            return super().response_action(request, queryset)
        asked = _Asked(request, self._name_of(request, queryset))
        response = super().response_action(request, queryset)
        if isinstance(response, TemplateResponse):
            response.context_data |= asked.context
        return response

    def _name_of(self, request: HttpRequest, rows: QuerySet) -> str:
        if request.POST.get("select_across") != "1":
            rows = rows.filter(pk__in=request.POST.getlist(ACTION_CHECKBOX_NAME))
        count = rows.count()
        return str(rows.first()) if count == 1 else f"{count} {self.opts.verbose_name_plural}"


class _Asked:
    """The name that a deletion asks for. If it is confirmed without that, the request becomes one that asks again."""

    def __init__(self, request: HttpRequest, name: str) -> None:
        self.context: dict[str, Any] = {"asked_name": name, "given_name": request.POST.get(FIELD, "")}
        self.refuses = bool(request.POST.get("post")) and request.POST.get(FIELD, "").strip() != name
        if self.refuses:
            request.POST = request.POST.copy()
            request.POST.pop("post")
            self.context["name_error"] = f"Type {name} to delete. Nothing is deleted yet."
