"""Reading JSON strictly, and choosing JSON for the response."""

import json
from collections.abc import Sequence
from typing import IO, Any, NoReturn

from django.conf import settings
from rest_framework.exceptions import NotAcceptable, ParseError
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from controlplane.api.problems import MEDIA_TYPE, TooLarge

MAX_DEPTH = 20


class StrictJSONParser(BaseParser):
    """
    A parser that refuses JSON on which readers disagree.

    That is a duplicate name, NaN, an infinity, NUL, or half a surrogate pair.
    """

    media_type = "application/json"

    def parse(self, stream: IO[bytes], media_type: str | None = None, parser_context: Any = None) -> Any:
        """Return the value in a request's body. Raises TooLarge or ParseError."""
        limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        body = stream.read(limit + 1)
        if len(body) > limit:
            raise TooLarge(f"The body must have at most {limit} bytes.")
        try:
            value = json.loads(body.decode(), object_pairs_hook=_pairs, parse_constant=_refuse, parse_float=_number)
        except (ValueError, RecursionError) as exc:
            raise ParseError(f"The body must be JSON: {exc}.") from exc
        _check(value, 1)
        return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _number(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large")
    return number


def _check(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ParseError(f"The body must be nested at most {MAX_DEPTH} levels deep.")
    if isinstance(value, str):
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in value):
            raise ParseError("A string in the body must not contain NUL or half a surrogate pair.")
    elif isinstance(value, dict):
        for name, item in value.items():
            _check(name, depth)
            _check(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)


class Negotiation(DefaultContentNegotiation):
    def select_renderer(
        self, request: Request, renderers: Sequence[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        """Return the JSON renderer also for a client that accepts only the media type of errors."""
        try:
            return super().select_renderer(request, renderers, format_suffix)
        except NotAcceptable:
            if MEDIA_TYPE in request.headers.get("Accept", ""):
                return renderers[0], renderers[0].media_type
            message = f"Accept must allow {renderers[0].media_type}, or {MEDIA_TYPE} for errors."
            raise NotAcceptable(message) from None
