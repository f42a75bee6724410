"""The conditions of a request, which name versions of a row by entity tags."""

import re
from hashlib import sha256
from typing import Any, Protocol

from rest_framework.request import Request

from controlplane.web.restkit.problems import HeaderNotSupported, PreconditionFailed
from enforcement.model.strict_json import dumps

_ETAG = re.compile(r'(W/)?"([^"]*)"')
# No object has the tag of an asterisk, which stands for the one without quotes.
_TAG = r'(W/)?"([!#-)+-~][!#-~]*|\*[!#-~]+)?"'
TAGS = rf"^(\*|{_TAG}([ \t]*,[ \t]*{_TAG})*)$"
# The actions on a list, whose objects have no version yet.
_CREATING = ("create", "batch")
_NO_VERSION = "is not checked here, because there is no version that it could name."
_NO_TIMES = "is not checked, because objects have versions and no times of change. Send If-Match with an ETag."
_NO_TAGS = "must be * without quotes, or a list of ETags in quotes."
_NO_PARTS = "is not supported, because an object is replaced as a whole."

MISSING = "There is no such object, so it has no version that If-Match could name. Nothing was changed."
PRESENT = "The object is there, in a version that If-None-Match names. Nothing was changed."


def compares_versions(view: Any) -> bool:
    """Return whether an action of a view that changes something checks If-Match and If-None-Match."""
    return view.conditional and view.action not in _CREATING


def check_headers(request: Request, *, versioned: bool) -> None:
    """
    Raise HeaderNotSupported if a header of a change would protect it from something and is not checked.

    Args:
        versioned: Whether ``check_precondition`` will be asked.
    """
    for name, why in _unchecked(request.headers, versioned=versioned).items():
        if name in request.headers:
            raise HeaderNotSupported(f"The header {name} {why} Nothing was changed.")


def _unchecked(headers: Any, *, versioned: bool) -> dict[str, str]:
    """Return the headers that a change must not have, each with the reason."""
    if not versioned:
        tags = {"If-Match": _NO_VERSION, "If-None-Match": _NO_VERSION, "If-Unmodified-Since": _NO_VERSION}
    else:
        # With If-Match, the time must be ignored (RFC 9110, 13.1.4).
        tags = {} if "If-Match" in headers else {"If-Unmodified-Since": _NO_TIMES}
        # A wrong If-Match needs no such rule, because it lets nothing pass.
        if not re.fullmatch(TAGS, headers.get("If-None-Match", "*")):
            tags["If-None-Match"] = _NO_TAGS
    return {**tags, "Content-Range": _NO_PARTS}  # RFC 9110, 14.5


class Compared(Protocol):
    """A row, or what is shown as one, whose versions differ in ``as_compared()``."""

    pk: Any

    def as_compared(self) -> dict[str, Any]:
        """Return what its entity tag stands for."""


def etag(obj: Compared) -> str:
    """Return the entity tag of a row, made from its version, or from a digest if the row counts no versions."""
    version = getattr(obj, "version", None) or sha256(dumps(obj.as_compared()).encode()).hexdigest()[:16]
    return f'"{obj.pk}-{version}"'


def check_precondition(request: Request, obj: Compared | None) -> None:
    """
    Raise PreconditionFailed if the row, or None for no row, is not what If-Match and If-None-Match of the request ask.

    Raises:
        PreconditionFailed: The row was changed after the client read it, or one of the two must not be there (RFC 9110,
            13.1.1 and 13.1.2). The response has the present tag.
    """
    headers, tag = request.headers, etag(obj) if obj else ""
    if "If-Match" in headers and not _names(headers["If-Match"], tag, weakly=False):
        raise PreconditionFailed("" if tag else MISSING, headers={"ETag": tag} if tag else {})
    if "If-None-Match" in headers and _names(headers["If-None-Match"], tag, weakly=True):
        raise PreconditionFailed(PRESENT, headers={"ETag": tag})


def _names(expected: str, tag: str, *, weakly: bool) -> bool:
    """Return whether a condition names a tag, which is empty for no row. A weak tag counts only if *weakly*."""
    if expected.strip() == "*":
        return bool(tag)
    return tag in {f'"{named}"' for weak, named in _ETAG.findall(expected) if weakly or not weak}
