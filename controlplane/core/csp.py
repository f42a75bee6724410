"""The Content-Security-Policy of every page. A page loads only what this server sends."""

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
# The theme of the admin evaluates expressions in attributes, writes its colours into a style element, and shows pages
# of this server in frames.
ADMIN = {
    **STRICT,
    "script-src": "'self' 'unsafe-eval'",
    "style-src": "'self' 'unsafe-inline'",
    "frame-src": "'self'",
    "frame-ancestors": "'self'",
}
# Swagger UI inserts style elements.
API_DOCS = {**STRICT, "style-src": "'self' 'unsafe-inline'"}


def spelled(policy: dict[str, str]) -> str:
    """Return the content security policy as the value of its header."""
    return "; ".join(f"{name} {sources}" for name, sources in policy.items())


class ContentSecurityPolicy:
    """Add the policy to every response, unless the view has set one."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response
        self.by_path = {"/admin/": spelled(ADMIN), "/api/v1/docs/": spelled(API_DOCS), "/": spelled(STRICT)}

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        policy = next(policy for start, policy in self.by_path.items() if request.path_info.startswith(start))
        response.headers.setdefault(HEADER, policy)
        return response
