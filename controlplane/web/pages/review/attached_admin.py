"""The review of another policy or of other labels of a token or project, between its form and its new state."""

from django.http import HttpRequest
from django.utils import timezone

from controlplane.objects.projects.models import Project, Token
from controlplane.releases.review.attaching import row_review
from controlplane.web.kit.state import state_of
from controlplane.web.pages.review.views import settle


def settle_attachment(request: HttpRequest, row: Token | Project) -> None:
    """
    Do nothing if nobody feels the change of a saved token or project, or if its review is confirmed.

    Raises:
        ReviewNeeded: Nobody has confirmed it yet.
    """
    state = state_of(request)
    if state.before is not None and (review := row_review(row, state.before, timezone.now())):
        settle(request, review, state.tx.reason)
