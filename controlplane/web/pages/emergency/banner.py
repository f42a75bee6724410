"""The banner on every page of the admin while every limit is a shadow, or while something cannot be read."""

from datetime import datetime
from typing import Any

from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import SimpleLazyObject

from controlplane.core.optional import unread
from controlplane.objects.emergency.models import BreakGlass
from controlplane.releases.publishing.models import OutboxEntry


def banner(request: HttpRequest) -> dict[str, Any]:
    """Return what is read when a template of the admin asks for it: ``broken_glass``, and ``unread`` in a sentence."""
    if not request.path_info.startswith("/admin/"):
        return {}
    return {"broken_glass": SimpleLazyObject(lambda: _broken(request)), "unread": SimpleLazyObject(unread)}


def _broken(request: HttpRequest) -> BreakGlass | None:
    return broken_glass(timezone.now()) if request.user.is_authenticated else None


def broken_glass(now: datetime) -> BreakGlass | None:
    """Return the glass that is broken, with ``is_pending`` set if enforcers cannot know of its last change, or None."""
    glass = BreakGlass.in_force(now)
    if glass is not None:
        glass.is_pending = OutboxEntry.objects.filter(revision=None, kind="emergency").exists()
    return glass
