"""Filters of lists that the theme lacks."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Never

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.contrib.filters.forms import AutocompleteDropdownForm
from unfold.widgets import UnfoldAdminTextInputWidget

from controlplane.objects.projects.models import Token, TokenQuerySet
from controlplane.web.kit.forms import InstantInput
from controlplane.web.kit.page import page_of
from controlplane.web.kit.times import zone_name
from enforcement.model.matching import check_labels

# The parameters of an address, each with its values.
type Params = dict[str, list[str]]


class InstantRangeFilter(admin.FieldListFilter):
    """
    A filter by the time of a row, from and to an instant in the zone of the user.

    The theme's filter has four inputs, and warns in each of them if the browser has another time zone.
    """

    template = "admin/sluicegate/form_filter.html"

    def __init__(
        self, field: Any, request: HttpRequest, params: Params, model: Any, model_admin: Any, field_path: str
    ) -> None:
        self.names = {"gte": f"{field_path}_from", "lte": f"{field_path}_to"}
        # Values of an address are lists. An empty value is no filter.
        given = {name: params[name][-1] for name in self.names.values() if name in params}
        super().__init__(field, request, params, model, model_admin, field_path)
        self.title = f"time ({zone_name()})"
        self.form = InstantRangeForm(self.names, {name: value for name, value in given.items() if value})
        self.used_parameters = {**self.form.data}

    def expected_parameters(self) -> list[str | None]:
        return [*self.names.values()]

    def has_output(self) -> bool:
        return True

    def choices(self, changelist: object) -> Iterator[Never]:
        """Return no choices, because the template shows the form."""
        return iter(())

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


# The choices of EndsFilter, which links to a list name.
ENDING, ENDING_AND_USED = "soon", "soon-used"


class EndsFilter(admin.SimpleListFilter):
    """A filter by the end of a credential or an override. The page has the name of the column in ``ends_column``."""

    title = "end"
    parameter_name = "ends"
    WITHIN, USED = timedelta(days=7), timedelta(days=1)

    def __init__(self, request: HttpRequest, params: Params, model: Any, model_admin: Any) -> None:
        self.column = getattr(model_admin, "ends_column", "expires_at")
        self.has_use = any(field.name == "last_used_at" for field in model._meta.fields)
        super().__init__(request, params, model, model_admin)

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        used = [(ENDING_AND_USED, "within 7 days, used in the last 24 hours")] if self.has_use else []
        return [(ENDING, "within 7 days"), *used]

    def queryset(self, request: HttpRequest, rows: QuerySet) -> QuerySet:
        now = timezone.now()
        if self.value() not in (ENDING, ENDING_AND_USED):
            return rows
        rows = rows.filter(**{f"{self.column}__gt": now, f"{self.column}__lte": now + self.WITHIN})
        return rows.filter(last_used_at__gte=now - self.USED) if self.value() == ENDING_AND_USED else rows


class RowForm(AutocompleteDropdownForm):
    """The form of a filter by another row, which names only rows that the user may see."""

    def __init__(self, request: HttpRequest, name: str, *args: Any, **options: Any) -> None:
        super().__init__(request, name, *args, **options)
        rows = self.fields[name].queryset
        self.fields[name].queryset = page_of(rows.model).scope.narrow(rows.all(), request.user)


class RowFilter(AutocompleteSelectFilter):
    """A filter by another row, such as the project of a token. The theme's filter also names rows of others."""

    form_class = RowForm


class LabelFilter(admin.SimpleListFilter):
    """A filter by a label of the token, as a name and a value, or as a name for any value."""

    template = "admin/sluicegate/form_filter.html"
    title = "label of the token"
    parameter_name = "label"
    # The column that has the id of the token.
    column = "pk"

    def __init__(self, request: HttpRequest, params: Params, model: Any, model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        self.form = LabelForm({self.parameter_name: self.value() or ""})

    def lookups(self, request: HttpRequest, model_admin: Any) -> tuple[()]:
        return ()

    def has_output(self) -> bool:
        return True

    def choices(self, changelist: object) -> Iterator[Never]:
        """Return no choices, because the template shows the form."""
        return iter(())

    def queryset(self, request: HttpRequest, rows: QuerySet) -> QuerySet:
        """Return the rows of tokens with the label. What is no label gives none of them, and an error at the filter."""
        if not self.form.is_valid():
            return rows.none()
        if not (label := self.form.cleaned_data["label"]):
            return rows
        if isinstance(rows, TokenQuerySet):  # the database then reads their index of labels
            return rows.with_label(*label)
        return rows.filter(**{f"{self.column}__in": Token.objects.with_label(*label).values("pk")})


class LabelForm(forms.Form):
    label = forms.CharField(
        required=False,
        label="Such as team=red, or team for any value",
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "team=red"}),
    )

    def clean_label(self) -> tuple[str, str | None] | None:
        """Return the name of a label with its value or with None, or None if the field is empty."""
        text = self.cleaned_data["label"]
        try:
            return label_of(text) if text else None
        except ValueError as exc:
            raise ValidationError(f"Must be a label such as team=red: {exc}.") from exc


def label_of(text: str) -> tuple[str, str | None]:
    """
    Return the name and the value in a text such as "team=red", or the name and None for "team".

    Raises:
        ValueError: No token can have such a label.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    check_labels({name: value if equals else "any"})
    return name, value if equals else None
