"""The zone of the user, and times as every page of the admin writes them."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django import template
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.timesince import timesince

from controlplane.core.instants import exact

# admin.js sets it to the zone of the browser.
ZONE_COOKIE = "sluicegate_zone"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,31}(/[A-Za-z0-9_+-]{1,31}){0,2}", re.ASCII)

register = template.Library()


class UserZone:
    """Make the zone of the user's browser the present one, in which pages show times and forms read them."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if not request.path_info.startswith("/admin/"):
            return self.get_response(request)
        with timezone.override(zone_of(request.COOKIES.get(ZONE_COOKIE, ""))):
            return self.get_response(request)


def zone_of(name: str) -> ZoneInfo:
    """Return the zone of this name, or UTC if there is none."""
    try:
        return ZoneInfo(name if _NAME.fullmatch(name) else "UTC")
    except (ZoneInfoNotFoundError, OSError, ValueError):
        return ZoneInfo("UTC")


@register.simple_tag
def zone_name() -> str:
    """Return the name of the present zone, such as Europe/Berlin."""
    return timezone.get_current_timezone_name()


@register.simple_tag
def stacked(at: datetime, *, seconds: bool = False) -> str:
    """Return an instant for the column of a list, in the present zone, with UTC in a second line."""
    form = "%H:%M:%S" if seconds else "%H:%M"
    local, utc = timezone.localtime(at), at.astimezone(UTC)
    if local.utcoffset() == utc.utcoffset():
        return local.strftime(f"%Y-%m-%d {form} UTC")
    beside = utc.strftime(form if utc.date() == local.date() else f"%Y-%m-%d {form}")
    text = '<time datetime="{}" title="{}">{}<span class="sg-help sg-block">{} UTC</span></time>'
    return format_html(text, at.isoformat(), exact(at, seconds=True), local.strftime(f"%Y-%m-%d {form}"), beside)


@register.simple_tag
def at(value: datetime, precision: str = "minute") -> str:
    """Return an instant as every page writes it. *precision* is "minute" or "second"."""
    return format_html('<time datetime="{}">{}</time>', value.isoformat(), exact(value, seconds=precision == "second"))


@register.filter
def ago(value: datetime) -> str:
    """Return how long ago an instant was, in one unit."""
    return f"{timesince(value, depth=1)} ago"


@register.filter
def exactly(value: datetime) -> str:
    """Return an instant to the second as plain text, for an attribute."""
    return exact(value, seconds=True)
