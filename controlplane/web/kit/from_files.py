"""Show in the admin which objects are managed from files, and keep people from changing them by mistake."""

from typing import Any

from django.db.models import Model
from django.http import HttpRequest
from django.utils.html import format_html
from unfold.decorators import display

from controlplane.web.kit.edit_page import EditPage
from controlplane.web.kit.site import badge

EDIT, ANYWAY = "edit", "anyway"
TITLE = "Managed from files"


def with_mark(shown: str, row: Any) -> str:
    """Return what a list shows of a row, with a badge if the row is managed from files."""
    return format_html("{} {}", shown, badge("from files")) if row.managed_by else shown


class ManagedPage(EditPage):
    """
    The base class of the pages of projects, policies and overrides, which files may manage.

    The form of a row that is managed from files is read-only, unless its address says ``?edit=anyway``. The form then
    requires a reason.
    """

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_change_permission(request, obj) and not self._is_kept(request, obj)

    def _is_kept(self, request: HttpRequest, obj: Any) -> bool:
        """Return whether a row must not be changed, because this is its form and nobody chose to edit it anyway."""
        if not isinstance(obj, Model) or not getattr(obj, "managed_by", "") or request.GET.get(EDIT) == ANYWAY:
            return False
        form = f"{self.opts.app_label}_{self.opts.model_name}_change"
        return request.resolver_match is not None and request.resolver_match.url_name == form

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return [*super().get_readonly_fields(request, obj), "managed_from", "file"]

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        fieldsets = super().get_fieldsets(request, obj)
        if obj is None or not obj.managed_by:
            return fieldsets
        name = "managed_from" if self._is_kept(request, obj) and super().has_change_permission(request, obj) else "file"
        return [(TITLE, {"fields": [name]}), *fieldsets]

    @display(description="File")
    def managed_from(self, row: Any) -> str:
        """Return where the file is, with a link to the form that can be changed."""
        text = '{} <a class="text-link" href="?{}={}">Edit anyway</a>'
        return format_html(text, self.file(row), EDIT, ANYWAY)

    @display(description="File")
    def file(self, row: Any) -> str:
        text = "{}. Change the file and apply it. What you change here is changed back when it is applied again."
        return format_html(text, row.managed_by)
