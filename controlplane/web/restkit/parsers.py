"""Reading JSON strictly, and choosing JSON for the response."""

from collections.abc import Iterable, Mapping
from typing import IO, Any

from django.conf import settings
from rest_framework.exceptions import NotAcceptable, ParseError
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from controlplane.web.restkit.problems import MEDIA_TYPE, EncodedBody, TooLarge
from enforcement.model import strict_json


class StrictJSONParser(BaseParser):
    """
    A parser that refuses JSON on which readers disagree.

    That is a duplicate name, NaN, an infinity, NUL, or half a surrogate pair.
    """

    media_type = "application/json"

    def parse(self, stream: IO[bytes], media_type: str | None = None, parser_context: Any = None) -> Any:
        """
        Return the JSON value in a request's body, or raise TooLarge, EncodedBody or ParseError.

        The view's ``most_bytes`` says how long the body may be, if it is not as short as others.
        """
        context = parser_context or {}
        coding = context["request"].headers.get("Content-Encoding", "") if "request" in context else ""
        if coding.strip().lower() not in ("", "identity"):
            raise EncodedBody(coding)
        view = context.get("view")
        limit = getattr(view, "most_bytes", None) or settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        body = stream.read(limit + 1)
        if len(body) > limit:
            raise TooLarge(f"The body must have at most {limit} bytes.")
        try:
            value = strict_json.loads(body.decode(), fractions=True)
            strict_json.check_strings(value)
        except UnicodeDecodeError as exc:
            raise ParseError("The body cannot be read: must be in UTF-8.") from exc
        except ValueError as exc:
            raise ParseError(f"The body cannot be read: {exc}.") from exc
        return value


class MergePatchParser(StrictJSONParser):
    """The same for a change as RFC 7396 has it, in which null removes a member of an object."""

    media_type = "application/merge-patch+json"


def is_merge_patch(request: Request) -> bool:
    """Return whether the body of a request is a merge patch."""
    return request.content_type.partition(";")[0].strip().lower() == MergePatchParser.media_type


def merged(target: Any, patch: Any) -> Any:
    """Return a value after a merge patch, as a new value (RFC 7396, section 2)."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


class Negotiation(DefaultContentNegotiation):
    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        """Return the JSON renderer and its media type, also for a client that accepts only the media type of errors."""
        try:
            return super().select_renderer(request, renderers, format_suffix)
        except NotAcceptable:
            usual, *_ = renderers
            if MEDIA_TYPE in request.headers.get("Accept", ""):
                return usual, usual.media_type
            message = f"Accept must allow {usual.media_type}, or {MEDIA_TYPE} for errors."
            raise NotAcceptable(message) from None
