"""Announces what will be removed from REST: Deprecation (RFC 9745) and Sunset (RFC 8594) in the responses."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from django.utils.http import http_date

from controlplane.core.requests import PerRequest


@dataclass(frozen=True, slots=True)
class Deprecation:
    """
    The declaration that an action of a view, a field or a parameter will be removed.

    Attributes:
        since: From when on it should not be used any more.
        sunset: When it will be gone, or None if that is not decided. Not before *since*.
        link: The address of a page that says what to use instead.
    """

    since: datetime
    link: str
    sunset: datetime | None = None

    def __post_init__(self) -> None:
        if self.sunset is not None and self.sunset < self.since:
            raise ValueError("sunset: must not be before since")


# What a request uses that is deprecated.
noted: PerRequest[list[Deprecation]] = PerRequest(lambda request: [])


def headers_of(found: Iterable[Deprecation]) -> dict[str, str]:
    """Return the header fields that announce all of these, by the earliest dates, or an empty dictionary for none."""
    found = list(dict.fromkeys(found))
    if not found:
        return {}
    headers = {"Deprecation": f"@{int(min(one.since for one in found).timestamp())}"}
    if sunsets := [one.sunset for one in found if one.sunset is not None]:
        headers["Sunset"] = http_date(min(sunsets).timestamp())
    links = dict.fromkeys(one.link for one in found)
    headers["Link"] = ", ".join(f'<{link}>; rel="deprecation"; type="text/html"' for link in links)
    return headers
