"""Filters of lists that the theme lacks."""

from collections.abc import Iterator
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from controlplane.adminkit.forms import InstantInput


class InstantRangeFilter(admin.FieldListFilter):
    """
    A filter by the time of a row, from and to an instant in UTC.

    The theme's filter has four inputs, and warns in each of them if the browser has another time zone.
    """

    template = "admin/sluicegate/instant_range.html"

    def __init__(
        self, field: Any, request: HttpRequest, params: dict[str, Any], model: Any, model_admin: Any, field_path: str
    ) -> None:
        self.names = {"gte": f"{field_path}_from", "lte": f"{field_path}_to"}
        super().__init__(field, request, params, model, model_admin, field_path)
        self.title = "time (UTC)"
        # Values of an address are lists. An empty value is no filter.
        given = {name: values[-1] for name, values in self.used_parameters.items()}
        self.used_parameters = {name: value for name, value in given.items() if value}
        self.form = InstantRangeForm(self.names, self.used_parameters)

    def expected_parameters(self) -> list[str]:
        return list(self.names.values())

    def has_output(self) -> bool:
        return True

    def choices(self, changelist: Any) -> Iterator[dict[str, Any]]:
        yield {"form": self.form}

    def queryset(self, request: HttpRequest, rows: QuerySet) -> QuerySet:
        """Return the rows in the range. A value that is no instant gives none of them, and an error at the filter."""
        if not self.form.is_valid():
            return rows.none()
        chosen = {lookup: self.form.cleaned_data[name] for lookup, name in self.names.items()}
        return rows.filter(**{f"{self.field_path}__{lookup}": at for lookup, at in chosen.items() if at})


class InstantRangeForm(forms.Form):
    def __init__(self, names: dict[str, str], values: dict[str, str]) -> None:
        super().__init__(values)
        for label, name in zip(("From", "To"), names.values(), strict=True):
            self.fields[name] = forms.DateTimeField(label=label, required=False, widget=InstantInput)
