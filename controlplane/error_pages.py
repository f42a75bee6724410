"""The responses to errors of Django itself: problems below /api/, and pages with a way back everywhere else."""

from django.http import HttpRequest, HttpResponse

from controlplane.api.problems import plain_problem
from controlplane.api.transport import API_ROOT
from controlplane.core.error_page import error_page

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
