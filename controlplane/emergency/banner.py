"""What every page of the admin says while every limit is a shadow."""

from typing import Any

from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import SimpleLazyObject

from controlplane.emergency.models import BreakGlass


def banner(request: HttpRequest) -> dict[str, Any]:
    """Return ``broken_glass``, which is read when a template of the admin asks for it, or nothing elsewhere."""
    if not request.path_info.startswith("/admin/"):
        return {}
    return {"broken_glass": SimpleLazyObject(lambda: _broken(request))}


def _broken(request: HttpRequest) -> BreakGlass | None:
    return BreakGlass.in_force(timezone.now()) if request.user.is_authenticated else None
