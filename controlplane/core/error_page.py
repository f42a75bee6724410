"""The page for an error, which people read in a browser."""

from urllib.parse import urlsplit

from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string

from controlplane.core.requests import request_id


def error_page(request: HttpRequest, status: int, title: str, sentence: str) -> HttpResponse:
    """Return a page that says what is wrong and leads back. It reads neither the database nor the session."""
    context = {
        "status": status,
        "title": title,
        "sentence": sentence,
        "id": request_id(request),
        "back": page_before(request),
    }
    return HttpResponse(render_to_string("error.html", context), status=status, headers={"Cache-Control": "no-store"})


def page_before(request: HttpRequest) -> str:
    """Return the path of the page that led here, or an empty string if it is this one or of another site."""
    came_from = urlsplit(request.headers.get("Referer", ""))
    if came_from.netloc != request.META.get("HTTP_HOST") or came_from.path in ("", request.path):
        return ""
    if came_from.path.startswith("//"):
        return ""  # a browser would take it for the name of a host
    return came_from.path + (f"?{came_from.query}" if came_from.query else "")
