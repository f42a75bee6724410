"""How far a response has come."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """
    The progress of a response.

    Its slot must be free before the client can know that the response is complete. Otherwise a client that sends one
    request after the other could be denied because of its own slot.
    """

    status: int | None = None
    _left: int | None = field(default=None)

    def begin(self, status: int, content_length: str | None) -> None:
        """Keep the status and the announced length of a response that begins."""
        self.status = status
        self._left = int(content_length) if content_length and content_length.isdecimal() else None

    def ends_with(self, size: int) -> bool:
        """Subtract *size* sent bytes from the announced length, and return whether the body is complete by it."""
        if self._left is None:
            return False
        self._left -= size
        return self._left <= 0 and size > 0
