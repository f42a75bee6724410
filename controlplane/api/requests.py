"""The id of a request, and the header with the reason of a change."""

import re
import secrets
from typing import Any

REASON_HEADER = "Sluicegate-Reason"
MAX_REASON = 500
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)


def request_id(request: Any) -> str:
    """
    Return the id of a request, which is the value of X-Request-Id if that is valid, else a random one.

    It is the value of X-Request-Id if that is valid, else a random one. A request keeps its id.
    """
    request = getattr(request, "_request", request)  # the request of Django, if REST framework has wrapped it
    if not hasattr(request, "sluicegate_id"):
        sent = request.headers.get("X-Request-Id", "")
        request.sluicegate_id = sent if _ID.fullmatch(sent) else f"req_{secrets.token_hex(12)}"
    return request.sluicegate_id
