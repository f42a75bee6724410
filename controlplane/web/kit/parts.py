"""The parts of which pages of the admin are made, as values. No part knows the class of its page."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.contrib.admin import ModelAdmin, action
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.urls import URLPattern, path
from django.views.decorators.http import require_http_methods
from unfold.contrib.filters.admin import DropdownFilter
from unfold.decorators import display

ABOVE, BELOW = "above", "below"


def everybody(request: HttpRequest) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """
    A filter of a list by one of some choices.

    Attributes:
        name: The parameter of the address.
        choices: Each value with its text.
        narrow: Returns those of some rows that a value finds, which may be one that is no choice.
        usual: The value that is chosen unless another one is. If empty, all rows are shown.
    """

    name: str
    title: str
    choices: Sequence[tuple[str, str]]
    narrow: Callable[[Any, str, HttpRequest], QuerySet[Any]]
    usual: str = ""

    def as_class(self) -> type[DropdownFilter]:
        """Return the filter as Django takes it."""
        shown = {"part": self, "title": self.title, "parameter_name": self.name}
        return type(f"Filter_{self.name}", (_ChosenFilter,), shown | ({"all_option": None} if self.usual else {}))


class _ChosenFilter(DropdownFilter):
    part: Filter

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin) -> Sequence[tuple[str, str]]:
        return self.part.choices

    def value(self) -> str:
        return super().value() or self.part.usual

    def queryset(self, request: HttpRequest, rows: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return self.part.narrow(rows, value, request) if value else rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel[M: Model]:
    """
    A part of the page of a row, above or below its form.

    Attributes:
        name: The name under which the template has the answer.
        answer: Returns what the template shows of a row, or None if there is nothing to show. Without it, the panel is
            the same for every row, also for a new one.
        may: Returns whether the user sees the panel.
    """

    name: str
    template: str
    place: str = ABOVE
    answer: Callable[[HttpRequest, M], object] | None = None
    may: Callable[[HttpRequest], bool] = everybody


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPanel:
    """A part above a list. The template has the answer under its name."""

    name: str
    template: str
    answer: Callable[[HttpRequest], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column[M: Model, A]:
    """
    A column of a list, and a field of the page of a row, for which all rows that are shown are read at once.

    Attributes:
        title: The heading of the column, or the label of the field.
        read: Returns what the rows need. Columns with the same function share what it returns.
        show: Returns the text or HTML for a row, from the row and what was read.
        order: The column of the model by which the list is sorted, if it is.
    """

    name: str
    title: str
    read: Callable[[Sequence[M], HttpRequest], A]
    show: Callable[[M, A], str]
    order: str | None = None

    def cell(self, read: Callable[[], A]) -> Callable[[M], str]:
        """Return the column as Django takes it."""

        def cell(row: M) -> str:
            return self.show(row, read())

        return display(description=self.title, ordering=self.order)(cell)


class WithColumns:
    """A page as the templates of one response take it, whose columns have what was read for the rows shown."""

    def __init__(
        self, page: ModelAdmin, columns: Sequence[Column], rows: Sequence[Model], request: HttpRequest
    ) -> None:
        found = {read: read(rows, request) for read in dict.fromkeys(column.read for column in columns)}
        cells = {column.name: column.cell(partial(found.get, column.read)) for column in columns}
        self._page, self._cells = page, cells

    def __getattr__(self, name: str) -> object:
        return self._cells[name] if name in self._cells else getattr(self._page, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkAction:
    """
    An action on the rows of a list that are ticked, or on all of them.

    Attributes:
        kind: The kind of access to the rows that it needs.
        answer: Takes the page, the request and the query of the rows, and returns a page, or None for the list again.
    """

    name: str
    title: str
    answer: Callable[[Any, HttpRequest, QuerySet[Any]], HttpResponse | None]
    kind: str = "change"

    def as_function(self) -> Callable[[ModelAdmin, HttpRequest, QuerySet[Any]], HttpResponse | None]:
        """Return the action as Django takes it."""

        def act(page: ModelAdmin, request: HttpRequest, rows: QuerySet[Any]) -> HttpResponse | None:
            return self.answer(page, request, rows)

        act.__name__ = self.name
        return action(description=self.title, permissions=[self.kind])(act)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """
    An address of a page besides those of its list and its rows.

    Attributes:
        path: The address within that of the list, with converters.
        name: The name of the address behind the one of the model, such as "counters" for "projects_token_counters".
        answer: Returns the response, from the page, the request and what the address has.
        method: The only method that it answers, or an empty string for each.
    """

    path: str
    name: str
    answer: Callable[..., HttpResponseBase]
    method: str = ""


def shown[M: Model](panels: Sequence[Panel[M]], request: HttpRequest, row: M | None) -> dict[str, object]:
    """Return the context of the page of a row: the answer of each panel by its name, and their templates by place."""
    found = list(_answers(panels, request, row))
    templates = {place: [panel.template for panel, _ in found if panel.place == place] for place in (ABOVE, BELOW)}
    return {**{panel.name: answer for panel, answer in found}, **templates}


def _answers[M: Model](
    panels: Sequence[Panel[M]], request: HttpRequest, row: M | None
) -> Iterator[tuple[Panel[M], object]]:
    for panel in panels:
        if not panel.may(request) or (panel.answer is not None and row is None):
            continue
        answer = True if panel.answer is None or row is None else panel.answer(request, row)
        if answer is not None:
            yield panel, answer


def addresses(page: ModelAdmin, views: Sequence[View]) -> Iterator[URLPattern]:
    """Yield the addresses of the views of a page, which only users of the admin open."""
    for view in views:
        name = f"{page.opts.app_label}_{page.opts.model_name}_{view.name}"
        yield path(view.path, page.admin_site.admin_view(_bound(page, view)), name=name)


def _bound(page: ModelAdmin, view: View) -> Callable[..., HttpResponseBase]:
    def answer(request: HttpRequest, **given: str) -> HttpResponseBase:
        return view.answer(page, request, **given)

    return require_http_methods([view.method])(answer) if view.method else answer
