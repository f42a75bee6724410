"""Deletions that count what goes with a row, and that ask for its name, because it cannot be made again."""

from collections.abc import Sequence
from typing import Any

from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import quote, unquote
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.text import capfirst

from controlplane.core.tables.counting import capped
from controlplane.core.tables.dependents import Dependents
from controlplane.objects.people.scope import is_operator
from controlplane.web.kit.state import reposted, state_of
from controlplane.web.scope.views import ScopedAdmin

FIELD = "object_name"
# The most names shown of the objects that are in the way of a deletion.
NAMES_SHOWN = 20


class Keeping(list[str]):
    """The first of the objects that are in the way of a deletion, as links, and how many there are, as a string."""

    def __init__(self, shown: Sequence[str], total: int) -> None:
        super().__init__(shown)
        self.total, self.has_more = f"{total:,}", total > len(shown)


class CountedDeletion:
    """A mixin whose pages count what is deleted with a row. Django reads all of it, such as 100,000 tokens."""

    def get_deleted_objects(
        self, objs: QuerySet | Sequence[Model], request: HttpRequest
    ) -> tuple[list[str], dict[str, str], set[str], Keeping]:
        """
        Return what Django's own method returns, of which the first is empty, and the counts are strings.

        A user who may not delete each of the rows that go with *objs* lacks the permission for their model.
        """
        found, counts, lacking = Dependents(self.model, objs), {}, set()
        for model, rows in found.deleted():
            if not (count := capped(rows)):
                continue
            names = model._meta
            counts[str(names.verbose_name if count == 1 else names.verbose_name_plural)] = f"{count:,}"
            if not _may_delete(request, model, rows):
                lacking.add(str(names.verbose_name))
        keeping = [(rows, capped(rows)) for _, rows in found.keeping()]
        shown = [_linked(row) for rows, count in keeping if count for row in rows[:NAMES_SHOWN]]
        most = max((count for _, count in keeping), default=0)
        total = most if type(most) is not int else sum(count for _, count in keeping)
        return [], counts, lacking, Keeping(shown[:NAMES_SHOWN], total)


def _may_delete(request: HttpRequest, model: type[Model], rows: QuerySet) -> bool:
    """
    Return whether the user may delete each of the rows.

    What has no page, or is never deleted by itself, goes with the row that it belongs to.
    """
    page = admin.site._registry.get(model)
    if page is None or getattr(page, "ends_with_owner", False):
        return True
    if not page.has_delete_permission(request):
        return False
    if not isinstance(page, ScopedAdmin) or is_operator(request.user):
        return True
    # Counted, because the database takes longer to find one that is not allowed. What is added meanwhile is not.
    allowed = page.narrowed(rows, request.user, "delete").count()
    return allowed == rows.count()


def _linked(row: Model) -> str:
    """Return the kind and the name of a row, with a link to its page if it has one."""
    names = row._meta
    if names.model not in admin.site._registry:
        return f"{capfirst(names.verbose_name)}: {row}"
    url = reverse(f"admin:{names.app_label}_{names.model_name}_change", args=[quote(row.pk)])
    return format_html('{}: <a href="{}">{}</a>', capfirst(names.verbose_name), url, row)


class NamedDeletion:
    """A mixin for a page of rows that are deleted only after their name, or for several their number, was typed."""

    def asked_name(self, row: Model) -> str:
        """Return what has to be typed to delete a row."""
        return str(row)

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        row = self.get_object(request, unquote(object_id))
        # Django deletes for any field that is posted.
        asked = _Deletion(request, "" if row is None else self.asked_name(row), request.method == "POST")
        if asked.refuses:
            reposted(request, QueryDict())
        return super().delete_view(request, object_id, {**(extra_context or {}), **asked.context})

    def response_action(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        if request.POST.get("action") != "delete_selected":
            return super().response_action(request, queryset)
        asked = _Deletion(request, self._name_of(request, queryset), bool(request.POST.get("post")))
        response = super().response_action(request, queryset)
        if isinstance(response, TemplateResponse):
            response.context_data |= asked.context
        return response

    def _name_of(self, request: HttpRequest, rows: QuerySet) -> str:
        rows, summary = chosen(request, rows), state_of(request).selection
        count = rows.count() if summary is None else summary.count
        return self.asked_name(rows.first()) if count == 1 else f"{count} {self.opts.verbose_name_plural}"


def chosen(request: HttpRequest, rows: QuerySet) -> QuerySet:
    """Return those of the rows of a list that an action was asked for, which are the ticked ones or all."""
    if request.POST.get("select_across") == "1":
        return rows
    return rows.filter(pk__in=request.POST.getlist(ACTION_CHECKBOX_NAME))


class _Deletion:
    """The name that a deletion asks for. If it is confirmed without that, the request becomes one that asks again."""

    def __init__(self, request: HttpRequest, name: str, confirms: bool) -> None:
        self.context: dict[str, Any] = {"asked_name": name, "given_name": request.POST.get(FIELD, "")}
        self.refuses = confirms and request.POST.get(FIELD, "").strip() != name
        if self.refuses:
            reposted(request, request.POST, without=("post",))
            self.context["name_error"] = f"Type {name} to delete. Nothing is deleted yet."
