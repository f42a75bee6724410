"""
The meaning of a failed call to the store.

An error reply, a timeout and a lost connection all become a :class:`StoreError`. It says whether the call may have
been executed, whether the whole store is unavailable, and whether a retry makes sense. Only this module decides that.
"""

from __future__ import annotations

import re
from typing import Final

from enforcement.store.late_replies import Late

SLOTS: Final = 16_384
"""Number of slots of every cluster."""
MAX_PORT: Final = 65_535

TAKEN_FOR_EXECUTED: Final = frozenset({"timeout", "protocol"})
"""Causes after which a call is treated as executed; see :attr:`StoreError.charges`."""
_RETRYABLE: Final = frozenset({"connection", "moved", "library", "readonly", "loading", "sentinel"})
"""Causes that may be gone at once: another connection, another server, or the function library solves them."""


class StoreError(Exception):
    """
    A call that got no usable reply.

    Attributes:
        cause: One word for logs and counters: ``timeout``, ``connection``, ``protocol``, ``reply`` ...
        detail: What else is known of it, for messages.
        executed: Whether the store may have executed the call. False: it certainly did not.
        away: Whether the whole store is unavailable. False: only this call failed.
        late: The reply, if it may still arrive. None: nobody waits for it.
        crowd: How many calls one piece of what this connection received has answered on average. What is lost with a
            piece counts as one failure, so it is as old as one of a single call only after so many times the calls.
    """

    def __init__(
        self,
        cause: str,
        detail: str = "",
        *,
        executed: bool = True,
        away: bool = True,
        late: Late | None = None,
        crowd: int = 1,
    ) -> None:
        super().__init__(f"{cause}: {detail}" if detail else cause)
        self.detail = detail
        self.cause = cause
        self.executed = executed
        self.away = away
        self.late = late
        self.crowd = crowd

    @property
    def charges(self) -> bool:
        """
        Whether the call is treated as executed until its late reply says otherwise.

        A store that is slow or frozen still has the call in its queue, and a garbled reply proves that the call was
        executed: nobody may charge the request again. A lost connection proves nothing, because the store may have
        died with the call.
        """
        return self.executed and self.cause in TAKEN_FOR_EXECUTED

    def beside(self) -> StoreError:
        """Return an error of the same cause for another call, which is no further evidence against the store."""
        return StoreError(self.cause, self.detail, executed=self.executed, away=False)

    @property
    def retryable(self) -> bool:
        """Whether to send the call once more, because it was not executed and its cause may already be gone."""
        return not self.executed and self.cause in _RETRYABLE


class LibraryMissing(StoreError):
    """The store does not have the function library. The caller should load it if its account may."""


_REDIRECTION: Final = re.compile(r"(MOVED|ASK) (?P<slot>\d{1,5}) (?P<host>\S*):(?P<port>\d{1,5})")


class Redirected(StoreError):
    """
    Another node of the cluster has the slot.

    Attributes:
        target: Host and port of that node. The host "" stands for the host that sent this reply.
        asking: Whether only this call must go there, preceded by ``ASKING``, because the slot is being moved.
    """

    def __init__(self, slot: int, target: tuple[str, int], *, asking: bool) -> None:
        super().__init__("moved", f"slot {slot} to {target[0]}:{target[1]}", executed=False)
        self.slot = slot
        self.target = target
        self.asking = asking


# First word of an error reply -> (cause, whether the store is unavailable). None of these calls was executed.
_REFUSALS: Final = {
    "MOVED": ("moved", True),
    "ASK": ("moved", True),
    "TRYAGAIN": ("moved", False),  # the slot is being moved, and the keys of this call are on both nodes
    "CLUSTERDOWN": ("cluster", True),
    "READONLY": ("readonly", True),
    # The server became a replica, and ended a blocking read, as that of the change log, for this.
    "UNBLOCKED": ("readonly", True),
    "LOADING": ("loading", True),
    "MASTERDOWN": ("masterdown", True),
    "BUSY": ("busy", True),
    "OOM": ("oom", True),
    "MISCONF": ("misconf", True),
    "NOREPLICAS": ("noreplicas", True),
    "NOPERM": ("auth", True),
    "NOAUTH": ("auth", True),
    "WRONGPASS": ("auth", True),
    "DENIED": ("auth", True),
    "CROSSSLOT": ("crossslot", False),
}
FULL: Final = "maxclients"
"""
Cause of a new connection that the store refuses because it has as many as it may have.

Older connections work, so it says nothing about calls on them.
"""
# Beginning of an error reply whose first word is ERR -> cause. None of these calls was executed either.
_ERRORS: Final = {
    "ERR max number of clients": FULL,
    "ERR unknown command": "unsupported",  # a server that is too old for functions, or a proxy that blocks them
    "ERR AUTH": "auth",
    "ERR invalid username-password": "auth",
}


def trouble(error: object) -> StoreError:
    """Return a new exception that stands for an error reply, without raising it."""
    text = str(error)
    if "function not found" in text.lower():
        return LibraryMissing("library", text, executed=False)
    word = text.split(" ", 1)[0]
    if (redirection := _redirection(text)) is not None:
        return redirection
    if word in _REFUSALS:
        cause, away = _REFUSALS[word]
        return StoreError(cause, text, executed=False, away=away)
    for beginning, cause in _ERRORS.items():
        if text.startswith(beginning):
            return StoreError(cause, text, executed=False)
    # An error raised inside the function begins with the function's name, and the function may have written before.
    for word in ("OOM", "NOPERM", "READONLY", "MISCONF"):
        if word in text or (word == "NOPERM" and "permission" in text.lower()):
            return StoreError(_REFUSALS[word][0], text)
    return StoreError("reply", text, away=False)


def _redirection(text: str) -> Redirected | None:
    """Return the redirection that an error reply contains, or None if it has none or names an impossible target."""
    matched = _REDIRECTION.fullmatch(text)
    if matched is None:
        return None
    slot, port = int(matched["slot"]), int(matched["port"])
    if slot >= SLOTS or not 1 <= port <= MAX_PORT:
        return None
    return Redirected(slot, (matched["host"], port), asking=matched[1] == "ASK")
