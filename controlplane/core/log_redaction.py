"""Log lines without secrets, which an address or an error may contain."""

import re
from collections.abc import MutableMapping
from typing import Any

from enforcement.model.tokens import PREFIX_LENGTH, SECRET_HEADS

_SECRET = re.compile(rf"((?:{'|'.join(SECRET_HEADS)})[0-9A-Za-z]{{4}})[0-9A-Za-z]+")
assert all(len(head) + 4 == PREFIX_LENGTH for head in SECRET_HEADS)


def without_secrets(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return a log line in which every token and management key is cut to the beginning that people may see."""
    for name, value in event.items():
        if isinstance(value, str) and value.find("sg_") >= 0:
            event[name] = _SECRET.sub(r"\1…", value)
    return event
