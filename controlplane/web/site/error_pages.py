"""The responses to errors of Django itself: problems below /api/, and pages with a way back everywhere else."""

from collections.abc import Callable
from inspect import unwrap

from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse

from controlplane.core import optional
from controlplane.core.error_page import error_page
from controlplane.web.restkit.problems import plain_problem
from controlplane.web.restkit.transport import API_ROOT

# For each status: the code and the sentence of the problem, then the title and the sentence of the page.
ERRORS = {
    400: (
        ("bad_request", "The request was refused before it reached a view."),
        ("This request was refused", "Something in the address or in the form is not valid. Go back and try again."),
    ),
    403: (
        ("permission_denied", "You may not do this."),
        (
            "You do not have permission for this page",
            "Ask an administrator for the permission, or log in with another account.",
        ),
    ),
    404: (
        ("not_found", "There is nothing at this address."),
        ("There is no page at this address", "It may have been deleted, or the address is mistyped."),
    ),
    503: (
        ("source_unavailable", "What this address reads cannot be read now. Nothing was changed. Try again."),
        ("This cannot be read now", "Everything else works as usual. Try again, or look into the log."),
    ),
    500: (
        ("server_error", "An unexpected error occurred. Search the log for this request_id."),
        ("An unexpected error occurred", "The log has the details. Search it for the request id below."),
    ),
}


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _error(request, 400)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _error(request, 403)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _error(request, 404)


def server_error(request: HttpRequest) -> HttpResponse:
    return _error(request, 500)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Return the response to a form that was opened before the present session, or that another site has sent."""
    sentence = (
        "You logged in or out after you opened the form, or cookies are blocked. Nothing was saved. Go back in your "
        "browser, check what the form still holds, and save it again."
    )
    return error_page(request, 403, "This form is no longer valid", sentence)


def _error(request: HttpRequest, status: int) -> HttpResponse:
    problem, (title, sentence) = ERRORS[status]
    if request.path.startswith(API_ROOT):
        return plain_problem(request, status, *problem)
    return error_page(request, status, title, sentence)


# Exceptions that have a response of their own.
ANSWERED = (Http404, PermissionDenied, SuspiciousOperation, BadRequest)


class UnreadSources:
    """
    Answer with 503 if what a page shows, or what an address of REST reads, is an optional source that fails.

    A view names the source as ``optional_source``. It reads if it is asked by GET, or is ``read_only``. Another view
    notes in ``read_by`` a request that only reads such a source, as if a list is filtered by usage.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        optional.begin_page()
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        view = _view_of(request)
        reads = request.method in ("GET", "HEAD") or getattr(view, "read_only", False)
        named = getattr(view, "optional_source", "") if reads else ""
        source = next(iter(optional.read_by(request)), named)
        if not source or isinstance(exception, ANSWERED):
            return None
        optional.note(source, exception)
        return _error(request, 503)


def _view_of(request: HttpRequest) -> object:
    """Return the page of the admin, the class of a view of REST, or the function that answers a request."""
    found = request.resolver_match
    function = unwrap(found.func, stop=lambda one: hasattr(one, "cls") or hasattr(one, "__self__")) if found else None
    return getattr(function, "cls", None) or getattr(function, "__self__", function)
