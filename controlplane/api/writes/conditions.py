"""The conditions of a request, which name versions of a row by entity tags."""

import re
from hashlib import sha256

from django.db.models import Model
from rest_framework.request import Request

from controlplane.api.problems import PreconditionFailed
from enforcement.model.documents import dumps

_ETAG = re.compile(r'(W/)?"([^"]*)"')


def etag(obj: Model) -> str:
    """Return the entity tag of a row, made from its version, or from a digest if the row counts no versions."""
    version = getattr(obj, "version", None) or sha256(dumps(obj.as_record()).encode()).hexdigest()[:16]
    return f'"{obj.pk}-{version}"'


def check_precondition(request: Request, obj: Model | None) -> None:
    """
    Raise PreconditionFailed if the row, or None for no row, is not what If-Match and If-None-Match of the request ask.

    Raises:
        PreconditionFailed: The row was changed after the client read it, or one of the two must not be there (RFC 9110,
            13.1.1 and 13.1.2). The response has the present tag.
    """
    headers, tag = request.headers, etag(obj) if obj else ""
    if "If-Match" in headers and not _names(headers["If-Match"], tag, weakly=False):
        raise PreconditionFailed(headers={"ETag": tag} if tag else {})
    if "If-None-Match" in headers and _names(headers["If-None-Match"], tag, weakly=True):
        raise PreconditionFailed(headers={"ETag": tag})


def _names(expected: str, tag: str, *, weakly: bool) -> bool:
    """Return whether a condition names a tag, which is empty for no row. A weak tag counts only if *weakly*."""
    if expected.strip() == "*":
        return bool(tag)
    return tag in {f'"{named}"' for weak, named in _ETAG.findall(expected) if weakly or not weak}
