"""The review of another policy or of other labels of a token or project, between its form and its new state."""

from collections.abc import Iterator, Mapping
from typing import Any

from django.forms import ModelForm
from django.http import HttpRequest
from django.utils import timezone

from controlplane.policies.models import Policy
from controlplane.projects.models import Project, Token
from controlplane.review.attaching import anonymous_review, attachment_review, together
from controlplane.review.labelling import labels_review
from controlplane.review.pages import ReviewedForm, settle
from controlplane.review.reviews import Review


class ReviewedAttachment(ReviewedForm):
    """A mixin for the page of tokens or projects, which get another policy or other labels only after a review."""

    def save_related(self, request: HttpRequest, form: ModelForm, formsets: list[Any], change: bool) -> None:
        super().save_related(request, form, formsets, change)
        if request.before is not None and (review := together(_reviews(form.instance, request.before))):
            settle(request, review, request.change.reason)


def _reviews(row: Token | Project, before: Mapping[str, Any]) -> Iterator[Review]:
    """Yield a review of each change of a saved row that enforcers notice."""
    fields = [name for name in ("policy", "anonymous_policy") if name in before]
    pairs = {name: (before[name], getattr(row, f"{name}_id")) for name in fields}
    policies = Policy.objects.in_bulk({pk for pair in pairs.values() for pk in pair if pk})
    for name, (former, chosen) in pairs.items():
        if former == chosen or (chosen and chosen not in policies):
            continue  # one that was deleted since the form was checked makes the commit fail, and the form says so
        review_of = attachment_review if name == "policy" else anonymous_review
        yield review_of(row, policies.get(former), policies.get(chosen))
    if isinstance(row, Token) and before.get("labels", {}) != row.labels:
        yield labels_review([(row, before.get("labels", {}), row.labels)], timezone.now())
