"""Errors as application/problem+json (RFC 9457), with a stable code and a JSON pointer for each field."""

import logging
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from django.core.exceptions import NON_FIELD_ERRORS, ObjectDoesNotExist, PermissionDenied
from django.core.exceptions import ValidationError as InvalidModel
from django.db import IntegrityError, OperationalError
from django.db.models import ProtectedError, RestrictedError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from rest_framework import exceptions, status
from rest_framework.response import Response
from rest_framework.settings import api_settings

from controlplane.core.logs import hide_secrets
from controlplane.core.requests import request_id
from controlplane.core.transactions import is_deadlock
from controlplane.web.restkit.problem_types import TYPES

logger = logging.getLogger(__name__)

# Below it is a page for each type. A constant, because this answers in applications with other addresses too.
PAGES = "/docs/problems/"
MEDIA_TYPE = "application/problem+json"
# The codes of problems that differ from the code of the exception.
CODES = {"invalid": "validation_error", "error": "server_error"}


class Problem(exceptions.APIException):
    """An error that is sent as a response, together with ``headers``, and with more ``members`` in its document."""

    members: Mapping[str, Any] = {}

    def __init__(self, detail: str = "", code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail or None, code or None)
        self.headers = dict(headers or {})


class Conflict(Problem):
    status_code = status.HTTP_409_CONFLICT
    default_detail = "Another request changed the same object at the same time. Read it again and repeat the request."
    default_code = "conflict"


class PreconditionFailed(Problem):
    status_code = status.HTTP_412_PRECONDITION_FAILED
    default_detail = "The object was changed after you read it. Read it again and repeat the request with the new ETag."
    default_code = "stale_version"


class HeaderNotSupported(Problem):
    """Raised for a header that would protect a change, if this address did what it says."""

    status_code = status.HTTP_400_BAD_REQUEST
    default_code = "header_not_supported"


class EncodedBody(Problem):
    """Raised for a body with a content coding, such as gzip."""

    status_code = status.HTTP_415_UNSUPPORTED_MEDIA_TYPE
    default_code = "unsupported_media_type"

    def __init__(self, coding: str) -> None:
        detail = f"The body must be sent as it is, without Content-Encoding: {coding}"
        super().__init__(detail, headers={"Accept-Encoding": "identity"})  # RFC 9110, 12.5.3


class IdempotencyKeyReused(Problem):
    status_code = status.HTTP_422_UNPROCESSABLE_ENTITY
    default_detail = "This Idempotency-Key was used for another request. Send a new key for a new request."
    default_code = "idempotency_key_reused"


class RequestRunning(Problem):
    """Raised if an earlier request with the same idempotency key has not ended."""

    status_code = status.HTTP_409_CONFLICT
    default_detail = "The first request with this Idempotency-Key has not ended. Repeat the request."
    default_code = "request_running"

    def __init__(self) -> None:
        super().__init__(headers={"Retry-After": "1"})


class TooLarge(Problem):
    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_code = "body_too_large"


class Unavailable(Problem):
    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_detail = "The database is unavailable. Nothing was changed. Try again."
    default_code = "database_unavailable"

    def __init__(self, detail: str = "", code: str = "") -> None:
        super().__init__(detail, code, {"Retry-After": "1"})


class StoreUnavailable(Unavailable):
    default_detail = "The store is unavailable. Nothing was changed. Try again."
    default_code = "store_unavailable"


class InvalidQuery(exceptions.ValidationError):
    """Raised for an unknown or wrong query parameter. Its errors name parameters in place of pointers."""


def handle(exc: Exception, context: Mapping[str, Any]) -> Response | None:
    """
    Return the response to a known exception of a view, or None for any other exception.

    Return None for an unexpected exception, which Django logs and passes to ``server_error``.
    """
    known = translated(exc)
    if known is None:
        return None
    response = Response(_document(context["request"], known), known.status_code, content_type=MEDIA_TYPE)
    for name, value in _headers(known).items():
        response[name] = value
    if isinstance(known, exceptions.UnsupportedMediaType) and context["request"].method == "PATCH":
        # RFC 5789, 2.2. What each view reads differs.
        response["Accept-Patch"] = ", ".join(parser.media_type for parser in context["view"].get_parsers())
    return response


def translated(exc: Exception) -> exceptions.APIException | None:
    """Return a known exception of a view as one of REST, or None."""
    match exc:
        case exceptions.APIException():
            return exc
        case Http404():
            return exceptions.NotFound()
        case PermissionDenied():
            return exceptions.PermissionDenied()
        case InvalidModel():
            return exceptions.ValidationError(model_errors(exc))
        case RestrictedError() | ProtectedError():
            users = exc.restricted_objects if isinstance(exc, RestrictedError) else exc.protected_objects
            return _in_use(list(users))
        case IntegrityError():
            return Conflict()
        case OperationalError() if is_deadlock(exc):
            return Conflict()
        case OperationalError():
            logger.warning("A request failed in the database: %s", exc)
            return Unavailable()
    return None


