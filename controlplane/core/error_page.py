"""The page for an error, which people read in a browser."""

from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string

from controlplane.core.requests import request_id


def error_page(request: HttpRequest, status: int, title: str, sentence: str) -> HttpResponse:
    """Return a page that says what is wrong and leads back. It reads neither the database nor the session."""
    context = {"status": status, "title": title, "sentence": sentence, "id": request_id(request)}
    return HttpResponse(render_to_string("error.html", context), status=status, headers={"Cache-Control": "no-store"})
