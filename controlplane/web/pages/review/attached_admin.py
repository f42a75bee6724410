"""The review of another policy or of other labels of a token or project, between its form and its new state."""

from typing import Any

from django.forms import ModelForm
from django.http import HttpRequest
from django.utils import timezone

from controlplane.releases.review.attaching import row_review
from controlplane.web.kit.state import state_of
from controlplane.web.pages.review.views import ReviewedForm, settle


class ReviewedAttachment(ReviewedForm):
    """A mixin for the page of tokens or projects, which get another policy or other labels only after a review."""

    def save_related(self, request: HttpRequest, form: ModelForm, formsets: list[Any], change: bool) -> None:
        super().save_related(request, form, formsets, change)
        state = state_of(request)
        if state.before is not None and (review := row_review(form.instance, state.before, timezone.now())):
            settle(request, review, state.tx.reason)
