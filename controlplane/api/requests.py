"""The reason of a change, which a request names in a header."""

from typing import Any

from rest_framework.exceptions import ErrorDetail, ValidationError

from controlplane.core.text import unprintable

REASON_HEADER = "Sluicegate-Reason"
MAX_REASON = 500


def reason_of(request: Any) -> str:
    """
    Return the reason in the header of a request, or "" if there is none, or raise ValidationError.

    A WSGI server hands each byte of a header over as one character. Clients send UTF-8, and what is not UTF-8 is
    Latin-1, as HTTP had it before.

    Raises:
        ValidationError: The reason is too long, or has characters that are not printable.
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
    else:
        return reason
    raise ValidationError([ErrorDetail(f"The header {REASON_HEADER} {rule}.", code="invalid_reason")])
