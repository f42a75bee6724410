"""Count the clients that a server of this process did not wait for any longer."""

from collections import Counter
from typing import Final

cut_off: Final[Counter[str]] = Counter()
"""Connections that were closed because a client sent nothing of a body, ``body``, or took no response, ``reading``."""
