"""What a page may load and run: only what this server sends, and in the admin also what its scripts evaluate."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

HEADER = "Content-Security-Policy"

STRICT = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "font-src": "'self'",
    "connect-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}
# The admin's theme evaluates the expressions in its attributes, writes its colours into a style element, and shows
# pages of its own in frames.
ADMIN = {
    **STRICT,
    "script-src": "'self' 'unsafe-eval'",
    "style-src": "'self' 'unsafe-inline'",
    "frame-src": "'self'",
    "frame-ancestors": "'self'",
}
# Swagger UI writes style elements.
API_DOCS = {**STRICT, "style-src": "'self' 'unsafe-inline'"}


def spelled(policy: dict[str, str]) -> str:
    return "; ".join(f"{name} {sources}" for name, sources in policy.items())


class ContentSecurityPolicy:
    """Give every response a policy; a view that set its own keeps it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response
        self.by_path = {"/admin/": spelled(ADMIN), "/api/v1/docs/": spelled(API_DOCS), "/": spelled(STRICT)}

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        policy = next(policy for start, policy in self.by_path.items() if request.path_info.startswith(start))
        response.headers.setdefault(HEADER, policy)
        return response
