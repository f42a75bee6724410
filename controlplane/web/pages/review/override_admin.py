"""The review of an override between its form, or the request to delete it, and its new state."""

from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from controlplane.core.tables.digests import digest_of
from controlplane.objects.overrides.models import Override
from controlplane.releases.review.overriding import deletion_review, override_review
from controlplane.releases.review.reviews import Review
from controlplane.web.kit.site import list_url
from controlplane.web.kit.state import reposted
from controlplane.web.pages.review.views import settle, without_decision

DELETING = {"post": "yes"}
# Overrides of which a review finds out what becomes of each.
MOST_READ = 500


def settle_raise(request: HttpRequest, former: Override | None, override: Override) -> None:
    """
    Do nothing if a saved override only lets more pass than before, because its page has said how much.

    Raises:
        ReviewNeeded: It takes something away, and nobody has confirmed that yet.
    """
    review = override_review(former, override, timezone.now())
    settle(request, review, override.reason, light=False, own_reason=override.reason)


def settle_selected(request: HttpRequest, overrides: QuerySet[Override], *, is_job: bool) -> None:
    """
    Do nothing if the deletion of the selected overrides is confirmed.

    Args:
        is_job: Whether they are so many that a job deletes them.
    Raises:
        ReviewNeeded: Nobody has confirmed it yet.
    """
    if "post" not in request.POST:  # the selection has changed since it was reviewed
        reposted(request, without_decision(request.POST))
    count = overrides.count()
    rows = overrides.order_by("pk").select_related("limit__policy", "token__project", "project")[:MOST_READ]
    if count:
        review = deletion_review(list(rows), timezone.now(), count - len(rows))
        settle_deletion(request, review, list_url(Override), selection=digest_of(overrides), is_job=is_job)


def settle_deletion(request: HttpRequest, review: Review, back: str, *, is_job: bool = False, **hidden: str) -> None:
    """
    Do nothing if a deletion is confirmed.

    Args:
        back: The address of the page that the review leads back to.
        hidden: Fields that the review posts, too.
    Raises:
        ReviewNeeded: Nobody has confirmed it yet.
    """
    verb = "Delete the overrides" if "selection" in hidden else "Delete the override"
    settle(
        request,
        review,
        request.POST.get("change_reason", ""),
        is_job=is_job,
        hidden={**DELETING, **hidden},
        no_form=True,
        back_url=back,
        back_text="Back",
        verb=verb,
        enforce_verb=verb,
    )


def with_holder(pk: str) -> Override | None:
    return Override.objects.select_related("limit__policy", "token__project", "project").filter(pk=pk).first()
