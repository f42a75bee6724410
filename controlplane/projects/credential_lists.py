"""The filters, the search and the labels of the lists of tokens and management keys."""

from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html_join
from unfold.contrib.filters.admin import DropdownFilter
from unfold.decorators import display

from controlplane.adminkit.filters import label_of
from controlplane.adminkit.forms import LabelsField, RecordedForm
from controlplane.adminkit.site import badge
from controlplane.projects.models import Token


class StatusFilter(DropdownFilter):
    """A filter by status. It shows the active credentials unless another status is chosen."""

    title = "status"
    parameter_name = "status"
    all_option = None

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("active", "active"), ("revoked", "revoked"), ("expired", "expired"), ("all", "all")]

    def value(self) -> str:
        return super().value() or "active"

    def queryset(self, request: HttpRequest, rows: QuerySet) -> QuerySet:
        now = timezone.now()
        if self.value() == "active":
            return rows.live(now)
        if self.value() == "revoked":
            return rows.exclude(revoked_at=None)
        return rows.filter(revoked_at=None, expires_at__lte=now) if self.value() == "expired" else rows


class TokenForm(RecordedForm):
    labels = LabelsField(
        required=False,
        help_text="One label on each line, such as team = red. Limits count by label.team and match it, and lists "
        "filter by it. Clients cannot change labels.",
    )


class LabelledRows:
    """A mixin for the list of tokens, which shows their labels and finds them."""

    @display(description="Labels")
    def label_list(self, token: Token) -> str:
        return format_html_join(" ", "{}", ((badge(f"{name}={value}"),) for name, value in token.labels.items())) or "—"

    def get_search_results(self, request: HttpRequest, rows: QuerySet, term: str) -> tuple[QuerySet, bool]:
        """Return the matching rows, and whether they may contain duplicates. A word such as team=red is a label."""
        words = []
        for word in term.split():
            try:
                name, value = label_of(word)
            except ValueError:
                value = None
            if value is None:
                words.append(word)
            else:
                rows = rows.with_label(name, value)
        return super().get_search_results(request, rows, " ".join(words))
