"""The banner on every page of the admin while every limit is a shadow, or while something cannot be read."""

from typing import Any

from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import SimpleLazyObject

from controlplane.core.optional import unread
from controlplane.objects.emergency.models import BreakGlass
from controlplane.operations.health.of_store import broken_glass


def banner(request: HttpRequest) -> dict[str, Any]:
    """Return what is read when a template of the admin asks for it: ``broken_glass``, and ``unread`` in a sentence."""
    if not request.path_info.startswith("/admin/"):
        return {}
    return {"broken_glass": SimpleLazyObject(lambda: _broken(request)), "unread": SimpleLazyObject(unread)}


def _broken(request: HttpRequest) -> BreakGlass | None:
    return broken_glass(timezone.now()) if request.user.is_authenticated else None
