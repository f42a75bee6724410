"""
Reset objects in a forked child process.

A child inherits its parent's connections and locks, but none of its threads. It must not use the connections, because
the parent still does, and a lock may be held by a thread that the child does not have.
"""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol


class Forkable(Protocol):
    """An object that a forked child process has to reset."""

    def after_fork(self) -> None:
        """Drop or replace what belongs to the parent process. Called in the child."""


_registered: Final[dict[weakref.ref[Forkable], None]] = {}
"""Weak references, in the order of registration: this must not keep alive what nobody uses."""


def register(thing: Forkable) -> None:
    """
    Register *thing*, whose ``after_fork()`` is then called in every forked child process, as long as it lives.

    The newest object is reset first. An object that starts a thread in the child, and uses other registered objects,
    has to be registered before it creates them: then they are ready when its thread starts.
    """
    _registered[weakref.ref(thing, _forget)] = None


def _forget(reference: weakref.ref[Forkable]) -> None:
    _registered.pop(reference, None)


def _after_fork() -> None:
    for reference in reversed(list(_registered)):
        thing = reference()
        if thing is not None:
            thing.after_fork()


os.register_at_fork(after_in_child=_after_fork)