def model_errors(exc: InvalidModel) -> dict[str, list[exceptions.ErrorDetail]]:
    """Return the errors of a model's ``full_clean()`` in the form of a serializer's errors."""
    errors = exc.error_dict if hasattr(exc, "error_dict") else {NON_FIELD_ERRORS: exc.error_list}
    return {
        api_settings.NON_FIELD_ERRORS_KEY if name == NON_FIELD_ERRORS else name: [
            # A model's clean() and its constraint report the same error, so equal messages are kept once.
            exceptions.ErrorDetail(text, code=code)
            for text, code in {error.messages[0]: error.code or "rule" for error in found}.items()
        ]
        for name, found in errors.items()
    }


def _in_use(users: list[Any]) -> Conflict:
    """Return the problem of a row that others use, which names some of them."""
    shown = list(filter(None, map(_named, users[:5])))
    if not shown:
        return Conflict()
    more = f" and {len(users) - 5} more" if len(users) > 5 else ""
    return Conflict(f"The object is still used by {', '.join(shown)}{more}.", "in_use")


def _named(user: Any) -> str:
    """Return the kind and the name of a row, which is read only now, or "" if the row is deleted by now."""
    try:
        return f"{user._meta.verbose_name} {user}"
    except ObjectDoesNotExist:
        return ""


def _headers(exc: exceptions.APIException) -> dict[str, str]:
    headers = dict(getattr(exc, "headers", {}))
    if challenge := getattr(exc, "auth_header", None):
        headers["WWW-Authenticate"] = challenge
    return headers


def _document(request: Any, exc: exceptions.APIException) -> dict[str, Any]:
    invalid = isinstance(exc, exceptions.ValidationError)
    codes = "invalid" if invalid else exc.get_codes()
    code = codes if isinstance(codes, str) else exc.default_code
    detail = "The request is not valid." if invalid else str(exc.detail)
    document = {**problem(request, exc.status_code, CODES.get(code, code), detail), **getattr(exc, "members", {})}
    if invalid:
        place = "parameter" if isinstance(exc, InvalidQuery) else "pointer"
        document["errors"] = errors_of(exc.detail, place)
        document["detail"] = " ".join(["The request is not valid.", *(_sentence(e) for e in document["errors"][:3])])
    return document


def problem(request: Any, code_of_http: int, code: str, detail: str) -> dict[str, Any]:
    """Return the document of a problem as a new dictionary. Its type is the address of a page that explains it."""
    known = TYPES.get(code)
    return {
        "type": f"{PAGES}{code}" if known else "about:blank",
        "title": known.title if known else HTTPStatus(code_of_http).phrase,
        "status": code_of_http,
        "code": code,
        "detail": hide_secrets(detail),
        "instance": hide_secrets(request.path),
        "request_id": request_id(request),
    }


def errors_of(detail: Any, place: str = "pointer") -> list[dict[str, str]]:
    """Return the errors in the detail of a ValidationError as a problem lists them, each with its *place*."""
    return [_error(place, *found) for found in _walk(detail, ())]


def _walk(detail: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], exceptions.ErrorDetail]]:
    """Yield the path of each error, made of the names and positions that lead to it, and the error."""
    if isinstance(detail, Mapping):
        for name, found in detail.items():
            yield from _walk(found, path if name == api_settings.NON_FIELD_ERRORS_KEY else (*path, name))
    elif isinstance(detail, list):
        for position, found in enumerate(detail):
            yield from _walk(found, (*path, position) if isinstance(found, Mapping | list) else path)
    else:
        yield path, detail


def _error(place: str, path: tuple[str | int, ...], detail: exceptions.ErrorDetail) -> dict[str, str]:
    where = str(path[0]) if place == "parameter" and path else pointer(path)
    # The client may log this response, so it must not repeat a misplaced secret.
    return {place: hide_secrets(where), "code": detail.code or "invalid", "detail": hide_secrets(str(detail))}


def pointer(path: tuple[str | int, ...]) -> str:
    """Return a JSON pointer as a URI fragment (RFC 6901, section 6)."""
    return "".join(["#", *("/" + quote(str(step).replace("~", "~0").replace("/", "~1"), safe="~") for step in path)])


def _sentence(error: dict[str, str]) -> str:
    where = error["parameter"] if "parameter" in error else error["pointer"].removeprefix("#/")
    return f"{where}: {error['detail']}" if where != "#" else error["detail"]


def plain_problem(request: HttpRequest, code_of_http: int, code: str, detail: str) -> HttpResponse:
    """Return a new response with the document of a problem, for an error outside the views of REST."""
    document = problem(request, code_of_http, code, detail)
    headers = {"X-Request-Id": document["request_id"], "Cache-Control": "no-store"}
    return JsonResponse(document, status=code_of_http, content_type=MEDIA_TYPE, headers=headers)
