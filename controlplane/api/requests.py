"""What every request carries: its id, and the reason that a client gives for a change."""

import re
import secrets
from typing import Any

REASON_HEADER = "Sluicegate-Reason"
MAX_REASON = 500
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)


def request_id(request: Any) -> str:
    """Return the id that the client sent in X-Request-Id, if it is one, else one of our own; always the same."""
    request = getattr(request, "_request", request)  # of REST framework's wrapper, or Django's own
    if not hasattr(request, "sluicegate_id"):
        sent = request.headers.get("X-Request-Id", "")
        request.sluicegate_id = sent if _ID.fullmatch(sent) else f"req_{secrets.token_hex(12)}"
    return request.sluicegate_id
