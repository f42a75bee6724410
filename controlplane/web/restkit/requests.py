"""The headers of a change, which hold its reason and its idempotency key."""

import re
from hashlib import sha256
from typing import Any

from rest_framework.exceptions import ErrorDetail, ValidationError

from controlplane.core.text import unprintable
from controlplane.web.restkit.idempotency.models import MAX_NAME
from controlplane.web.restkit.parsers import is_merge_patch
from enforcement.model.strict_json import dumps

REASON_HEADER = "Sluicegate-Reason"
MAX_REASON = 500
KEY_HEADER = "Idempotency-Key"
# The draft of the IETF has a string in quotes, with backslashes before quotes and backslashes. Many clients send none.
_QUOTED = re.compile(r'"((?:[ !#-[\]-~]|\\["\\])*)"')
_PLAIN = re.compile(r"[!#-~]+")


def reason_of(request: Any, given: str = "") -> str:
    """
    Return the reason in the header of a request, or the one that its body has given, or "" if there is none.

    A WSGI server hands each byte of a header over as one character. Clients send UTF-8, and what is not UTF-8 is
    Latin-1, as HTTP had it before.

    Raises:
        ValidationError: The reason is too long, or has characters that are not printable, or is not that of the body.
            The audit keeps one.
    """
    sent = request.headers.get(REASON_HEADER, "")
    try:
        reason = sent.encode("latin-1").decode()
    except UnicodeError:
        reason = sent
    if len(reason) > MAX_REASON:
        rule = f"must have at most {MAX_REASON} characters, got {len(reason)}"
    elif found := unprintable(reason):
        rule = f"must have printable characters only, but contains {found}"
    elif reason and given and reason != given:
        rule = "must be left out, or have the reason of the body"
    else:
        return given or reason
    raise ValidationError([ErrorDetail(f"The header {REASON_HEADER} {rule}.", code="invalid_reason")])


def idempotency_key_of(request: Any) -> str:
    """
    Return the idempotency key in the header of a request, without its quotes, or "" if there is none.

    Raises:
        ValidationError: The key is empty, too long, or has characters that a header cannot carry unharmed.
    """
    sent = request.headers.get(KEY_HEADER)
    if sent is None:
        return ""
    quoted = _QUOTED.fullmatch(sent)
    name = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else sent
    if not name or not (quoted or _PLAIN.fullmatch(sent)):
        rule = 'must be a text of printable ASCII, in quotes if it has spaces, as in "8e03978e-40d5"'
    elif len(name) > MAX_NAME:
        rule = f"must have at most {MAX_NAME} characters, got {len(name)}"
    else:
        return name
    raise ValidationError([ErrorDetail(f"The header {KEY_HEADER} {rule}.", code="invalid_idempotency_key")])


def fingerprint(request: Any) -> str:
    """Return the SHA-256 of what a request asks, in hex. Equal JSON has one fingerprint, and a merge patch another."""
    asked = [request.method, request.get_full_path(), request.data, is_merge_patch(request)]
    return sha256(dumps(asked).encode()).hexdigest()
