"""The base class of every page of the admin."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Never

from django.contrib import admin, messages
from django.contrib.admin.sites import AdminSite
from django.contrib.admin.utils import flatten_fieldsets, unquote
from django.contrib.auth import get_permission_codename
from django.core.exceptions import NON_FIELD_ERRORS, BadRequest, ValidationError
from django.core.paginator import Paginator
from django.db import models
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import display

from controlplane.changes.change.transaction import OpenChange, change
from controlplane.core.tables.paging import CappedPaginator, UnreadPaginator, box_of, reads_no_page
from controlplane.core.tables.searching import IndexedSearch
from controlplane.core.text import unprintable
from controlplane.objects.people.roles import OWNER
from controlplane.objects.people.scope import is_operator, projects_of
from controlplane.objects.projects.models import Project
from controlplane.releases.publishing.models import OutboxEntry
from controlplane.web.kit.dialogs import RowAction
from controlplane.web.kit.parts import BulkAction, Column, Filter, ListPanel, Panel, View, WithColumns, addresses, shown
from controlplane.web.kit.site import FIELDS, actor_of
from controlplane.web.kit.state import state_of
from controlplane.web.kit.times import zone_name
from controlplane.web.scope.rows import RowScope, Visitor

READING = frozenset({"view"})


class PartsPage(ModelAdmin):
    """
    The base class of every page, which only shows rows unless it is an EditPage.

    Attributes:
        scope: The rows that each user sees and changes. Without one, only operators see the page.
        kinds: The kinds of access that the page offers to those who have them.
        manager: The name of the manager of the model that has the rows.
        linked_filters: Columns by which pages link to the list, besides those of its filters.
        empty: Shown in place of an empty list: an explanation, and the text of the button that adds the first row.
        columns: Those of the names in list_display and readonly_fields that are no methods.
        search: How the list is searched by its indexes, in place of search_fields.
        row_actions: What can be done on the page of a row, and bulk_actions to the rows of the list.
        panels: Parts of the page of a row, and list_panels of the list.
        views: More addresses.
        is_published: Whether enforcers know the rows, so that a message says which revision has a change.
    """

    scope: ClassVar[RowScope] = RowScope()
    kinds: ClassVar[frozenset[str]] = READING
    manager: ClassVar[str] = "_default_manager"
    linked_filters: ClassVar[tuple[str, ...]] = ()
    empty: ClassVar[tuple[str, str]] = ("", "")
    columns: ClassVar[tuple[Column, ...]] = ()
    search: ClassVar[IndexedSearch | None] = None
    row_actions: ClassVar[tuple[RowAction, ...]] = ()
    bulk_actions: ClassVar[tuple[BulkAction, ...]] = ()
    panels: ClassVar[tuple[Panel, ...]] = ()
    list_panels: ClassVar[tuple[ListPanel, ...]] = ()
    views: ClassVar[tuple[View, ...]] = ()
    is_published: ClassVar[bool] = True

    formfield_overrides = FIELDS
    list_filter: Sequence[object] = ()
    list_filter_submit = True
    list_per_page = 50
    list_before_template = "admin/sluicegate/panels/list.html"
    change_form_outer_before_template = "admin/sluicegate/panels/above.html"
    change_form_outer_after_template = "admin/sluicegate/panels/below.html"
    paginator = CappedPaginator
    # To count all rows takes as long as to count those that match.
    show_full_result_count = False
    # The theme reads them for each row, and for each field of a form. Without them, Django looks through all names of
    # the class each time.
    list_sections: ClassVar[tuple[str, ...]] = ()
    conditional_fields: ClassVar[dict[str, str]] = {}

    def __init__(self, model: type[Model], admin_site: AdminSite) -> None:
        super().__init__(model, admin_site)
        for column in self.columns:  # by whose names Django checks and sorts lists
            setattr(self, column.name, column.cell(_unread))
        self.list_filter = [one.as_class() if isinstance(one, Filter) else one for one in self.list_filter]
        if self.search:
            self.search_fields = [*self.search.columns]
        for action in self.row_actions:
            action.join(self)
        if self.bulk_actions:
            self.actions = [action.as_function() for action in self.bulk_actions]
        self.actions_detail = [action.name for action in self.row_actions]

    def get_urls(self) -> list[URLPattern]:
        return [*addresses(self, self.views), *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        context = {panel.name: panel.answer(request) for panel in self.list_panels} if request.method == "GET" else {}
        return super().changelist_view(request, {**context, **(extra_context or {})})

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        changelist = super().get_changelist_instance(request)
        if self.search:
            changelist.search_help_text = self.search.help_for(self.model)
        if shown := [column for column in self.columns if column.name in changelist.list_display]:
            changelist.result_list = list(changelist.result_list)
            changelist.model_admin = WithColumns(self, shown, changelist.result_list, request)
        return changelist

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], term: str
    ) -> tuple[QuerySet[Any], bool]:
        if self.search is None:
            return super().get_search_results(request, queryset, term)
        return self.search.find(queryset, term, request), False

    def listed(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the query of all rows of the list that an address asks for, without reading those of a page."""
        return super().get_changelist_instance(request).queryset

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the query of the rows that the user may see, from which Django makes lists, pages and searches."""
        rows, order = getattr(self.model, self.manager).all(), self.get_ordering(request)
        return self.scope.narrow(rows.order_by(*order) if order else rows, request.user)

    def sees(self, request: HttpRequest, key: str) -> bool:
        """Return whether there is a row with this primary key that the user may see."""
        try:
            return self.get_queryset(request).filter(pk=key).exists()
        except (ValueError, ValidationError):  # it cannot be a key of this model
            return False

    def allows(self, request: HttpRequest, kind: str, obj: Model | str | None = None) -> bool:
        """Return whether the user has this kind of access to a row or to the row with a key, or to some row."""
        return self.scope.allows(getattr(self.model, self.manager), request.user, kind, obj)

    def permits(self, request: HttpRequest, kind: str, obj: Model | str | None = None) -> bool:
        """Return whether the user has this kind of access and its permission, even if the page does not offer it."""
        codes = (get_permission_codename(one, self.opts) for one in {kind, "change" if kind == "view" else kind})
        return self.allows(request, kind, obj) and any(
            request.user.has_perm(f"{self.opts.app_label}.{code}") for code in codes
        )

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return "view" in self.kinds and self.permits(request, "view", obj)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return "add" in self.kinds and self.permits(request, "add")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return "change" in self.kinds and self.permits(request, "change", obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return "delete" in self.kinds and self.permits(request, "delete", obj)

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        return {} if self.kinds == READING else super().get_actions(request)

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        """
        Return whether an address may filter the list so. Members filter only by what the list offers.

        Django allows every column, also one that no page shows, such as the digest of a secret, and the rows of other
        projects that refer to a shared one. The number of hits would tell their values, one character at a time.
        """
        if not super().lookup_allowed(lookup, value, request):
            return False
        if request is None or is_operator(request.user):
            return True
        column = lookup.partition("__")[0]
        given = [one[0] if isinstance(one, tuple | list) else one for one in self.get_list_filter(request)]
        offered = {*self.linked_filters, *(one if isinstance(one, str) else one.parameter_name for one in given)}
        # A name that is no column, such as that of a filter by time, reads nothing.
        return column in offered or column not in {"pk", *_names(self.model)}

    def _get_obj_does_not_exist_redirect(self, request: HttpRequest, opts: Any, object_id: str) -> HttpResponse:
        """Answer 404, also for a row that the user may not see, instead of leading to the first page."""
        raise Http404

    def choices(self, model: type[Model], user: Visitor, rows: QuerySet[Any] | None = None) -> QuerySet[Any]:
        """Return those of the rows of another model that the user may choose in the form of this page."""
        rows = model._default_manager.all() if rows is None else rows
        if model is Project:  # to which the user must be allowed to add
            return rows.filter(pk__in=projects_of(user, self.scope.roles["add"] or OWNER).values("pk"))
        page = admin.site._registry.get(model)
        return page.scope.narrow(rows, user) if isinstance(page, PartsPage) else rows

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        """Return the field with the rows that the user may choose. Only operators leave out the project of a row."""
        options["queryset"] = self.choices(db_field.remote_field.model, request.user, options.get("queryset"))
        field = super().formfield_for_foreignkey(db_field, request, **options)
        if field is not None and self.scope.paths == (f"{db_field.name}_id",):
            field.required = field.required or not is_operator(request.user)
        return field

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        options["queryset"] = self.choices(db_field.remote_field.model, request.user, options.get("queryset"))
        return super().formfield_for_manytomany(db_field, request, **options)

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        """
        Return the form field without icons that open forms of other models, and with a help text if it is for a time.
        """
        field = super().formfield_for_dbfield(db_field, request, **options)
        if isinstance(db_field, models.DateTimeField):
            field.help_text = field.help_text or f"In {zone_name()}. If empty, never."
        for right in ("add", "change", "delete", "view"):
            if field is not None and hasattr(field.widget, f"can_{right}_related"):
                setattr(field.widget, f"can_{right}_related", False)
        return field

    @display(description=ModelAdmin.action_checkbox.short_description)
    def action_checkbox(self, obj: Model) -> SafeString:
        return box_of(obj)

    def get_paginator(self, request: HttpRequest, *args: Any, **options: Any) -> Paginator:
        """Return the pages of a list. A request for an action on the rows does not read one."""
        is_action = reads_no_page(request.POST) and bool(self.get_actions(request))
        return (UnreadPaginator if is_action else self.paginator)(*args, **options)

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], **options: Any) -> HttpResponse:
        """
        Return the page, which points to errors below only if there are some, and has no history if nobody edits it.
        """
        form, inlines = context["adminform"], context["inline_admin_formsets"]
        if not form.form.errors.keys() - {NON_FIELD_ERRORS} and all(inline.formset.is_valid() for inline in inlines):
            context |= {"errors": None}
        if self.kinds == READING:
            context |= {"show_history": False}
        row = context.get("original")
        context |= shown(self.panels, request, row)
        names = flatten_fieldsets(form.fieldsets)
        if row is not None and (columns := [column for column in self.columns if column.name in names]):
            form.model_admin = WithColumns(self, columns, [row], request)
        return super().render_change_form(request, context, **options)

    @staticmethod
    def key_of(object_id: str | None) -> str:
        """Return the primary key from the address of an action, in which the admin quotes it."""
        return unquote(object_id or "")

    def page(self, request: HttpRequest, template: str, **context: Any) -> TemplateResponse:
        """Return a response with a template of this project in the frame of the admin."""
        shared = {**self.admin_site.each_context(request), "opts": self.opts, "model_admin": self}
        return TemplateResponse(request, f"admin/sluicegate/{template}", {**shared, **context})

    @contextmanager
    def changing(self, request: HttpRequest, reason: str = "") -> Iterator[OpenChange]:
        """Run the block as one change, yield that change, and then show a message that says whether it is published."""
        state = state_of(request)
        state.notes = []
        if found := unprintable(reason):
            raise BadRequest(f"reason: Must have printable characters only, but contains {found}.")
        with change(actor=actor_of(request), reason=reason) as tx:
            state.change = tx
            yield tx
        notes, state.notes = state.notes, None
        if notes:
            sentences = filter(None, [*notes, _publication(tx) if self.is_published else ""])
            messages.success(request, format_html_join(" ", "{}", ((sentence,) for sentence in sentences)))

    def message_user(
        self, request: HttpRequest, message: Any, level: int = messages.INFO, *args: Any, **kw: Any
    ) -> None:
        """Show a message to the user, or keep it during a change, so that one message also names the revision."""
        notes = state_of(request).notes
        if notes is not None and level in (messages.INFO, messages.SUCCESS):
            notes.append(message)
        else:
            super().message_user(request, message, level, *args, **kw)

    def present(self, request: HttpRequest, object_id: str) -> Any:
        """Return the row that an action names, locked until the end of the transaction."""
        return self.model._default_manager.select_for_update().get(pk=self.key_of(object_id))


def _unread() -> Never:
    raise RuntimeError("A column is shown for which nothing was read.")


def page_of(model: type[Model]) -> PartsPage:
    """Return the page of a model that has one."""
    page = admin.site.get_model_admin(model)
    if not isinstance(page, PartsPage):
        raise TypeError(f"The page of {model.__name__} has another base class.")
    return page


def _names(model: type[Model]) -> set[str]:
    """Return the names of a model's columns and of the relations that lead to it, as a query has them."""
    fields = model._meta.get_fields(include_hidden=True)
    return {field.name for field in fields} | {getattr(field, "attname", field.name) for field in fields}


def _publication(tx: OpenChange) -> str:
    """Return a sentence on the publication of a change, or an empty string if it changed nothing for enforcers."""
    if tx.is_empty:
        return ""
    if tx.revision is not None:
        return f"Published as revision {tx.revision}."
    if OutboxEntry.objects.filter(revision=None, by=tx.actor.name).exists():
        return "Saved. The change will be published when the store is available."
    return ""
